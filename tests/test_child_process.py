"""The parent's side of a child process: messages arrive, and the end of the process is an error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.rig import is_alive

from zmqrl.child_process import ChildEnded, ChildProcess
from zmqrl.errors import ClusterError
from zmqrl.hostd.guard import END

pytestmark = pytest.mark.processes

ECHO = """
import signal, sys
from zmqrl.process import Messages, read_job, say
job = read_job(signal.SIGKILL)
print("not for the parent")
say({"job": job})
messages = Messages()
while "end" not in (message := messages.get()):
    say({"told": message})
sys.exit(7)
"""
GUARDED = """
import os, signal, subprocess
from zmqrl.hostd.user_code import take_guard
from zmqrl.process import Messages, read_job, say
take_guard()
read_job(signal.SIGKILL)
server = subprocess.Popen(["sleep", "600"], start_new_session=True)
say({"pids": [os.getpid(), server.pid]})
Messages().get()
os.kill(os.getpid(), signal.SIGSEGV)
"""
WITHIN_S = 60.0


@contextmanager
def child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str = ECHO, guarded_by: int | None = None
) -> Iterator[ChildProcess]:
    (tmp_path / "a_module.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = ChildProcess("worker 3", ["-m", "a_module"], {"rank": 3}, guarded_by=guarded_by)
    try:
        yield process
    finally:
        process.kill()


def test_messages_are_answered_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 1_000_000  # larger than a pipe's buffer
    with child(tmp_path, monkeypatch) as process:
        assert process.hear(WITHIN_S) == {"job": {"rank": 3}}
        assert process.hear(0.0) is None
        for text in (long, "short"):
            process.tell({"text": text})
            assert process.hear(WITHIN_S) == {"told": {"text": text}}


def test_messages_that_arrive_together_are_heard_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, this process was stopped while the child sent several messages."""
    with child(tmp_path, monkeypatch) as process:
        for number in range(3):
            process.tell({"number": number})
        process.tell({"end": True})
        process.process.wait(WITHIN_S)
        assert process.hear(0.0) == {"job": {"rank": 3}}
        assert [process.hear(0.0) for _ in range(3)] == [{"told": {"number": number}} for number in range(3)]
        with pytest.raises(ChildEnded):
            process.hear(0.0)


def test_an_error_names_a_process_that_ended_and_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(tmp_path, monkeypatch) as process:
        assert process.hear(WITHIN_S) is not None
        process.tell({"end": True})
        with pytest.raises(ClusterError, match=r"worker 3 ended \(exit status 7\): its log is above"):
            process.hear(WITHIN_S)
        with pytest.raises(ClusterError, match="worker 3 ended"):
            process.tell({})


def test_a_killed_process_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(tmp_path, monkeypatch) as process:
        process.kill()
        assert not Path(f"/proc/{process.process.pid}").exists()


def pids_of(process: ChildProcess) -> list[int]:
    answer = process.hear(WITHIN_S)
    assert answer is not None
    pids: list[int] = answer["pids"]
    assert all(map(is_alive, pids))
    return pids


def test_a_guarded_process_is_killed_with_what_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child(tmp_path, monkeypatch, GUARDED, END) as process:
        pids = pids_of(process)
        process.kill()
        assert not any(map(is_alive, pids))


def test_an_error_names_the_signal_that_killed_a_guarded_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(tmp_path, monkeypatch, GUARDED, END) as process:
        pids = pids_of(process)
        process.tell({})
        with pytest.raises(ChildEnded, match=r"worker 3 ended \(killed by SIGSEGV\)") as ended:
            process.hear(WITHIN_S)
        assert ended.value.how == "killed by SIGSEGV"
        assert not any(map(is_alive, pids))
