"""What the supervisor of a live run last wrote about it, for commands and pages that only look."""

from pathlib import Path
from typing import Any, Final

from zmqrl.json_lines import read_json
from zmqrl.observe.forms import ROW
from zmqrl.observe.live.presence import Presence

# Maps the supervisor's state to the state of a run whose lock is held. All other states mean running.
ALIVE: Final = {"stopped": "stopped", "traced": "stopped", "gone": "killed", "dead": "killed"}


def state_of_run(supervisor: str | None) -> str:
    """The state of a run whose lock is held and whose session is up: ``running``, ``stopped`` or ``killed``.

    ``supervisor`` is the state of its process, or None if it is on another host.
    """
    return ALIVE.get(supervisor or "", "running")


def read_live(path: Path) -> tuple[dict[str, Any], list[Presence]]:
    """The newest row with ``quorum``, and the processes, from the ``live.json`` at ``path``. Empty if unknown."""
    try:
        found = read_json(path)
        row = found["row"] | {"quorum": found["quorum"]}
        return row if ROW.complaint(row) is None else {}, list(map(Presence.from_json, found["processes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return {}, []
