"""Draws one game for people, in colour and full size. The policy plays another copy, and sees other frames.

With the same seed and actions, this game is the same as the first game of ``make_envs``.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.vector import AutoresetMode

from zmqrl.errors import UsageError, blaming
from zmqrl.learner.atari import ENTRY_POINT, bare_emulator, emulators, game_of, screen_size
from zmqrl.learner.dummy import DUMMY_ID
from zmqrl.learner.envs import find_env
from zmqrl.learner.games import EnvConfig, game_seeds
from zmqrl.learner.gymnasium_envs import CheckedEnv

EMULATOR_FRAMES_PER_S = 60.0
USUAL_FRAMES_PER_S, LEAST_FRAMES_PER_S, MOST_FRAMES_PER_S = 30.0, 0.1, 1000.0  # frame rates of environments
FULL = 255  # the highest level
JUST_ABOVE = 1.01  # floats up to 1 can exceed 1 slightly, for example after a resize
RGBA = 4  # channels

ScreenPixels = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Shown:
    """The result of a step: the ``screens`` that show it, its unclipped reward, and whether the game is over.

    ``observation`` (*shape) can be compared with that of the game that the policy plays. It is None for Atari games:
    the same seed and actions always give the same game.
    """

    screens: list[ScreenPixels]
    reward: float
    over: bool
    observation: np.ndarray | None = None


class Picture(Protocol):
    """A game on a screen: uint8 (height, width, 3). ``frames_per_s`` is a comfortable speed to watch."""

    frames_per_s: float

    def reset(self, seed: int) -> Shown:
        """Start the game of ``seed``. Call this only once: in some games, a reset does not clear all state."""

    def step(self, action: np.ndarray | int) -> Shown:
        """Play ``action``, as ``Policy.act`` returns it. Do not call this after the end of the game."""

    def close(self) -> None:
        """End the game."""


def make_picture(env_id: str, config: EnvConfig) -> Picture:
    """The picture of one game. Raises UsageError if the environment cannot draw."""
    if env_id == DUMMY_ID:
        raise UsageError(f"{DUMMY_ID} is not a game: there is nothing to record.")
    registered = find_env(env_id)
    if registered.entry_point == ENTRY_POINT:
        picture = _AtariPicture if config.min_frame_skip is None else _RandomSkipPicture
        return picture(game_of(registered, config), config)
    return _GymnasiumPicture(env_id, registered, config)


class _AtariPicture:
    """The emulator's screen. The last two frames are max-pooled: many games draw objects in every other frame."""

    def __init__(self, game: str, config: EnvConfig) -> None:
        self.frames_per_s = EMULATOR_FRAMES_PER_S / config.frame_skip
        height, width = screen_size(game)
        self._vector = emulators(
            game,
            config,
            num_envs=1,
            num_threads=1,
            autoreset_mode=AutoresetMode.NEXT_STEP,  # so that the last screen of a game is shown
            img_height=height,
            img_width=width,
            grayscale=False,
            stack_num=1,
        )

    def reset(self, seed: int) -> Shown:
        observations, _ = self._vector.reset(seed=game_seeds(seed, 1))
        return Shown([np.asarray(observations[0, 0])], 0.0, over=False)

    def step(self, action: np.ndarray | int) -> Shown:
        observations, rewards, terminated, truncated, _ = self._vector.step(np.array([action]))
        return Shown([np.asarray(observations[0, 0])], float(rewards[0]), over=bool(terminated[0] or truncated[0]))

    def close(self) -> None:
        self._vector.close()
        del self._vector.ale  # ends its thread


class _RandomSkipPicture:
    """Shows every frame of the emulator, because steps have different lengths."""

    def __init__(self, game: str, config: EnvConfig) -> None:
        assert config.min_frame_skip is not None
        self.frames_per_s = EMULATOR_FRAMES_PER_S
        self._skips = (config.min_frame_skip, config.frame_skip + 1)
        self._emulator = bare_emulator(game, config, obs_type="rgb", frameskip=1)

    def reset(self, seed: int) -> Shown:
        screen, _ = self._emulator.reset(seed=int(game_seeds(seed, 1)[0]))
        return Shown([np.asarray(screen)], 0.0, over=False)

    def step(self, action: np.ndarray | int) -> Shown:
        # The emulator's own frame skip would draw the same number from the same generator.
        frames = int(self._emulator.np_random.integers(*self._skips))
        played = [self._emulator.step(action) for _ in range(frames)]
        _, _, terminated, truncated, _ = played[-1]
        reward = sum(float(reward) for _, reward, *_ in played)
        return Shown([np.asarray(screen) for screen, *_ in played], reward, over=terminated or truncated)

    def close(self) -> None:
        self._emulator.close()


