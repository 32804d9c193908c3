"""A scenario to simulate: hosts, processes and their work, the network between hosts, and failures."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import tyro

from zmqrl.errors import UsageError, require
from zmqrl.json_lines import parse_json, parse_toml
from zmqrl.observe.forms import decode
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.layout import ALIGNMENT, MAX_COUNT, MAX_SHARDS
from zmqrl.ps.wire.messages import MAX_WORKERS, Codec
from zmqrl.simulate.laws import Law
from zmqrl.words import counted

RECORDED: Final = "run:"
MOST_LATENCY_S: Final = 10.0  # above this, the processes would give up waiting
NOT_SIMULATED: Final = {
    name: f"asks for {what}, which the simulator does not model: remove it."
    for name, what in {
        "mode": "asynchronous updates",
        "on_loss": "changes of the quorum",
        "rollback": "rollbacks",
        "rollbacks": "rollbacks",
    }.items()
}
"""Settings that a user may expect in a scenario, and why they are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCosts:
    """CPU seconds of a shard process for one slice. The processes of a host share its cores."""

    receive_s: float = 0.0
    """Seconds to take a contribution from its socket, whatever its outcome."""
    accumulate_s: float = 0.0
    """Seconds to add a contribution to the sum."""
    optimize_s: float = 0.0
    """Seconds for the optimizer step of a version."""
    commit_s: float = 0.0
    """Seconds to store a version and write its line of the history."""
    publish_s: float = 0.0
    """Seconds to hand a version to the sockets."""
    send_s: float = 0.0
    """Seconds to send a version to one subscriber, in the I/O thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A slow worker: work takes ``factor`` times as long, plus ``seconds`` of sleep for each gradient."""

    rank: int
    factor: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class HostNumber:
    """A host of a scenario, written as ``host-1``."""

    number: int

    def __str__(self) -> str:
        return f"host-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A process to kill, such as ``worker-3`` or ``shard-0``, or all processes of a host, such as ``host-1``.

    Times are in seconds. The process restarts after ``restart_s``, or never if None. A restarted shard reads its last
    version from disk.
    """

    process: str
    at: float
    restart_s: float | None = None

    @property
    def target(self) -> ProcessId | HostNumber:
        """What ``process`` names. Raises UsageError."""
        if host := re.fullmatch("host-([0-9]{1,9})", self.process):
            return HostNumber(int(host[1]))
        try:
            return ProcessId.parse(self.process)
        except ValueError:
            raise UsageError(self.unknown()) from None

    def unknown(self) -> str:
        """A sentence for a scenario without such a process."""
        names = f"{worker_id(0)}, {shard_id(0)} or {HostNumber(0)}"
        return f"failures: there is no process {self.process!r}; write {names}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run to simulate."""

    workers: int = 4
    """N: number of workers, without backups. Also the quorum, unless --quorum is set."""
    backups: int = 0
    """b: number of extra workers, so that an update does not wait for the slowest ones."""
    quorum: int | None = None
    """K: number of contributions that an update needs. None: N, the number of workers."""
    shards: int = 2
    """Number of parameter-server shards."""
    updates: int = 100
    """Number of versions to simulate."""
    seed: int = 1
    """Seed of all random numbers."""
    hosts: int | None = None
    """Number of hosts, which take workers and shards in turn. None: one host per process."""
    cores: int | None = None
    """Number of cores per host, which its processes share. None: one core per process."""
    compute: str = "exponential:0.1"
    """Seconds that a worker needs for one gradient: a LAW, or run:DIR for the times of a run."""
    rollout: str | None = None
    """Seconds to play a rollout: a LAW, drawn once per iteration. None: included in --compute."""
    busy: float = 1.0
    """Share of the compute time that needs a core. 0: workers sleep."""
    updates_per_rollout: int = 1
    """U: number of versions learned from one rollout."""
    agent_steps_per_rollout: int = 30
    """Agent steps of one rollout."""
    abandon: Literal["after-compute", "immediately"] = "after-compute"
    """When a worker drops work that is too late. Real workers do so after computing (after-compute)."""
    parameters: int = 331_909
    """Length of the parameter vector. The default is that of the network dba3c."""
    codec: Codec = "f32"
    """Number format on the wire, as in zmqrl train --wire.codec."""
    bandwidth: float = math.inf
    """Bytes per second of each host's network card, in each direction. inf: no limit."""
    latency: float = 0.0
    """One-way delay between hosts, in seconds."""
    loss: float = 0.0
    """Share of packets that are lost and sent again."""
    loopback: float = math.inf
    """Bytes per second between processes of one host. inf: no limit."""
    need_s: float = 1.0
    """Seconds without progress after which a shard asks workers to resend."""
    costs: ShardCosts = field(default_factory=ShardCosts)
    """CPU time that a shard needs for each of its tasks, in seconds."""
    worker_hosts: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Host of each rank. Empty: all hosts in turn."""
    shard_hosts: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Host of each shard. Empty: spread evenly."""
    host_cores: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Number of cores of each host. Empty: ``cores`` for all hosts."""
    stragglers: tyro.conf.Suppress[tuple[Straggler, ...]] = ()
    failures: tyro.conf.Suppress[tuple[Failure, ...]] = ()

    @property
    def ranks(self) -> int:
        """The number of all workers, N + b."""
        return self.workers + self.backups

    @property
    def effective_quorum(self) -> int:
        """K, the number of contributions that make an update."""
        return self.workers if self.quorum is None else self.quorum

    @property
    def recorded_run(self) -> Path | None:
        """The run whose times are replayed, or None if the times are drawn from laws."""
        return Path(self.compute.removeprefix(RECORDED)) if self.compute.startswith(RECORDED) else None

    def with_shards(self, shards: int) -> "Scenario":
        """The same run with another number of shards. The costs of a slice are proportional to its size."""
        size = self.shards / max(shards, 1)  # a later check refuses 0 shards
        costs = {name: cost * size for name, cost in dataclasses.asdict(self.costs).items()}
        costs["send_s"] = self.costs.send_s  # most of this cost does not depend on the size
        return dataclasses.replace(self, shards=shards, costs=ShardCosts(**costs))

    def host_of_rank(self) -> tuple[int, ...]:
        return self.worker_hosts or tuple(rank % (self.hosts or self.ranks) for rank in range(self.ranks))

    def host_of_shard(self) -> tuple[int, ...]:
        """The host of each shard. By default, shards are spread evenly. If ``hosts`` is None, each has its own."""
        if self.shard_hosts:
            return self.shard_hosts
        if self.hosts is None:
            first = max(self.host_of_rank()) + 1
            return tuple(range(first, first + self.shards))
        return tuple(shard * self.hosts // self.shards % self.hosts for shard in range(self.shards))

    def cores_of_host(self) -> tuple[int | None, ...]:
        """The number of cores of each host. None: a core for each process."""
        hosts = 1 + max(*self.host_of_rank(), *self.host_of_shard(), (self.hosts or 1) - 1)
        return self.host_cores or (self.cores,) * hosts

    @property
    def times_transfers(self) -> bool:
        """Whether transfers between workers and shards take simulated time."""
        workers, shards = set(self.host_of_rank()), set(self.host_of_shard())
        if len(workers | shards) > 1 and (self.bandwidth < math.inf or self.latency > 0):
            return True
        return self.loopback < math.inf and bool(workers & shards)

    def slowness(self, rank: int) -> tuple[float, float]:
        """The factor for the time of a worker's work, and the seconds of sleep for each gradient."""
        found = [(each.factor, each.seconds) for each in self.stragglers if each.rank == rank]
        return found[0] if found else (1.0, 0.0)

    def check(self) -> None:
        """Raise UsageError for the first invalid setting."""
        check_numbers(self.workers, self.backups, self.shards, self.effective_quorum)
        for name in ("updates", "updates_per_rollout", "agent_steps_per_rollout"):
            _require_at_least_one(name, getattr(self, name))
        for name in ("hosts", "cores"):
            if getattr(self, name) is not None:
                _require_at_least_one(name, getattr(self, name))
        require(0 <= self.seed < 2**32, f"--seed {self.seed}: must be at least 0 and below 2^32.")
        least = ALIGNMENT * self.shards
        require(
            least <= self.parameters <= MAX_COUNT,
            f"--parameters {self.parameters}: must be from {least} to {MAX_COUNT} for {counted(self.shards, 'shard')}.",
        )
        require(0 <= self.busy <= 1, f"--busy {self.busy}: must be from 0 to 1.")
        require(0 <= self.loss < 1, f"--loss {self.loss}: must be at least 0 and below 1.")
        for name, rate in (("bandwidth", self.bandwidth), ("loopback", self.loopback)):
            require(rate > 0, f"--{name} {rate}: must be above 0 bytes per second, or inf.")
        require(
            0 <= self.latency <= MOST_LATENCY_S, f"--latency {self.latency}: must be from 0 to {MOST_LATENCY_S:g} s."
        )
        require(0 < self.need_s < math.inf, f"--need-s {self.need_s}: must be above 0 and finite.")
        for name, cost in dataclasses.asdict(self.costs).items():
            require(0 <= cost < math.inf, f"--{_option(name)} {cost}: must be 0 or more and finite.")
        if self.recorded_run is None:
            Law.parse(self.compute, "--compute")
        if self.rollout is not None:
            Law.parse(self.rollout, "--rollout")
        self._check_placement()
        needed = len(dataclasses.replace(self, host_cores=()).cores_of_host())
        require(
            not self.host_cores or (len(self.host_cores) == needed and all(1 <= n < 2**53 for n in self.host_cores)),
            f"host_cores has {counted(len(self.host_cores), 'entry', 'entries')}: "
            f"it must have {counted(needed, 'number')} of cores, each 1 or more.",
        )
        for straggler in self.stragglers:
            require(
                0 <= straggler.rank < self.ranks
                and all(0 <= number < math.inf for number in (straggler.factor, straggler.seconds)),
                f"{straggler}: rank must be from 0 to {self.ranks - 1}, and factor and seconds 0 or more and finite.",
            )
        for failure in self.failures:
            self.processes_of(failure)

    def _check_placement(self) -> None:
        for name, hosts, number in (
            ("worker_hosts", self.worker_hosts, self.ranks),
            ("shard_hosts", self.shard_hosts, self.shards),
        ):
            require(
                not hosts or (len(hosts) == number and all(0 <= host < MAX_WORKERS for host in hosts)),
                f"{name} has {counted(len(hosts), 'entry', 'entries')}: "
                f"it must have {counted(number, 'host number')}, each 0 or more.",
            )

    def processes_of(self, failure: Failure) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ranks and the shards that a failure kills. Raises UsageError if the failure kills no process."""
        target = failure.target
        if isinstance(target, HostNumber):
            ranks = [rank for rank, host in enumerate(self.host_of_rank()) if host == target.number]
            shards = [shard for shard, host in enumerate(self.host_of_shard()) if host == target.number]
        else:
            ranks = [rank for rank in range(self.ranks) if worker_id(rank) == target]
            shards = [shard for shard in range(self.shards) if shard_id(shard) == target]
        require(bool(ranks or shards), failure.unknown())
        timed = failure.at >= 0 and (failure.restart_s is None or failure.restart_s >= 0)
        require(timed, f"failures: the times of {failure.process} must be 0 or more.")
        return tuple(ranks), tuple(shards)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in a scenario file. An infinite rate becomes the text ``inf``."""
        plain = dataclasses.asdict(self)
        return {name: "inf" if value == math.inf else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Scenario":
        """Inverse of :meth:`to_json`. Missing settings keep their defaults. Raises UsageError."""
        scenario = decode(cls, data, refused=NOT_SIMULATED)
        scenario.check()
        return scenario

    @classmethod
    def read(cls, path: Path) -> "Scenario":
        """Read a scenario file: JSON if its name ends with ``.json``, otherwise TOML. Raises UsageError."""
        return cls.read_named(path)[0]

    @classmethod
    def read_named(cls, path: Path) -> "tuple[Scenario, frozenset[str]]":
        """Read a scenario file, with the names of the settings in it. Raises UsageError."""
        try:
            text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a BOM
            data = parse_json(text) if path.suffix == ".json" else parse_toml(text)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}.") from error
        except ValueError as error:
            kind = "JSON" if path.suffix == ".json" else "TOML"
            raise UsageError(f"{path} is not valid {kind}: {error}.") from error
        try:
            return cls.from_json(data), frozenset(name.replace("-", "_") for name in data)
        except UsageError as error:
            raise UsageError(f"{path} cannot be used: {error}") from error


def check_numbers(workers: int, backups: int, shards: int, quorum: int) -> None:
    """Raise UsageError if a run cannot have these numbers of processes, or this ``quorum``."""
    ranks = workers + backups
    require(workers >= 1, f"--workers {workers}: must be 1 or more.")
    require(backups >= 0, f"--backups {backups}: must be 0 or more.")
    require(ranks <= MAX_WORKERS, f"--workers and --backups: {ranks} is above the limit of {MAX_WORKERS}.")
    require(1 <= shards <= MAX_SHARDS, f"--shards {shards}: must be from 1 to {MAX_SHARDS}.")
    require(quorum >= 1, f"--quorum {quorum}: must be 1 or more.")
    require(quorum <= ranks, f"--quorum {quorum} is above the number of workers, {ranks} (N + b).")


def _option(name: str) -> str:
    return name.replace("_", "-")


def _require_at_least_one(name: str, number: int) -> None:
    require(1 <= number < 2**53, f"--{_option(name)} {number}: must be at least 1 and below 2^53.")
