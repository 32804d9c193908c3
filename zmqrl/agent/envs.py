"""Games: a batch of them behind one small interface, with true scores and exact ends.

Atari games run in ``ale_py``'s vector environment, everything else in Gymnasium's. Both are asked to reset a finished
game in the step that finishes it, so that every step the learner sees is one that was played.
"""

import difflib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation

from zmqrl.errors import UsageError

ATARI_ENTRY_POINT = "ale_py.env:AtariEnv"

gymnasium.register_envs(ale_py)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """The games of one worker. All but ``num_envs`` concerns Atari games only; others are played as registered."""

    num_envs: int = 32
    """Games per worker."""
    frame_skip: int = 4
    """Emulator frames per agent step; the last two are max-pooled."""
    frame_stack: int = 4
    """Frames in one observation."""
    screen_size: int = 84
    """Height and width of a frame, in pixels."""
    sticky_actions: float = 0.0
    """Probability that the emulator repeats the last action, per frame."""
    noop_max: int = 30
    """A game starts after a random number of frames below this, without actions; FIRE counts as one of them."""
    life_loss: bool = True
    """A lost life ends the return, and the game plays on."""
    fire_reset: bool = True
    """Press FIRE when a game starts, where there is such an action; not after a lost life."""
    clip_rewards: bool = True
    """Learn from rewards clipped to [-1, 1]. Scores are never clipped."""
    max_frames: int = 108_000
    """Emulator frames after which a game is cut off."""

    def flavour(self) -> str:
        """One line to print with each score of an Atari game: what the score depends on besides the agent."""
        return ", ".join(
            [
                f"sticky {self.sticky_actions:g}",
                "life loss ends returns" if self.life_loss else "lives ignored",
                f"no-ops {self.noop_max}",
                "fire at the start" if self.fire_reset else "no fire at the start",
                f"skip {self.frame_skip}",
                f"stack {self.frame_stack}",
                f"grey {self.screen_size}x{self.screen_size}",
                f"at most {self.max_frames} frames",
                f"{'rewards clipped for learning' if self.clip_rewards else 'rewards unclipped'}",
                "scores unclipped",
            ]
        )

    def check(self) -> None:
        """Raise UsageError for the first setting that cannot be."""
        rules = [
            (self.num_envs >= 1, f"--envs.num-envs {self.num_envs}: at least 1 game is needed."),
            (self.frame_skip >= 1, f"--envs.frame-skip {self.frame_skip}: must be at least 1."),
            (self.frame_stack >= 1, f"--envs.frame-stack {self.frame_stack}: must be at least 1."),
            (self.screen_size >= 1, f"--envs.screen-size {self.screen_size}: must be at least 1."),
            (
                0 <= self.sticky_actions < 1,
                f"--envs.sticky-actions {self.sticky_actions}: must be from 0 to below 1, such as 0.25.",
            ),
            (self.noop_max >= 0, f"--envs.noop-max {self.noop_max}: cannot be negative."),
            (self.max_frames >= 1, f"--envs.max-frames {self.max_frames}: must be at least 1."),
        ]
        for holds, sentence in rules:
            if not holds:
                raise UsageError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """What a network needs to know of one game, and ``flavour``: a line to print with its scores."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[np.generic]
    num_actions: int
    flavour: str


@dataclass(frozen=True, slots=True)
class Game:
    """A whole game: ``score`` is the sum of its true rewards over all lives; ``agent_steps`` its length."""

    score: float
    agent_steps: int


@dataclass(slots=True)
class Step:
    """What one agent step of B games gave.

    ``observations``: (B, *shape), what to act on next, of the new game where one finished. ``rewards``: float32 (B,),
    to learn from, clipped where ``EnvConfig`` says so. ``terminated``: bool (B,), the return ends here: do not
    bootstrap. ``truncated``: bool (B,), cut off by a time limit and never together with ``terminated``: bootstrap from
    ``final_observations``, which maps the index of each truncated game to its last observation (*shape). ``games``:
    whole games that finished in this step.
    """

    observations: np.ndarray
    rewards: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_observations: dict[int, np.ndarray]
    games: list[Game]


class Envs(Protocol):
    """B games, played in step."""

    num_envs: int
    num_actions: int
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[np.generic]

    def reset(self, seed: int) -> np.ndarray:
        """Start B new games and return their observations (B, *shape).

        ``seed`` >= 0 and a game's index decide all that is random in it, and in the games that follow it there.
        """

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """Play ``actions`` int64 (B,). What is returned stays valid after the next step."""

    def close(self) -> None:
        """End the games and their threads."""


def make_envs(env_id: str, config: EnvConfig, *, threads: int) -> Envs:
    """Make ``config.num_envs`` games of ``env_id``.

    Of an Atari id only the game counts: ``ALE/Breakout-v5``, ``BreakoutNoFrameskip-v4`` and ``Breakout-v0`` are the
    same here, and frame skip, sticky actions and time limit are those of ``config``, whatever the id stands for
    elsewhere. ``threads`` emulate Atari games; others are played by the calling thread.

    Raises UsageError as ``describe_env`` does.
    """
    spec = describe_env(env_id, config)
    registered = find_env(env_id)
    if registered.entry_point == ATARI_ENTRY_POINT:
        return _AtariEnvs(registered.kwargs["game"], spec, config, threads=threads)
    return _GymnasiumEnvs(registered, spec, config.num_envs)


def describe_env(env_id: str, config: EnvConfig) -> EnvSpec:
    """Say what the games of ``env_id`` show and take, at the cost of loading one game for a moment.

    ``env_id`` may be ``module:id``, as in Gymnasium: the module that registers it is imported first.

    Raises UsageError for settings that cannot be, an unknown id, an environment that does not start, actions that are
    not discrete, and observations that make no vector, such as graphs and texts of any length.
    """
    config.check()
    registered = find_env(env_id)
    if registered.entry_point == ATARI_ENTRY_POINT:
        return EnvSpec(
            observation_shape=(config.frame_stack, config.screen_size, config.screen_size),
            observation_dtype=np.dtype(np.uint8),
            num_actions=_atari_actions(registered.kwargs["game"]),
            flavour=config.flavour(),
        )
    try:
        env = gymnasium.make(registered)
        env.close()
    except Exception as error:  # whatever its constructor raises, mostly a package that is not installed
        raise UsageError(f"{env_id} does not start: {reason_of(error)}.") from error
    if not isinstance(env.action_space, Discrete):
        raise UsageError(f"{env_id} takes {_kind(env.action_space)} actions, but only Discrete ones can be learned.")
    if not env.observation_space.is_np_flattenable:
        raise UsageError(f"{env_id} shows {_kind(env.observation_space)} observations, which make no vector.")
    return EnvSpec(
        observation_shape=(flatdim(env.observation_space),),
        observation_dtype=np.dtype(np.float32),
        num_actions=int(env.action_space.n),
        flavour="played as registered, scores are sums of true rewards",
    )


class _AtariEnvs:
    """Games of one ROM in ``ale_py``'s threads."""

    def __init__(self, game: str, spec: EnvSpec, config: EnvConfig, *, threads: int) -> None:
        self.num_envs = config.num_envs
        self.num_actions = spec.num_actions
        self.observation_shape = spec.observation_shape
        self.observation_dtype = spec.observation_dtype
        self._life_loss = config.life_loss
        self._clip_rewards = config.clip_rewards
        self._vector = AtariVectorEnv(
            game,
            config.num_envs,
            num_threads=threads,
            max_num_frames_per_episode=config.max_frames,
            repeat_action_probability=config.sticky_actions,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=config.screen_size,
            img_width=config.screen_size,
            stack_num=config.frame_stack,
            frameskip=config.frame_skip,
            noop_max=config.noop_max,
            life_loss_info=config.life_loss,
            reward_clipping=False,
            use_fire_reset=config.fire_reset,
        )

    def reset(self, seed: int) -> np.ndarray:
        observations, info = self._vector.reset(seed=game_seeds(seed, self.num_envs))
        self._scores = _Scores(self.num_envs)
        self._lives = info["lives"]
        self._first_frames = info["frame_number"] - info["episode_frame_number"]
        return np.asarray(observations)

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        # An unknown action raises in the emulator's thread, which then hands in no result: the step would never return.
        assert actions.min() >= 0
        assert actions.max() < self.num_actions
        observations, rewards, terminated, truncated, info = self._vector.step(actions)
        # The emulator's frame number at which the game began moves on with every reset and with nothing else. Lives
        # do not show a reset: a life lost at the time limit reads as one more life lost, Pong has none, and Amidar
        # ends at 8 and starts at 0.
        first_frames = info["frame_number"] - info["episode_frame_number"]
        over = first_frames != self._first_frames
        self._first_frames = first_frames
        if self._life_loss:
            # Some games play the last life with a count of 0; ale_py does not signal the loss that leads there.
            terminated = terminated | ((info["lives"] < self._lives) & ~over)
        self._lives = info["lives"]
        learned_from = rewards.clip(-1, 1) if self._clip_rewards else rewards
        return Step(
            observations=observations,
            rewards=learned_from.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            final_observations={int(i): info["final_obs"][i] for i in np.flatnonzero(truncated)},
            games=self._scores.add(rewards, over),
        )

    def close(self) -> None:
        self._vector.close()
        del self._vector.ale  # ends its threads


