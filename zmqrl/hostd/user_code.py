"""Gives a process that runs the user's code a guard, which ends everything that this code starts.

An environment, a network or another function of the user can start programs, such as game servers, even in sessions of
their own. The host daemon ends the programs of its processes (:mod:`zmqrl.hostd.orphans`). This module serves processes
without a host daemon. It uses only the standard library.
"""

import os
import select
import signal
from types import FrameType

from zmqrl.hostd.guard import END, fork_guard, send_signal, shell_status
from zmqrl.hostd.orphans import adopt_orphans
from zmqrl.process import LOOK_UP_EVERY_S, die_with_parent

PASSED_ON = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP)


def take_guard(parent: int | None = None) -> None:
    """Continue in a child of this process, and turn this process into the guard of that child.

    The guard waits for the child, and kills everything that the child has started. It then exits with the status of the
    child, or with 128 + N if signal N has killed the child. The guard kills the child when the guard gets END, or when
    the parent of the guard dies. The child dies with the guard. ``parent`` is the parent of this process. If ``parent``
    is None, the caller must itself check that its parent has not died before this call. No thread of this process
    continues in the child.
    """
    adopt_orphans()
    die_with_parent(END)
    if parent not in (None, os.getppid()):
        os._exit(0)
    guard = fork_guard(None)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(0)


def in_guarded_child() -> int | None:
    """Continue in a child with a guard, and return None there. This process returns when everything has ended.

    The result is the exit status of the child, or 128 + N if signal N has killed the child. Until then, this process
    passes on the signals that end or stop a command. The child leads a session of its own, so that it gets each signal
    only once.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getpid()
    guard = os.fork()
    if not guard:
        os.setsid()
        take_guard(parent)
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