class _GymnasiumPicture:
    """The picture that a Gymnasium environment renders."""

    def __init__(self, env_id: str, registered: Registered, config: EnvConfig) -> None:
        self._blame = f"{env_id} cannot be drawn"
        self._played = CheckedEnv(env_id, registered, config, failed="cannot be drawn", render_mode="rgb_array")
        with blaming(self._blame):
            self.frames_per_s = float(self._played.env.metadata.get("render_fps") or USUAL_FRAMES_PER_S)
            if not LEAST_FRAMES_PER_S <= self.frames_per_s <= MOST_FRAMES_PER_S:
                least, most = LEAST_FRAMES_PER_S, MOST_FRAMES_PER_S
                raise ValueError(f"its render_fps is {self.frames_per_s:g}, not from {least:g} to {most:g}")
        self._drawn: list[np.ndarray] = []  # the first picture
        self._brightest = 0.0  # of the floats so far

    def reset(self, seed: int) -> Shown:
        observation = self._played.reset(int(game_seeds(seed, 1)[0]))
        return Shown([self._screen()], 0.0, over=False, observation=observation)

    def step(self, action: np.ndarray | int) -> Shown:
        observation, reward, terminated, truncated = self._played.step(action)
        return Shown([self._screen()], reward, over=terminated or truncated, observation=observation)

    def close(self) -> None:
        self._played.close()

    def _screen(self) -> ScreenPixels:
        with blaming(self._blame):
            drawn: Any = self._played.env.render()
            check_drawn(drawn)
            self._drawn = self._drawn or [drawn]
            (first,) = self._drawn
            if (drawn.shape, drawn.dtype.kind) != (first.shape, first.dtype.kind):
                raise ValueError(
                    f"render returned {drawn.dtype} {drawn.shape}, but {first.dtype} {first.shape} at first"
                )
            before, self._brightest = self._brightest, max(self._brightest, float(drawn.max()))
            if drawn.dtype.kind == "f" and 0 < before <= JUST_ABOVE < self._brightest:
                raise ValueError(
                    f"render returned levels up to {before:g} at first, and now {self._brightest:g}: "
                    f"use levels from 0 to 1, or from 0 to {FULL}"
                )
            return as_screen(drawn, self._brightest)


def check_drawn(drawn: Any) -> None:
    """Raise ValueError unless ``drawn`` is a picture: grey, RGB or RGBA, with levels up to 255, or up to 1 (floats)."""
    if not isinstance(drawn, np.ndarray):
        raise ValueError(f"render returned {type(drawn).__name__}, not an array, in render_mode rgb_array")
    is_picture = drawn.ndim in (2, 3) and drawn.shape[2:] in ((), (1,), (3,), (4,)) and drawn.size > 0
    if drawn.dtype.kind not in "buif" or not is_picture:
        raise ValueError(f"render returned {drawn.dtype} {drawn.shape}, not (height, width, 3)")
    lowest, highest = float(drawn.min()), float(drawn.max())
    if not 0 <= lowest <= highest <= FULL:  # true also if one of the two is NaN
        raise ValueError(f"render returned levels from {lowest:g} to {highest:g}, not from 0 to {FULL}")


def as_screen(drawn: np.ndarray, brightest: float) -> ScreenPixels:
    """The picture ``drawn`` in RGB, with a black background. ``brightest`` is the highest level of this game so far."""
    if drawn.dtype == np.uint8 and drawn.shape[2:] == (3,):
        return drawn
    full = 1 if drawn.dtype.kind == "b" or (drawn.dtype.kind == "f" and brightest <= JUST_ABOVE) else FULL
    levels = np.minimum(np.atleast_3d(drawn) * (FULL / full), FULL)
    if levels.shape[2] == RGBA:
        levels = levels[..., :3] * levels[..., 3:] / FULL
    return np.broadcast_to(levels, (*levels.shape[:2], 3)).round().astype(np.uint8)
