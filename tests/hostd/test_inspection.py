"""The state of a process according to the kernel, and the stack that the process itself prints."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest
from support.rig import ending, eventually

from zmqrl.hostd import inspection
from zmqrl.hostd.child import ASK, ASK_BLOCKED

pytestmark = pytest.mark.processes


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    with ending(subprocess.Popen(["sleep", "600"])) as process:
        yield process


def state_of(pid: int) -> str | None:
    sight = inspection.look(pid)
    return None if sight is None else sight.state


def test_a_sleeping_process_is_waiting_and_does_not_catch_the_signal(sleeper: "subprocess.Popen[bytes]") -> None:
    eventually(lambda: state_of(sleeper.pid) == "waiting", "it sleeps")
    sight = inspection.look(sleeper.pid)
    assert sight is not None
    assert not sight.answers


def test_a_stopped_process_is_reported_as_stopped_until_it_continues(sleeper: "subprocess.Popen[bytes]") -> None:
    sleeper.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(sleeper.pid) == "stopped", "it is stopped")
    sleeper.send_signal(signal.SIGCONT)
    eventually(lambda: state_of(sleeper.pid) == "waiting", "it sleeps again")


def test_a_process_that_has_ended_is_dead_until_it_is_reaped_and_then_gone(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    sleeper.kill()
    eventually(lambda: state_of(sleeper.pid) == "dead", "it is dead")
    sleeper.wait()
    assert inspection.look(sleeper.pid) is None


def test_a_process_that_computes_is_running() -> None:
    with ending(subprocess.Popen([sys.executable, "-c", "while True: pass"])) as process:
        eventually(lambda: state_of(process.pid) == "running", "it computes")


@pytest.mark.parametrize("handler", [None, signal.SIG_IGN, lambda *_: None])
@pytest.mark.parametrize("number", [ASK, ASK_BLOCKED])
def test_a_process_answers_only_if_it_catches_both_signals(handler: signal.Handlers | None, number: int) -> None:
    numbers = (ASK, ASK_BLOCKED)
    old = [signal.getsignal(each) for each in numbers]
    try:
        for each in numbers:
            signal.signal(each, lambda *_: None)
        signal.signal(number, handler or signal.SIG_DFL)
        sight = inspection.look(os.getpid())
    finally:
        for each, before in zip(numbers, old, strict=True):
            signal.signal(each, before)
    assert sight is not None
    assert sight.answers == callable(handler)


def test_the_frames_are_from_the_thread_that_answered() -> None:
    def elsewhere() -> None:
        there.set()
        released.wait()

    there, released = threading.Event(), threading.Event()
    other = threading.Thread(target=elsewhere, daemon=True)
    other.start()
    assert there.wait(60)
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        lines = file.read().splitlines()
    released.set()
    other.join()
    assert any("in elsewhere" in line for line in lines)
    found = inspection.frames(["a line of the log before", *lines])
    assert found[0].endswith("in test_the_frames_are_from_the_thread_that_answered")
    assert found[0].startswith(f'File "{__file__}", line ')
    assert len(found) <= inspection.MOST_FRAMES
    assert not any("in elsewhere" in line for line in found)


def test_a_log_without_a_stack_has_no_frames() -> None:
    assert inspection.frames(['  File "x.py", line 1 in f', "Traceback (most recent call last):"]) == []
