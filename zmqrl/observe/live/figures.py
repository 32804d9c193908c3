"""``live.json``: the figures of a run at one moment, which its supervisor writes repeatedly."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zmqrl.json_lines import nulled, read_json
from zmqrl.observe.forms import ROW
from zmqrl.observe.live.presence import Presence


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


def read_live(path: Path) -> tuple[dict[str, Any], list[Presence]]:
    """The newest row with ``quorum``, and the processes, from the ``live.json`` at ``path``. Empty if unknown."""
    try:
        found = read_json(path)
        row = found["row"] | {"quorum": found["quorum"]}
        return row if ROW.complaint(row) is None else {}, list(map(Presence.from_json, found["processes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return {}, []
