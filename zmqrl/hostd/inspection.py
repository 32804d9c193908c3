"""Finds out what a process is doing, from the kernel and the process itself, without root or ptrace."""

import contextlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zmqrl.hostd.child import ASK, ASK_BLOCKED
from zmqrl.process import boot_id

MOST_FRAMES = 16
LONGEST_FRAME = 300
STATES = {"R": "running", "D": "blocked", "T": "stopped", "t": "traced", "Z": "dead", "X": "dead"}
BLOCKED_CPU_S = 0.1  # CPU time within which Python code would have answered
NOT_OF_THE_MODULE = ("/zmqrl/hostd/child.py", "/zmqrl/hostd/fork_server.py", "<frozen runpy>", "<frozen importlib")


@dataclass(frozen=True, slots=True)
class Sight:
    """The state of a process according to ``/proc``.

    ``state`` is ``running``, ``waiting``, ``blocked`` (in the kernel, mostly by a disk or a network file system),
    ``stopped`` (by a signal), ``traced`` (by a debugger) or ``dead``. ``kernel`` is the kernel function in which the
    process waits, or empty. ``cpu_s`` is the processor time of the main thread. ``answers`` says whether the process
    handles the signals that ask for its stack. Without a handler, they end a process.
    """

    state: str
    kernel: str
    cpu_s: float
    answers: bool

    def is_past_python(self, before: "Sight") -> bool:
        """Whether the main thread runs no Python code.

        ``before`` is from when the process was asked for its stack. Python code would have answered since then.
        """
        return self.state in ("waiting", "blocked") or self.cpu_s - before.cpu_s >= BLOCKED_CPU_S


def look(pid: int) -> Sight | None:
    """The state of a process according to ``/proc``. None if it is gone, or belongs to another user."""
    process = Path("/proc") / str(pid)
    try:
        own, cpu_s = _state(process / "task" / str(pid))
        blocked = [thread for thread in (process / "task").iterdir() if _state(thread)[0] == "blocked"]
        status = (process / "status").read_text().splitlines()
    except (OSError, IndexError):
        return None
    # One thread that waits for a disk can hold up all others.
    state, where = ("blocked", blocked[0]) if blocked and own in ("running", "waiting") else (own, process)
    kernel = ""
    with contextlib.suppress(OSError):  # not in all kernels
        kernel = (where / "wchan").read_text()
    caught = next((int(line.split()[1], 16) for line in status if line.startswith("SigCgt:")), 0)
    answers = all(caught >> (number - 1) & 1 for number in (ASK, ASK_BLOCKED))
    return Sight(state, kernel.strip("0"), cpu_s, answers)


def pid_space() -> str:
    """An id of the set of process ids that are valid here, until the next boot. Most containers have their own set."""
    return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"


def is_here(host: str, space: str | None) -> bool:
    """Whether process ids of ``host`` are valid here. ``space`` is its :func:`pid_space`, or None if unknown.

    The name of a host is not enough, because a container can have it, too.
    """
    return host == socket.gethostname() and space in (None, pid_space())


def state_of(host: str, pid: int | None, space: str | None = None) -> str | None:
    """The state of a process, as in ``Sight.state``, or ``gone``. None unless :func:`is_here`."""
    if pid is None or not is_here(host, space):
        return None
    sight = look(pid)
    return "gone" if sight is None else sight.state


def _state(process: Path) -> tuple[str, float]:
    """The state and the processor time in seconds of a thread. In ``stat``, both follow the name in brackets."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return STATES.get(fields[0], "waiting"), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(pid: int, question: int) -> None:
    """Send ASK or ASK_BLOCKED to a process that ``answers``."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, question)


def begins_stack(line: str) -> bool:
    """Whether a line of a log begins the stack of a thread."""
    return line.endswith("(most recent call first):")


def frames(lines: Iterable[str]) -> list[str]:
    """The frames of the main thread, innermost first, such as ``File "game.py", line 12 in step``."""
    found: list[str] = []
    is_main = False
    for line in lines:
        if begins_stack(line):
            is_main = line.startswith(("Current thread", "Stack"))
        elif is_main and line.startswith('  File "') and not any(file in line for file in NOT_OF_THE_MODULE):
            found.append(line.strip()[:LONGEST_FRAME])
    return found[:MOST_FRAMES]
