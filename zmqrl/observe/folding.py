"""Folds equal log lines of many processes into one, with the names of the processes. Pure: no clock."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from zmqrl.words import escaped

WINDOW_S = 1.0
MOST_HELD = 200
PARTS_SHOWN = 4

LogSource: TypeAlias = tuple[str, str]  # host (empty if not needed) and process, such as worker-3


@dataclass(slots=True, eq=False)
class Folded:
    """A line, its sources, and how often they wrote it."""

    line: str
    sources: dict[LogSource, None] = field(default_factory=dict)
    count: int = 0

    def __str__(self) -> str:
        hosts, processes = (set(each) for each in zip(*self.sources, strict=True))
        first = " ".join(filter(None, (ranges(hosts), ranges(processes, short=True))))
        return f"[{first}] {printable(self.line)}" + (f" ({self.count}x)" if self.count > 1 else "")


class Folding:
    """Holds lines until ``WINDOW_S`` after the first held line, and folds equal lines into one.

    The lines of each process stay in order. Lines are equal even if the times at their starts differ. Without
    ``by_time``, each line directly follows the previous one of its process, so that nothing interrupts a traceback.
    """

    def __init__(self, *, by_time: bool = False) -> None:
        self._by_time = by_time
        self._opened_at = 0.0
        self._held: list[Folded] = []
        self._newest: dict[LogSource, Folded] = {}  # the newest held line of each source
        self._over: list[Folded] = []

    def add(self, source: LogSource, line: str, now: float) -> None:
        if len(self._held) >= MOST_HELD:
            self._close()
        if not self._held:
            self._opened_at = now
        newest = self._newest.get(source)
        # Folding into a line before the newest line of this process would break the order.
        since = 0 if newest is None else self._held.index(newest)
        words = _words(line)
        folded = next((each for each in self._held[since:] if _words(each.line) == words), None)
        if folded is None:
            folded = Folded(line)
            self._held.insert(len(self._held) if newest is None or self._by_time else since + 1, folded)
        folded.sources[source] = None
        folded.count += 1
        self._newest[source] = folded

    def take(self, now: float) -> list[Folded]:
        """Remove and return the lines that have been held long enough."""
        if self._held and now - self._opened_at >= WINDOW_S:
            self._close()
        over, self._over = self._over, []
        return over

    def take_all(self) -> list[Folded]:
        self._close()
        return self.take(self._opened_at)

    def _close(self) -> None:
        self._over += self._held
        self._held = []
        self._newest.clear()


def ranges(names: Iterable[str], *, short: bool = False) -> str:
    """A short list of names: ``h1..h4,h7`` for h1 to h4 and h7, or ``h1..4,h7`` if ``short``.

    The list has only a few ranges. If there are more, it ends with ``and 9 more``.
    """
    parts: list[str] = []
    told, names = 0, set(names)
    for run in _runs(names):
        if len(parts) == PARTS_SHOWN:
            return f"{','.join(parts)} and {len(names) - told} more"
        first, last = run[0], run[-1]
        if len(run) < 3:
            parts.append(",".join(run))
        else:
            parts.append(f"{first}..{_split(last)[1] if short else last}")
        told += len(run)
    return ",".join(parts)


def _runs(names: Iterable[str]) -> Iterator[list[str]]:
    """Groups of names that are equal except for consecutive numbers."""
    numbered = enumerate(sorted(names, key=by_number))

    def row(item: tuple[int, str]) -> tuple[object, ...]:
        before, number, after = _split(item[1])
        return (before, after, int(number) - item[0]) if number else (item[1],)

    for _, group in groupby(numbered, key=row):
        yield [name for _, name in group]


def by_number(name: str) -> tuple[str, str, int, str]:
    """The sort key of a name: worker-2 comes before worker-10."""
    before, number, after = _split(name)
    return before, after, int(number or 0), name


def _split(name: str) -> tuple[str, str, str]:
    """The text before the first number, the number, and the text after the number, such as the domain of a host."""
    # Python does not convert thousands of digits to a number.
    found = re.match(r"(\D*)(\d{0,100})(.*)", name, re.DOTALL | re.ASCII)
    assert found is not None
    return found[1], found[2], found[3]


def _words(line: str) -> str:
    """A line without the time at its start, which differs between processes."""
    date, _, rest = line.partition(" ")
    clock, _, words = rest.partition(" ")
    return words if date[:2].isdigit() and ":" in clock else line


def printable(text: str) -> str:
    """Replace control characters with spaces, and escape bytes that are not text.

    ``text`` can quote untrusted data, which must not forge lines.
    """
    return "".join(character if character.isprintable() else " " for character in escaped(text))


def quoted(lines: Iterable[str]) -> str:
    return "".join(f"\n  | {printable(line)}" for line in lines)
