"""A parameter server for programs without a supervisor: a ``with`` block runs the shard processes on this host."""

import secrets
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zmqrl.child_process import ChildProcess
from zmqrl.errors import require
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl, bring_up
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import is_finite
from zmqrl.ps.wire.keys import RunKeys
from zmqrl.ps.wire.sockets import SOCKET_ROLES, ShardUp, SocketRole, Transport
from zmqrl.rundir import RunDirectory, directory_for_sockets

GREETED_WITHIN_S = 5.0
SHARD_ENDS_WITHIN_S = 5.0
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
    children: dict[int, ChildProcess]

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        """The process of each shard."""
        return [child.process for child in self.children.values()]

    def cluster_for(self, rank: int) -> Cluster:
        """The cluster for worker ``rank``, with the keys of that rank."""
        return replace(self.cluster, keys=self.keys.of_worker(rank)) if self.keys else self.cluster

    def start(self, shard: int) -> None:
        """Restart the process of ``shard`` after it has died."""
        self.children[shard].process.wait(SHARD_ENDS_WITHIN_S)
        self.children[shard].hang_up()
        _bring_up(self.jobs, self.children, [shard])


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
    transport: Transport = "shm",
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
    follow the progress of the run end at version ``horizon``. Raises UsageError when such a schedule has no end or
    another argument is wrong, and ClusterError when a shard does not start.
    """
    quorum = (1 if asynchronous else workers) if quorum is None else quorum
    require(
        vector.dtype == np.float32 and vector.shape == (layout.count,),
        f"vector is {vector.dtype} {vector.shape}: it must be float32 ({layout.count},).",
    )
    require(is_finite(vector), "vector has numbers that are not finite.")
    require(1 <= workers <= m.MAX_WORKERS, f"workers {workers}: must be from 1 to {m.MAX_WORKERS}.")
    require(1 <= quorum <= workers, f"quorum {quorum}: must be from 1 to {workers}, the number of workers.")
    require(quorum == 1 or not asynchronous, f"quorum {quorum}: must be 1 in asynchronous mode.")
    require(
        horizon is not None or not optimizer.follows_progress,
        f"final_learning_rate {optimizer.final_learning_rate}: the schedule needs an end. "
        "Set horizon or schedule_updates.",
    )
    with directory_for_sockets() as scratch:
        files = RunDirectory(directory or Path(scratch))
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
                bind={role: f"{ipc}/{shard}-{role}" if transport != "tcp" else tcp for role in SOCKET_ROLES},
                secret=secret,
                state_path=files.state(shard),
                history_path=files.history(shard),
                consistent=consistent,
                asynchronous=asynchronous,
                timing=timing or ShardTiming(),
                keys=keys.of_shard(shard) if keys else None,
                profiler=profiler,
                horizon=horizon,
            )
            for shard in range(layout.shards)
        ]
        children: dict[int, ChildProcess] = {}
        control = None
        try:
            endpoints = _bring_up(jobs, children, range(layout.shards))
            for job, bound in zip(jobs, endpoints, strict=True):
                job.bind.update(bound)  # a restarted shard must bind the same addresses
            supervisor = keys.of_supervisor() if keys else None
            control = ShardControl(run, layout.hash, secret, [bound["control"] for bound in endpoints], supervisor)
            control.greet(range(layout.shards), within_s=GREETED_WITHIN_S)
            zeros = len(Optimizer(optimizer).state_names)
            for cut in layout.slices:
                state = vector[cut.start : cut.stop].tobytes() + bytes(4 * cut.count * zeros)
                control.load(cut.shard, 1, 0, 1, quorum, tuple(range(workers)), state)
            cluster = Cluster(
                run=run,
                layout=layout,
                codec=codec,
                endpoints=tuple(endpoints),
                asynchronous=asynchronous,
                shares_memory=transport == "shm",
            )
            yield StandaloneShards(cluster, control, jobs, keys, children)
        finally:
            if control is not None:
                control.close()
            for child in children.values():
                child.hang_up()
            for child in children.values():
                try:
                    child.process.wait(SHARD_ENDS_WITHIN_S)
                except subprocess.TimeoutExpired:
                    child.kill()


def _bring_up(
    jobs: list[ShardJob], children: dict[int, ChildProcess], shards: Collection[int]
) -> list[dict[SocketRole, str]]:
    """Start ``shards`` as ``children``, and return the endpoints of each. Raises ClusterError.

    The incarnation of a shard is the time in ms, but greater than that of its previous process. ``jobs`` gets it.
    """

    def start(shard: int) -> None:
        incarnation = max(time.time_ns() // 1_000_000, (jobs[shard].incarnation or 0) + 1)
        jobs[shard] = replace(jobs[shard], incarnation=incarnation)
        children[shard] = ChildProcess(f"shard {shard}", SERVER, jobs[shard].to_json())

    def poll() -> dict[int, ShardUp]:
        said = {shard: children[shard].hear(within_s=0.0) for shard in shards}
        return {shard: ShardUp.from_json(facts) for shard, facts in said.items() if facts is not None}

    up = bring_up(shards, start, poll, within_s=START_WITHIN_S, advice=": see its log above")
    return [each.endpoints for each in up.values()]
