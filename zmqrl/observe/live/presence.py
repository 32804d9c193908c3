"""The processes of a live run: on which host each one is, in which state, and for how long. Pure: no clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal, Self, TypeAlias

from zmqrl.observe.folding import printable, ranges
from zmqrl.process_id import ProcessId

State: TypeAlias = Literal["present", "starting", "awaited", "silent", "stopped", "lost", "unreachable", "open"]
EXTERNAL: Final = "external"  # the host of an external worker, which the run does not know
PRESENCE_WORDS: Final[Mapping[str, str]] = {
    "present": "present",
    "starting": "starting for {:.0f} s",
    "awaited": "no contribution for {:.0f} s",
    "silent": "silent for {:.0f} s",
    "stopped": "stopped for {:.0f} s",
    "lost": "lost {:.0f} s ago",
    "unreachable": "its host has been unreachable for {:.0f} s",
    "open": "open for an external worker",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A process of the run, its ``state``, and the seconds in this state, ``for_s``.

    - ``awaited``: its contribution to the open version is overdue.
    - ``silent``: it does not answer.
    - ``stopped``: a signal has stopped it, as its host reports.
    - ``lost``: it died or left, and has not been restarted.
    - ``unreachable``: its host is lost.
    - ``open``: an external worker may take this rank.
    """

    process: ProcessId
    host: str
    state: State
    for_s: float = 0.0
    restarts: int = 0

    @property
    def is_up(self) -> bool:
        """Whether the process runs, as far as the supervisor knows."""
        return self.state not in ("lost", "unreachable", "open")

    def words(self) -> str:
        return PRESENCE_WORDS[self.state].format(self.for_s)

    def to_json(self) -> dict[str, Any]:
        about = {"name": str(self.process), "host": self.host, "presence": self.state}
        return about | {"for_s": self.for_s, "restarts": self.restarts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for other ``data``."""
        if data["presence"] not in PRESENCE_WORDS:
            raise ValueError(data["presence"])
        return cls(
            process=ProcessId.parse(data["name"]),
            host=str(data["host"]),
            state=data["presence"],
            for_s=float(data["for_s"]),
            restarts=int(data["restarts"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLine:
    """A host, its processes, and their problems: ``remarks`` is empty if all are present."""

    host: str
    processes: str
    remarks: str


def by_host(presences: Iterable[Presence]) -> list[HostLine]:
    """A line for each host, in order of appearance."""
    on: dict[str, list[Presence]] = {}
    for each in presences:
        on.setdefault(each.host, []).append(each)
    return [
        HostLine(
            host=printable(host),
            processes=ranges((str(each.process) for each in here), short=True),
            remarks="; ".join(_remarks(here)),
        )
        for host, here in on.items()
    ]


def _remarks(here: Sequence[Presence]) -> Iterable[str]:
    """The processes in each state except ``present``, with the longest time of one of them."""
    wrong = sorted((each for each in here if each.state != "present"), key=lambda each: each.state)
    for _, group in groupby(wrong, key=lambda each: each.state):
        alike = list(group)
        longest = max(alike, key=lambda each: each.for_s)
        yield f"{ranges((str(each.process) for each in alike), short=True)}: {longest.words()}"
