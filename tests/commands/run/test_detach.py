"""A run that continues without its terminal, and the view of such a run from another terminal."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rig import eventually, is_alive
from support.run_rig import QUICKLY, WITHIN_S, RunFiles
from support.terminal import Terminal, on_a_terminal

from zmqrl.commands.run.detach import detach

pytestmark = pytest.mark.processes

# The limit ends a run that outlives its test, because the test was killed.
TRAIN = ("train", "--detach", "cartpole", *QUICKLY, "--straggle", "0:0.02", "--minutes", "10", "--run-dir")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RunFiles]:
    """The files of a run that the test starts. Its supervisor is killed if the test has not ended it."""
    files = RunFiles(tmp_path / "run")
    yield files
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(supervisor(files), signal.SIGKILL)


def supervisor(files: RunFiles) -> int:
    pid: int = files.cluster()["supervisor"]["pid"]
    return pid


def detached(terminal: Terminal) -> None:
    """Wait until the command has returned and left its run in the background."""
    assert terminal.wait() == 0, terminal.said
    assert "the run is up and continues without this terminal" in terminal.said
    assert "zmqrl attach " in terminal.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_at_the_very_start_interrupts_the_run(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """A stand-in for the run. Ctrl-C arrives before ``detach`` has the new process."""

        def __init__(self, _: list[str], **options: Any) -> None:
            super().__init__(["sleep", "60"], **options)
            begun.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(number, lambda *_: None)  # as in the command: the signal is not ignored
    try:
        assert detach("train", ["cartpole", "--detach"]) == 128 + number
    finally:
        signal.signal(number, before)
        for run in begun:
            run.kill()
            run.wait()


def test_a_run_can_read_a_list_of_hosts_from_a_pipe_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(subprocess.Popen[bytes]):
        """A stand-in for the run: it reads the file after ``-H``."""

        def __init__(self, program: list[str], **options: Any) -> None:
            super().__init__(["grep", "-qx", "pod-0", program[-1]], **options)

    monkeypatch.setattr(subprocess, "Popen", Reading)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    reader, writer = os.pipe()
    os.write(writer, b"pod-0\n")
    os.close(writer)
    try:
        assert detach("launch", ["--sbatch=/dev/fd/9999", "-H", f"/dev/fd/{reader}"]) == 0
    finally:
        os.close(reader)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_detached_run_outlives_its_terminal_and_can_be_viewed_and_stopped(files: RunFiles) -> None:
    with on_a_terminal(*TRAIN, str(files.path)) as terminal:
        detached(terminal)
    pid, at = supervisor(files), files.version()
    assert os.getsid(pid) == pid
    assert {str(Path(f"/proc/{pid}/fd/{n}").readlink()) for n in (1, 2)} == {str(files.path / "logs/supervisor.log")}
    with on_a_terminal("attach", str(files.path)) as first, on_a_terminal("attach", str(files.path)) as second:
        first.has_said("agent steps/s")
        second.has_said("run directory")
        first.type("\x03")
        assert first.wait() == 130
        assert "left the view; the run continues" in first.said
        eventually(lambda: files.version() > at + 10, "more versions", WITHIN_S)
        with on_a_terminal("stop", str(files.path)) as stop:
            assert stop.wait() == 0
        assert second.wait() == 130, "the exit status of the run"
        assert "ended (interrupted)" in second.said
    eventually(lambda: not is_alive(pid), "the end of the supervisor", WITHIN_S)
    files.assert_summary_exact("interrupted")


@pytest.mark.slow
def test_a_detached_run_that_cannot_start_ends_the_command_with_its_error_and_status(files: RunFiles) -> None:
    with on_a_terminal(*TRAIN, str(files.path), "--env", "Unknown-v0") as terminal:
        assert terminal.wait() == 2
        assert "zmqrl: " in terminal.said
        assert "Unknown-v0" in terminal.said
        assert "attach" not in terminal.said
    assert not files.path.exists()


@pytest.mark.slow
def test_ctrl_c_before_a_detached_run_is_up_ends_the_run(files: RunFiles) -> None:
    with on_a_terminal(*TRAIN, str(files.path)) as terminal:
        eventually(lambda: terminal.read() != "", "the first line", WITHIN_S)
        terminal.type("\x03")
        assert terminal.wait() == 130, terminal.said
    assert "attach" not in terminal.said


@pytest.mark.slow
def test_a_view_ends_with_the_status_of_its_run(files: RunFiles) -> None:
    with on_a_terminal(*TRAIN, str(files.path), "--updates", "100") as terminal:
        detached(terminal)
    with on_a_terminal("attach", str(files.path)) as view:
        assert view.wait() == 0, view.said
    with on_a_terminal("attach", str(files.path)) as later:
        assert later.wait() == 0, later.said
    assert "ended (updates) at version 100" in later.said


@pytest.mark.slow
def test_a_view_of_a_killed_run_says_that_the_supervisor_died(files: RunFiles) -> None:
    with on_a_terminal(*TRAIN, str(files.path)) as terminal:
        detached(terminal)
    with on_a_terminal("attach", str(files.path)) as view:
        view.has_said("agent steps/s")
        os.kill(supervisor(files), signal.SIGKILL)
        assert view.wait() == 3, view.said
        assert "died before the end of the run" in view.said
