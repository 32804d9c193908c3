"""The guard of a process is its parent. It ends everything that the process leaves.

A host daemon that is stopped, or blocked by a disk, cannot end its processes, and they do not notice. Its guard
therefore kills a daemon that has not run for ``FROZEN_S``. Other processes that run the user's code also have guards
(:mod:`zmqrl.hostd.user_code`).

Some programs that reach a host, such as lxc, mpirun or Ray, kill the process that they have started as soon as they
lose their own connection. The guard must not be this process. A host daemon therefore has a third process, the *front*:
the parent of the guard. It passes signals on, and ends with the guard.

When the process has ended, its descendants become children of the guard, which kills them. :func:`fork_guard` gives a
process a guard, which runs as a script with the standard library only.
"""

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

TURN_S = 1.0
FROZEN_S = 8.0
NOTICED_S = 3.0  # before any lease runs out, so that the launcher can report the cause
GRACE_S = 3.0
KILLED_WITHIN_S = 2.0
STATES = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "D": "blocked in the kernel, perhaps by a disk or network file system",
}
FRONT = "front"
USER_CODE = "user code"
INTERRUPTED = 130
END = signal.SIGRTMIN + 5  # ends the user's code. Batch systems do not send this signal
TO_A_DAEMON: dict[int, int] = {number: number for number in (signal.SIGTERM, signal.SIGHUP)}
# The user's code runs in a session of its own, where SIGTSTP stops no process.
TO_USER_CODE: dict[int, int] = {
    **{number: number for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCONT)},
    signal.SIGTSTP: signal.SIGSTOP,
    END: signal.SIGKILL,
}


def fork_front() -> int:
    """Continue in a child with a session of its own, and turn this process into the front of that child.

    Returns the process id of the front. The front keeps what survives exec, as in :func:`fork_guard`.
    """
    front, child = _fork()
    if child:
        _become(str(child), FRONT)
    os.setsid()  # the front's session or group may be killed
    return front


def fork_guard(frozen_s: float = FROZEN_S) -> int:
    """Continue in a child, a host daemon, and turn this process into the guard of that child.

    ``frozen_s`` is that of :func:`watch`. Returns the process id of the guard. The guard keeps what survives exec, such
    as the parent-death signal and ignored signals.
    """
    return _fork_guard(str(frozen_s))


def fork_guard_of_user_code(ends_within_s: float, called: str) -> int:
    """Like :func:`fork_guard`, for a child that runs the user's code. The arguments are for :func:`watch_user_code`."""
    return _fork_guard(USER_CODE, str(ends_within_s), called)


def _fork_guard(*how: str) -> int:
    guard, child = _fork()
    if child:
        _become(str(child), *how)
    os.setsid()  # a signal to the group of the guard must not stop both
    return guard


def _fork() -> tuple[int, int]:
    """Fork. Returns the process ids of the parent, and of the child: 0 in the child. Signals wait in the parent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignoring it would lose the exit status of the child
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, TO_USER_CODE)  # until the parent can pass them on
    parent, child = os.getpid(), os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return parent, child


def _become(*arguments: str) -> NoReturn:
    """Replace the program of this process with this file."""
    try:
        os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, *arguments])
    finally:
        os._exit(1)


def stand_before(guard: int) -> int:
    """Wait until the child ``guard`` has ended, and pass signals on to it. Returns its :func:`shell_status`."""
    exit_fd = os.pidfd_open(guard)
    _pass_on(exit_fd, TO_A_DAEMON)
    while not select.select([exit_fd], [], [], TURN_S)[0]:
        pass
    return shell_status(os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1]))


def watch(daemon: int, frozen_s: float) -> int:
    """Wait until the child ``daemon`` has ended, and kill it if it has not run for ``frozen_s``. Forward signals to it.

    Then end its descendants. Returns the daemon's exit status. The reason for an unusual end goes to standard error.

    Time counts only while the guard itself runs, so that a suspended machine does not end the daemon.
    """
    exit_fd = os.pidfd_open(daemon)
    _pass_on(exit_fd, TO_A_DAEMON)
    ran, still_s, turn_s = 0, 0.0, min(TURN_S, frozen_s / 4)
    while not select.select([exit_fd], [], [], turn_s)[0]:
        before, ran = ran, switches(daemon)
        if still_s >= frozen_s:  # not even SIGKILL ends a process that a broken disk blocks
            _kill(children(daemon))
            continue
        still_s = still_s + turn_s if 0 < ran == before else 0.0
        if still_s >= frozen_s:
            _tell(f"for {frozen_s:g} s, the host daemon was {state(daemon)}")
            send_signal(exit_fd, signal.SIGKILL)
        elif still_s - turn_s < min(NOTICED_S, frozen_s / 2) <= still_s:
            _tell(f"the host daemon is {state(daemon)}")
    status = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    end_children(GRACE_S)
    if status < 0 and still_s < frozen_s:
        _tell(f"the host daemon was killed by signal {-status}")
    return shell_status(status)


def watch_user_code(process: int, ends_within_s: float, called: str) -> int:
    """Wait for the end of the child ``process``, which runs the user's code, and pass signals on to it.

    Then kill what it has left. Returns its :func:`shell_status`. The user's code can block SIGTERM and SIGHUP: Python
    handles signals only between its own instructions, and cleaning up can wait for a game. If the process has not ended
    ``ends_within_s`` after such a signal, kill it and return INTERRUPTED. ``called`` names it in the message.
    """
    exit_fd = os.pidfd_open(process)
    limited = {number for number in TO_A_DAEMON if signal.getsignal(number) != signal.SIG_IGN}
    ends_by, asked = math.inf, ""

    def arrived(number: int) -> None:
        nonlocal ends_by, asked
        if number in limited and not asked:
            ends_by, asked = time.monotonic() + ends_within_s, signal.Signals(number).name

    _pass_on(exit_fd, TO_USER_CODE, arrived)
    is_late = False
    while not select.select([exit_fd], [], [], TURN_S)[0]:
        if not is_late and time.monotonic() >= ends_by:
            is_late = True
            send_signal(exit_fd, signal.SIGKILL)
            _tell(f"{called} was killed: it had not ended {ends_within_s:g} s after {asked}.")
        for orphan in children(os.getpid()):
            if orphan != process:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(orphan, os.WNOHANG)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    end_children(0)
    return INTERRUPTED if is_late else shell_status(status)


def shell_status(status: int) -> int:
    """An exit status as in shells: 128 + N if signal N has killed the process."""
    return status if status >= 0 else 128 - status


def _pass_on(exit_fd: int, signals: Mapping[int, int], arrived: Callable[[int], None] = lambda number: None) -> None:
    """Pass on each signal that arrives here, or has waited since the fork, as ``signals`` translates it.

    ``arrived`` gets each signal first.
    """

    def pass_on(number: int, _: FrameType | None) -> None:
        arrived(number)
        send_signal(exit_fd, signals[number])

    for number in signals:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_USER_CODE)


def send_signal(exit_fd: int, number: int) -> None:
    """Send a signal to the process with the pidfd ``exit_fd``, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(exit_fd, number)


def switches(pid: int) -> int:
    """How often a process has begun to run, from ``/proc``. 0 if the kernel does not count this."""
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
    """The process ids of a process's children, with adopted orphans."""
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
    watched, how = int(sys.argv[1]), sys.argv[2:]
    if how == [FRONT]:
        sys.exit(stand_before(watched))
    if how[0] == USER_CODE:
        sys.exit(watch_user_code(watched, float(how[1]), how[2]))
    sys.exit(watch(watched, float(how[0])))
