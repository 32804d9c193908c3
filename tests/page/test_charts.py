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


def test_a_longer_seed_continues_beyond_the_mean(seeds: list[RunRecord]) -> None:
    found = drawn(seeds)
    line = found["charts"][0]["lines"][0]
    ends = [max(i for i, value in enumerate(values) if value is not None) for values in (line["mean"], *line["beyond"])]
    assert [found["x"][end] for end in ends] == pytest.approx([1.0, 1.5], abs=0.01)
    assert line["beyond"][0][ends[1]] == pytest.approx(90 + 20, abs=1)


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
