"""The curves of a plot: metrics of several runs over time, with mean and spread over the seeds of an experiment."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zmqrl.observe.metrics import OUTCOMES
from zmqrl.observe.records import MAY_DIFFER_IN_GROUP, Evaluation, Figures, RunRecord, differing

GRID_POINTS = 200
SETTINGS_IN_A_LABEL = 3
LETTERS_IN_A_NAME = 3  # of several runs
UNTELLING = ("tmp", "temp", "seed")
MIN_MAX_SEEDS = 4  # above it, the extremes depend more on the number of seeds than on the spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs of one experiment: all settings are equal, except those in ``MAY_DIFFER_IN_GROUP``."""

    label: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A metric of a group on the grid ``x``: the part of the x-axis that all runs with known values have in common.

    ``runs`` is the number of these runs. ``beyond`` has their values before and after this part, or all values if they
    have no part in common. ``low`` and ``high`` are the minimum and maximum of two to four runs, or one standard
    deviation below and above the mean of more runs. For one run, both are None.
    """

    x: Figures
    mean: Figures
    low: Figures | None
    high: Figures | None
    beyond: tuple[tuple[Figures, Figures], ...]
    runs: int


def positions(run: RunRecord, x: str) -> Figures:
    """The position of each row on the x-axis: minutes of training if ``x`` is ``minutes``, otherwise agent steps."""
    return run.column("wall_s") / 60 if x == "minutes" else run.column("agent_steps")


def position(evaluation: Evaluation, x: str) -> float:
    return evaluation.wall_s / 60 if x == "minutes" else evaluation.agent_steps


def farthest(runs: Iterable[RunRecord], x: str) -> float:
    """The highest position of a row or evaluation of ``runs``, or 0."""
    ends = ([*positions(run, x)[-1:], *(position(each, x) for each in run.evaluations)] for run in runs)
    return float(max(itertools.chain.from_iterable(ends), default=0.0))


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Group runs that differ only in the settings in ``MAY_DIFFER_IN_GROUP``, such as the seed.

    Groups are in the order of their first runs. The label of a group has the settings that differ between groups. If
    none or too many differ, the label is the common name of the runs, or their recipe if the names have little in
    common.
    """
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.settings_but(MAY_DIFFER_IN_GROUP), sort_keys=True), []).append(run)
    groups = list(found.values())
    settings = differing([group[0] for group in groups], but=MAY_DIFFER_IN_GROUP)
    labels = [
        " ".join(f"{name}={_shown(values[index])}" for name, values in settings.items())
        if 1 <= len(settings) <= SETTINGS_IN_A_LABEL
        else _common_name(group)
        for index, group in enumerate(groups)
    ]
    if len(set(labels)) < len(labels):
        labels = [str(group[0].path) for group in groups]
    return [Group(label=label, runs=tuple(group)) for label, group in zip(labels, groups, strict=True)]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _common_name(runs: Sequence[RunRecord]) -> str:
    """The common name of some runs, such as ``pong`` for pong-1 and pong-2, or else their recipe or environment."""
    names = [run.name for run in runs]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("-_. ")
    words = re.sub(r"[\W\d_]", "", common)
    if len(runs) == 1 or (len(words) >= LETTERS_IN_A_NAME and words not in UNTELLING):
        return common
    shared = ({run.settings.get(key) for run in runs} for key in ("recipe", "env"))
    return next((str(*values) for values in shared if len(values) == 1 and None not in values), ", ".join(names))


def curve(series: Sequence[tuple[Figures, Figures]], weights: Sequence[Figures] | None = None) -> Curve:
    """Compute one curve from the ``(x, y)`` of each run of a group, smoothed over 1 % of its points. Skips NaN.

    If the y are means, ``weights`` has, for each run, the number of figures in each mean. By default, all points count
    equally.
    """
    counts: Sequence[Figures | None] = [None] * len(series) if weights is None else weights
    known = [smoothed(x, y, count) for (x, y), count in zip(series, counts, strict=True)]
    known = [(x, y) for x, y in known if len(x)]
    first = max((x[0] for x, _ in known), default=np.inf)
    last = min((x[-1] for x, _ in known), default=-np.inf)
    if first > last:
        nothing = np.empty(0)
        return Curve(x=nothing, mean=nothing, low=None, high=None, beyond=tuple(known), runs=len(known))
    grid = np.linspace(first, last, GRID_POINTS) if first < last else np.array([last])
    on_grid = np.stack([np.interp(grid, x, y) for x, y in known])
    mean, low, high = mean_and_band(on_grid)
    beyond = tuple(
        (part, np.interp(part, x, y))
        for x, y in known
        for part in (np.append(x[x < first], first), np.append(last, x[x > last]))
        if len(part) > 1
    )
    return Curve(x=grid, mean=mean, low=low, high=high, beyond=beyond, runs=len(known))


def mean_and_band(on_grid: Figures) -> tuple[Figures, Figures | None, Figures | None]:
    """``mean``, ``low`` and ``high`` of a :class:`Curve`, from one row of values per run. Values can be masked."""
    mean = on_grid.mean(axis=0)
    if len(on_grid) > MIN_MAX_SEEDS:
        deviation = on_grid.std(axis=0, ddof=1)
        return mean, mean - deviation, mean + deviation
    return (mean, on_grid.min(axis=0), on_grid.max(axis=0)) if len(on_grid) > 1 else (mean, None, None)


def smoothed(x: Figures, y: Figures, weight: Figures | None = None) -> tuple[Figures, Figures]:
    """Moving means of the known points, over 1 % of the points. The result has one point for each x.

    Two passes amount to a triangular window. A flat window would turn losses and policy lag, which rise and fall in
    each iteration, into slow waves.
    """
    weight = np.ones(len(y)) if weight is None else np.nan_to_num(weight, nan=1.0)
    known = np.isfinite(x) & np.isfinite(y) & (weight > 0)
    x, index = np.unique(x[known], return_inverse=True)
    weight, y = weight[known], y[known]
    sums = np.stack([np.bincount(index, each, minlength=len(x)) for each in (y * weight, weight)])
    first, last = _window(len(x))
    for _ in range(2):
        running = np.concatenate([np.zeros((2, 1)), np.cumsum(sums, axis=1)], axis=1)
        sums = (running[:, last] - running[:, first]) / (last - first)
    return x, sums[0] / sums[1]


def outcome_shares(run: RunRecord) -> dict[str, Figures]:
    """The share of each outcome in recent contributions, in percent, by outcome: (rows,) each.

    Counts in a row are cumulative. Recent counts are differences between rows that are 1 % of the run apart.
    """
    columns = {outcome: np.nan_to_num(run.column("contributions", outcome)) for outcome in OUTCOMES}
    counts = {outcome: np.concatenate([[0.0], column]) for outcome, column in columns.items()}
    total = np.sum(list(counts.values()), axis=0)
    first, last = _window(len(run.rows))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: 100 * (made[last] - made[first]) / (total[last] - total[first]) for name, made in counts.items()}


def _window(points: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last (exclusive) index of the window around each of ``points`` points: 1 % of the points."""
    index, half = np.arange(points), points // 200
    return np.maximum(index - half, 0), np.minimum(index + half + 1, points)
