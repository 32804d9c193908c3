"""The rows of ``zmqrl bench wire`` as a table and as a picture."""

from __future__ import annotations  # matplotlib takes a second to import, and a table does not need it

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from zmqrl.bench.grid import OPERATIONS
from zmqrl.bench.samples import Row
from zmqrl.observe.drawing import STYLE, look, save
from zmqrl.observe.tables import ruled_table
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(rows: Sequence[Row]) -> Table:
    """The rows of one group, with the same vector and number of workers.

    ``of memcpy`` is the speed divided by that of memcpy. ``of gloo`` and ``of limit`` are the time divided by that of
    gloo and by the limit.
    """
    about = rows[0]
    megabytes = payload_bytes(about["codec"], about["parameters"]) / 1e6
    workers = counted(about["workers"], "worker")
    title = f"{about['parameters']:,} parameters, {megabytes:.2f} MB as {about['codec']}, {workers}"
    figures = ("p50 ms", "p99 ms", "MB/s", "of memcpy", "of gloo", "of limit")
    shown = ruled_table(title, "operation", "implementation", *figures, left=2)
    gloo_ms = {row["operation"]: row["p50_ms"] for row in rows if row["implementation"] == "gloo"}
    for operation, each in groupby(rows, lambda row: row["operation"]):
        for row in each:
            fraction, other_ms, times = row["fraction_of_memcpy"], gloo_ms.get(operation), row["times_limit"]
            shown.add_row(
                operation,
                label(row),
                f"{row['p50_ms']:.3f}",
                f"{row['p99_ms']:.3f}",
                f"{row['bytes_per_s'] / 1e6:,.{0 if row['bytes_per_s'] > 1e7 else 1}f}",
                "-" if fraction is None else f"{fraction:.3f}",
                "-" if other_ms is None else f"{row['p50_ms'] / other_ms:.2f}",
                "-" if times is None else f"{times:.2f}",
            )
        shown.add_section()
    return shown


def label(row: Row) -> str:
    """The label of a row's implementation within its group."""
    words = [row["implementation"]]
    if row["implementation"] == "zmqrl":
        words += [row["transport"], *(["CURVE"] if row["curve"] else [])]
    if row["implementation"] in ("zmqrl", "raw_tcp") or row["shards"] > 1:
        words.append(counted(row["shards"], "shard"))
    return " ".join(words)


def write_picture(rows: Sequence[Row], path: Path) -> None:
    """Draw the time of each operation against the length of the vector: the median, and a band to the 99th percentile.

    Operations are rows of panels, and numbers of workers are columns. Raises OSError.
    """
    import matplotlib
    from matplotlib.figure import Figure

    operations = [operation for operation in OPERATIONS if any(row["operation"] == operation for row in rows)]
    workers = sorted({row["workers"] for row in rows})
    looks: dict[str, dict[str, Any]] = {}
    for name in map(_series, rows):
        looks.setdefault(name, look(len(looks)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 4.0 * len(workers), 1.2 + 2.0 * len(operations)))
        panels = figure.subplots(len(operations), len(workers), squeeze=False, sharex=True, sharey="row")
        for operation, line in zip(operations, panels, strict=True):
            line[0].set_ylabel(f"{operation} (ms)")
            for count, axes in zip(workers, line, strict=True):
                mine = [row for row in rows if (row["operation"], row["workers"]) == (operation, count)]
                _draw(axes, mine, looks)
        for count, top, bottom in zip(workers, panels[0], panels[-1], strict=True):
            top.set_title(counted(count, "worker"))
            bottom.set_xlabel("parameters (millions)")
        lines = [panels[0, 0].plot([], [], **each)[0] for each in looks.values()]
        figure.legend(lines, list(looks), loc="outside upper center", ncols=min(4, len(looks)))
        save(figure, path)


def _draw(axes: Axes, rows: Sequence[Row], looks: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import NullFormatter

    for name, line in looks.items():
        mine = sorted((row for row in rows if _series(row) == name), key=lambda row: row["parameters"])
        xs, p50_ms, p99_ms = ([row[key] for row in mine] for key in ("parameters", "p50_ms", "p99_ms"))
        axes.plot(xs, p50_ms, marker="o", markersize=4, **line)
        axes.fill_between(xs, p50_ms, p99_ms, color=line["color"], alpha=0.12, linewidth=0)
    lengths = sorted({row["parameters"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length / 1e6:.3g}" for length in lengths])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())


def _series(row: Row) -> str:
    return f"{label(row)}, {row['codec']}"
