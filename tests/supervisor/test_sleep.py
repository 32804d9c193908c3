"""One or all processes are stopped for a while, as on a sleeping laptop. None of them dies."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.run_rig import Run, training

pytestmark = pytest.mark.processes

ASLEEP_S = 12.0  # enough to fill queues, to detect broken connections and to make workers absent
TCP = ("--wire.transport", "tcp", "--workers", "2", "--shards", "2", "--minutes", "10")


def pids_of(run: Run, who: str) -> list[int]:
    """The processes of the supervisor, of all shards, of all workers, or of all three."""
    cluster = run.files.cluster()
    shards, workers = ([each["pid"] for each in cluster[role]] for role in ("shards", "workers"))
    supervisor = [run.process.pid]
    return {"supervisor": supervisor, "shards": shards, "workers": workers, "all": supervisor + shards + workers}[who]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["all", "supervisor", "shards", "workers"])
def test_a_run_continues_after_a_sleep_with_the_same_processes(tmp_path: Path, who: str) -> None:
    with training(tmp_path / "run", *TCP) as run:
        run.wait_for(50)
        before = run.pids()
        asleep = pids_of(run, who)
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(ASLEEP_S)
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        run.wait_for(run.files.version() + 50)
        assert run.pids() == before, run.said()
        run.interrupt(signal.SIGTERM)
        version = run.files.summary()["updates"]
        run.files.assert_history_exact(version)


@pytest.mark.slow
def test_a_run_rolled_back_while_a_worker_sleeps_continues_when_the_worker_wakes_up(tmp_path: Path) -> None:
    with training(tmp_path / "run", *TCP) as run:
        run.wait_for(50)
        (sleeper, *_) = pids_of(run, "workers")
        os.kill(sleeper, signal.SIGSTOP)
        time.sleep(9.0)  # by then the worker is absent
        (run.files.path / "state" / "shard-1.slots").unlink()
        run.kill("shard", 1)
        run.wait_to_say("all shards go back to the checkpoint")
        os.kill(sleeper, signal.SIGCONT)
        run.eventually(lambda: 0 < run.files.version() < 50 or run.files.version() > 60, "versions after the rollback")
        run.wait_for(run.files.version() + 20)
        run.interrupt(signal.SIGTERM)
        run.files.assert_history_exact(run.files.summary()["updates"])
