"""The state of a run whose lock is held, for commands and pages that only look."""

from typing import Final

# Maps the supervisor's state to the state of a run whose lock is held. All other states mean running.
ALIVE: Final = {"stopped": "stopped", "traced": "stopped", "gone": "killed", "dead": "killed"}


def state_of_run(supervisor: str | None) -> str:
    """The state of a run whose lock is held and whose session is up: ``running``, ``stopped`` or ``killed``.

    ``supervisor`` is the state of its process, or None if it is on another host.
    """
    return ALIVE.get(supervisor or "", "running")
