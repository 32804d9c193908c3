"""The requests that ``zmqrl profile`` refuses, and its errors. These tests start no process."""

import json
from pathlib import Path

import pytest

from zmqrl.cli import run
from zmqrl.errors import UsageError


def run_with(path: Path, **settings: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


def test_asynchronous_runs_are_not_compared(tmp_path: Path) -> None:
    paths = run_with(tmp_path / "a", mode="sync"), run_with(tmp_path / "b", mode="async")
    with pytest.raises(UsageError, match=r"/b is asynchronous and has no updates to compare: use synchronous runs\.$"):
        run(["profile", *paths])


def test_an_asynchronous_run_has_no_picture(tmp_path: Path) -> None:
    path = run_with(tmp_path / "a", mode="async")
    with pytest.raises(UsageError, match=r"^--plot shows the critical path, but .* is asynchronous and has none"):
        run(["profile", path, "--plot", str(tmp_path / "p.png")])


def test_a_rank_that_does_not_exist_cannot_be_left_out(tmp_path: Path) -> None:
    path = run_with(tmp_path / "a", workers=3, backups=1)
    with pytest.raises(UsageError, match=r"^--without 4: the run has only ranks 0-3\.$"):
        run(["profile", path, "--without", "1", "--without", "4"])


def test_the_only_rank_of_a_run_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--without 0: this is the only rank of the run, which makes no updates"):
        run(["profile", run_with(tmp_path / "a", workers=1), "--without", "0"])


def test_an_asynchronous_run_has_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--without 0: .* is asynchronous, so it cannot be predicted\.$"):
        run(["profile", run_with(tmp_path / "a", mode="async", workers=3), "--without", "0"])


def test_a_rank_cannot_be_left_out_of_a_comparison_of_two_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--without works with only one run: remove it to compare two"):
        run(["profile", str(tmp_path), str(tmp_path), "--without", "0"])
