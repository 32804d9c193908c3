"""One game as people see it, in colour and full size. The policy plays its own copy with its own frames.

With the same seed and actions it is the same game as the first one of ``make_envs``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from zmqrl.errors import UsageError
from zmqrl.learner.atari import ENTRY_POINT, bare_emulator, emulators, game_of, screen_size
from zmqrl.learner.dummy import DUMMY_ID
from zmqrl.learner.envs import find_env, reason_of
from zmqrl.learner.games import EnvConfig, game_seeds

EMULATOR_FRAMES_PER_S = 60.0

Screen = npt.NDArray[np.uint8]


class Picture(Protocol):
    """A game on a screen: uint8 (height, width, 3). ``frames_per_s`` is a comfortable speed to watch."""

    frames_per_s: float

    def reset(self, seed: int) -> Screen:
        """Start the game of ``seed``. Returns its first screen. Call it once: some games keep memory after a reset."""

    def step(self, action: int) -> tuple[list[Screen], float]:
        """Play ``action``. Returns the screens that show it and the true reward. Not after the end of the game."""

    def close(self) -> None:
        """End the game."""


def make_picture(env_id: str, config: EnvConfig) -> Picture:
    """The picture of one game. Raises UsageError when the environment cannot draw one."""
    if env_id == DUMMY_ID:
        raise UsageError(f"{DUMMY_ID} is not a game: there is nothing to record.")
    registered = find_env(env_id)
    if registered.entry_point == ENTRY_POINT:
        picture = _AtariPicture if config.min_frame_skip is None else _RandomSkipPicture
        return picture(game_of(registered, config), config)
    return _GymnasiumPicture(registered)


class _AtariPicture:
    """The screen of the emulator, the last two frames of a step max-pooled: many games draw every other frame."""

    def __init__(self, game: str, config: EnvConfig) -> None:
        self.frames_per_s = EMULATOR_FRAMES_PER_S / config.frame_skip
        height, width = screen_size(game)
        self._vector = emulators(
            game,
            config,
            num_envs=1,
            num_threads=1,
            autoreset_mode=AutoresetMode.NEXT_STEP,  # so that the last screen of a game is seen
            img_height=height,
            img_width=width,
            grayscale=False,
            stack_num=1,
        )

    def reset(self, seed: int) -> Screen:
        observations, _ = self._vector.reset(seed=game_seeds(seed, 1))
        return np.asarray(observations[0, 0])

    def step(self, action: int) -> tuple[list[Screen], float]:
        observations, rewards, *_ = self._vector.step(np.array([action]))
        return [np.asarray(observations[0, 0])], float(rewards[0])

    def close(self) -> None:
        self._vector.close()
        del self._vector.ale  # ends its thread


class _RandomSkipPicture:
    """Every frame of the emulator, because steps have different lengths."""

    def __init__(self, game: str, config: EnvConfig) -> None:
        assert config.min_frame_skip is not None
        self.frames_per_s = EMULATOR_FRAMES_PER_S
        self._skips = (config.min_frame_skip, config.frame_skip + 1)
        self._emulator = bare_emulator(game, config, obs_type="rgb", frameskip=1)

    def reset(self, seed: int) -> Screen:
        screen, _ = self._emulator.reset(seed=int(game_seeds(seed, 1)[0]))
        return np.asarray(screen)

    def step(self, action: int) -> tuple[list[Screen], float]:
        # The same draw from the same generator as that of an emulator that skips them itself.
        frames = int(self._emulator.np_random.integers(*self._skips))
        played = [self._emulator.step(action) for _ in range(frames)]
        return [np.asarray(screen) for screen, *_ in played], sum(float(reward) for _, reward, *_ in played)

    def close(self) -> None:
        self._emulator.close()


class _GymnasiumPicture:
    """The drawing of an environment."""

    def __init__(self, registered: gymnasium.envs.registration.EnvSpec) -> None:
        self._id = registered.id
        with self._drawing():
            self._env: gymnasium.Env[Any, Any] = gymnasium.make(registered, render_mode="rgb_array")
        assert isinstance(self._env.action_space, Discrete)
        self._first_action = self._env.action_space.start
        self.frames_per_s = float(self._env.metadata.get("render_fps") or 30)

    def reset(self, seed: int) -> Screen:
        with self._drawing():
            self._env.reset(seed=int(game_seeds(seed, 1)[0]))
            return self._screen()

    def step(self, action: int) -> tuple[list[Screen], float]:
        _, reward, *_ = self._env.step(action + self._first_action)
        return [self._screen()], float(reward)

    def close(self) -> None:
        self._env.close()

    def _screen(self) -> Screen:
        screen = self._env.render()
        if not isinstance(screen, np.ndarray):
            raise ValueError("it has no picture in render_mode rgb_array")
        return screen

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Turn the error of an environment that cannot draw, mostly a missing package, into one sentence."""
        try:
            yield
        except Exception as error:
            raise UsageError(f"{self._id} cannot be drawn: {reason_of(error)}.") from error
