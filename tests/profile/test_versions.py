"""What each single version waited for."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support.page_rig import write_profile
from support.paths import TESTS
from support.profiles import resumed, rolled_back, synthetic_run

from zmqrl import cli
from zmqrl.errors import UsageError
from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import RunTables
from zmqrl.profile.versions import held_up, print_versions, version_range


def test_each_version_names_its_rank_its_shard_and_its_worst_delay() -> None:
    turns = {0: 0.3, 1: 0.2, 2: 0.1}
    analysis = Analysis.of(
        RunTables(tuple(synthetic_run(versions=30, in_turn_s=turns, shard_extra_s={("commit", 1): 0.01})))
    )
    rows = held_up(analysis.paths, range(10, 16))
    assert [row["version"] for row in rows] == list(range(10, 16))
    for row in rows:
        rank = (row["version"] - 1) % 3
        assert (row["kth"], row["shard"]) == (rank, 1)
        assert (row["cause"], row["process"], row["host"]) == ("gradient", f"worker-{rank}", f"w{rank}")
        assert row["excess_ms"] == pytest.approx(1e3 * turns[rank], abs=0.1)
        assert row["part_ms"] == pytest.approx(100 + 1e3 * turns[rank], abs=0.1)
        assert row["update_ms"] > row["part_ms"]
    text = io.StringIO()
    print_versions(rows, Console(file=text, width=120))
    assert len([line for line in text.getvalue().splitlines() if " gradient " in line]) == 6


def test_versions_that_were_made_twice_have_their_generations() -> None:
    processes = rolled_back(synthetic_run(versions=20), resumed(synthetic_run(versions=20), at=10, later_s=100))
    rows = held_up(Analysis.of(RunTables(tuple(processes))).paths, range(14, 16))
    text = io.StringIO()
    print_versions(rows, Console(file=text, width=130))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert next(line[:2] for line in lines if "version" in line and "K-th" in line) == ["generation", "version"]
    assert [line[:2] for line in lines if "worker-0" in line or "shard-0" in line or "worker-2" in line] == [
        ["1", "14"],
        ["1", "15"],
        ["2", "14"],
        ["2", "15"],
    ]


def test_the_versions_of_a_run_are_printed_with_the_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(TESTS / "old_run", run)
    write_profile(
        run / "profile", synthetic_run(workers=4, quorum=3, versions=20, worker_extra_s={("env_step", 3): 9.0})
    )
    assert cli.run(["profile", str(run), "--versions", "5"]) == 0
    assert "! the run learns little from rank 3" in capsys.readouterr().out


def test_a_range_of_versions_is_read() -> None:
    assert version_range("812") == range(812, 813)
    assert version_range("800-820") == range(800, 821)


@pytest.mark.parametrize("text", ["", "x", "5-", "-5", "9-3", "1-2-3", "1.5", "٣", "9" * 5000])
def test_invalid_ranges_of_versions_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--versions"):
        version_range(text)
