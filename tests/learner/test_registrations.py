"""zmqrl plays an Atari game with the settings of its registration, or refuses them in one sentence."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec
from support.games_rig import PLAIN, RANDOM_SKIP, play

from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, describe_env, make_envs
from zmqrl.learner.picture import make_picture

pytestmark = pytest.mark.processes

OWN = "zmqrl-test/Own-v0"
ATARI = "ale_py.env:AtariEnv"


@pytest.fixture
def register() -> Iterator[Any]:
    """``register(mode=3, wrappers=...)`` registers Breakout, or another ``game``, with these settings."""

    def registered(max_episode_steps: int | None = None, wrappers: Any = (), **kwargs: Any) -> None:
        gymnasium.register(
            OWN,
            ATARI,
            kwargs={"game": "breakout"} | kwargs,
            max_episode_steps=max_episode_steps,
            additional_wrappers=wrappers,
        )

    yield registered
    gymnasium.registry.pop(OWN, None)


GREY = WrapperSpec("GrayscaleObservation", "gymnasium.wrappers:GrayscaleObservation", {})


@pytest.mark.parametrize(
    ("asked", "config", "sentence"),
    [
        ({"mode": 3}, EnvConfig(), "mode=3, but zmqrl uses mode=0: change the registration."),
        (
            {"game": "centipede", "mode": 0},
            EnvConfig(),
            "mode=0, but zmqrl uses mode=22: change the registration.",
        ),
        (
            {"difficulty": 1},
            EnvConfig(),
            "difficulty=1, but zmqrl uses difficulty=0: change the registration.",
        ),
        (
            {"full_action_space": True},
            EnvConfig(),
            "full_action_space=True, but zmqrl uses full_action_space=False: change the registration.",
        ),
        (
            {"continuous": True},
            EnvConfig(),
            "continuous=True, but zmqrl uses continuous=False: change the registration.",
        ),
        (
            {"sound_obs": True},
            EnvConfig(),
            "sound_obs=True, but zmqrl uses sound_obs=False: change the registration.",
        ),
        (
            {"obs_type": "ram"},
            EnvConfig(),
            "obs_type='ram', but zmqrl uses obs_type='grayscale': change the registration, or --envs.grayscale.",
        ),
        (
            {"obs_type": "rgb"},
            EnvConfig(),
            "obs_type='rgb', but zmqrl uses obs_type='grayscale': change the registration, or --envs.grayscale.",
        ),
        (
            {"obs_type": "grayscale"},
            EnvConfig(grayscale=False),
            "obs_type='grayscale', but zmqrl uses obs_type='rgb': change the registration, or --envs.grayscale.",
        ),
        (
            {"repeat_action_probability": 0.25},
            EnvConfig(),
            "repeat_action_probability=0.25, but zmqrl uses repeat_action_probability=0.0: "
            "change the registration, or --envs.sticky-actions.",
        ),
        (
            {"frameskip": 5},
            EnvConfig(),
            "frameskip=5, but zmqrl uses frameskip=4: change the registration, or --envs.frame-skip.",
        ),
        (
            {"frameskip": (2, 6)},
            RANDOM_SKIP,
            "frameskip=(2, 6), but zmqrl uses frameskip=(2, 5): change the registration, or --envs.frame-skip.",
        ),
        (
            {"max_num_frames_per_episode": 1000},
            EnvConfig(),
            "max_num_frames_per_episode=1000, but zmqrl uses max_num_frames_per_episode=108000: "
            "change the registration, or --envs.max-frames.",
        ),
        (
            {"max_episode_steps": 100},
            EnvConfig(),
            "max_episode_steps=100, but zmqrl uses max_episode_steps=None: "
            "change the registration, or --envs.max-frames.",
        ),
        (
            {"wrappers": (GREY,)},
            EnvConfig(),
            "wrappers=['GrayscaleObservation'], but zmqrl uses wrappers=[]: change the registration.",
        ),
        ({"lives": 1}, EnvConfig(), "lives=1, which Atari games do not have: change the registration."),
        ({"game": "brekout"}, EnvConfig(), "game='brekout': no such Atari game (did you mean breakout?)."),
        ({"game": "combat"}, EnvConfig(), "game='combat': no such Atari game."),  # a game for two players
        ({"game": None}, EnvConfig(), "game=None: no such Atari game."),
        ({"game": ["pong"]}, EnvConfig(), "game=['pong']: no such Atari game (did you mean pong?)."),
        (
            {"frameskip": np.array([2, 5])},
            EnvConfig(),
            "frameskip=array([2, 5]), but zmqrl uses frameskip=4: change the registration, or --envs.frame-skip.",
        ),
    ],
)
def test_a_registration_with_other_settings_is_refused(
    register: Any, asked: dict[str, Any], config: EnvConfig, sentence: str
) -> None:
    register(**asked)
    for refuse in (describe_env, lambda env_id, config: make_envs(env_id, config, threads=1), make_picture):
        with pytest.raises(UsageError) as refused:
            refuse(OWN, config)
        assert str(refused.value) == f"{OWN} is registered with {sentence}"


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        ({}, PLAIN),
        ({"mode": None, "difficulty": None, "full_action_space": False, "render_mode": "rgb_array"}, PLAIN),
        ({"mode": 0, "difficulty": 0, "obs_type": "grayscale", "frameskip": 4}, PLAIN),
        ({"repeat_action_probability": 0.25}, dataclasses.replace(PLAIN, sticky_actions=0.25)),
        ({"frameskip": (2, 5), "obs_type": "rgb"}, dataclasses.replace(RANDOM_SKIP, grayscale=False)),
        ({"max_num_frames_per_episode": 1000}, dataclasses.replace(PLAIN, max_frames=1000)),
    ],
)
def test_a_registration_with_the_same_settings_is_played(
    register: Any, asked: dict[str, Any], config: EnvConfig
) -> None:
    register(**asked)
    envs = make_envs(OWN, config, threads=1)
    envs.reset(0)
    assert len(play(envs, 3)) == 3
    envs.close()


@pytest.mark.parametrize("env_id", ["Breakout-v0", "Breakout-v4", "BreakoutNoFrameskip-v4", "ALE/KungFuMaster-v5"])
def test_an_ale_py_id_chooses_the_game_but_no_settings(env_id: str) -> None:
    assert describe_env(env_id, EnvConfig()).flavour == EnvConfig().flavour()


@pytest.mark.parametrize("env_id", ["Breakout-v7", "ALE/Breakout-v6", "ALE/Breakout-v5", "BreakoutNoFrameskip-v4"])
@pytest.mark.parametrize("asked", [{"repeat_action_probability": 0.5}, {"frameskip": 2}])
def test_an_id_that_only_looks_like_one_of_ale_py_is_taken_at_its_word(
    monkeypatch: pytest.MonkeyPatch, env_id: str, asked: dict[str, Any]
) -> None:
    registered = gymnasium.envs.registration.EnvSpec(env_id, ATARI, kwargs={"game": "breakout"} | asked)
    monkeypatch.setitem(gymnasium.registry, env_id, registered)
    ((name, value),) = asked.items()
    with pytest.raises(UsageError, match=f"{env_id} is registered with {name}={value}, but zmqrl uses {name}="):
        describe_env(env_id, EnvConfig())


def test_a_changed_setting_of_an_ale_py_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.spec("ALE/Breakout-v5").kwargs, "frameskip", 1)
    with pytest.raises(UsageError, match=r"ALE/Breakout-v5 is registered with frameskip=1, but zmqrl uses frameskip=4"):
        describe_env("ALE/Breakout-v5", EnvConfig())
