"""The figures of a live run, which its supervisor writes repeatedly to ``live.json``, and the state of the run."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zmqrl.json_lines import nulled, open_file, parse_json
from zmqrl.observe.forms import ROW
from zmqrl.observe.live.presence import Presence
from zmqrl.words import duration

MOMENTARY: Final = ("agent_steps_per_s", "updates_per_s", "workers_present")  # only a running run has them
AT_THE_END: Final = ("wall_s", "agent_steps", "episodes", "score_mean_50")  # also in summary.json
OLD_S: Final = 10.0  # the supervisor writes the file every second
# Maps the supervisor's state to the state of a run whose lock is held. All other states mean running.
ALIVE: Final = {"stopped": "stopped", "traced": "stopped", "gone": "killed", "dead": "killed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMetrics:
    """The figures of a run at one moment. ``row`` is the newest row of ``metrics.jsonl``.

    ``shard_held`` has the number of contributions to the open version, by shard. ``silent_s`` has the time since the
    last message, by rank of the present workers. ``about`` has the labels that identify the run.
    """

    row: Mapping[str, Any]
    about: Mapping[str, str]
    processes: Sequence[Presence] = ()
    shard_versions: Mapping[int, int] = field(default_factory=dict)
    shard_held: Mapping[int, int] = field(default_factory=dict)
    silent_s: Mapping[int, float] = field(default_factory=dict)
    quorum: int = 0
    stalled_s: float = 0.0
    checkpoint: int = 0

    def to_json(self) -> dict[str, Any]:
        """The contents of ``live.json``."""
        processes = [each.to_json() for each in self.processes]
        return {"at": time.time(), "row": nulled(self.row), "quorum": self.quorum, "processes": processes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The contents of a ``live.json``, without what cannot be read.

    ``row`` is the newest row, with ``quorum``. ``written_at`` has when the file was written, by the clock of the
    supervisor and by the clock of the file system: either can differ from the clock here.
    """

    row: Mapping[str, Any] = field(default_factory=dict)
    processes: Sequence[Presence] = ()
    written_at: tuple[float, ...] = ()

    @property
    def age_s(self) -> float | None:
        """Seconds since the file was written, or None if unknown. If a clock is ahead of the clock here, the age grows
        late, but it never falls. If one is behind, the other one counts.
        """
        return min((max(0.0, time.time() - at) for at in self.written_at), default=None)

    @property
    def is_new(self) -> bool:
        """Whether the supervisor has just written the file."""
        return (age_s := self.age_s) is not None and age_s <= OLD_S

    @property
    def is_old(self) -> bool:
        """Whether the supervisor no longer writes the file: its figures are not those of this moment."""
        return (age_s := self.age_s) is not None and age_s > OLD_S

    def over(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """The newest figures of a running run, whose last row of ``metrics.jsonl`` is ``last``.

        A row is written only for a new version. The last known value replaces one that is unknown now. Momentary
        figures are None if they are unknown or old.
        """
        newest = {**last, **{key: value for key, value in self.row.items() if value is not None}}
        momentary: Mapping[str, Any] = {} if self.is_old else self.row
        return newest | {key: momentary.get(key) for key in MOMENTARY} if self.row else newest


def read_live(path: Path) -> Live:
    """Read the ``live.json`` at ``path``."""
    try:
        with open_file(path) as file:
            found, changed_at = parse_json(file.read().decode()), os.fstat(file.fileno()).st_mtime
        row = found["row"] | {"quorum": found["quorum"]}
        return Live(
            row=row if ROW.complaint(row) is None else {},
            processes=list(map(Presence.from_json, found["processes"])),
            written_at=(float(found["at"]), changed_at),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return Live()


def state_of_run(supervisor: str | None) -> str:
    """The state of a run whose lock is held and whose session is up: ``running``, ``stopped`` or ``killed``.

    ``supervisor`` is the state of its process, or None if it is on another host.
    """
    return ALIVE.get(supervisor or "", "running")


def newest_figures(
    state: str, last: Mapping[str, Any], live: Live, summary: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The newest figures of a run: of a running one from ``live``, of an ended one from ``summary``, else from its
    ``last`` row. Only a running run has momentary figures.
    """
    if state == "running":
        return live.over(last)
    newest = dict(last)
    if state == "ended" and summary is not None:
        newest |= {"version": summary["updates"]} | {key: summary[key] for key in AT_THE_END}
    return newest and newest | dict.fromkeys(MOMENTARY)


def age_words(seconds: float | None) -> str | None:
    """A sentence about figures of this age. None if they are new, or of unknown age."""
    return None if seconds is None or seconds <= OLD_S else f"these figures are {duration(seconds)} old"
