"""Puts the lines of several logs in the order of their times. Pure: no clock, no files."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from zmqrl.observe.folding import LogSource

TIME: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:[+-]\d\d:?\d\d)?(?!\S)", re.ASCII)
SETTLED_S = 0.4  # lines reach this machine, and are read, within this time
HELD_S = 1.0 + SETTLED_S


def time_of(line: str) -> float | None:
    """The Unix time at the start of a log line, or None.

    A time without an offset from UTC, as older versions of zmqrl wrote it, is in the time zone of this machine.
    """
    found = TIME.match(line)
    if found is None:
        return None
    try:
        return datetime.fromisoformat(found[0].replace(",", ".")).timestamp()
    except (OverflowError, ValueError):  # such as month 13, or an offset of 99 hours
        return None


@dataclass(frozen=True, slots=True)
class Timed:
    """A line of ``source``, and the lines after it without a time, such as a traceback.

    ``at`` is the latest time, in seconds, of this line and all earlier lines of ``source``.
    """

    source: LogSource
    at: float
    arrived: float
    lines: list[str] = field(default_factory=list)


class Merging:
    """Holds lines until all lines before them have arrived. The lines of each source stay in order."""

    def __init__(self) -> None:
        self._held: list[Timed] = []
        self._newest: dict[LogSource, float] = {}
        self._growing: dict[LogSource, Timed] = {}  # to which the next lines without a time are added

    def begin(self, source: LogSource, at: float) -> None:
        """Use ``at`` as the time of lines of ``source`` until one has its own time."""
        self._newest[source] = at

    def add(self, source: LogSource, line: str, now: float) -> None:
        """Take the next line of ``source``, which was read at ``now``."""
        at = time_of(line)
        if at is None and source in self._growing:
            self._growing[source].lines.append(line)
            return
        newest = self._newest.get(source, -float("inf"))
        self._newest[source] = newest if at is None else max(newest, at)
        timed = self._growing[source] = Timed(source, self._newest[source], now, [line])
        self._held.append(timed)

    def take(self, now: float) -> list[Timed]:
        """Remove and return the lines that need not wait, in the order of their times."""
        if not self._held or now - self._held[0].arrived < HELD_S:
            return []
        return self._release(max(each.at for each in self._held if now - each.arrived >= SETTLED_S))

    def take_all(self) -> list[Timed]:
        """Remove and return all lines, in the order of their times."""
        return self._release(float("inf"))

    def _release(self, until: float) -> list[Timed]:
        over = [each for each in self._held if each.at <= until]
        self._held = [each for each in self._held if each.at > until]
        held = set(map(id, self._held))
        self._growing = {source: each for source, each in self._growing.items() if id(each) in held}
        return sorted(over, key=lambda each: each.at)
