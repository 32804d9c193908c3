"""Makes a batch of games from their id, behind one small interface. Scores are the sums of unclipped rewards.

Atari games run in the vector environment of ``ale_py``, all other games in Gymnasium's. Both reset a game in the
step that ends it, so that the learner sees only steps that were played.
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

    An Atari id only chooses the game: ``ALE/Breakout-v5``, ``BreakoutNoFrameskip-v4`` and ``Breakout-v0`` are the same
    here. Frame skip, sticky actions and time limit come from ``config``. ``threads`` is the number of threads that
    emulate Atari games. Atari games with random frame skip and all other environments run in the calling thread.
    ``zmqrl/Dummy-v0`` is not a game: it returns frames in the shape of an Atari game at no cost.

    Raises UsageError like ``describe_env``.
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
    """Describe the observations and actions of ``env_id``, after loading one game.

    ``env_id`` can be ``module:id``, as in Gymnasium: ``module``, which registers ``id``, is imported first.

    Raises UsageError for invalid settings, an unknown id, an environment that does not start, and actions that are not
    discrete. Observations that cannot be flattened into a vector, such as graphs, are refused in the same way.
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
    except Exception as error:  # a constructor can raise anything, most often because a package is missing
        raise UsageError(f"{env_id} does not start: {reason_of(error)}.") from error
    if not isinstance(env.action_space, Discrete):
        raise UsageError(f"{env_id} has {_kind(env.action_space)} actions: only Discrete actions are supported.")
    if not env.observation_space.is_np_flattenable:
        raise UsageError(f"{env_id} has {_kind(env.observation_space)} observations, which cannot be flattened.")
    return EnvSpec(
        observation_shape=(flatdim(env.observation_space),),
        observation_dtype=np.dtype(np.float32),
        num_actions=int(env.action_space.n),
        flavour="played as registered, scores are sums of true rewards",
    )


class _GymnasiumEnvs:
    """Games of any Gymnasium environment with discrete actions, stepped one after another. Observations are vectors.

    ``FlattenObservation`` turns a discrete observation into a one-hot vector, and flattens all others.
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
        # The annotation allows only one int, but every vector environment accepts a list. With one int, games of
        # different workers would get the same seeds.
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
    """The registration of ``env_id``. Raises UsageError that suggests similar ids."""
    module, _, name = env_id.rpartition(":")
    if module:
        with blaming(f"cannot import {module}, which should register {name}"):
            importlib.import_module(module)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        close = _closest(name, gymnasium.registry)
        hint = f"did you mean {' or '.join(close)}?" if close else "names of Atari games look like ALE/Breakout-v5."
        raise UsageError(f"there is no environment {env_id!r}: {hint}") from error


def reason_of(error: Exception) -> str:
    """The first line of the message of ``error``, or its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three ``known`` ids with the most similar names. Only the newest version of a name counts."""
    newest = {_stem(env_id): env_id for env_id in known}
    stem = _stem(name)
    return [newest[stem]] if stem in newest else [newest[close] for close in difflib.get_close_matches(stem, newest)]


def _stem(env_id: str) -> str:
    """The bare name of a game: ``breakout`` for ``ALE/Breakout-v5`` and for ``BreakoutNoFrameskip-v4``."""
    return re.sub(r"^ale/|(noframeskip)?(-v\d+)?$", "", env_id.lower())