class _GymnasiumEnvs:
    """Games of any Gymnasium environment with discrete actions, played one after the other; all they show is a vector.

    ``FlattenObservation`` makes a one-hot vector of a discrete observation and one row of everything else.
    """

    def __init__(self, registered: gymnasium.envs.registration.EnvSpec, spec: EnvSpec, num_envs: int) -> None:
        self.num_envs = num_envs
        self.num_actions = spec.num_actions
        self.observation_shape = spec.observation_shape
        self.observation_dtype = spec.observation_dtype
        self._vector = gymnasium.make_vec(
            registered,
            num_envs,
            vectorization_mode="sync",
            wrappers=[FlattenObservation],
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
        assert isinstance(self._vector.single_action_space, Discrete)
        self._first_action = self._vector.single_action_space.start

    def reset(self, seed: int) -> np.ndarray:
        # The interface allows one int only, but every vector environment takes a list; one int would seed the games
        # of different workers alike.
        seeds: object = game_seeds(seed, self.num_envs).tolist()
        observations, _ = self._vector.reset(seed=seeds)  # type: ignore[arg-type]
        self._scores = _Scores(self.num_envs)
        return np.asarray(observations, np.float32)

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        observations, rewards, terminated, truncated, info = self._vector.step(actions + self._first_action)
        cut_off = truncated & ~terminated
        return Step(
            observations=np.asarray(observations, np.float32),
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=cut_off,
            final_observations={int(i): np.asarray(info["final_obs"][i], np.float32) for i in np.flatnonzero(cut_off)},
            games=self._scores.add(rewards, terminated | truncated),
        )

    def close(self) -> None:
        self._vector.close()


class _Scores:
    """Scores and lengths of the B games under way."""

    def __init__(self, num_envs: int) -> None:
        self._scores = np.zeros(num_envs)
        self._agent_steps = np.zeros(num_envs, np.int64)

    def add(self, rewards: np.ndarray, over: npt.NDArray[np.bool_]) -> list[Game]:
        """Add the ``rewards`` (B,) of one step; return the games that are ``over`` bool (B,) and start them anew."""
        self._scores += rewards
        self._agent_steps += 1
        games = [Game(float(self._scores[i]), int(self._agent_steps[i])) for i in np.flatnonzero(over)]
        self._scores[over] = 0
        self._agent_steps[over] = 0
        return games


def game_seeds(seed: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Seeds (num_envs,) from 0 to 2^31 - 1, unlike those of any other ``seed``, its neighbours included."""
    return (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).astype(np.int64)


@cache  # loading a game takes 90 ms
def _atari_actions(game: str) -> int:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    rom = roms.get_rom_path(game)
    assert rom is not None
    ale.loadROM(rom)
    return len(ale.getMinimalActionSet())


def _kind(space: gymnasium.Space[Any]) -> str:
    shape = f" {space.shape}" if isinstance(space, Box) else ""
    return f"{type(space).__name__}{shape}"


def find_env(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registration of ``env_id``. Raises UsageError with the ids that come closest."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except ImportError as error:
        raise UsageError(f"cannot import {module}, which should register {name}: {error}.") from error
    except gymnasium.error.Error as error:
        close = _closest(name, gymnasium.registry)
        hint = f"did you mean {' or '.join(close)}?" if close else "Atari games are named like ALE/Breakout-v5."
        raise UsageError(f"there is no environment {env_id!r}: {hint}") from error


def reason_of(error: Exception) -> str:
    """What an environment's own error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the ``known`` ids whose games are named most like ``name``, the newest version of each."""
    newest = {_stem(env_id): env_id for env_id in known}
    stem = _stem(name)
    return [newest[stem]] if stem in newest else [newest[close] for close in difflib.get_close_matches(stem, newest)]


def _stem(env_id: str) -> str:
    """The bare name of a game: ``breakout`` of ``ALE/Breakout-v5`` and of ``BreakoutNoFrameskip-v4``."""
    return re.sub(r"^ale/|(noframeskip)?(-v\d+)?$", "", env_id.lower())
