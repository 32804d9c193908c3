"""Everything that the user's code has started ends with the process that runs this code."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.rig import WITHIN_S, ending, eventually, is_alive

from zmqrl.hostd.guard import state

pytestmark = pytest.mark.processes

# Starts a server that does not notice the end of its parent, and one whose parent has ended. Prints the process ids.
# Then runs the code in its first argument. The second one is the time that the code has to end after SIGTERM or SIGHUP.
# These tests may themselves run where Ctrl-C, hang-ups and the ends of children are ignored.
PROGRAM = """
import json, os, signal, subprocess, sys, time
from zmqrl.hostd.user_code import in_guarded_child

for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if (status := in_guarded_child(float(sys.argv[2]), "zmqrl eval")) is not None:
    sys.exit(status)
server = subprocess.Popen(["sleep", "600"], start_new_session=True)
told, tell = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(tell, b"%d" % os.getpid())
        time.sleep(600)
    os._exit(0)
print(json.dumps([os.getpid(), server.pid, int(os.read(told, 20))]), flush=True)
exec(sys.argv[1])
"""
COUNTS_SIGNALS = """
def heard(number, _):
    print(signal.Signals(number).name, flush=True)

for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, heard)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def started(
    code: str, ends_within_s: float = math.inf, stderr: int | None = None
) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A process that waits for its guarded child, and the ids of the child and its two servers."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PROGRAM, code, str(ends_within_s)]
    with ending(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True)) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(7)", 7),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_what_the_code_has_started_ends_before_its_command(code: str, status: int) -> None:
    with started(code) as (process, pids):
        assert process.communicate(timeout=WITHIN_S)[0] == "", "the pipe is closed"
        assert process.returncode == status
        assert not any(map(is_alive, pids))


def test_everything_ends_when_the_command_is_killed() -> None:
    with started("time.sleep(600)") as (process, pids):
        assert all(map(is_alive, pids))
        process.kill()
        assert process.communicate(timeout=WITHIN_S)[0] == "", "the pipe is closed"
        eventually(lambda: not any(map(is_alive, pids)), "the end of all processes")


def test_a_signal_is_passed_on_once() -> None:
    with started(COUNTS_SIGNALS) as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.name}\n"
        assert process.communicate(timeout=WITHIN_S)[0] == ""
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_code_that_does_not_end_after_a_signal_is_killed(number: signal.Signals) -> None:
    with started(COUNTS_SIGNALS, 5.0, stderr=subprocess.PIPE) as (process, pids):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)  # sets no limit: a second Ctrl-C may follow
        assert process.stdout.readline() == "SIGINT\n"
        process.send_signal(number)
        assert process.stdout.read() == f"{number.name}\n", "standard input is still open, so only a kill ends the code"
        assert process.stderr.read() == f"zmqrl eval was killed: it had not ended 5 s after {number.name}.\n"
        assert process.wait(WITHIN_S) == 130
        assert not any(map(is_alive, pids))


def test_code_that_ends_in_time_after_a_signal_keeps_its_status() -> None:
    with started(COUNTS_SIGNALS, 600.0) as (process, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.communicate(timeout=WITHIN_S)[0] == ""
        assert process.returncode == 0


def test_ctrl_z_stops_the_code_and_fg_continues_it() -> None:
    with started("time.sleep(600)") as (process, (child, *_)):

        def are_stopped() -> bool:
            return all(state(pid) == "stopped by a signal" for pid in (process.pid, child))

        process.send_signal(signal.SIGTSTP)
        eventually(are_stopped, "both are stopped")
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: "stopped" not in state(process.pid) + state(child), "both are continued")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 128 + signal.SIGTERM
