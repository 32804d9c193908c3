"""What the kernel and a process itself say about what it does. It needs neither root nor ptrace."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zmqrl.hostd.child import STACK_SIGNAL

MOST_FRAMES = 16
LONGEST_FRAME = 300
STATES = {"R": "running", "D": "blocked", "T": "stopped", "t": "traced", "Z": "dead", "X": "dead"}


@dataclass(frozen=True, slots=True)
class Sight:
    """What ``/proc`` says of a process.

    ``state``: ``running``, ``waiting``, ``blocked`` (in the kernel, mostly by a disk or a network file system),
    ``stopped`` (by a signal), ``traced`` (by a debugger) or ``dead``. ``kernel`` is the function of the kernel that it
    waits in, empty if unknown. ``answers``: whether it catches STACK_SIGNAL, which ends a process that does not.
    """

    state: str
    kernel: str
    answers: bool


def look(pid: int) -> Sight | None:
    """What ``/proc`` says of a process. None if it is gone, or belongs to somebody else."""
    place = Path("/proc") / str(pid)
    try:
        own = _state(place)
        blocked = [thread for thread in (place / "task").iterdir() if _state(thread) == "blocked"]
        caught = next(line for line in (place / "status").read_text().splitlines() if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return None
    # One thread that waits for a disk can hold up all others.
    state, where = ("blocked", blocked[0]) if blocked and own in ("running", "waiting") else (own, place)
    kernel = ""
    with contextlib.suppress(OSError):  # some kernels do not have it
        kernel = (where / "wchan").read_text()
    return Sight(state, kernel.strip("0"), bool(int(caught.split()[1], 16) >> (STACK_SIGNAL - 1) & 1))


def _state(place: Path) -> str:
    """The state of a process or of one of its threads. Its letter follows the name, which may contain spaces."""
    try:
        return STATES.get((place / "stat").read_text().rpartition(")")[2].split()[0], "waiting")
    except ProcessLookupError as error:  # it ended during the read
        raise FileNotFoundError(error.errno, error.strerror) from error


def ask_for_stack(pid: int) -> None:
    """Ask a process that ``answers`` for the stacks of its threads."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, STACK_SIGNAL)


def begins_stack(line: str) -> bool:
    """Whether a line of a log is the first one of the stack of a thread."""
    return line.endswith("(most recent call first):")


def frames(lines: Iterable[str]) -> list[str]:
    """The frames of the thread that answered, from the lines that a process wrote meanwhile, innermost first.

    The kernel gives a signal to the main thread of a process, unless that blocks it. Each frame is like ``File
    "game.py", line 12 in step``.
    """
    found: list[str] = []
    is_ours = False
    for line in lines:
        if begins_stack(line):
            is_ours = line.startswith("Current thread")
        elif is_ours and line.startswith('  File "'):
            found.append(line.strip()[:LONGEST_FRAME])
    return found[:MOST_FRAMES]
