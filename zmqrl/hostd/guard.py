"""The guard of a host daemon: its parent process, which ends the daemon's processes if the daemon cannot.

A daemon that is stopped, or blocked by a disk, cannot end the processes that it has started. They do not notice. The
guard therefore kills a daemon that has not run for ``FROZEN_S``. When a daemon has ended, its descendants become
children of the guard, and the guard kills them. The daemon becomes the child of a guard with :func:`fork_guard`.

The guard runs as a script that needs the standard library only.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

TURN_S = 1.0
FROZEN_S = 8.0
NOTICED_S = 3.0  # before any lease runs out, so that the launcher knows why it hears nothing
GRACE_S = 3.0
KILLED_WITHIN_S = 2.0
STATES = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "blocked in the kernel, perhaps by a disk or network file system",
}


def fork_guard(frozen_s: float = FROZEN_S) -> int:
    """Continue in a child of this process, and turn this process into the guard of that child.

    Returns the process id of the guard. The guard keeps everything that survives exec, such as the parent-death signal
    and ignored signals.
    """
    guard, child = os.getpid(), os.fork()
    if child:
        os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(child), str(frozen_s)])
    os.setsid()  # a signal to the group of the guard must not stop both
    return guard


def watch(daemon: int, frozen_s: float) -> int:
    """Wait for the end of the child ``daemon``, and kill it if it has not run for ``frozen_s``. Forward signals to it.

    Then end its descendants. Returns the daemon's exit status. The reason for an unusual end goes to standard error.

    Time counts only while the guard itself runs. So a daemon is not killed because both were suspended, for example
    with their machine.
    """
    exit_fd = os.pidfd_open(daemon)

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(exit_fd, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    ran, still_s, turn_s = 0, 0.0, min(TURN_S, frozen_s / 4)
    while not select.select([exit_fd], [], [], turn_s)[0]:
        before, ran = ran, switches(daemon)
        if still_s >= frozen_s:  # not even SIGKILL ends a process that a broken disk blocks
            _kill(children(daemon))
            continue
        still_s = still_s + turn_s if 0 < ran == before else 0.0
        if still_s >= frozen_s:
            _tell(f"the host daemon was {state(daemon)} for {frozen_s:g} s")
            forward(signal.SIGKILL, None)
        elif still_s - turn_s < min(NOTICED_S, frozen_s / 2) <= still_s:
            _tell(f"the host daemon is {state(daemon)}")
    status = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    end_children(GRACE_S)
    if status < 0 and still_s < frozen_s:
        _tell(f"the host daemon was killed by signal {-status}")
    return status if status >= 0 else 128 - status


def switches(pid: int) -> int:
    """How often a process has begun to run, according to ``/proc``. 0 if the kernel does not count this."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return 0


def state(pid: int) -> str:
    """Why a process does not run, in words."""
    with contextlib.suppress(OSError):
        return STATES.get(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "not running")
    return "gone"


def children(pid: int) -> list[int]:
    """The process ids of the children of a process. They include descendants whose own parent has died."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # a kernel without this file
        return []


def end_children(grace_s: float) -> None:
    """Wait for the end of our children, and kill those that still live after ``grace_s``."""
    since = time.monotonic()
    while (pids := children(os.getpid())) and (waited_s := time.monotonic() - since) < grace_s + KILLED_WITHIN_S:
        if waited_s >= grace_s:
            _kill(pids)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _tell(what: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{what}\n".encode())


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), float(sys.argv[2])))
