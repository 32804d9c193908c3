"""The charts of the page: metrics of groups of runs on one common axis, as plain data. Pure."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from zmqrl.observe.curves import Group, farthest, grouped, mean_and_band, outcome_shares, position, positions, smoothed
from zmqrl.observe.metrics import OUTCOMES
from zmqrl.observe.records import Figures, RunRecord

GRID_POINTS = 300
DIGITS = 5
ChartAxis: TypeAlias = Literal["minutes", "agent_steps"]

SCORE, CONTRIBUTIONS = "score", "contributions"
COLUMNS: Final = {
    SCORE: ("score", "score_mean_50"),
    "throughput": ("agent steps/s", "agent_steps_per_s"),
    "workers": ("active workers", "workers_present"),
    "policy_lag": ("policy lag (versions)", "policy_lag"),
}


def charts(names: Sequence[str], runs: Sequence[RunRecord], x: ChartAxis, *, fold: bool = True) -> dict[str, Any]:
    """The object ``{"x", "groups", "charts"}`` for ``runs``. If ``fold``, the seeds of one experiment become one group.

    ``x`` has the positions of all points, in minutes or agent steps. Each chart has ``lines``: the mean and the spread
    (``low`` and ``high``, or null) of those ``runs`` of the group that have a value at a point. ``seeds`` has their
    number at each point, and ``note`` says if not all of them reach the end. Missing values are null.
    """
    groups = grouped(runs) if fold else [Group(label=name, runs=(run,)) for name, run in zip(names, runs, strict=True)]
    name_of = {run.path: name for name, run in zip(names, runs, strict=True)}
    end = farthest(runs, x)
    grid = np.linspace(0.0, end, GRID_POINTS) if end else np.zeros(1)
    return {
        "x": _plain(grid),
        "groups": [
            {
                "label": group.label,
                "runs": [name_of[run.path] for run in group.runs],
                "evaluations": [
                    {"x": position(each, x)} | {"mean": each.mean, "low": each.low, "high": each.high}
                    for run in group.runs
                    for each in run.evaluations
                ],
            }
            for group in groups
        ],
        "charts": [
            *(
                {"name": name, "title": title, "lines": [_line(group, x, column, grid) for group in groups]}
                for name, (title, column) in COLUMNS.items()
            ),
            _contributions(groups, x, grid),
        ],
    }


def _line(group: Group, x: ChartAxis, column: str, grid: Figures) -> dict[str, Any]:
    weights = [run.column("gradients") if column == "policy_lag" else None for run in group.runs]
    series = [(positions(run, x), run.column(column)) for run in group.runs]
    return {"label": group.label} | _on(grid, [smoothed(*each, of) for each, of in zip(series, weights, strict=True)])


def _contributions(groups: Sequence[Group], x: ChartAxis, grid: Figures) -> dict[str, Any]:
    """For one group, the share of each outcome. For several, the share of contributions that were not used."""
    shares = [[(positions(run, x), outcome_shares(run)) for run in group.runs] for group in groups]
    if len(groups) == 1:
        lines = [
            {"label": outcome} | _on(grid, [smoothed(along, share[outcome]) for along, share in shares[0]])
            for outcome in OUTCOMES
        ]
        return {"name": CONTRIBUTIONS, "title": "contributions by outcome (%)", "lines": lines}
    lines = [
        {"label": group.label} | _on(grid, [smoothed(along, 100 - share["used"]) for along, share in of_group])
        for group, of_group in zip(groups, shares, strict=True)
    ]
    return {"name": CONTRIBUTIONS, "title": "contributions not used (%)", "lines": lines}


def _on(grid: Figures, series: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """A line from the ``(x, y)`` of each run of a group."""
    on_grid = np.ma.masked_invalid(np.stack([at(grid, x, y) for x, y in series]))
    seeds = on_grid.count(axis=0)
    last, runs = seeds[np.flatnonzero(seeds)[-1:]].sum(), len(series)
    mean, low, high = mean_and_band(on_grid)
    return {
        "mean": _plain(np.ma.filled(mean, np.nan)),
        "low": None if low is None else _plain(np.where(seeds > 1, np.ma.filled(low, np.nan), np.nan)),
        "high": None if high is None else _plain(np.where(seeds > 1, np.ma.filled(high, np.nan), np.nan)),
        "runs": runs,
        "seeds": seeds.tolist() if runs > 1 else None,
        "note": f"{last} of {runs} seeds at the end" if 0 < last < runs else None,
    }


def at(grid: Figures, x: Figures, y: Figures) -> Figures:
    """A curve at the points of ``grid``, with NaN outside. The grid point nearest to the end always has a value."""
    if not len(x):
        return np.full(len(grid), np.nan)
    within = (grid >= x[0]) & (grid <= x[-1])
    within[np.abs(grid - x[-1]).argmin()] = True
    return np.where(within, np.interp(grid, x, y), np.nan)


def _plain(values: Figures) -> list[float | None]:
    """Numbers with ``DIGITS`` significant digits, and None for NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.abs(values))))
        rounded = np.where(values == 0, 0.0, np.round(values * scale) / scale)
    return [value if isfinite(value) else None for value in rounded.tolist()]
