"""An external worker outlives its killed run, and the resumed run refuses the worker."""

import contextlib
from pathlib import Path

import pytest
from support.run_rig import WITHIN_S, outside_worker, training

pytestmark = pytest.mark.processes

OUTSIDE = ("--external-workers", "1")


@pytest.mark.slow
def test_a_resumed_run_refuses_a_worker_of_the_killed_run(tmp_path: Path) -> None:
    log = tmp_path / "survivor.log"
    with log.open("wb") as stderr, contextlib.ExitStack() as outlives:
        with training(tmp_path / "run", *OUTSIDE) as run:
            run.wait_to_say("rank 1 is open: zmqrl worker")
            outside = outlives.enter_context(outside_worker(run, stderr=stderr))
            run.wait_for(20)
            run.process.kill()
        assert outside.poll() is None
        with training(tmp_path / "run", "--resume", "--on-loss", "shrink") as resumed:
            assert outside.wait(WITHIN_S) == 3, log.read_text()
            assert " at this address serves run " in log.read_text()
            resumed.wait_to_say("waiting for worker 1: 1 of 2 required workers are present")
