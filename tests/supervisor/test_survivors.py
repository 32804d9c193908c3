"""An external worker outlives its killed run, and the resumed run refuses the worker."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rig import ending
from support.run_rig import WITHIN_S, Run, training

pytestmark = pytest.mark.processes

OUTSIDE = ("--external-workers", "1")


@contextlib.contextmanager
def survivor(run: Run, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """An external worker of ``run`` that writes its log to a file."""
    command = [sys.executable, "-m", "zmqrl", "worker", str(run.files.path / "cluster.json")]
    with log.open("wb") as file, ending(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)) as process:
        yield process


@pytest.mark.slow
def test_a_resumed_run_refuses_a_worker_of_the_killed_run(tmp_path: Path) -> None:
    log = tmp_path / "survivor.log"
    with contextlib.ExitStack() as outlives:
        with training(tmp_path / "run", *OUTSIDE) as run:
            run.wait_to_say("rank 1 is open: zmqrl worker")
            outside = outlives.enter_context(survivor(run, log))
            run.wait_for(20)
            run.process.kill()
        assert outside.poll() is None
        with training(tmp_path / "run", "--resume", "--on-loss", "shrink") as resumed:
            assert outside.wait(WITHIN_S) == 3, log.read_text()
            assert " at this address serves run " in log.read_text()
            resumed.wait_to_say("waiting for worker 1")
            assert {row["workers_present"] for row in resumed.files.metrics()[-1:]} <= {1}
