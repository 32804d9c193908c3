"""Makes the job of each process of a run, and cluster.json."""

import os
import secrets
import socket as host_socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zmqrl import __version__
from zmqrl.config import Config
from zmqrl.hostd.inspection import pid_space
from zmqrl.hosts.deployment import Deployment
from zmqrl.hosts.events import Task
from zmqrl.observe.provenance import code_id
from zmqrl.process_id import EVALUATOR, RECORDER, ProcessId, shard_id, worker_id
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import RunKeys
from zmqrl.ps.wire.sockets import SOCKET_ROLES, SocketRole
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.start.jobs import FollowerJob, FollowerRequest, WorkerJob

PROFILE = "ZMQRL_PROFILE"  # "off" turns profiling off, to measure its cost
BIND = "ZMQRL_BIND"  # "off" lets the kernel choose the cores of workers
FORK = "ZMQRL_FORK"  # "off" makes each process import its modules itself, to find a fault or measure the gain
WORKER = "zmqrl.worker"
FOLLOWERS = {EVALUATOR: "zmqrl.commands.measure.evaluate", RECORDER: "zmqrl.commands.measure.record"}


def prepare(deployment: Deployment) -> None:
    """Make the hosts of the workers import what workers need, while the launcher prepares the run."""
    if may_fork():
        workers = [process for process in deployment.sites if process.role == "worker"]
        for worker in {deployment.launcher.host_of(worker): worker for worker in workers}.values():
            deployment.launcher.prepare(worker, WORKER, deployment.threads[worker])


def core_of(
    worker: ProcessId, host_of: Mapping[ProcessId, str], threads: Mapping[ProcessId, int], config: Config
) -> tuple[int, int] | None:
    """The index of a core for ``worker``, and the number of workers on its host, which binds them if it has as many
    cores.

    None if other processes may compute on that host, or if the user has turned binding off.
    """
    here = [each for each, host in host_of.items() if host == host_of[worker] and each.role != "shard"]
    alone = all(each.role == "worker" for each in here) and not config.external_workers
    if not alone or threads[worker] > 1 or config.device != "cpu" or os.environ.get(BIND) == "off":
        return None
    return here.index(worker), len(here)


def may_fork() -> bool:
    """Whether processes may be forked: the user decides with ``ZMQRL_FORK``."""
    return os.environ.get(FORK) != "off"


