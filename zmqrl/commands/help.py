"""The help of commands with many options: tyro writes it, and this module sorts the options into groups."""

import contextlib
import io
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, make_dataclass
from typing import Any, Final, NamedTuple

import tyro

WIDTH: Final = 100  # at most: tyro puts boxes side by side on very wide terminals
BOLD, RESET = "\x1b[1m", "\x1b[0m"
STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")


class OptionGroup(NamedTuple):
    """A group of options under a ``title``.

    ``options`` are names without dashes, in order. ``parts`` are nested settings, shown after the options: ``ppo``
    stands for ``--ppo.*``.
    """

    title: str
    options: Sequence[str]
    parts: Sequence[str] = ()


def help_of(own: type[Any], settings: Any, program: str) -> str:
    """The help that tyro prints for the dataclasses ``own`` and ``settings``, with the values of ``settings`` as
    defaults.

    It begins with the docstring of ``own``.
    """
    about = {"__doc__": own.__doc__}
    both: Any = make_dataclass("Both", [], bases=(own, type(settings)), namespace=about, frozen=True, kw_only=True)
    default = both(**{field.name: getattr(settings, field.name) for field in fields(settings)})
    with _narrow(), contextlib.redirect_stdout(_Page()) as page, contextlib.suppress(SystemExit):
        tyro.cli(both, args=["--help"], prog=program, default=default)
    return page.getvalue()


def grouped(page: str, groups: Sequence[OptionGroup], examples: Mapping[str, str]) -> str:
    """The ``page`` that tyro printed, with its options sorted into ``groups``.

    Options that belong to no group come last. ``examples`` maps command lines to what they do.
    """
    is_styled = STYLE.search(page) is not None
    parts = {title.removesuffix(" options"): lines for title, lines in _boxes(page)}
    options = dict(_entries(parts.pop("options")))
    introduction = itertools.takewhile(lambda line: not STYLE.sub("", line).startswith("╭"), page.splitlines())
    shown = ["\n".join(introduction).rstrip()]

    def add(title: str, lines: Iterable[str]) -> None:
        if found := list(lines):
            shown.extend(["", f"{BOLD}{title}{RESET}" if is_styled else title, *found])

    add("EXAMPLES", [line for command, purpose in examples.items() for line in (f"  {purpose}:", f"    {command}")])
    for title, names, of_parts in (*groups, OptionGroup("other", list(options), list(parts))):
        entries = [options.pop(name) for name in names if name in options]
        add(f"{title} options".upper(), itertools.chain(*entries))
        for part in of_parts:
            if part in parts:
                add(f"{title} options".upper() + f": --{part}.*", parts.pop(part))
    return "\n".join(shown) + "\n"


def _boxes(page: str) -> Iterator[tuple[str, list[str]]]:
    """The title and the styled lines of each box that tyro has drawn."""
    title, lines = "", list[str]()
    for line in page.splitlines():
        plain = STYLE.sub("", line)
        if plain.startswith("╭"):
            title, lines = plain.strip("╭─╮ "), []
        elif plain.startswith("│"):
            inside = "│".join(line.split("│")[1:-1])
            if set(plain[1:-1].strip()) != {"─"}:
                lines.append(f" {_without_frame(inside)}")
        elif plain.startswith("╰"):
            yield title, lines


def _without_frame(inside: str) -> str:
    """The content of a line in a box, without padding and frame styles."""
    content = re.sub(r"^(?:\x1b\[[0-9;]*m)+", "", inside)
    content = re.sub(r"(?:\s|\x1b\[[0-9;]*m)+$", "", content)
    return content + RESET if STYLE.search(content) else content


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The long name and the lines of each option in the ``lines`` of a box."""
    entry: list[str] = []
    for line in [*lines, "  -"]:
        if STYLE.sub("", line).startswith("  -"):
            if entry:
                yield re.findall(r"--([\w.-]+)", STYLE.sub("", entry[0]))[0], entry
            entry = []
        entry.append(line)


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    """Limit the width of what tyro prints in the block."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(WIDTH, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


class _Page(io.StringIO):
    """Keeps what tyro prints. tyro uses colours if standard output is a terminal.

    Because of the fixed encoding, tyro always draws the same boxes.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout.isatty()

    def isatty(self) -> bool:
        return self._is_terminal
