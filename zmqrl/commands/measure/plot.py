"""``zmqrl plot``: a picture of the metrics of runs over time."""

from __future__ import annotations  # matplotlib takes a second to import, and most errors come before

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import numpy as np
import tyro

from zmqrl.commands.options import RunPaths, check_picture
from zmqrl.errors import UsageError, refusal
from zmqrl.observe.curves import (
    MIN_MAX_SEEDS,
    Curve,
    Group,
    curve,
    farthest,
    grouped,
    outcome_shares,
    position,
    positions,
)
from zmqrl.observe.drawing import STYLE, look, save
from zmqrl.observe.folding import printable
from zmqrl.observe.records import Figures, RunRecord, read_runs
from zmqrl.process import interruptible
from zmqrl.results.flavour import flavour_lines, flavour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XAxis: TypeAlias = Literal["minutes", "agent-steps"]

OUTCOME_COLOURS: Final = {
    "used": "#D9D9D9",
    "late": "#D55E00",
    "skipped": "#E69F00",
    "duplicate": "#56B4E9",
    "rejected": "#000000",
}
BANDS_THAT_CAN_BE_TOLD_APART: Final = 3
BEYOND: Final[dict[str, Any]] = {"linewidth": 0.8, "alpha": 0.6}  # of a single run, outside the common part


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the metrics of runs over time. Runs that differ only in their seed become one curve."""

    runs: RunPaths
    """Run directories."""
    output: Path | None = None
    """Picture to write: .png, .svg or .pdf. None: plot.png in the first run directory."""
    x: Literal["minutes", "agent-steps", "both"] = "both"
    """Horizontal axis."""
    panels: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """Panels to draw: score, policy-loss, value-loss, entropy, throughput, contributions, policy-lag."""


@interruptible()
def run(options: Options) -> int:
    """Write the picture and print its path."""
    panels = chosen_panels(options.panels)
    runs = read_runs(options.runs)
    output = options.output or options.runs[0] / "plot.png"
    check_picture("--output", output)
    for each in runs:
        if not (each.rows or each.evaluations):
            raise UsageError(f"{each.path} has no metrics yet: wait for its first update.")
    x_axes: tuple[XAxis, ...] = ("minutes", "agent-steps") if options.x == "both" else (options.x,)
    try:
        write_picture(grouped(runs), x_axes, panels, output)
    except OSError as error:
        raise UsageError(refusal(error, output, "choose another --output")) from error
    sys.stdout.write(f"{output}\n")
    return 0


def chosen_panels(words: Sequence[str]) -> list[str]:
    """The panel names in ``words``. A word can hold several names, separated by commas. Without words: all. Raises
    UsageError.
    """
    names = [name for word in words for name in word.split(",") if name]
    for name in names:
        if name not in PANELS:
            raise UsageError(f"--panels {name}: no such panel; choose from {', '.join(PANELS)}.")
    return list(dict.fromkeys(names)) or list(PANELS)


def write_picture(groups: Sequence[Group], x_axes: Sequence[XAxis], panels: Sequence[str], path: Path) -> None:
    """Draw ``panels`` against each of ``x_axes``. Raises OSError."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        rows = layout(panels, x_axes)
        columns = len(rows[-1])
        figure = Figure(figsize=(10.0 if columns > 1 else 7.5, 0.9 + 1.75 * len(rows) if len(rows) > 1 else 4.2))
        grid = figure.add_gridspec(len(rows), columns)
        curves = list[Curve]()
        for row, cells in enumerate(rows):
            wide = len(cells) < columns
            for column, (panel, x) in enumerate(cells):
                axes = figure.add_subplot(grid[row, :] if wide else grid[row, column])
                curves += PANELS[panel](axes, groups, x)
                _draw_x_axis(axes, groups, x, labelled=wide or row == len(rows) - 1)
            if len(x_axes) > 1:
                _share_y(*figure.axes[-2:])
        figure.align_ylabels()
        _draw_title(figure, groups, columns, curves)
        if "score" in panels:
            _draw_flavours(figure, groups)
        save(figure, path)


def layout(panels: Sequence[str], x_axes: Sequence[XAxis]) -> list[list[tuple[str, XAxis]]]:
    """The panel and the x-axis of each cell of the picture, row by row.

    Two x-axes are side by side. With one x-axis, the panels fill two columns. If their number is odd, the first panel
    has its own row.
    """
    if len(x_axes) > 1:
        return [[(panel, x) for x in x_axes] for panel in panels]
    cells = [(panel, x_axes[0]) for panel in panels]
    odd = len(cells) % 2
    return [cells[:odd]] * odd + [cells[i : i + 2] for i in range(odd, len(cells), 2)]


# panels


# Each returns the curves that it has drawn.


