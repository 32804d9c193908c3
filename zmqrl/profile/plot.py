"""Draws a profile as a plot."""

from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from zmqrl.observe.drawing import COLOURS, STYLE, save
from zmqrl.profile.report import Analysis, who

BINS = 60
CAUSES_SHOWN = len(COLOURS)
BESIDE: Final[dict[str, Any]] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": "small"}  # at the side


def plot_profile(analysis: Analysis, found: dict[str, Any], path: Path, title: str) -> None:
    """Draw four plots of a profile into ``path``. ``found`` is ``analysis.to_json()``. Raises OSError."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 8))
        axes = figure.subplots(2, 2)
        figure.suptitle(title)
        _over_versions(analysis, list(found["path_ms"]), axes[0, 0])
        milliseconds = [1e3 * path.seconds for path in analysis.paths]
        axes[0, 1].hist(milliseconds, bins=BINS, log=True, color=COLOURS[0])
        axes[0, 1].set(title="time of an update", xlabel="ms", ylabel="updates")
        axes[0, 1].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))  # STYLE turns off mathtext
        rows = found["blame"][:CAUSES_SHOWN][::-1]
        labels = [f"{row['cause']}, {who(row)} on {row['host']}" for row in rows]
        axes[1, 0].barh(labels, [row["seconds"] for row in rows], color=COLOURS[0])
        axes[1, 0].set(title="causes of delay beyond the usual time", xlabel="s")
        ranks = found["ranks"]
        positions = np.arange(len(ranks))
        counted, kth = ([100 * each[name] for each in ranks.values()] for name in ("inclusion", "kth"))
        axes[1, 1].bar(positions - 0.2, counted, 0.4, color=COLOURS[0], label="counted")
        axes[1, 1].bar(positions + 0.2, kth, 0.4, color=COLOURS[1], label="was K-th")
        axes[1, 1].set(title="ranks", xlabel="rank", ylabel="% of updates")
        axes[1, 1].set_xticks(positions, list(ranks))
        axes[1, 1].legend(**BESIDE)
        save(figure, path)


def _over_versions(analysis: Analysis, causes: list[str], axes: Axes) -> None:
    """Plot the mean milliseconds of each part of the path against the version."""
    paths = analysis.paths
    groups = np.array_split(np.arange(len(paths)), min(BINS, max(len(paths), 1)))
    groups = [group for group in groups if len(group)]
    middle = [paths[int(group[len(group) // 2])].version for group in groups]
    values = np.zeros((len(causes), len(groups)))
    for column, group in enumerate(groups):
        for i in group:
            for part in paths[int(i)].parts:
                values[causes.index(part.cause), column] += 1e3 * part.seconds / len(group)
    shown = values[:CAUSES_SHOWN]
    labels = [*causes[:CAUSES_SHOWN], "rest"]
    colours = [*COLOURS[: len(labels) - 1], "#D9D9D9"]
    axes.stackplot(middle, [*shown, values[CAUSES_SHOWN:].sum(axis=0)], labels=labels, colors=colours)
    axes.set(title="critical path of an update", xlabel="version", ylabel="ms")
    axes.legend(**BESIDE, reverse=True)
