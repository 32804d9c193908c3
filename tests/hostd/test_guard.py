"""The guard of a host daemon kills a daemon that is stopped or blocked, and no other daemon."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rig import WITHIN_S, ending, eventually, is_alive

from zmqrl.hostd.guard import children, state, switches

pytestmark = pytest.mark.processes

FROZEN_S = 1.0
# Like the main loop of a daemon, it runs now and then even if nothing happens. It ends when its input is closed.
DAEMON = """
import os, select, sys
from zmqrl.hostd.guard import fork_guard
fork_guard(float(sys.argv[1]))
print(os.getpid(), flush=True)
while not select.select([0], [], [], 0.02)[0]:
    pass
sys.exit(3)
"""


# The kernel blocks a process that starts a program until the program runs: here, until someone writes to the pipe.
STARTING = """
    os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, sys.argv[2], 0, 0)])
"""
BLOCKED = "from zmqrl.hostd.daemon import _adopt_orphans_and_die_with_parent as adopt; adopt()" + DAEMON.replace(
    "\n    pass\n", STARTING
)


@contextlib.contextmanager
def guarded(
    frozen_s: float = FROZEN_S, program: str = DAEMON, *arguments: str
) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A guard, and the process id of its daemon."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, str(frozen_s), *arguments]
    with ending(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)) as guard:
        assert guard.stdout is not None
        daemon = int(guard.stdout.readline())
        try:
            yield guard, daemon
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGKILL)


def test_a_stopped_daemon_is_killed_and_the_reason_is_reported() -> None:
    with guarded() as (guard, daemon):
        os.kill(daemon, signal.SIGSTOP)
        _, said = guard.communicate(timeout=WITHIN_S)
        assert not is_alive(daemon)
        assert guard.returncode == 128 + signal.SIGKILL
        assert said.splitlines() == [
            "the host daemon is stopped by a signal",
            "for 1 s, the host daemon was stopped by a signal",
        ]


def test_a_daemon_that_the_kernel_blocks_is_killed_together_with_its_processes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with guarded(FROZEN_S, BLOCKED, str(tmp_path / "pipe")) as (guard, daemon):
        eventually(lambda: state(daemon).startswith("blocked in the kernel"), "it is blocked")
        (started,) = children(daemon)
        _, said = guard.communicate(timeout=WITHIN_S)
        assert not is_alive(daemon)
        assert not is_alive(started)
        assert said.splitlines()[-1] == (
            "for 1 s, the host daemon was blocked in the kernel, perhaps by a disk or network file system"
        )


def test_a_guard_ends_with_its_daemon_and_has_the_same_exit_status() -> None:
    with guarded() as (guard, _):
        time.sleep(2 * FROZEN_S)
        assert guard.poll() is None
        assert guard.communicate(timeout=WITHIN_S)[1] == ""
        assert guard.returncode == 3


def test_a_daemon_that_was_suspended_together_with_its_guard_is_not_killed() -> None:
    with guarded() as (guard, daemon):
        for pid in (guard.pid, daemon):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * FROZEN_S)
        for pid in (guard.pid, daemon):
            os.kill(pid, signal.SIGCONT)
        guard.communicate(timeout=WITHIN_S)
        assert guard.returncode == 3


def test_a_guard_forwards_a_signal_to_its_daemon() -> None:
    with guarded() as (guard, daemon):
        eventually(lambda: handles(guard.pid, signal.SIGTERM), "the guard is up")
        guard.terminate()
        guard.wait(WITHIN_S)  # communicate closes the input of the daemon, which could then end by itself
        assert guard.communicate()[1] == "the host daemon was killed by signal 15\n"
        assert not is_alive(daemon)


def handles(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


def test_a_stopped_process_does_not_begin_to_run() -> None:
    with guarded(100.0) as (_, daemon):
        before = switches(daemon)
        eventually(lambda: switches(daemon) > before > 0, "it runs")
        os.kill(daemon, signal.SIGSTOP)
        eventually(lambda: state(daemon) == "stopped by a signal", "it is stopped")
        before = switches(daemon)
        time.sleep(0.2)
        assert switches(daemon) == before


def test_the_children_of_a_process_are_found() -> None:
    with guarded() as (guard, daemon):
        assert children(guard.pid) == [daemon]
        assert children(daemon) == []
