"""A parameter server for programs without a supervisor: a ``with`` block runs the shard processes on this host."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError, require
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import RunKeys
from zmqrl.ps.wire.sockets import SOCKET_ROLES, SocketRole
from zmqrl.rundir import directory_for_sockets

START_WITHIN_S = 60.0
STOP_WITHIN_S = 5.0
SERVER = ["-m", "zmqrl.ps.shard.server"]


@dataclass(slots=True)
class StandaloneShards:
    """Running shards. ``control`` sends them the messages of a supervisor.

    A worker connects with ``cluster_for(rank)``. Without ``keys``, all workers can use ``cluster``.
    """

    cluster: Cluster
    control: ShardControl
    jobs: list[ShardJob]
    keys: RunKeys | None
    children: list[ChildProcess]

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        """The process of each shard."""
        return [child.process for child in self.children]

    def cluster_for(self, rank: int) -> Cluster:
        """The cluster for worker ``rank``, with the keys of that rank."""
        return replace(self.cluster, keys=self.keys.of_worker(rank)) if self.keys else self.cluster

    def start(self, shard: int) -> None:
        """Restart the process of ``shard`` after it has died."""
        self.children[shard].process.wait(STOP_WITHIN_S)
        self.children[shard].hang_up()
        self.children[shard] = _start(self.jobs[shard])
        _endpoints(self.children[shard])


@contextmanager
def standalone_shards(
    layout: Layout,
    vector: npt.NDArray[np.float32],
    *,
    optimizer: OptimizerConfig,
    workers: int,
    quorum: int | None = None,
    directory: Path | None = None,
    codec: m.Codec = "f32",
    transport: Literal["ipc", "tcp"] = "ipc",
    address: str = "127.0.0.1",
    curve: bool = False,
    consistent: bool = False,
    asynchronous: bool = False,
    timing: ShardTiming | None = None,
    profiler: ProfilerJob | None = None,
    horizon: float | None = None,
) -> Iterator[StandaloneShards]:
    """Run one process for each shard of ``layout``, with ``vector`` (float32 (count,)) as version 0.

    An update needs contributions from ``quorum`` of the ``workers``: by default from all, or from 1 in asynchronous
    mode. The shards keep state and history in ``directory``, or in a directory that is deleted when the block ends.
    With ``transport`` tcp, they listen at ``address``: an address of this host, not a wildcard. ``curve`` encrypts the
    connections and authenticates each worker by its key. With ``profiler``, each shard records its time. Schedules that
    follow the progress of the run end at version ``horizon``. Raises UsageError when such a schedule has no end, and
    ClusterError when a shard does not start.
    """
    require(
        horizon is not None or not optimizer.follows_progress,
        f"final_learning_rate {optimizer.final_learning_rate}: the schedule needs an end. "
        "Set horizon or schedule_updates.",
    )
    with directory_for_sockets() as scratch:
        base = directory or Path(scratch)
        ipc, tcp = f"ipc://{scratch}", f"tcp://{address}:0"
        run, secret = secrets.token_hex(8), secrets.token_hex(16)
        keys = RunKeys.make(workers=workers, shards=layout.shards) if curve else None
        jobs = [
            ShardJob(
                run=run,
                layout=layout,
                shard=shard,
                codec=codec,
                optimizer=optimizer,
                bind={role: f"{ipc}/{shard}-{role}" if transport == "ipc" else tcp for role in SOCKET_ROLES},
                secret=secret,
                state_path=base / "state" / f"shard-{shard}.slots",
                history_path=base / "history" / f"shard-{shard}.jsonl",
                consistent=consistent,
                asynchronous=asynchronous,
                timing=timing or ShardTiming(),
                keys=keys.of_shard(shard) if keys else None,
                profiler=profiler,
                horizon=horizon,
            )
            for shard in range(layout.shards)
        ]
        children = [_start(job) for job in jobs]
        control = None
        try:
            endpoints = [_endpoints(child) for child in children]
            for job, bound in zip(jobs, endpoints, strict=True):
                job.bind.update(bound)  # a restarted shard must bind the same addresses
            supervisor = keys.of_supervisor() if keys else None
            control = ShardControl(run, layout.hash, secret, [bound["control"] for bound in endpoints], supervisor)
            control.greet(range(layout.shards), within_s=STOP_WITHIN_S)
            zeros = len(Optimizer(optimizer).state_names)
            for cut in layout.slices:
                state = vector[cut.start : cut.stop].tobytes() + bytes(4 * cut.count * zeros)
                control.load(
                    cut.shard, 1, 0, 1, quorum or (1 if asynchronous else workers), tuple(range(workers)), state
                )
            cluster = Cluster(
                run=run, layout=layout, codec=codec, endpoints=tuple(endpoints), asynchronous=asynchronous
            )
            yield StandaloneShards(cluster, control, jobs, keys, children)
        finally:
            if control is not None:
                control.close()
            for child in children:
                child.hang_up()
            for child in children:
                try:
                    child.process.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    child.kill()


def _start(job: ShardJob) -> ChildProcess:
    return ChildProcess(f"shard {job.shard}", SERVER, job.to_json())


def _endpoints(child: ChildProcess) -> dict[SocketRole, str]:
    said = child.hear(START_WITHIN_S)
    if said is None:
        raise ClusterError(f"{child.name} did not start within {START_WITHIN_S:g} s: see its log above.")
    endpoints: dict[SocketRole, str] = said["endpoints"]
    return endpoints
