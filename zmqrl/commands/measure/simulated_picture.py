"""Pictures of simulated runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zmqrl.observe.drawing import COLOURS, STYLE, save
from zmqrl.simulate.simulated_run import SimulatedRun


def write_picture(results: Sequence[SimulatedRun], swept: Sequence[str], path: Path) -> None:
    """Plot the step times of one run, or throughput and median step time against the first swept setting.

    Raises OSError.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2) if not swept else (10.0, 4.2))
        if swept:
            left, right = figure.subplots(1, 2)
            _draw_sweep(left, results, swept, "agent_steps_per_s", "agent steps/s")
            _draw_sweep(right, results, swept, "p50", "median step (ms)")
        else:
            _draw_steps(figure.subplots(), results[0])
        save(figure, path)


def _draw_steps(axes: Axes, result: SimulatedRun) -> None:
    """The cumulative distribution of step times."""
    steps_ms = 1000 * np.sort(result.step_s)
    axes.step(steps_ms, 100 * np.arange(1, len(steps_ms) + 1) / len(steps_ms), where="post", color=COLOURS[0])
    axes.set_xlabel("step time (ms)")
    axes.set_ylabel("steps up to this time (%)")
    axes.set_xlim(left=0)


def _draw_sweep(axes: Axes, results: Sequence[SimulatedRun], swept: Sequence[str], what: str, label: str) -> None:
    """A line for each combination of the other swept settings."""
    lines: dict[tuple[object, ...], list[tuple[Any, float]]] = {}
    for result in results:
        first, *others = (getattr(result.scenario, name) for name in swept)
        found = result.to_json()
        value = found["step_ms"][what] if what in found["step_ms"] else found[what] or 0.0
        lines.setdefault(tuple(others), []).append((first, value))
    for number, (values, points) in enumerate(lines.items()):
        name = ", ".join(f"{name} {value}" for name, value in zip(swept[1:], values, strict=True))
        firsts = [first for first, _ in points]
        positions = [float(position) for position in range(len(points))] if isinstance(firsts[0], str) else firsts
        axes.plot(
            positions, [value for _, value in points], "o-", color=COLOURS[number % len(COLOURS)], label=name or None
        )
        axes.set_xticks(positions, [f"{first:g}" if isinstance(first, float) else str(first) for first in firsts])
    axes.set_xlabel(swept[0].replace("_", " "))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(fontsize="small")
