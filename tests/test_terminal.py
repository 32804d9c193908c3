"""A run and its terminal: unread output, Ctrl-C at any moment, and a terminal that closes."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from support.policy_rig import write_run
from support.rig import ending, eventually
from support.run_rig import QUICKLY, WITHIN_S, RunFiles
from support.terminal import on_a_terminal

from zmqrl.config import Config

pytestmark = pytest.mark.processes

TRAIN = ("train", "cartpole", *QUICKLY, "--straggle", "0:0.02", "--run-dir")


@contextlib.contextmanager
def zmqrl(
    *arguments: str, stdout: int | IO[bytes] | None = None, stderr: int | IO[bytes] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``zmqrl ARGUMENTS``. Leaving the block ends the command."""
    with ending(
        subprocess.Popen(
            [sys.executable, "-m", "zmqrl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | {"TERM": "xterm-256color"},
        )
    ) as process:
        yield process


# unread output


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The write end of a full pipe that is not read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def stopped_terminal() -> Iterator[int]:
    """A terminal whose output is stopped, as after Ctrl-S."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    yield theirs
    os.close(ours)
    os.close(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["full_pipe", "stopped_terminal"])
def test_a_run_with_unread_output_makes_versions_and_ends_with_a_checkpoint(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    blocked: int = request.getfixturevalue(place)
    with zmqrl(*TRAIN, str(tmp_path / "run"), stdout=blocked, stderr=blocked) as process:
        files = RunFiles(tmp_path / "run")
        eventually(lambda: files.version() >= 10, "version 10", WITHIN_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 130
    summary = files.assert_summary_exact("interrupted")
    files.assert_history_exact(summary["updates"])


def test_an_error_that_is_not_read_still_ends_the_command(full_pipe: int) -> None:
    with zmqrl("trian", stdout=full_pipe, stderr=full_pipe) as process:
        assert process.wait(WITHIN_S) == 2


@pytest.mark.slow
def test_an_external_worker_with_an_unread_log_continues_to_work(full_pipe: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with zmqrl(*TRAIN, str(path), "--external-workers", "1", "--updates", "40", stdout=subprocess.DEVNULL) as run:
        eventually((path / "cluster.json").exists, "cluster.json", WITHIN_S)
        with zmqrl("worker", str(path / "cluster.json"), stderr=full_pipe) as worker:
            assert run.wait(WITHIN_S) == 0
            assert worker.wait(WITHIN_S) == 0


# Ctrl-C at any moment

# Reports when Python itself is up. From then on, zmqrl's code runs.
UP = """
import os, runpy
os.write(1, b"up")
runpy.run_module("zmqrl", run_name="__main__", alter_sys=True)
"""


def interrupted(
    after_s: float, program: str, *arguments: str, number: signal.Signals = signal.SIGINT
) -> tuple[int, str, str]:
    """Exit status, output and standard error of a command that gets a signal ``after_s`` after Python is up."""
    command = [sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ending(subprocess.Popen(command, stdin=subprocess.DEVNULL, **pipes)) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        time.sleep(after_s)
        process.send_signal(number)
        output, errors = process.communicate(timeout=WITHIN_S)
        return process.returncode, output.decode(), errors.decode()


def assert_no_traceback(status: int, errors: str, after_s: float) -> None:
    """Assert that the status is 130, or that Python had not reached a line of zmqrl and shows its own traceback."""
    assert status == 130 or "KeyboardInterrupt" in errors, f"status {status} after {after_s:.3f} s"
    # If a signal arrives while Python enters a module, the exception comes before the first line of the module runs.
    reached = [line for line in errors.splitlines() if "/zmqrl/" in line and not line.endswith("line 1, in <module>")]
    assert not reached, f"after {after_s:.3f} s: {errors}"


@pytest.mark.slow
def test_ctrl_c_ends_a_starting_command_without_a_traceback(tmp_path: Path) -> None:
    instants = [0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.05, *(0.1 * step for step in range(1, 25)), 3.0, 4.0]
    for after_s in instants:
        options = (*TRAIN, str(tmp_path / f"{after_s:.3f}"), "--updates", "200")
        status, _, errors = interrupted(after_s, UP, *options)
        assert_no_traceback(status, errors, after_s)
        assert errors == "" or "KeyboardInterrupt" in errors, errors


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("trian",)], ids=" ".join)
def test_ctrl_c_ends_a_short_command_without_a_traceback(arguments: tuple[str, ...]) -> None:
    done = {"--help": 0, "trian": 2}[arguments[-1]]
    for step in range(12):
        status, _, errors = interrupted(0.02 * step, UP, *arguments)
        if status != done:
            assert_no_traceback(status, errors, 0.02 * step)


# At exit, Python joins threads, runs the registered functions, and then clears modules.
LEAVES_A_THREAD = """
import os, sys, threading, time
from zmqrl import __main__, cli

def main():
    threading.Thread(target=time.sleep, args=(600,)).start()
    threading.Timer(0.2, os.write, (1, b"up")).start()
    sys.exit(0)

cli.main = main
__main__.main()
"""
IS_TAKEN_APART = """
import os, sys, time
from zmqrl import __main__, cli

class Late:
    def __del__(self, os=os, time=time):
        os.write(1, b"up")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass

late = Late()
cli.main = lambda: sys.exit(7)
__main__.main()
"""


@pytest.mark.parametrize(
    ("program", "status"), [(LEAVES_A_THREAD, 130), (IS_TAKEN_APART, 7)], ids=["joins threads", "takes modules apart"]
)
def test_ctrl_c_shows_no_traceback_while_python_exits(program: str, status: int) -> None:
    assert interrupted(0.1, program) == (status, "", "")


# SIGTERM and hang-ups before a run has begun


@pytest.mark.parametrize("command", [("train",), ("launch", "-H", "h1", "--via", "env SLURMD_NODENAME={host}")])
def test_a_run_that_is_terminated_during_its_start_leaves_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    with zmqrl(*command, *TRAIN[1:], str(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"drawing the initial parameters"):
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, errors) == (130, b"")
    assert not run.exists()


# the start on a terminal


def test_an_error_at_the_start_replaces_the_line_about_the_start(tmp_path: Path) -> None:
    with on_a_terminal("train", "cartpole", "--env", "CartPoll-v1", "--run-dir", str(tmp_path / "run")) as terminal:
        terminal.has_said("starting: game (0 s)")
        assert terminal.wait() == 2
    _, _, after = terminal.said.rpartition("starting: game")
    assert "\x1b[1A\x1b[2Kzmqrl: there is no environment 'CartPoll-v1'" in after
    assert list(tmp_path.iterdir()) == []


# a terminal that closes


def test_a_run_whose_terminal_closes_ends_with_a_checkpoint(tmp_path: Path) -> None:
    with on_a_terminal(*TRAIN, str(tmp_path / "run")) as terminal:
        files = RunFiles(tmp_path / "run")
        terminal.has_said("starting: game")
        terminal.has_said("parameters")
        eventually(lambda: terminal.read() != "" and files.version() >= 10, "version 10", WITHIN_S)
        terminal.close()
        assert terminal.wait() == 130
    summary = files.assert_summary_exact("interrupted")
    files.assert_history_exact(summary["updates"])


@pytest.mark.slow
def test_a_run_that_ignores_hang_ups_outlives_its_terminal(tmp_path: Path) -> None:
    with on_a_terminal(*TRAIN, str(tmp_path / "run"), "--updates", "60", hang_up="SIG_IGN") as terminal:
        files = RunFiles(tmp_path / "run")
        eventually(lambda: files.version() >= 10, "version 10", WITHIN_S)
        terminal.close()
        terminal.process.send_signal(signal.SIGHUP)
        assert terminal.wait() == 0
    files.assert_summary_exact("updates")


@pytest.mark.slow
def test_a_recording_whose_terminal_closes_leaves_no_part_of_a_video(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Config(env="ALE/Pong-v5"), 0)  # a long game
    with on_a_terminal("record", str(run), "--seconds", "80000") as terminal:
        eventually(lambda: any(run.glob("videos/.*.mp4")), "the first frames", WITHIN_S)
        os.killpg(terminal.process.pid, signal.SIGHUP)  # as a shell does: ffmpeg gets the signal, too
        assert terminal.wait() == 130, terminal.said
    assert list(run.glob("videos/*")) == []


# These tests may themselves run under nohup.
NO_NOHUP = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_end_ends_a_starting_command_without_a_traceback(tmp_path: Path, number: signal.Signals) -> None:
    for after_s in (0.0, 0.004, 0.03, 0.2, 0.8, 2.0, 3.0):
        run = tmp_path / f"{after_s:.3f}"
        status, _, errors = interrupted(after_s, NO_NOHUP + UP, *TRAIN, str(run), "--updates", "200", number=number)
        assert status in (130, -number), f"status {status} after {after_s:.3f} s"
        assert errors == "", errors
        assert not run.exists() or (run / "config.json").exists(), "a run that did not begin left its directory"