def draw_score(axes: Axes, groups: Sequence[Group], x: XAxis) -> list[Curve]:
    """The mean of the last 50 games as a line, and evaluations with their 95 % intervals as points."""
    curves = _draw_curves(axes, groups, x, lambda run: run.column("score_mean_50"))
    evaluated = False
    for group, line in _looks(groups):
        points = [evaluation for run in group.runs for evaluation in run.evaluations]
        if points:
            evaluated = True
            mean = np.array([point.mean for point in points], dtype=np.float64)
            ends = np.array([point.interval or (np.nan, np.nan) for point in points], dtype=np.float64).T
            axes.errorbar(
                np.array([position(point, x) for point in points], dtype=np.float64),
                mean,
                yerr=np.abs(ends - mean),
                fmt="o",
                markersize=4,
                capsize=2,
                linewidth=1,
                color=line["color"],
            )
    if evaluated:
        axes.plot([], [], color="#666666", label="last 50 games of training")
        axes.errorbar([], [], yerr=[], fmt="o", markersize=4, color="#666666", label="evaluation, 95 % interval")
        axes.legend(loc="lower right", fontsize="small")
    axes.set_ylabel("score (mean\nof 50 games)")
    return curves


def draw_throughput(axes: Axes, groups: Sequence[Group], x: XAxis) -> list[Curve]:
    """Agent steps per second of all workers together, averaged over about half a minute."""
    from matplotlib.ticker import EngFormatter

    curves = _draw_curves(axes, groups, x, lambda run: run.column("agent_steps_per_s"))
    _from_zero(axes)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("throughput\n(agent steps/s)")
    return curves


def draw_contributions(axes: Axes, groups: Sequence[Group], x: XAxis) -> list[Curve]:
    """The share of each outcome of contributions. With several groups, only the share of those not used."""
    if len(groups) > 1:
        not_used = _draw_curves(axes, groups, x, lambda run: 100 - outcome_shares(run)["used"])
        _from_zero(axes)
        axes.set_ylabel("contributions\nnot used (%)")
        return not_used
    axes.set_ylabel("contributions\n(%)")
    shares = [(positions(run, x), outcome_shares(run)) for run in groups[0].runs]
    curves = {outcome: curve([(xs, share[outcome]) for xs, share in shares]) for outcome in OUTCOME_COLOURS}
    used = curves["used"]
    xs, beyond = used.x, used.beyond
    if not xs.any():
        _say_nothing_yet(axes)
        return []
    for part in beyond:
        axes.plot(*part, color="#666666", **BEYOND)
    # Draw the first row from the start of the runs: one row alone would have no width.
    begin = xs[0] if any(along[0] < xs[0] for along, _ in beyond) else 0.0
    axes.stackplot(
        np.concatenate([[begin], xs]),
        [np.concatenate([found.mean[:1], found.mean]) for found in curves.values()],
        colors=list(OUTCOME_COLOURS.values()),
        labels=list(OUTCOME_COLOURS),
    )
    axes.set_ylim(0, 100)
    axes.legend(
        loc="lower left", ncols=len(curves), fontsize="small", columnspacing=1.0, handlelength=1.0, frameon=True
    )
    return [used]


def draw_policy_lag(axes: Axes, groups: Sequence[Group], x: XAxis) -> list[Curve]:
    """The mean policy lag in versions, with its range if known."""
    curves = _draw_curves(
        axes,
        groups,
        x,
        lambda run: run.column("policy_lag"),
        of_gradients=True,
        extremes=(lambda run: run.column("policy_lag_min"), lambda run: run.column("policy_lag_max")),
    )
    _from_zero(axes)
    axes.set_ylabel("policy lag\n(versions)")
    return curves


def _of(column: str, label: str) -> Callable[[Axes, Sequence[Group], XAxis], list[Curve]]:
    """A panel with one metric."""

    def draw(axes: Axes, groups: Sequence[Group], x: XAxis) -> list[Curve]:
        axes.set_ylabel(label)
        return _draw_curves(axes, groups, x, lambda run: run.column(column), of_gradients=True)

    return draw


PANELS: Final[dict[str, Callable[[Axes, Sequence[Group], XAxis], list[Curve]]]] = {
    "score": draw_score,
    "policy-loss": _of("policy_loss", "policy loss"),
    "value-loss": _of("value_loss", "value loss"),
    "entropy": _of("entropy", "entropy (nats)"),
    "throughput": draw_throughput,
    "contributions": draw_contributions,
    "policy-lag": draw_policy_lag,
}


# what panels share

_Column: TypeAlias = Callable[[RunRecord], Figures]


