"""Games by their id, a batch of them behind one small interface, with true scores and exact ends.

Atari games run in ``ale_py``'s vector environment, everything else in Gymnasium's. Both are asked to reset a finished
game in the step that finishes it, so that every step the learner sees is one that was played.
"""

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation

from zmqrl.errors import UsageError, blaming
from zmqrl.learner.atari import AtariEnvs, RandomSkipEnvs, atari_actions
from zmqrl.learner.dummy import DUMMY_ID, DummyEnvs, describe_dummy
from zmqrl.learner.games import EnvConfig, Envs, EnvSpec, Game, Scores, Step, game_seeds

__all__ = ["EnvConfig", "EnvSpec", "Envs", "Game", "Step", "describe_env", "make_envs"]

ATARI_ENTRY_POINT = "ale_py.env:AtariEnv"

gymnasium.register_envs(ale_py)


def make_envs(env_id: str, config: EnvConfig, *, threads: int) -> Envs:
    """Make ``config.num_envs`` games of ``env_id``.

    Of an Atari id only the game counts: ``ALE/Breakout-v5``, ``BreakoutNoFrameskip-v4`` and ``Breakout-v0`` are the
    same here, and frame skip, sticky actions and time limit are those of ``config``, whatever the id stands for
    elsewhere. ``threads`` emulate Atari games; those of random frame skip, and other environments, are played by the
    calling thread. ``zmqrl/Dummy-v0`` is no game: it shows frames of an Atari game's shape at no cost.

    Raises UsageError as ``describe_env`` does.
    """
    spec = describe_env(env_id, config)
    if env_id == DUMMY_ID:
        return DummyEnvs(spec, config)
    registered = find_env(env_id)
    if registered.entry_point == ATARI_ENTRY_POINT:
        if config.min_frame_skip is not None:
            return RandomSkipEnvs(registered.kwargs["game"], spec, config)
        return AtariEnvs(registered.kwargs["game"], spec, config, threads=threads)
    return _GymnasiumEnvs(registered, spec, config.num_envs)


def describe_env(env_id: str, config: EnvConfig) -> EnvSpec:
    """Say what the games of ``env_id`` show and take, at the cost of loading one game for a moment.

    ``env_id`` may be ``module:id``, as in Gymnasium: the module that registers it is imported first.

    Raises UsageError for settings that cannot be, an unknown id, an environment that does not start, actions that are
    not discrete, and observations that make no vector, such as graphs and texts of any length.
    """
    config.check()
    if env_id == DUMMY_ID:
        return describe_dummy(config)
    registered = find_env(env_id)
    if registered.entry_point == ATARI_ENTRY_POINT:
        return EnvSpec(
            observation_shape=config.atari_shape,
            observation_dtype=np.dtype(np.uint8),
            num_actions=atari_actions(registered.kwargs["game"]),
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
        self._scores = Scores(self.num_envs)
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


def _kind(space: gymnasium.Space[Any]) -> str:
    shape = f" {space.shape}" if isinstance(space, Box) else ""
    return f"{type(space).__name__}{shape}"


def find_env(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registration of ``env_id``. Raises UsageError with the ids that come closest."""
    module, _, name = env_id.rpartition(":")
    if module:
        with blaming(f"cannot import {module}, which should register {name}"):
            importlib.import_module(module)
    try:
        return gymnasium.spec(name)
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
