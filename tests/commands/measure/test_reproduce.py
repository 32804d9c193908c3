"""``zmqrl reproduce`` repeats the training of a result, and judges whether both agree."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.policy_rig import write_run
from support.record_rig import row
from support.result_rig import ORIGIN
from support.run_rig import trained

from zmqrl import cli
from zmqrl.commands.measure import reproduce
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.recipes import cartpole
from zmqrl.rundir import write_json

pytestmark = pytest.mark.processes

UPDATES = 40


def stand_in_for_training(config: Config) -> int:
    """Write the run directory of a run that made ten versions per second and still has its initial parameters."""
    seconds = (config.updates or 10 * (config.agent_steps or 0) // 1000) // 10
    totals = {"wall_s": float(seconds), "agent_steps": 1000 * seconds}
    assert config.run_dir is not None
    write_run(config.run_dir, config, 10 * seconds, counters=totals)
    lines = [json.dumps(row(second)) + "\n" for second in range(1, seconds + 1)]
    (config.run_dir / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {"used": 1, "late": 0, "duplicate": 0, "rejected": 0, "skipped": 0}
    summary = {"exit_reason": "updates", "updates": 10 * seconds, "episodes": 9, "score_mean_50": 9.0}
    write_json(config.run_dir / "summary.json", {**summary, **totals, "contributions": counts, "provenance": ORIGIN})
    return 0


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A result of a run without training, evaluated in four games."""
    monkeypatch.setattr(reproduce, "train", stand_in_for_training)
    path = tmp_path / "result"
    stand_in_for_training(dataclasses.replace(cartpole(), run_dir=path, updates=UPDATES))
    evaluate(path, capsys)
    return path


def evaluate(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", str(path), "--episodes", "4", "--json"]) == 0
    (path / "evaluation.json").write_text(capsys.readouterr().out, encoding="utf-8")


def plant_another_score(path: Path) -> None:
    """Make the result claim that its games were 100 points better."""
    found = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    moved: dict[str, Any] = {"scores": [score + 100 for score in found["scores"]], "mean": found["mean"] + 100}
    write_json(path / "evaluation.json", {**found, **moved, "ci95": [end + 100 for end in found["ci95"]]})


def reproduced(
    path: Path, again: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, Any]]:
    status = cli.run(["reproduce", str(path), "--run-dir", str(again), "--json", *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_the_same_result_is_within_and_a_planted_one_outside(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    status, found = reproduced(result, again, capsys)
    assert (status, found["word"], found["by"]) == (0, "within", "agent-steps")
    assert found["again"]["mean"] == found["recorded"]["mean"]
    page = (again / "reproduction.md").read_text(encoding="utf-8")
    assert page.startswith("# result: within the stated interval\n")
    assert f"\n\nThe mean of {found['again']['mean']:.1f} is within the recorded 95 % interval" in page
    assert "Whether the trainings agree is not judged: the interval describes the games of one policy" in page
    assert "| agent steps | minutes | score, recorded | minutes | score, again |" in page
    assert (again / "reproduction.svg").stat().st_size > 1000

    plant_another_score(result)
    status, found = reproduced(result, again, capsys)
    assert (status, found["word"]) == (1, "outside")
    assert found["difference"][1] < -50


def test_the_trainings_of_other_seeds_give_the_stated_interval(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    for seed in (2, 3):
        other = tmp_path / "results" / f"seed-{seed}"
        stand_in_for_training(dataclasses.replace(cartpole(), run_dir=other, updates=UPDATES, seed=seed))
        evaluate(other, capsys)
    path = result.rename(tmp_path / "results" / "result")
    status, found = reproduced(path, tmp_path / "again", capsys)
    assert (status, found["word"], found["trainings"]) == (0, "within", 3)
    assert found["reason"].startswith(
        f"the mean of {found['again']['mean']:.1f} is within the 95 % prediction interval"
    )
    capsys.readouterr()
    assert cli.run(["reproduce", str(path), "--run-dir", str(tmp_path / "again")]) == 0
    first, second, _ = capsys.readouterr().out.split("\n")
    assert first == f"within: {found['reason']}; see {tmp_path / 'again/reproduction.md'}"
    assert second == "The interval allows for the spread of trainings with different seeds."


def test_a_shorter_repetition_is_undecided(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(result / "config.json", {**json.loads((result / "config.json").read_text()), "updates": None})
    status, found = reproduced(result, tmp_path / "again", capsys, "--agent-steps", "2000")
    assert (status, found["word"]) == (1, "undecided")
    assert found["reason"] == "the repetition trained for 2,000 of 4,000 agent steps"


def test_the_directory_of_another_run_is_refused(result: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    stand_in_for_training(dataclasses.replace(cartpole(), run_dir=other, updates=UPDATES, seed=7))
    with pytest.raises(UsageError, match=r"other holds another run \(seed 7 -> 1\): choose another --run-dir"):
        cli.run(["reproduce", str(result), "--run-dir", str(other)])


def test_a_result_is_not_compared_with_itself(result: Path) -> None:
    before = (result / "evaluation.json").read_bytes()
    with pytest.raises(UsageError, match=r"result is the recorded result itself: choose another directory"):
        cli.run(["reproduce", str(result), "--run-dir", str(result.parent / "." / "result")])
    assert (result / "evaluation.json").read_bytes() == before


def test_an_interrupted_repetition_is_not_judged(result: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert cli.run(["reproduce", str(result), "--run-dir", str(again)]) == 0
    summary = json.loads((again / "summary.json").read_text(encoding="utf-8"))
    write_json(again / "summary.json", summary | {"exit_reason": "interrupted"})
    with pytest.raises(UsageError, match=r"ended too early \(interrupted\)"):
        cli.run(["reproduce", str(result), "--run-dir", str(again)])


@pytest.mark.slow
def test_a_consistent_run_is_reproduced_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = trained(tmp_path / "result", "--consistent", "--updates", str(UPDATES), "--trackers")
    evaluate(files.path, capsys)
    status, found = reproduced(files.path, tmp_path / "again", capsys)
    assert (status, found["word"], found["again"]["version"]) == (0, "within", UPDATES)
    written = [json.loads((path / "summary.json").read_text()) for path in (files.path, tmp_path / "again")]
    assert written[0]["params_sha256"] == written[1]["params_sha256"]
    assert found["same_parameters"] is True
    page = (tmp_path / "again/reproduction.md").read_text(encoding="utf-8")
    assert page.startswith("# result: reproduced exactly\n")
