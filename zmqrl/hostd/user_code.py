"""Gives a process that runs the user's code a guard, which ends everything that this code starts.

The user's code can start programs, such as game servers, even in sessions of their own. A host daemon ends the programs
that its processes leave (:mod:`zmqrl.hostd.orphans`). This module serves processes without a host daemon.
"""

import math
import os
import select
import signal
from types import FrameType

from zmqrl.hostd.guard import END, fork_guard_of_user_code, send_signal, shell_status
from zmqrl.hostd.orphans import adopt_orphans
from zmqrl.process import LOOK_UP_EVERY_S, check_pidfd, die_with_parent

PASSED_ON = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP)


def take_guard(parent: int | None = None, *, ends_within_s: float = math.inf, called: str = "the process") -> None:
    """Continue in a child, and turn this process into the guard of that child.

    When the child ends, the guard kills everything that the child has started, and exits with the child's
    :func:`shell_status`. The guard kills the child when the guard gets END, or its own parent dies. The child dies with
    the guard. ``parent`` is the parent of this process. If it is None, the caller must check that its parent did not
    die before this call. No thread continues in the child. ``ends_within_s`` and ``called`` are
    those of :func:`zmqrl.hostd.guard.watch_user_code`.
    """
    adopt_orphans()
    die_with_parent(END)
    if parent not in (None, os.getppid()):
        os._exit(0)
    guard = fork_guard_of_user_code(ends_within_s, called)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(0)


def in_guarded_child(ends_within_s: float, called: str) -> int | None:
    """Continue in a child with a guard, and return None there. Here, return the child's :func:`shell_status` at its
    end.

    Until then, pass on the signals that end or stop a command. The child has its own session, to get each signal only
    once. The guard kills a child that has not ended ``ends_within_s`` after SIGTERM or SIGHUP, and says so
    with the name ``called``. Raises UsageError if the kernel is too old.
    """
    check_pidfd()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getpid()
    guard = os.fork()
    if not guard:
        os.setsid()
        take_guard(parent, ends_within_s=ends_within_s, called=called)
        return None
    exit_fd = os.pidfd_open(guard)

    def pass_on(number: int, _: FrameType | None) -> None:
        send_signal(exit_fd, number)
        if number == signal.SIGTSTP:
            os.kill(parent, signal.SIGSTOP)
            send_signal(exit_fd, signal.SIGCONT)  # this process has been continued

    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    while not select.select([exit_fd], [], [], LOOK_UP_EVERY_S)[0]:
        pass
    return shell_status(os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1]))
