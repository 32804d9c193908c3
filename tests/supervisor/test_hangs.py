"""Processes of real runs hang or are stopped. The log and ``zmqrl status`` show which process hangs, and where."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import ran
from support.hanging_env import HANG_FILE
from support.paths import TESTS
from support.rig import descendants
from support.run_rig import Run, outside_worker, training

pytestmark = [pytest.mark.processes, pytest.mark.slow]

HOST = socket.gethostname()
USUAL = 50  # versions; 16 are one iteration, so by then the run knows its usual pace
ENV = ("--env", "support.hanging_env:Hanging-v0")

HANGING_IMPORT = """
# In a worker, the import of torch blocks while the file exists.
import os, sys, time

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        while name == "torch" and os.path.exists(os.environ["HANG_IMPORT"]):
            time.sleep(0.1)

if sys.orig_argv[-1] == "zmqrl.worker":
    sys.meta_path.insert(0, Finder)
"""


@contextlib.contextmanager
def running(path: Path, *options: str, **environment: str) -> Iterator[Run]:
    """A run whose workers hang once their process ids are in the file ``hang``, which is next to the run directory."""
    hang = path.parent / "hang"
    hang.touch()
    environment = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])} | environment
    with training(path, *ENV, *options, environment=environment | {HANG_FILE: str(hang)}) as run:
        yield run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of two shards with two workers and a quorum of two. Each test leaves the run as it was."""
    with running(tmp_path_factory.mktemp("hangs") / "run") as run:
        run.wait_for(USUAL)
        yield run


def status_of(run: Run) -> dict[str, Any]:
    command = [sys.executable, "-m", "zmqrl", "status", str(run.files.path), "--json"]
    found: dict[str, Any] = json.loads(ran(command).stdout)
    return found


def awaited(run: Run, process: str, words: str) -> dict[str, Any]:
    """Wait for a notice about ``process`` that contains ``words``. Returns the process's entry in ``zmqrl status``."""
    run.eventually(lambda: process in notice(run) and words in notice(run), f"a notice about {process}")
    run.wait_to_say(notice(run).partition(" version ")[2])
    stalled = status_of(run)["stalled"]
    found: dict[str, Any]
    (found,) = [each for each in stalled["awaited"] if each["process"] == process]
    assert stalled["waited_s"] > 4.0
    return found


def notice(run: Run) -> str:
    """The newest notice of a stall in the log of the supervisor."""
    told = [line for line in run.files.log("supervisor").splitlines() if " has waited " in line]
    return told[-1] if told else ""


def goes_on(run: Run) -> None:
    made = run.files.version()
    run.wait_for(made + 20)
    run.eventually(lambda: "is no longer stalled" in run.said().rpartition(" has waited ")[2], "the end of the stall")
    run.eventually(lambda: status_of(run)["stalled"] is None, "a status without a stall")


def test_a_worker_with_a_hung_environment_is_named_with_its_span_and_stack(run: Run) -> None:
    pid = run.living_pid("worker", 1)
    run.files.path.with_name("hang").write_text(str(pid))
    found = awaited(run, "worker-1", "in env_step for ")
    assert (found["host"], found["is_external"], found["span"]) == (HOST, False, "env_step")
    assert found["span_s"] > 4.0
    assert found["doing"]["state"] == "waiting"
    assert "in wait_for_a_game_server" in found["doing"]["stack"][0]
    said = notice(run)
    assert f"for worker-1 (host {HOST}): in env_step for " in said
    assert "stack: wait_for_a_game_server (hanging_env.py:" in said
    assert "in wait_for_a_game_server" in run.files.log("worker-1")
    run.kill("worker", 1)
    goes_on(run)


def test_a_stopped_worker_is_distinguished_from_a_hung_one(run: Run) -> None:
    pid = run.living_pid("worker", 0)
    os.kill(pid, signal.SIGSTOP)
    found = awaited(run, "worker-0", "stopped")
    assert (found["host"], found["doing"]["state"], found["doing"]["stack"]) == (HOST, "stopped", [])
    assert f"for worker-0 (host {HOST}): stopped by a signal" in notice(run)
    states = {each["name"]: each["state"] for each in status_of(run)["processes"]}
    assert states["worker-0"] == "stopped"
    assert states["shard-0"] in ("waiting", "running")
    os.kill(pid, signal.SIGCONT)
    goes_on(run)


def test_a_stopped_shard_is_named_and_the_workers_that_wait_for_it_are_not(run: Run) -> None:
    pid = run.living_pid("shard", 1)
    os.kill(pid, signal.SIGSTOP)
    found = awaited(run, "shard-1", "stopped")
    assert (found["host"], found["doing"]["state"]) == (HOST, "stopped")
    assert {each["process"] for each in status_of(run)["stalled"]["awaited"]} <= {"shard-0", "shard-1"}
    assert f"for shard-1 (host {HOST}): stopped by a signal, silent for " in notice(run)
    os.kill(pid, signal.SIGCONT)
    goes_on(run)


def test_a_hung_external_worker_is_named_with_its_span_but_without_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = tmp_path / "hang"
    monkeypatch.setenv(HANG_FILE, str(hang))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    with running(tmp_path / "run", "--external-workers", "1") as run:
        run.wait_to_say("rank 1 is open: zmqrl worker")
        with outside_worker(run) as outside:
            run.wait_for(USUAL)
            hang.write_text(" ".join(map(str, descendants(outside.pid))))
            found = awaited(run, "worker-1", "in env_step for ")
            assert (found["host"], found["is_external"]) == ("", True)
            assert (found["span"], found["doing"]) == ("env_step", None)
            assert re.search(r"for worker-1 \(external\): in env_step for [\d.]+ s(, and |$)", notice(run)), "no stack"


def test_a_worker_that_hangs_in_its_imports_is_also_inspected(tmp_path: Path) -> None:
    place, blocks = tmp_path / "site", tmp_path / "blocks"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HANGING_IMPORT)
    path = os.pathsep.join([str(place), str(TESTS), os.environ.get("PYTHONPATH", "")])
    with running(tmp_path / "run", PYTHONPATH=path, HANG_IMPORT=str(blocks), ZMQRL_FORK="off") as run:
        run.wait_for(USUAL)
        blocks.touch()
        run.kill("worker", 0)
        found = awaited(run, "worker-0", "find_spec (sitecustomize.py:")
        what = re.escape(f"for worker-0 (host {HOST}): ") + r"(not connected|silent for \d+ s); stack: find_spec \("
        assert re.search(what, notice(run))
        assert found["doing"]["stack"][1].endswith("in <module>"), "the stack must name the import in zmqrl/worker.py"
        blocks.unlink()
        goes_on(run)
