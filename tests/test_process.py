"""A child process ends with its parent, whatever its main thread does and even if a signal is lost.

The log level of a child process comes from its environment.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.rig import WITHIN_S, Interrupted, ending, eventually, signal_that_does_not_wake

from zmqrl.commands.inspect.merging import time_of
from zmqrl.process import ENDING, LOG_LEVEL, Messages, interruptible, quiet_children

pytestmark = pytest.mark.processes

# The handler does nothing, as if the listener had sent SIGTERM before the main thread began to wait.
SIGNAL_CAME_JUST_BEFORE = """
import signal
from zmqrl.process import Messages
told = Messages()
signal.signal(signal.SIGTERM, lambda *_: None)
"""
WAITING = SIGNAL_CAME_JUST_BEFORE + "print('up', flush=True)\ntold.get()\n"
AT_WORK = """
import os, sys, time
from zmqrl.process import Messages
told = Messages()
told.get()
try:
    print('up', flush=True)
    time.sleep(600)
finally:
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    print('cleaned up', flush=True)
"""
# The code catches the exception, like a library that mistakes it for an exception of its own.
SWALLOWING = """
import time
from zmqrl.process import Messages
told = Messages()
try:
    print('up', flush=True)
    time.sleep(600)
except SystemExit:
    pass
told.get()
"""

SIGNAL_AT_EXIT = """
import atexit, os, signal
from zmqrl.process import Messages, ended_by_sigterm
atexit.register(signal.raise_signal, signal.SIGTERM)
"""
AFTER_THE_BLOCK = SIGNAL_AT_EXIT + "with ended_by_sigterm(): pass\n"
IN_THE_BLOCK = SIGNAL_AT_EXIT + "with ended_by_sigterm(): signal.raise_signal(signal.SIGTERM)\n"
IN_USER_CODE = """
import signal
from zmqrl.errors import blaming
from zmqrl.process import ended_by_sigterm
with ended_by_sigterm(), blaming("Maze-v0 fails"):
    signal.raise_signal(signal.SIGTERM)
"""
# The listener wakes the main thread before it sends its signal.
AFTER_THE_LAST_MESSAGE = SIGNAL_AT_EXIT + "os.kill = lambda *_: None\nMessages().get()\n"


def child(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("program", [WAITING, SWALLOWING], ids=["lost before a wait", "swallowed"])
def test_a_follower_that_misses_the_signal_still_ends_with_its_parent(program: str) -> None:
    with ending(child(program)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.wait(WITHIN_S) == 0


@pytest.mark.timeout(120)
def test_a_signal_that_does_not_wake_the_main_thread_ends_a_wait_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Messages, "_listen", lambda self: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Interrupted), signal_that_does_not_wake():
            Messages().get()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_to_end_is_a_single_ctrl_c_and_does_not_interrupt_the_cleanup(number: signal.Signals) -> None:
    before = {each: signal.signal(each, lambda *_: None) for each in ENDING}  # as in a command: none is ignored
    cleaned_up = False

    @interruptible()
    def work() -> None:
        nonlocal cleaned_up
        try:
            signal.raise_signal(number)
        finally:
            for each in ENDING:
                signal.raise_signal(each)
            cleaned_up = True

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert cleaned_up
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_end_of_the_parent_interrupts_work_but_a_second_signal_does_not_interrupt_the_cleanup(
    tmp_path: Path,
) -> None:
    signalled = tmp_path / "signalled"
    with ending(child(AT_WORK, str(signalled))) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        eventually(lambda: ignores_sigterm(process.pid), "the first signal")
        process.terminate()
        signalled.touch()
        assert process.stdout.read() == b"cleaned up\n"
        assert process.wait(WITHIN_S) == 0


def test_a_signal_to_end_is_not_an_error_of_the_user_code_that_it_interrupts() -> None:
    with ending(child(IN_USER_CODE)) as process:
        assert process.communicate(timeout=WITHIN_S) == (b"", b"")
        assert process.returncode == 0


@pytest.mark.parametrize(
    "program", [AFTER_THE_BLOCK, IN_THE_BLOCK, AFTER_THE_LAST_MESSAGE], ids=["after", "in", "messages"]
)
def test_a_signal_to_a_process_that_exits_prints_nothing(program: str) -> None:
    with ending(child(program)) as process:
        assert process.communicate(timeout=WITHIN_S) == (b"", b"")
        assert process.returncode == 0


def ignores_sigterm(pid: int) -> bool:
    with Path(f"/proc/{pid}/status").open(encoding="ascii") as status:
        (ignored,) = [int(line.split()[1], 16) for line in status if line.startswith("SigIgn:")]
    return bool(ignored >> 14 & 1)


def test_a_message_that_is_not_json_ends_a_follower() -> None:
    with ending(child(SIGNAL_CAME_JUST_BEFORE + "told.get()\n")) as process:
        assert process.stdin is not None
        process.stdin.write(b"{\n")
        process.stdin.flush()
        assert process.wait(WITHIN_S) == 0


LOGS_AT_EACH_LEVEL = """
import logging
from zmqrl.process import log_to_stderr
log = log_to_stderr("zmqrl.worker")
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)(f"{level} line")
    getattr(logging.getLogger("matplotlib"), level)(f"{level} of another package")
"""


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("ERROR", ["error"]),
        ("", ["info", "warning", "error"]),
        (None, ["info", "warning", "error"]),
        ("chatty", ["info", "warning", "error"]),  # from the environment of another host
    ],
)
def test_the_environment_sets_the_log_level_of_a_process(
    monkeypatch: pytest.MonkeyPatch, level: str | None, logged: list[str]
) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    if level is not None:
        monkeypatch.setenv(LOG_LEVEL, level)
    with ending(child(LOGS_AT_EACH_LEVEL)) as process:
        _, errors = process.communicate(timeout=WITHIN_S)
    lines = errors.decode().splitlines()
    assert [line.split()[-2] for line in lines if line.endswith(" line")] == logged
    others = [line.split()[-4] for line in lines if line.endswith("of another package")]
    assert others == [each for each in logged if each != "debug"]


@pytest.mark.parametrize(("zone", "offset"), [("UTC0", "+0000"), ("CET-1", "+0100")])
def test_a_log_line_begins_with_its_time_and_the_offset_from_utc(
    monkeypatch: pytest.MonkeyPatch, zone: str, offset: str
) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    monkeypatch.setenv("TZ", zone)
    began = time.time()
    with ending(child(LOGS_AT_EACH_LEVEL)) as process:
        _, errors = process.communicate(timeout=WITHIN_S)
    first = errors.decode().splitlines()[0]
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}}{re.escape(offset)} INFO info line", first)
    at = time_of(first)
    assert at is not None
    assert int(began * 1000) / 1000 <= at <= time.time()


def test_children_are_quiet_within_the_block_unless_the_user_has_set_a_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ZMQRL_LOG_LEVEL", raising=False)
    with quiet_children():
        assert os.environ["ZMQRL_LOG_LEVEL"] == "warning"
    assert "ZMQRL_LOG_LEVEL" not in os.environ
    monkeypatch.setenv("ZMQRL_LOG_LEVEL", "debug")
    with quiet_children():
        assert os.environ["ZMQRL_LOG_LEVEL"] == "debug"
    assert os.environ["ZMQRL_LOG_LEVEL"] == "debug"
