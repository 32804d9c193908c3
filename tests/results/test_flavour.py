"""The flavour of the games of a run, with and without a summary."""

from pathlib import Path
from typing import Any

import pytest
from support.record_rig import run_directory, summary

from zmqrl.learner.games import EnvConfig
from zmqrl.observe.records import RunRecord
from zmqrl.recipes import breakout, dba3c_breakout
from zmqrl.results.flavour import flavour_lines, flavour_of


def flavour(path: Path, **given: Any) -> str | None:
    return flavour_of(RunRecord.read(run_directory(path, **given)))


def test_the_summary_has_the_flavour(tmp_path: Path) -> None:
    assert flavour(tmp_path / "run", summary=summary(flavour="sticky 0"), **breakout().to_json()) == "sticky 0"


@pytest.mark.parametrize("recipe", [breakout, dba3c_breakout], ids=lambda recipe: recipe.__name__)
def test_the_settings_of_a_live_atari_run_give_its_flavour(tmp_path: Path, recipe: Any) -> None:
    assert flavour(tmp_path / "run", **recipe().to_json()) == recipe().envs.flavour()


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "ale_py:ALE/Pong-v5"])
def test_settings_of_other_versions_do_not_hide_the_flavour(tmp_path: Path, env: str) -> None:
    envs = {"sticky_actions": 0.25, "gone": 1}
    assert flavour(tmp_path / "run", env=env, envs=envs) == EnvConfig(sticky_actions=0.25).flavour()


@pytest.mark.parametrize(
    "given",
    [{}, {"summary": summary()}, {"summary": summary(flavour="")}, {"env": "ALE/Pong-v5", "envs": {"noop_max": "x"}}],
    ids=["live", "old summary", "empty", "invalid"],
)
def test_a_flavour_can_be_unknown(tmp_path: Path, given: dict[str, Any]) -> None:
    assert flavour(tmp_path / "run", **given) is None


def test_one_line_is_enough_for_games_of_one_flavour() -> None:
    assert flavour_lines([("a", "x"), ("b", "x")]) == ["games: x"]
    assert flavour_lines([("a", None), ("b", None)]) == []
    assert flavour_lines([("a", "x"), ("b", None), ("a", "y")]) == [
        "games of a: x",
        "games of b: unknown",
        "games of a: y",
    ]
