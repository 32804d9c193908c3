"""``zmqrl compare`` shows the settings in which runs differ, and their results."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.record_rig import row, run_directory, summary

from zmqrl import cli
from zmqrl.commands.measure.compare import result
from zmqrl.errors import UsageError
from zmqrl.observe.records import RunRecord


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A run that has ended and a live run."""
    rows = [row(second) for second in range(1, 7)]
    evaluations: list[dict[str, Any]] = [
        {"version": 30, "mean": 2.0},
        {"version": 60, "mean": 4.0, "ci95": [3.5, 4.5], "episodes": 30},
    ]
    ended = run_directory(tmp_path / "ended", rows, evaluations=evaluations, summary=summary(), workers=4)
    return str(ended), str(run_directory(tmp_path / "living", rows[:3], workers=3, envs={"num_envs": 16}))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(["compare", *arguments]) == 0
    return capsys.readouterr().out


def test_json_has_the_settings_that_differ_and_the_results_of_each_run(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    compared = json.loads(printed(capsys, *pair, "--json"))
    assert compared.keys() == {"settings", "results"}
    assert {name: found["workers"] for name, found in compared["settings"].items()} == {"ended": 4, "living": 3}
    assert compared["settings"]["living"]["envs.num_envs"] == 16
    assert "seed" not in compared["settings"]["ended"]
    assert compared["results"]["ended"] == {
        "exit_reason": "updates",
        "minutes": 0.2,
        "agent_steps": 6000,
        "agent_steps_per_s": 500.0,
        "updates": 60,
        "games": 60,
        "score_mean_50": 5.5,
        "best": {"score_mean_50": 6.0, "minutes": 0.1, "agent_steps": 6000},
        "evaluation": {
            "version": 60,
            "mean": 4.0,
            "ci95": [3.5, 4.5],
            "episodes": 30,
            "greedy": None,
            "for_stop_score": False,
        },
        "flavour": None,
        "contributions": summary()["contributions"],
        "commit": "abc",
        "cpu": "EPYC",
    }


def test_an_evaluation_is_shown_with_its_kind_and_its_interval_if_it_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = {"version": 10, "mean": 3.0, "ci95": [2.0, 4.0], "episodes": 5, "greedy": False}
    stopped = sampled | {"version": 20, "mean": 9.0, "seeds": [2**31]}
    of_one_game = sampled | {"ci95": [3.0, 3.0], "episodes": 1, "greedy": True}
    for name, lines, cell in (
        ("both", [sampled, stopped], "3.00 (2.00 to 4.00)"),
        ("stopped", [stopped], "9.00 (2.00 to 4.00), for --stop-score"),
        ("one", [of_one_game], "3.00 (-), greedy"),
    ):
        path = run_directory(tmp_path / name, [row(1), row(2)], evaluations=lines)
        (line,) = (line for line in printed(capsys, str(path)).splitlines() if "evaluation" in line)
        assert line.rstrip().endswith(f"(95 % interval)   {cell}"), line


def test_no_name_and_no_setting_can_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed in (1, 2):
        settings: dict[str, Any] = {"env": f"x\x1b[{seed}m", f"new\x1b{seed}": 1}
        paths.append(str(run_directory(tmp_path / f"a{seed}\x1b[2J", **settings)))
    assert "\x1b" not in printed(capsys, *paths)


def test_a_live_run_is_described_by_its_newest_row(pair: tuple[str, str]) -> None:
    told = result(RunRecord.read(Path(pair[1])))
    assert told["exit_reason"] is None
    assert (told["updates"], told["agent_steps"], told["games"], told["score_mean_50"]) == (30, 3000, 30, 3.0)
    assert told["contributions"]["late"] == 12


def test_the_best_score_ignores_means_of_fewer_than_fifty_games(pair: tuple[str, str]) -> None:
    assert result(RunRecord.read(Path(pair[1])))["best"] is None


def test_a_run_without_rows_has_no_results(tmp_path: Path) -> None:
    told = result(RunRecord.read(run_directory(tmp_path / "new")))
    assert set(told.values()) == {None}


def test_the_table_is_not_cut_off_without_a_terminal(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    long = run_directory(tmp_path / ("long-" * 30), summary=summary(provenance={"commit": "def", "cpu": "EPYC"}))
    shown = printed(capsys, *pair, str(long))
    assert "…" not in shown
    assert "\x1b" not in shown
    lines = {line[:28].strip(): line[28:].split() for line in shown.splitlines() if line.strip()}
    assert long.name in shown
    assert lines["workers"] == ["4", "3", "2"]
    assert lines["envs.num_envs"] == ["8", "16", "8"]
    assert lines["exit reason"] == ["updates", "none", "yet", "updates"]
    assert lines["score, best 50 games"] == ["6.00", "-", "-"]
    assert lines["contributions late"] == ["6", "(6.0%)", "12", "(10.0%)", "6", "(6.0%)"]
    assert lines["commit"] == ["abc", "-", "def"]
    assert "cpu" not in lines


def test_the_table_names_the_flavour_of_the_games(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, other = summary(flavour="sticky 0"), summary(flavour="sticky 0.25")
    paths = [
        str(run_directory(tmp_path / name, [row(1)], summary=ended))
        for name, ended in {"a": plain, "b": plain, "c": other, "d": None}.items()
    ]
    assert printed(capsys, *paths[:2]).splitlines()[-1] == "games: sticky 0"
    assert printed(capsys, *paths).splitlines()[-3:] == [
        "games of a, b: sticky 0",
        "games of c: sticky 0.25",
        "games of d: unknown",
    ]
    assert json.loads(printed(capsys, *paths, "--json"))["results"]["c"]["flavour"] == "sticky 0.25"


def test_runs_with_the_same_name_are_distinguished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(run_directory(tmp_path / above / "run")) for above in ("a", "b")]
    assert set(json.loads(printed(capsys, *paths, "--json"))["results"]) == set(paths)


def test_an_error_names_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a run directory"):
        cli.run(["compare", str(tmp_path / "nowhere")])


def test_null_figures_count_as_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(6), row(7, episodes=None, score_mean_50=None)]
    told = json.loads(printed(capsys, str(run_directory(tmp_path / "run", rows)), "--json"))["results"]["run"]
    assert (told["games"], told["score_mean_50"], told["best"]["score_mean_50"]) == (None, None, 6.0)
    ended = run_directory(tmp_path / "ended", rows, summary=summary(score_mean_50=None, provenance={"commit": None}))
    assert "score, last 50 games" in printed(capsys, str(ended))


def test_compare_and_plot_refuse_a_damaged_file(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", [row(1)], summary=summary(provenance="unknown"))
    for command in ("compare", "plot"):
        with pytest.raises(UsageError, match=r"summary\.json is damaged: provenance is not an object"):
            cli.run([command, str(path)])
