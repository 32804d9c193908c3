"""Output never delays the work, even if the reader of a stream stops reading or goes away."""

import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn, TextIO

import pytest
from support.rig import WITHIN_S, ending, eventually

from zmqrl.observe.screen import MOST_WAITING_BYTES, Screen, never_waiting

LINE = "0123456789" * 10 + "\n"


class Pipe:
    """A pipe that holds 4 KiB, and a text stream into it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        self.stream: TextIO = os.fdopen(self.writer, "w", encoding="utf-8")

    def read_lines(self, count: int) -> list[str]:
        """Read the next ``count`` lines."""
        read = b""
        while read.count(b"\n") < count:
            piece = os.read(self.reader, 1)
            assert piece, f"only {read!r} came"
            read += piece
        return read.decode().splitlines()

    def close(self) -> None:
        os.close(self.reader)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_written_text_arrives_complete_and_in_order(pipe: Pipe) -> None:
    screen = Screen(pipe.stream)
    for number in range(10):
        screen.write(f"{number} naïve\n")
    screen.close()
    assert pipe.read_lines(10) == [f"{number} naïve" for number in range(10)]


DEAD_THREAD_WITH_THE_LOCK = """
import gc, sys, threading
from zmqrl.observe.screen import never_waiting

gc.disable()  # so that the screen is freed only when Python shuts down

def use_a_screen():
    with never_waiting():
        cycle = [sys.stdout]
        cycle.append(cycle)
        return cycle[0]._waiting._changed

lock, held = use_a_screen(), threading.Event()

def hold():
    with lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
"""


@pytest.mark.processes
def test_python_can_shut_down_even_if_the_thread_of_a_screen_ended_with_its_lock() -> None:
    subprocess.run([sys.executable, "-c", DEAD_THREAD_WITH_THE_LOCK], check=True, timeout=WITHIN_S)


def test_a_writer_does_not_wait_and_dropped_lines_are_counted_later(pipe: Pipe) -> None:
    screen = Screen(pipe.stream)
    lines = 3 * MOST_WAITING_BYTES // len(LINE)
    for number in range(lines):
        screen.write(f"{number} {LINE}")
    kept = 0
    while not (line := pipe.read_lines(1)[0]).startswith("..."):
        assert line.split()[0] == str(kept)
        kept += 1
    assert 0 < kept < lines
    assert line == f"... lines dropped here because nothing read them: {lines - kept}"
    eventually(lambda: screen.is_idle, "the end of the writing")
    screen.write("now they are read\n")
    assert pipe.read_lines(1) == ["now they are read"]
    screen.close()


def test_lines_dropped_at_the_end_are_reported(pipe: Pipe) -> None:
    screen = Screen(pipe.stream)
    while not screen.buffer._lines_dropped:  # type: ignore[attr-defined]
        screen.write(LINE)
    assert not screen.is_idle
    told = ""
    while not told.startswith("... lines dropped here because nothing read them: 1"):
        (told,) = pipe.read_lines(1)
    screen.close()


def test_closing_waits_for_a_slow_reader(pipe: Pipe) -> None:
    screen, read = Screen(pipe.stream), list[str]()
    for number in range(100):
        screen.write(f"{number} {LINE}")

    def read_slowly() -> None:
        for _ in range(100):
            time.sleep(0.002)
            read.extend(pipe.read_lines(1))

    reader = threading.Thread(target=read_slowly)
    reader.start()
    screen.close(within_s=WITHIN_S)
    pipe.stream.close()
    reader.join(WITHIN_S)
    assert [line.split()[0] for line in read] == [str(number) for number in range(100)]


def test_closing_does_not_wait_for_a_reader_that_never_reads(pipe: Pipe) -> None:
    screen = Screen(pipe.stream)
    for _ in range(100):
        screen.write(LINE)
    began_at = time.monotonic()
    screen.close(within_s=0.2)
    assert 0.2 <= time.monotonic() - began_at < WITHIN_S
    screen.write("too late\n")
    assert screen.is_idle


def test_a_reader_that_goes_away_causes_no_error() -> None:
    pipe = Pipe()
    os.close(pipe.reader)
    screen = Screen(pipe.stream)
    screen.write(LINE)
    eventually(lambda: screen.is_idle, "the end of the writing")
    screen.write(LINE)
    screen.close()
    pipe.stream.close()


def test_a_non_blocking_descriptor_gets_everything(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    screen = Screen(pipe.stream)
    for number in range(200):
        screen.write(f"{number} {LINE}")
    assert [line.split()[0] for line in pipe.read_lines(200)] == [str(number) for number in range(200)]
    screen.close()


def test_streams_are_restored_and_streams_in_memory_are_not_changed(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe
) -> None:
    in_memory = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    monkeypatch.setattr(sys, "stderr", in_memory)
    with never_waiting():
        assert isinstance(sys.stdout, Screen)
        assert sys.stderr is in_memory
        sys.stdout.write("shown\n")
    assert sys.stdout is pipe.stream
    assert pipe.read_lines(1) == ["shown"]


def test_streams_stay_as_they_are_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    def full(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(sys, "stdout", pipe.stream)
    monkeypatch.setattr(threading.Thread, "start", full)
    with never_waiting():
        assert sys.stdout is pipe.stream


BLOCKED = """
import sys
from zmqrl.observe.screen import never_waiting
with never_waiting():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(1000):
            stream.write("nobody reads this line\\n")
sys.exit(7)
"""


@pytest.mark.processes
def test_a_process_with_blocked_output_still_ends_with_its_own_status(pipe: Pipe) -> None:
    command = [sys.executable, "-c", BLOCKED]
    with ending(subprocess.Popen(command, stdout=pipe.writer, stderr=pipe.writer)) as process:
        assert process.wait(WITHIN_S) == 7
