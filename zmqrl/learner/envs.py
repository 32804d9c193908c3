"""Makes a batch of games from their id, behind one small interface. Scores are the sums of unclipped rewards.

A game is reset in the step that ends it, so that every step that the learner sees was played.
"""

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence

import gymnasium

from zmqrl.errors import UsageError, blaming, closing
from zmqrl.learner.atari import ENTRY_POINT, AtariEnvs, RandomSkipEnvs, atari_actions, game_of
from zmqrl.learner.dummy import DUMMY_ID, DummyEnvs, describe_dummy
from zmqrl.learner.games import DiscreteActions, EnvConfig, Envs, EnvSpec, Game, Step
from zmqrl.learner.gymnasium_envs import CheckedEnv, GymnasiumEnvs
from zmqrl.local.extras import lack
from zmqrl.words import counted

__all__ = ["EnvConfig", "EnvSpec", "Envs", "Game", "Step", "describe_env", "make_envs", "repeats_games", "try_env"]

IDS_SHOWN = 6


def make_envs(env_id: str, config: EnvConfig, *, threads: int) -> Envs:
    """Make ``config.num_envs`` games of ``env_id``. Raises UsageError like ``describe_env``.

    An Atari id of ``ale_py`` determines only the game: ``ALE/Breakout-v5``, ``BreakoutNoFrameskip-v4`` and
    ``Breakout-v0`` are the same here. Frame skip, sticky actions and time limit come from ``config``. ``threads``
    threads emulate Atari games. Atari games with random frame skip, and all other environments, run in the calling
    thread. ``zmqrl/Dummy-v0`` is not a game: it returns frames in the shape of an Atari game at no cost.
    """
    config.check()
    if env_id == DUMMY_ID:
        return DummyEnvs(describe_dummy(config), config)
    registered = find_env(env_id)
    if registered.entry_point != ENTRY_POINT:
        return GymnasiumEnvs(env_id, registered, config)
    game, spec = game_of(registered, config), describe_env(env_id, config)
    if config.min_frame_skip is not None:
        return RandomSkipEnvs(game, spec, config)
    return AtariEnvs(game, spec, config, threads=threads)


def describe_env(env_id: str, config: EnvConfig) -> EnvSpec:
    """Describe the observations and actions of ``env_id``, after loading one game.

    ``env_id`` can be ``module:id``, as in Gymnasium: ``module``, which registers ``id``, is imported first.

    Raises UsageError for invalid settings, an unknown id, an Atari game that is registered with other settings, and an
    environment that does not start. Also raises UsageError if the observations, such as graphs, cannot be flattened
    into a vector, or if the actions are not Discrete, MultiDiscrete, MultiBinary or Box.
    """
    return _describe(env_id, config, plays=False)


def try_env(env_id: str, config: EnvConfig, stored: EnvConfig | None = None) -> EnvSpec:
    """Describe ``env_id`` like ``describe_env``, and play one step of a custom environment.

    Raises UsageError like ``describe_env`` and :class:`zmqrl.learner.gymnasium_envs.CheckedEnv`, and for settings that
    would change only an Atari game. ``stored`` has the settings of an earlier session, which can be ignored.
    """
    return _describe(env_id, config, plays=True, stored=stored)


def repeats_games(env_id: str) -> bool:
    """Whether games of ``env_id`` repeat for the same seed and actions, according to its registration.

    Raises UsageError for an unknown id.
    """
    return env_id == DUMMY_ID or not find_env(env_id).nondeterministic


def _describe(env_id: str, config: EnvConfig, *, plays: bool, stored: EnvConfig | None = None) -> EnvSpec:
    """Like ``describe_env``, and like ``try_env`` if ``plays``."""
    config.check()
    if env_id == DUMMY_ID:
        return describe_dummy(config)
    registered = find_env(env_id)
    if registered.entry_point == ENTRY_POINT:
        actions = DiscreteActions(atari_actions(game_of(registered, config)))
        return config.emulated(env_id, actions, config.flavour())
    if plays:
        config.check_made(env_id, stored)
    with closing(CheckedEnv(env_id, registered, config)) as env:
        if plays:
            env.try_out()
    return env.spec


def find_env(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registration of ``env_id``. Raises a UsageError that suggests similar ids, or those of its module."""
    module, _, name = env_id.rpartition(":")
    others = set(gymnasium.registry)
    if module:
        with blaming(f"cannot import {module}, which should register {name}"):
            importlib.import_module(module)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        if own := [each for each in gymnasium.registry if each not in others]:
            raise UsageError(f"there is no environment {env_id!r}: {_hint(module, own, name)}") from error
        close = _closest(name, gymnasium.registry)
        hint = f"did you mean {' or '.join(close)}?" if close else "names of Atari games look like ALE/Breakout-v5."
        clause = lack("atari", "Atari games need")
        if clause and (name.startswith("ALE/") or not close):
            hint = f"{clause}."
        raise UsageError(f"there is no environment {env_id!r}: {hint}") from error


def _hint(module: str, own: Sequence[str], name: str) -> str:
    """A hint about ``own``, the ids that ``module`` registers. ``name`` is not one of them."""
    if close := _closest(name, own):
        return f"did you mean {' or '.join(f'{module}:{each}' for each in close)}?"
    more = f" and {counted(len(own) - IDS_SHOWN, 'other')}" if len(own) > IDS_SHOWN else ""
    return f"{module} registers {', '.join(own[:IDS_SHOWN])}{more}."


def _closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three ``known`` ids with similar names, each in its newest version."""
    newest = {_stem(env_id): env_id for env_id in known}
    stem = _stem(name)
    return [newest[stem]] if stem in newest else [newest[close] for close in difflib.get_close_matches(stem, newest)]


def _stem(env_id: str) -> str:
    """The bare name of a game: ``breakout`` for ``ALE/Breakout-v5`` and for ``BreakoutNoFrameskip-v4``."""
    return re.sub(r"^ale/|(noframeskip)?(-v\d+)?$", "", env_id.lower())
