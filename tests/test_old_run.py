"""Files of earlier versions can still be read: every kept ``config.json``, and a run of commit 0e9b23a.

``tests/old_run`` is the directory of that run, without logs. The histories in it have no totals. The command was
``zmqrl train cartpole --workers 2 --updates 20 --network.hidden 16 --evaluator``.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ran
from support.paths import ROOT, TESTS

from zmqrl import cli
from zmqrl.config import Config
from zmqrl.rundir import RunDirectory

OLD_RUN = TESTS / "old_run"
CONFIGS = sorted((ROOT / "benchmarks/results").rglob("config.json"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_the_settings_of_every_kept_result_are_read_and_valid(path: Path) -> None:
    Config.read(path).check()


def test_there_are_kept_results() -> None:
    assert len(CONFIGS) >= 5


def test_the_histories_of_an_old_run_are_valid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its summary and its checkpoint also count 4 late contributions after the last version.
    assert cli.run(["check-history", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shards": 2, "versions": 20, "violations": []}


def test_status_shows_an_old_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit_reason"], found["version"]) == ("ended", "updates", 20)
    assert found["flavour"] == "played as registered, scores are sums of true rewards"
    assert cli.run(["status", str(run)]) == 0
    assert f"\ngames: {found['flavour']}\n" in capsys.readouterr().out


@pytest.mark.processes
def test_an_old_run_can_be_plotted(run: Path) -> None:
    assert cli.run(["plot", str(run)]) == 0
    assert (run / "plot.png").stat().st_size > 10_000


def test_an_old_run_can_be_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", str(run), str(OLD_RUN), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["settings"] == {run.name: {}, OLD_RUN.name: {}}
    for result in compared["results"].values():
        assert (result["updates"], result["agent_steps"], result["games"]) == (20, 4096, 170)
        kind = {"greedy": False, "for_stop_score": False}
        assert result["evaluation"] == {"version": 20, "mean": 23.0, "ci95": [12.0, 34.0], "episodes": 2} | kind


def test_the_policy_of_an_old_run_plays_the_same_games(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", str(run), "--episodes", "2", "--json"]) == 0
    played = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {key: played[key] for key in kept if key != "provenance"} == {
        key: kept[key] for key in kept if key != "provenance"
    }


@pytest.mark.slow
def test_an_old_run_can_be_resumed(run: Path) -> None:
    options = ["--updates", "26", "--no-evaluator", "--trackers"]
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["envs"] |= {"grayscale": False, "life_loss": False, "fire_reset": False}  # older versions ignored these
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "zmqrl", "train", "--resume", "--run-dir", str(run), *options]
    done = ran(command, within_s=300, stdin=subprocess.DEVNULL)
    assert "resuming from version 20" in done.stdout
    summary = json.loads(RunDirectory(run).summary.read_text(encoding="utf-8"))
    assert summary["updates"] == 26
    assert summary["contributions"]["used"] == 2 * 2 * 26  # two workers on two shards
    assert summary["agent_steps"] > 4096
    assert cli.run(["check-history", str(run)]) == 0
