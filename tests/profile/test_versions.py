"""What each single version waited for."""

import io

import pytest
from rich.console import Console
from support.profiles import synthetic_run

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


def test_a_range_of_versions_is_read() -> None:
    assert version_range("812") == range(812, 813)
    assert version_range("800-820") == range(800, 821)


@pytest.mark.parametrize("text", ["", "x", "5-", "-5", "9-3", "1-2-3", "1.5", "٣", "9" * 5000])
def test_invalid_ranges_of_versions_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--versions"):
        version_range(text)
