"""A parameter server for a program without a supervisor: shard processes on this host, while a block runs."""

import json
import secrets
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zmqrl.errors import ClusterError
from zmqrl.ps import messages as m
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl
from zmqrl.ps.job import ShardJob
from zmqrl.ps.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.partition import Layout
from zmqrl.ps.security import RunKeys
from zmqrl.ps.shard import Timing
from zmqrl.ps.sockets import ROLES, Role

START_WITHIN_S = 60.0
STOP_WITHIN_S = 5.0
SERVER = ["-m", "zmqrl.ps.server"]


@dataclass(slots=True)
class StandaloneShards:
    """Running shards: ``cluster_for`` is what a worker needs, ``control`` speaks to the shards as their supervisor.

    ``cluster`` is the same for all workers, where there are no ``keys``.
    """

    cluster: Cluster
    control: ShardControl
    jobs: list[ShardJob]
    keys: RunKeys | None
    processes: "list[subprocess.Popen[bytes]]"

    def cluster_for(self, rank: int) -> Cluster:
        """What worker ``rank`` needs, its keys too."""
        return replace(self.cluster, keys=self.keys.of_worker(rank)) if self.keys else self.cluster

    def start(self, shard: int) -> None:
        """Start the process of ``shard`` again, after it died."""
        self.processes[shard].wait(STOP_WITHIN_S)
        _close_pipes(self.processes[shard])
        self.processes[shard] = _start(self.jobs[shard])
        _endpoints(self.processes[shard])


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
    transport: str = "ipc",
    curve: bool = False,
    consistent: bool = False,
    asynchronous: bool = False,
    timing: Timing | None = None,
) -> Iterator[StandaloneShards]:
    """Run one process for each shard of ``layout``, loaded with ``vector`` (float32 (count,)) as version 0.

    ``quorum`` of ``workers`` make an update (all of them if not given; in asynchronous mode 1). State and history stay
    in ``directory``, or go with the block. ``curve``: connections are encrypted, and a worker is who its key says.
    Raises ClusterError when a shard does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="zmqrl-") as scratch:
        place = directory or Path(scratch)
        ipc, tcp = f"ipc://{scratch}", "tcp://127.0.0.1:0"
        run, secret = secrets.token_hex(8), secrets.token_hex(16)
        keys = RunKeys.make(workers=workers, shards=layout.shards) if curve else None
        jobs = [
            ShardJob(
                run=run,
                layout=layout,
                shard=shard,
                codec=codec,
                optimizer=optimizer,
                bind={role: f"{ipc}/{shard}-{role}" if transport == "ipc" else tcp for role in ROLES},
                secret=secret,
                state_path=place / "state" / f"shard-{shard}.slots",
                history_path=place / "history" / f"shard-{shard}.jsonl",
                consistent=consistent,
                asynchronous=asynchronous,
                timing=timing or Timing(),
                keys=keys.of_shard(shard) if keys else None,
            )
            for shard in range(layout.shards)
        ]
        processes = [_start(job) for job in jobs]
        control = None
        try:
            endpoints = [_endpoints(process) for process in processes]
            for job, bound in zip(jobs, endpoints, strict=True):
                job.bind.update(bound)  # a shard that is started again must be found where it was
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
            yield StandaloneShards(cluster, control, jobs, keys, processes)
        finally:
            if control is not None:
                control.close()
            for process in processes:
                _close_pipes(process)
            for process in processes:
                try:
                    process.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_WITHIN_S)


def _start(job: ShardJob) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, *SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job.to_json()).encode() + b"\n")
    process.stdin.flush()
    return process


def _endpoints(process: "subprocess.Popen[bytes]") -> dict[Role, str]:
    assert process.stdout is not None
    said = select.poll()
    said.register(process.stdout, select.POLLIN)
    if not said.poll(1000 * START_WITHIN_S):
        raise ClusterError(f"a shard did not come up within {START_WITHIN_S:g} s; see its log.")
    line = process.stdout.readline()
    if not line:
        status = process.wait(STOP_WITHIN_S)
        raise ClusterError(f"a shard did not come up: exit status {status}; its log tells why.")
    endpoints: dict[Role, str] = json.loads(line)["endpoints"]
    return endpoints


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()
