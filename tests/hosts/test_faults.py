"""A scenario kills processes at given times."""

import signal
from collections.abc import Collection
from pathlib import Path
from typing import cast

import pytest

from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.deployment import Site
from zmqrl.hosts.faults import Faults
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.rundir import RunDirectory
from zmqrl.simulate import Failure

WHERE = {shard_id(0): "one", worker_id(0): "one", worker_id(1): "two"}


class Signalled:
    """A launcher that records the signals that a test asks it to send."""

    def __init__(self, running: Collection[ProcessId]) -> None:
        self.alive = list(running)
        self.killed: list[ProcessId] = []

    def running(self) -> list[ProcessId]:
        return self.alive

    def signal(self, process: ProcessId, number: signal.Signals) -> None:
        assert number == signal.SIGKILL
        self.killed.append(process)


@pytest.mark.parametrize(
    ("name", "killed"),
    [
        ("worker-1", [worker_id(1)]),
        ("shard-0", [shard_id(0)]),
        ("host-0", [shard_id(0), worker_id(0)]),
        ("host-1", [worker_id(1)]),
        ("host-7", []),
    ],
)
def test_each_process_is_killed_once_when_it_is_due(name: str, killed: list[ProcessId], tmp_path: Path) -> None:
    launcher, said = Signalled(WHERE), list[str]()
    sites = {
        process: Site(host=host, directory=RunDirectory(tmp_path), address="127.0.0.1")
        for process, host in WHERE.items()
    }
    faults = Faults([Failure(process=name, at=5.0)], cast(DaemonLauncher, launcher), sites, said.append)
    faults.step(100.0)  # the run has not begun
    faults.begin(100.0)
    faults.begin(103.0)  # the time continues after a rollback
    faults.step(104.9)
    assert not launcher.killed
    faults.step(105.0)
    faults.step(106.0)
    assert launcher.killed == killed
    assert len(said) == 1
    assert (str(killed[0]) if killed else "no process") in said[0]
