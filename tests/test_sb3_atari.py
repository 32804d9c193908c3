"""The program that trains with Stable-Baselines3, with stand-ins for this library."""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import measure
import pytest

STABLE_BASELINES3 = {
    "stable_baselines3": ("A2C", "PPO"),
    "stable_baselines3.common": (),
    "stable_baselines3.common.callbacks": ("BaseCallback",),
    "stable_baselines3.common.env_util": ("make_atari_env",),
    "stable_baselines3.common.sb2_compat": (),
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": ("RMSpropTFLike",),
    "stable_baselines3.common.vec_env": ("DummyVecEnv", "SubprocVecEnv", "VecFrameStack"),
}


def algorithm_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """The settings of the algorithm and the games that the program makes with ``options``."""
    made: dict[str, Any] = {}

    class Algorithm:
        def __init__(self, policy: str, games: dict[str, Any], **settings: Any) -> None:
            made.update(settings | games)

        def learn(self, steps: int, callback: Any) -> None:
            pass

    for name, contents in STABLE_BASELINES3.items():
        module = ModuleType(name)
        for each in contents:
            setattr(module, each, Algorithm if each in ("A2C", "PPO") else type(each, (), {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["sb3_atari.py", *options])
    spec = importlib.util.spec_from_file_location("sb3_atari", measure.HERE / "sb3_atari.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "make_atari_env", lambda name, **settings: settings)
    monkeypatch.setattr(program, "VecFrameStack", lambda games, n_stack: games)
    monkeypatch.setattr(program, "Told", lambda *arguments: None)
    program.main()
    return made


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_the_networks_and_actions_of_stable_baselines3_have_a_seed(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert algorithm_of(monkeypatch, algorithm)["seed"] == 1


def test_the_rates_of_ppo_fall_to_zero_over_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = algorithm_of(monkeypatch, "ppo", "--minutes", "10", "--scores", str(tmp_path / "scores.jsonl"))
    first, second = made["learning_rate"](1.0), made["learning_rate"](1.0)
    assert 2.5e-4 > first > second > 0
    made = algorithm_of(monkeypatch, "ppo", "--minutes", "0.001", "--scores", str(tmp_path / "scores.jsonl"))
    time.sleep(0.1)
    assert (made["learning_rate"](1.0), made["clip_range"](1.0)) == (0.0, 0.0)


def test_the_rates_of_ppo_are_constant_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = algorithm_of(monkeypatch, "ppo")
    assert (made["learning_rate"](0.5), made["clip_range"](0.5)) == (2.5e-4, 0.1)


@pytest.mark.parametrize(
    ("name", "place"),
    [("Stable-Baselines3 PPO", "DummyVecEnv"), ("the same, each game in a process", "SubprocVecEnv")],
)
def test_stable_baselines3_plays_in_one_process_and_in_one_for_each_game(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *options = measure.COMPARISONS["like for like"][name].command
    made = algorithm_of(monkeypatch, *options)
    assert (made["vec_env_cls"].__name__, made["n_envs"]) == (place, 8)