class RunTasks:
    """The processes of one run.

    ``run`` is a new id, unless the shards must find the state of an earlier run. ``secret`` authenticates the
    supervisor to the shards. ``version`` is the first version of the session, and ``trained_before_s`` the training
    time before it. ``generation`` is the newest one of earlier sessions. It is 0 in a new run.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        layout: Layout,
        deployment: Deployment,
        *,
        run: str | None = None,
        version: int = 0,
        trained_before_s: float = 0.0,
    ) -> None:
        self.config, self.directory, self.layout = config, directory, layout
        self.deployment, self.sites, self.threads = deployment, deployment.sites, deployment.threads
        self.host_of = {process: site.host for process, site in self.sites.items()}
        self.trained_before_s = trained_before_s
        self.generation = 0
        self.trace_below = version + config.profile if config.profile else 0
        self.run = run or secrets.token_hex(8)
        self.secret = secrets.token_hex(16)
        addresses = [self.sites[shard_id(shard)].address for shard in range(layout.shards)]
        encrypted = config.wire.encrypts(addresses)
        self.keys = RunKeys.make(workers=config.ranks, shards=layout.shards) if encrypted else None
        self.local_ranks = range(config.ranks - config.external_workers)
        self.open_ranks = range(len(self.local_ranks), config.ranks)
        self._incarnations: dict[ProcessId, int] = {}
        self._seeding: dict[int, int] = {}  # by rank: the version that seeded the last start
        self._written: tuple[object, ...] = ({}, {})

    def shard_task(self, shard: int, endpoints: dict[SocketRole, str] | None, *, frozen: bool = False) -> Task:
        """The task of a shard. A restarted shard binds its old ``endpoints``, to which workers connect.

        A ``frozen`` shard serves its state, but makes no versions. It binds its usual control port if there is a port
        range, and otherwise an endpoint that no worker connects to.
        """
        process = shard_id(shard)
        config, directory = self.config, self.sites[process].directory
        job = ShardJob(
            run=self.run,
            layout=self.layout,
            shard=shard,
            codec=config.wire.codec,
            optimizer=config.optimizer,
            bind=endpoints or self._addresses(shard, frozen=frozen),
            secret=self.secret,
            code=code_id(),
            state_path=directory.state(shard),
            history_path=directory.history(shard),
            consistent=config.consistent,
            asynchronous=config.mode == "async",
            horizon=config.horizon(),
            timing=ShardTiming(need_s=config.wire.need_s),
            profiler=None if frozen else self._profiler(process),
            incarnation=self._incarnation(process),
            keys=self.keys.of_shard(shard) if self.keys else None,
            frozen=frozen,
        )
        return self._task(process, "zmqrl.ps.shard.server", job.to_json())

    def worker_task(self, rank: int, job: WorkerJob | None) -> Task:
        """The task of a worker. Without a ``job``, the worker imports its modules and waits for the job."""
        return self._task(worker_id(rank), WORKER, None if job is None else job.to_json())

    def worker_job(self, rank: int, version: int, endpoints: Mapping[int, dict[SocketRole, str]]) -> WorkerJob:
        """The job of a worker. ``endpoints`` are those of the shards. ``version`` is roughly the run's version.

        If the run has made no version since the last start of this worker, the job has a higher one. So the worker
        plays other games, because the last ones may have ended it.
        """
        process = worker_id(rank)
        version = self._seeding[rank] = max(version, self._seeding.get(rank, -1) + 1)
        cluster = Cluster(
            run=self.run,
            layout=self.layout,
            codec=self.config.wire.codec,
            endpoints=tuple(endpoints[shard] for shard in sorted(endpoints)),
            asynchronous=self.config.mode == "async",
            shares_memory=self.config.wire.shares_memory,
            keys=self.keys.of_worker(rank) if self.keys else None,
        )
        return WorkerJob(
            cluster=cluster,
            config=self.config,
            rank=rank,
            version=version,
            generation=self.generation,
            incarnation=self._incarnation(process),
            threads=self.threads[process],
            core=core_of(process, self.host_of, self.threads, self.config),
            profiler=self._profiler(process),
        )

    def _profiler(self, process: ProcessId) -> ProfilerJob | None:
        """What ``process`` needs to record its time, or None if the user has turned profiling off."""
        if os.environ.get(PROFILE) == "off":
            return None
        site = self.sites[process]
        return ProfilerJob(site.directory.profile, site.host, self.trace_below)

    def control(
        self,
        endpoints: list[str],
        warn: Callable[[str], None],
        other: Callable[[int, m.ToSupervisor], None] = lambda shard, message: None,
    ) -> ShardControl:
        """Connect to the shards as the supervisor. Calls ``other(shard, message)`` for unrequested messages."""
        keys = self.keys.of_supervisor() if self.keys else None
        return ShardControl(self.run, self.layout.hash, self.secret, endpoints, keys, other, warn)

    def follower_task(self, process: ProcessId, requests: Sequence[FollowerRequest]) -> Task:
        """The task of a follower, which gets ``requests`` when it starts."""
        job = FollowerJob(
            run_dir=self.sites[process].directory.path,
            episodes=self.config.evaluation.episodes,
            greedy=self.config.evaluation.greedy,
            threads=self.threads[process],
        )
        return self._task(process, FOLLOWERS[process], job.to_json(), [each.to_json() for each in requests])

    def _task(
        self, process: ProcessId, module: str, job: Mapping[str, Any] | None, messages: Sequence[Mapping[str, Any]] = ()
    ) -> Task:
        log_path = self.directory.log(process)
        return Task(
            process=process,
            module=module,
            job=job,
            log_path=log_path,
            threads=self.threads[process],
            messages=messages,
            # A shard imports no torch, so it would only wait for a fork server.
            forked=process.role != "shard" and may_fork(),
        )

    def write_cluster(
        self,
        endpoints: Mapping[int, Mapping[SocketRole, str]],
        pids: Mapping[ProcessId, int],
        lost_at: Mapping[str, float] | None = None,
    ) -> None:
        """Write ``cluster.json`` and its key files if the processes or the lost hosts have changed.

        ``lost_at`` has the time at which each lost host was lost, on the monotonic clock. Raises OSError.
        """
        known = dict(pids), dict(lost_at or {})
        if known != self._written:
            self._write_key_files()
            unix_s = time.time() - time.monotonic()
            unreachable_since = {host: unix_s + at for host, at in known[1].items()}
            cluster = self.cluster(endpoints, pids) | {"unreachable_since": unreachable_since}
            write_json(self.directory.cluster, cluster, mode=0o600)
            self._written = known

    def cluster(
        self, endpoints: Mapping[int, Mapping[SocketRole, str]], pids: Mapping[ProcessId, int]
    ) -> dict[str, Any]:
        """The contents of ``cluster.json``: what an external worker needs to join, and the host of each process."""
        return {
            "protocol": m.PROTOCOL,
            "zmqrl": __version__,
            "run": self.run,
            "supervisor": {"host": host_socket.gethostname(), "pid": os.getpid(), "pid_space": pid_space()},
            "hosts": self.deployment.launcher.to_dict(),
            "shards": [
                {"shard": shard, **self._process(shard_id(shard), pids), **endpoints[shard]}
                for shard in sorted(endpoints)
            ],
            "workers": [{"rank": rank, **self._process(worker_id(rank), pids)} for rank in self.local_ranks],
            "followers": [
                {"name": str(process), **self._process(process, pids)} for process in FOLLOWERS if process in pids
            ],
            "open_ranks": list(self.open_ranks),
            "trained_before_s": self.trained_before_s,
            "mode": self.config.mode,
            "shares_memory": self.config.wire.shares_memory,
            "codec": self.config.wire.codec,
            "layout": self.layout.to_json(),
            "keys": {str(rank): self._key_file(rank) for rank in self.open_ranks} if self.keys else None,
            "config": self.config.to_json(),
        }

    def _process(self, process: ProcessId, pids: Mapping[ProcessId, int]) -> dict[str, Any]:
        return {"host": self.sites[process].host, "pid": pids.get(process)}

    def _key_file(self, rank: int) -> str:
        """The path of a rank's key file, relative to ``cluster.json``: both files can be copied to another host."""
        return str(self.directory.key_file(rank).relative_to(self.directory.path))

    def _write_key_files(self) -> None:
        if self.keys is None:
            return
        for rank in self.open_ranks:
            self.directory.keys.mkdir(mode=0o700, exist_ok=True)
            path = self.directory.key_file(rank)
            if not path.exists():
                facts = {"run": self.run, "rank": rank, **self.keys.of_worker(rank).to_json()}
                write_json(path, facts, mode=0o600)

    def _incarnation(self, process: ProcessId) -> int:
        """The incarnation of a new process: the time in ms, but greater than the previous incarnation."""
        self._incarnations[process] = max(time.time_ns() // 1_000_000, self._incarnations.get(process, 0) + 1)
        return self._incarnations[process]

    def _addresses(self, shard: int, *, frozen: bool) -> dict[SocketRole, str]:
        wire, ports = self.config.wire, self.config.ports()
        if not wire.tcp:
            prefix = f"ipc://{self.directory.sockets()}/{shard}-"
            return {"control": f"{prefix}frozen"} if frozen else {role: f"{prefix}{role}" for role in SOCKET_ROLES}
        chosen = [0, 0, 0] if ports is None else ports[3 * shard : 3 * shard + 3]
        address = self.sites[shard_id(shard)].address
        bound = {role: f"tcp://{address}:{port}" for role, port in zip(SOCKET_ROLES, chosen, strict=True)}
        return {"control": bound["control"]} if frozen else bound