def _draw_curves(
    axes: Axes,
    groups: Sequence[Group],
    x: XAxis,
    column: _Column,
    *,
    of_gradients: bool = False,
    extremes: tuple[_Column, _Column] | None = None,
) -> list[Curve]:
    """A curve for each group. The band shows the spread, or the range between ``extremes`` if the runs have them.

    ``of_gradients``: each value is a mean over the gradients of its row.
    """
    if not any(np.isfinite(column(run)).any() for group in groups for run in group.runs):
        _say_nothing_yet(axes)
    curves = list[Curve]()
    for group, line in _looks(groups):
        gradients = [run.column("gradients") for run in group.runs] if of_gradients else None
        found = curve([(positions(run, x), column(run)) for run in group.runs], gradients)
        single = len(found.x) == 1  # a line of one point needs a marker, which the edge must not clip
        axes.plot(found.x, found.mean, marker="o" if single else None, markersize=4, clip_on=not single, **line)
        for beyond in found.beyond:
            axes.plot(*beyond, **(line | BEYOND))
        lows, highs = found, found
        if extremes is not None and len(groups) <= BANDS_THAT_CAN_BE_TOLD_APART:
            lows, highs = (curve([(positions(run, x), extreme(run)) for run in group.runs]) for extreme in extremes)
        _draw_band(axes, lows, highs, line["color"])
        curves.append(found)
    return curves


def _say_nothing_yet(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", va="center", color="#666666")
    axes.set_yticks([])


def _draw_band(axes: Axes, lows: Curve, highs: Curve, colour: str) -> None:
    low = lows.mean if lows.low is None else lows.low
    high = highs.mean if highs.high is None else highs.high
    axes.fill_between(lows.x, low, high, color=colour, alpha=0.18, linewidth=0)


def _looks(groups: Sequence[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
    for index, group in enumerate(groups):
        yield group, look(index)


def _draw_x_axis(axes: Axes, groups: Sequence[Group], x: XAxis, *, labelled: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    end = farthest((run for group in groups for run in group.runs), x)
    axes.set_xlim(0, 1.01 * end or 1)  # a run without progress needs an axis too
    axes.tick_params(labelbottom=labelled)
    if labelled:
        axes.set_xlabel("training time (minutes)" if x == "minutes" else "agent steps")
    if x == "agent-steps":
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _share_y(left: Axes, right: Axes) -> None:
    """Share the y-axis of adjacent panels. The right one has no labels and no legend."""
    right.sharey(left)
    right.set_ylabel("")
    right.tick_params(labelleft=False)
    legend = right.get_legend()
    if legend is not None:
        legend.remove()


def _from_zero(axes: Axes) -> None:
    """Start the y-axis at 0, with some room above the highest line."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])


def _draw_title(figure: Figure, groups: Sequence[Group], columns: int, curves: Sequence[Curve]) -> None:
    """Draw a title: what the runs have in common, and what the bands of ``curves`` mean.

    Several groups also get a legend.
    """
    runs = [run for group in groups for run in group.runs]
    common = [runs[0].settings.get(name) for name in ("recipe", "env") if len(_values(runs, name)) == 1]
    words = [str(word) for word in common if word is not None]
    if len(groups) == 1:
        words.append(groups[0].label)
    sizes = sorted({each.runs for each in curves} - {0}) or [1]
    most, uneven = sizes[-1], len(sizes) > 1
    if most > 1:
        kinds = dict.fromkeys(
            "min-max" if size <= MIN_MAX_SEEDS else "standard deviation" for size in sizes if size > 1
        )
        spread = " or ".join(kinds)
        words.append(f"mean and {spread} of {'up to ' * uneven}{most} runs")
    title = printable(" · ".join(dict.fromkeys(words)))
    if len(groups) == 1:
        figure.suptitle(title, fontsize="large")
        return
    lines = [figure.axes[0].plot([], [], **line)[0] for _, line in _looks(groups)]
    labels = [printable(group.label) for group in groups]
    fitting = int(55 * columns / (max(map(len, labels)) + 8))
    figure.legend(
        lines, labels, title=title, title_fontsize="large", loc="outside upper center", ncols=max(1, min(6, fitting))
    )


def _draw_flavours(figure: Figure, groups: Sequence[Group]) -> None:
    """Name the flavour of the games below the panels: scores of different flavours are not comparable."""
    lines = flavour_lines((run.name, flavour_of(run)) for group in groups for run in group.runs)
    width = int(16 * figure.get_figwidth())  # in characters
    wrapped = [part for line in lines for part in textwrap.wrap(printable(line), width)]
    if wrapped:
        figure.supxlabel("\n".join(wrapped), fontsize="x-small", color="#666666")


def _values(runs: Sequence[RunRecord], name: str) -> set[str]:
    return {str(run.settings.get(name)) for run in runs}
