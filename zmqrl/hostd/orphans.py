"""Ends what a dead process has left: programs in sessions of their own, such as game servers.

A daemon becomes the parent of descendants whose own parent died. It must not end those of a living process, such as a
server in the background. Each process therefore has a mark in its environment, which its descendants inherit.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zmqrl.hostd.guard import children

PR_SET_CHILD_SUBREAPER = 36
MARK = "ZMQRL_PROCESS"
DEATH_IS_SEEN_WITHIN_S = 1.0  # a daemon may see orphans before the death of their process


def adopt_orphans() -> None:
    """Make this process the new parent of its descendants whose own parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(slots=True)
class _Orphan:
    mark: str  # empty if its process is unknown
    seen_at: float


class Orphans:
    """The children that this process did not start. Each has the mark of the process that it descends from.

    An orphan has no mark if a program replaced its environment. If it appears within a second of the death of a
    process, it counts as that process's orphan. Otherwise, it lives until the daemon ends.
    """

    def __init__(self) -> None:
        self._orphans: dict[int, _Orphan] = {}  # by process id
        self._died, self._died_at = "", 0.0

    def died(self, mark: str, living: Mapping[int, str]) -> None:
        """End what the process with this mark has left. ``living`` holds the other marks, by process id."""
        self._died = mark
        self._died_at = now = time.monotonic()
        for orphan in self._orphans.values():
            if not orphan.mark and now - orphan.seen_at < DEATH_IS_SEEN_WITHIN_S:
                orphan.mark = mark
        self.step(living)

    def step(self, living: Mapping[int, str]) -> None:
        """Kill the orphans of dead processes, and reap dead orphans. Call this repeatedly."""
        now, marks = time.monotonic(), {"", *living.values()}
        found = [pid for pid in children(os.getpid()) if pid not in living]
        self._orphans = {pid: self._orphans.get(pid) or _Orphan(mark_of(pid) or self._died, now) for pid in found}
        left = [pid for pid, orphan in self._orphans.items() if orphan.mark not in marks]
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left or now - self._died_at >= DEATH_IS_SEEN_WITHIN_S:  # some orphans cannot be killed
            self._died = ""  # later orphans do not belong to the dead process
        for pid in found:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._orphans[pid]  # another process may get this id


def mark_of(pid: int) -> str:
    """The mark in the initial environment of a program. Empty if there is none, or it cannot be read."""
    start = f"{MARK}=".encode()
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(start):
                return variable.removeprefix(start).decode(errors="replace")
    return ""
