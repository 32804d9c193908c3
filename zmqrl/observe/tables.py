"""Tables of figures, for a terminal, a file or a pager."""

import sys
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

NOT_CUT_OFF: Final = 100_000  # width in characters, for output that a program or pager reads


def page() -> Console:
    """A console on standard output. Long lines are wrapped only if standard output is a terminal."""
    width = None if sys.stdout.isatty() else NOT_CUT_OFF
    return Console(width=width, highlight=False, markup=False, emoji=False)


def plain_table(title: str | None, *columns: str) -> Table:
    """A table without lines. All columns except the first are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def ruled_table(title: str | None, *columns: str, left: int = 1) -> Table:
    """A table with a line below its head. All columns except the first ``left`` are aligned to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right")
    return table
