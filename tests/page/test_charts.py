"""The curves of runs as the page draws them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.record_rig import row, run_directory

from zmqrl.observe.records import RunRecord
from zmqrl.page.charts import GRID_POINTS, at, charts


@pytest.fixture
def seeds(tmp_path: Path) -> list[RunRecord]:
    """Three runs of one experiment, and one run of another. The three runs are 60, 60 and 90 s long, and their scores
    differ by 10.
    """
    made = [
        run_directory(
            tmp_path / f"seed-{seed}",
            [row(second, score_mean_50=second + 10.0 * seed) for second in range(1, seconds + 1)],
            seed=seed,
        )
        for seed, seconds in enumerate((60, 60, 90))
    ]
    other = run_directory(tmp_path / "other", [row(second) for second in range(1, 31)], workers=5)
    return [RunRecord.read(path) for path in (*made, other)]


def drawn(runs: list[RunRecord], **options: Any) -> dict[str, Any]:
    return charts([run.name for run in runs], runs, "minutes", **options)


def test_seeds_become_one_mean_with_their_spread(seeds: list[RunRecord]) -> None:
    found = drawn(seeds)
    assert [group["runs"] for group in found["groups"]] == [["seed-0", "seed-1", "seed-2"], ["other"]]
    score = found["charts"][0]
    line, other = score["lines"]
    at_half = np.abs(np.array(found["x"]) - 0.5).argmin()
    seconds = 60 * found["x"][at_half]
    assert line["low"][at_half] == pytest.approx(seconds, abs=1)
    assert line["mean"][at_half] == pytest.approx(seconds + 10, abs=1)
    assert line["high"][at_half] == pytest.approx(seconds + 20, abs=1)
    assert (other["low"], other["high"]) == (None, None)


def value_at(line: dict[str, Any], key: str, found: dict[str, Any], minute: float) -> Any:
    return line[key][np.abs(np.array(found["x"]) - minute).argmin()]


def test_a_seed_that_ended_early_ends_no_curve_and_the_others_are_counted(
    seeds: list[RunRecord], tmp_path: Path
) -> None:
    crashed = run_directory(tmp_path / "seed-3", [row(second, score_mean_50=0.0) for second in range(1, 31)], seed=3)
    begun = run_directory(tmp_path / "seed-4", seed=4)
    found = drawn([*seeds, *map(RunRecord.read, (crashed, begun))])
    line, other = found["charts"][0]["lines"]
    of_all, of_three, of_one = (
        [value_at(line, key, found, minute) for key in ("seeds", "mean", "low", "high")] for minute in (0.25, 0.75, 1.5)
    )
    deviation = np.std([15, 25, 35, 0], ddof=1)
    assert of_all == pytest.approx([4, 18.75, 18.75 - deviation, 18.75 + deviation], abs=0.5)
    assert of_three == pytest.approx([3, 55, 45, 65], abs=0.5)
    assert of_one == [1, pytest.approx(110, abs=0.5), None, None]
    assert (line["runs"], line["note"]) == (5, "1 of 5 seeds at the end")
    assert (other["runs"], other["seeds"], other["note"]) == (1, None, None)
    (contributions,) = (chart for chart in found["charts"] if chart["name"] == "contributions")
    assert contributions["lines"][0]["note"] == "1 of 5 seeds at the end"
    assert value_at(contributions["lines"][0], "mean", found, 1.25) == pytest.approx(10)


def test_seeds_of_the_same_length_need_no_note(seeds: list[RunRecord]) -> None:
    assert [line["note"] for line in drawn(seeds[:2])["charts"][0]["lines"]] == [None]


def test_seeds_can_be_drawn_one_by_one(seeds: list[RunRecord]) -> None:
    found = drawn(seeds, fold=False)
    assert [group["label"] for group in found["groups"]] == ["seed-0", "seed-1", "seed-2", "other"]
    assert len(found["charts"][0]["lines"]) == 4


def test_one_experiment_shows_contributions_by_outcome_and_several_show_the_unused_share(
    seeds: list[RunRecord],
) -> None:
    (one,) = (chart for chart in drawn(seeds[:3])["charts"] if chart["name"] == "contributions")
    assert {line["label"]: line["mean"][GRID_POINTS // 2] for line in one["lines"]} == pytest.approx(
        {"used": 90.0, "late": 10.0, "duplicate": 0.0, "rejected": 0.0, "skipped": 0.0}
    )
    (several,) = (chart for chart in drawn(seeds)["charts"] if chart["name"] == "contributions")
    assert [line["mean"][5] for line in several["lines"]] == pytest.approx([10.0, 10.0])


def test_a_run_without_metrics_is_an_empty_curve(tmp_path: Path) -> None:
    found = drawn([RunRecord.read(run_directory(tmp_path / "new"))])
    assert found["x"] == [0.0]
    assert all(line["mean"] == [None] for chart in found["charts"] for line in chart["lines"])


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50, unique=True).map(sorted),
    st.integers(2, GRID_POINTS),
)
def test_a_curve_on_the_grid_stays_within_its_values(xs: list[float], points: int) -> None:
    x = np.array(xs)
    grid = np.linspace(0.0, 2e6, points)
    found = at(grid, x, np.sin(x))
    known = found[np.isfinite(found)]
    assert len(known) >= 1
    assert np.all((known >= np.sin(x).min() - 1e-9) & (known <= np.sin(x).max() + 1e-9))
    assert all(
        math.isnan(value) for place, value in zip(grid, found, strict=True) if place > x[-1] + 2e6 / (points - 1)
    )
