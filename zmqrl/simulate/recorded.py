"""A recorded run as a scenario: the hosts, the costs of the shards, and the work of the workers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np

from zmqrl.errors import UsageError
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile.accounts import USED
from zmqrl.profile.critical_path import TRANSFERS, WORK, Cycle, Timeline
from zmqrl.profile.machine_use import grown_s, other_threads
from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import ProcessTables, RunTables, Version
from zmqrl.simulate.compute import ComputeTimes, Work
from zmqrl.simulate.scenario import Scenario, ShardCosts
from zmqrl.words import counted, numbered

ROLLOUT_SPANS = ("env_step", "act")
GRADIENT_SPANS = tuple(span for span in WORK if span not in ("wait", *ROLLOUT_SPANS))
ASLEEP = ("straggle",)  # a worker in these spans needs no core
MOST_UPDATES = 1000
STRETCHES = 10  # a replay of a long profile uses this many stretches of it
APART = 7  # a worker that replays the cycles of another one starts this many iterations later, and so stalls separately
NETWORK_BOUND = 0.25  # share of update time: if transfers take more, the network limits the run

NOT_REPLAYED = "so the run cannot be replayed."

T = TypeVar("T")


class TooLittleRecorded(UsageError):
    """A profile lacks data that a simulation needs."""


class _OtherThreads(NamedTuple):
    """What the other threads of a worker do while it works, such as those of the games, the sockets and torch.

    They block the worker for the share ``blocking`` of its time off the core, and are on a core for the share
    ``on_core`` of this time. ``beside`` is the CPU time that they use at the same time as the worker, per second of
    work on a core.
    """

    blocking: float
    on_core: float
    beside: float


class RecordedRun:
    """A run to simulate: its newest session, because workers and hosts can change when a run is resumed.

    ``measured`` is the recorded rate in updates per second, and ``paths`` are the critical paths of these updates.
    ``transfer_share`` is the share of update time that transfers took. ``earlier`` tells of earlier sessions, if any.
    """

    def __init__(self, whole: Analysis, scenario: Scenario) -> None:
        """``scenario`` has the run's settings. Hosts and costs come from the profile. Raises TooLittleRecorded."""
        if not whole.tables.processes:
            raise TooLittleRecorded("the run has no profile.")
        session = whole.newest_session()
        tables, timeline, paths = session.tables, session.timeline, session.paths
        if missing_shards := timeline.missing_shards():
            raise TooLittleRecorded(f"{numbered('shard', missing_shards)} recorded nothing, {NOT_REPLAYED}")
        if not paths:
            where = "" if session is whole else " in the newest session"
            raise TooLittleRecorded(f"no complete update was recorded{where}.")
        if timeline.ranks > scenario.ranks:
            before = counted(timeline.ranks, "worker")
            raise TooLittleRecorded(f"the profile is of a session with {before}, but the run now has {scenario.ranks}.")
        self.paths = paths
        versions = f"{paths[0].version + 1:,} to {paths[-1].version + 1:,}"
        self.earlier = None if session is whole else f"only the newest session is simulated: versions {versions}"
        self.measured = 1 / fmean(path.seconds for path in paths)
        sent_s = sum(part.seconds for path in paths for part in path.parts if part.cause in TRANSFERS)
        self.transfer_share = sent_s / sum(path.seconds for path in paths)
        self._timeline = timeline
        by_version = sorted(timeline.cycles.items())
        self._cycles = {
            rank: {version: cycle for (version, each), cycle in by_version if each == rank}
            for rank in range(scenario.ranks)
        }
        if not all(self._cycles.values()):
            missing = numbered("rank", (rank for rank, cycles in self._cycles.items() if not cycles))
            raise TooLittleRecorded(f"{missing} recorded nothing, {NOT_REPLAYED}")
        self._queued = {rank: _queued_share(tables, rank, each.values()) for rank, each in self._cycles.items()}
        self._others = {rank: self._other_threads(rank, _beside_s(tables, rank)) for rank in self._cycles}
        hosts = {host: i for i, host in enumerate(dict.fromkeys(timeline.hosts.values()))}
        self.scenario = replace(
            scenario,
            updates=min(len(paths), MOST_UPDATES),
            hosts=len(hosts),
            host_cores=tuple(
                max(each.cores for each in tables.processes if timeline.hosts[each.process] == host) for host in hosts
            ),
            worker_hosts=tuple(hosts[timeline.hosts[worker_id(rank)]] for rank in range(scenario.ranks)),
            shard_hosts=tuple(hosts[timeline.hosts[shard_id(shard)]] for shard in range(scenario.shards)),
            costs=_costs(timeline),
        )

    def typical_rank(self) -> int:
        """The rank with the median working time, or the faster of the middle two.

        Stands in for a worker that the run lacked.
        """
        ranks = sorted(self._cycles, key=lambda rank: fmean(each.worked_s for each in self._cycles[rank].values()))
        return ranks[(len(ranks) - 1) // 2]

    def no_answer_for_shards(self) -> str | None:
        """Why the profile cannot predict the effect of another number of shards, or None if it can.

        In a replay, each transfer takes the recorded time, whatever the number of shards.
        """
        if self.transfer_share <= NETWORK_BOUND:
            return None
        return (
            f"transfers took {self.transfer_share:.0%} of the time of updates, and the profile does not show how "
            "another number of shards would change them"
        )

    def delay(self, rank: int, queued: float) -> float:
        """How long a rank waits in the run queue because of other programs or late task switches of the kernel.

        The unit is seconds per second on a core. ``queued`` is the wait that the run itself causes, in the same unit.
        """
        return max(0.0, self._queued_per_s(rank) - queued)

    def times(
        self,
        ranks: Iterable[int],
        updates: int,
        *,
        spans: Mapping[str, float] | None = None,
        transfers: float = 1.0,
        delays: Mapping[int, float] | None = None,
    ) -> ComputeTimes:
        """The recorded work of the ranks. Transfers of weights and gradients count as time that needs no core.

        A profile with more than ``updates`` updates is used in stretches of whole iterations: see
        :func:`evenly_chosen`. A rank that occurs again in ``ranks`` stands for another worker. ``spans`` has a factor
        for the time of each span. ``transfers`` is the factor for the times of transfers. ``delays`` has, by rank, the
        seconds to add in the run queue for each second on a core.
        """
        spans, delays = spans or {}, delays or {}
        per_rollout = self.scenario.updates_per_rollout
        iterations = sorted({_iteration(version, per_rollout) for version, _ in self._timeline.cycles})
        replayed = set(evenly_chosen(iterations, -(-updates // per_rollout)))
        gradient, rollout, beside, before = [], [], [], Counter[int]()
        for rank in ranks:
            known = self._cycles[rank]
            cycles = [cycle for version, cycle in known.items() if _iteration(version, per_rollout) in replayed]
            cycles = _later(cycles or list(known.values()), before[rank], per_rollout)
            before[rank] += 1
            way_s = transfers * _way_s(self._timeline, rank)
            delay = delays.get(rank, 0.0)
            played = [self._work(rank, cycle, ROLLOUT_SPANS, spans, delay) for cycle in cycles if cycle.with_rollout]
            learned = [self._work(rank, cycle, GRADIENT_SPANS, spans, delay) for cycle in cycles]
            gradient.append(Work([cpu for cpu, _ in learned], [idle + way_s for _, idle in learned]))
            rollout.append(Work([cpu for cpu, _ in played], [idle for _, idle in played]))
            beside.append(self._others[rank].beside)
        played_by_all = all(len(each.cpu_s) for each in rollout)
        return ComputeTimes(tuple(gradient), tuple(rollout) if played_by_all else (), tuple(beside))

    def _work(
        self, rank: int, cycle: Cycle, names: Iterable[str], factors: Mapping[str, float], delay: float
    ) -> tuple[float, float]:
        """CPU and idle seconds of the spans ``names``. The CPU time of threads that block the worker is included.

        Time in the run queue does not count, except ``delay``, because the simulation adds its own.
        """
        on_core, off_core = self._shares(rank, cycle)
        others = self._others[rank]
        cpu_s = idle_s = 0.0
        for name in names:
            seconds = cycle.spans[name] * factors.get(name, 1.0)
            if name in ASLEEP:
                idle_s += seconds
            else:
                cpu_s += (on_core + off_core * others.on_core) * seconds
                idle_s += off_core * (1 - others.blocking) * seconds
        return cpu_s, idle_s + delay * cpu_s

    def _shares(self, rank: int, cycle: Cycle) -> tuple[float, float]:
        """The shares of the work in which the worker's thread was on a core, and neither on a core nor queued."""
        awake_s = _awake_s(cycle)
        if not awake_s:
            return 0.0, 0.0
        on_core = min(1.0, cycle.cpu_s / awake_s)
        if cycle.queued_s is None:
            return on_core, (1 - on_core) * (1 - self._queued[rank])
        return on_core, max(0.0, 1 - on_core - cycle.queued_s / awake_s)

    def _other_threads(self, rank: int, cpu_s: float) -> _OtherThreads:
        """Divide the ``cpu_s`` seconds that the other threads use per contribution.

        While the worker's thread is off its core, the others block it. They wait for a core as much as it does.
        """
        cycles = self._cycles[rank].values()
        shares = [(_awake_s(each), *self._shares(rank, each)) for each in cycles]
        own_s, off_core_s = fmean(s * on_core for s, on_core, _ in shares), fmean(s * off for s, _, off in shares)
        waits = 1 + self._queued_per_s(rank)
        blocking_s = min(off_core_s, waits * cpu_s)
        beside_s, on_core_s = cpu_s - blocking_s / waits, own_s + blocking_s / waits
        blocking = blocking_s / off_core_s if off_core_s else 0.0
        return _OtherThreads(blocking, blocking / waits, beside_s / on_core_s if on_core_s else 0.0)

    def _queued_per_s(self, rank: int) -> float:
        """Seconds in the run queue per second on a core."""
        cycles = self._cycles[rank].values()
        cpu_s = sum(each.cpu_s for each in cycles)
        return sum(each.queued_s or 0.0 for each in cycles) / cpu_s if cpu_s else 0.0


def evenly_chosen(items: Sequence[T], number: int) -> Sequence[T]:
    """Choose at most ``number`` items, in order: stretches from the middles of ``STRETCHES`` equal parts.

    If they included the first item, a slow start would count for more than in the run.
    """
    if len(items) <= number:
        return items
    stretches = min(STRETCHES, number)
    size = number // stretches
    spare = len(items) - stretches * size
    starts = ((2 * i * len(items) + spare) // (2 * stretches) for i in range(stretches))
    return [item for start in starts for item in items[start : start + size]]


def _iteration(version: Version, per_rollout: int) -> Version:
    generation, number = version
    return generation, number // per_rollout


def _later(cycles: list[Cycle], times: int, per_rollout: int) -> list[Cycle]:
    """The cycles from a later iteration on, and then those before it."""
    iterations = min(APART, len(cycles) // per_rollout // 2)
    start = times * iterations * per_rollout % len(cycles)
    return cycles[start:] + cycles[:start]


def _awake_s(cycle: Cycle) -> float:
    return sum(seconds for name, seconds in cycle.spans.items() if name not in ("wait", *ASLEEP))


def _queued_share(tables: RunTables, rank: int, cycles: Iterable[Cycle]) -> float:
    """Estimate the share of a worker's off-core working time in which the worker waited for a core.

    Only old profiles, without queued_us per cycle, need this estimate. It is too high, because it includes waits
    outside the work and at the start of the process.
    """
    queued_s = sum(grown_s(each.table("machine"), "queued_us") for each in _of_rank(tables, rank))
    without_s = sum(max(0.0, cycle.worked_s - cycle.spans["straggle"] - cycle.cpu_s) for cycle in cycles)
    return min(1.0, queued_s / without_s) if without_s > 0 else 0.0


def _beside_s(tables: RunTables, rank: int) -> float:
    """CPU seconds that a worker's other threads, such as the one that serves the sockets, use per contribution."""
    others_s, contributions = 0.0, 0
    for each in _of_rank(tables, rank):
        used_s, (began_us, ended_us) = other_threads(each)
        others_s += used_s
        pushed_us = each.table("cycles")["pushed_at_us"]
        contributions += int(((pushed_us > began_us) & (pushed_us <= ended_us)).sum())
    return others_s / contributions if contributions else 0.0


def _way_s(timeline: Timeline, rank: int) -> float:
    """The median transfer time of weights to the worker, plus that of a gradient to the last shard."""
    down, up = [], []
    for (version, each), cycle in timeline.cycles.items():
        if each == rank:
            sent = timeline.publications.get(version, {}).get(cycle.last_shard)
            if sent is not None and cycle.began < sent.published:
                down.append(max(0.0, cycle.pulled - sent.published))
            if arrivals := timeline.arrivals.get((version, each)):
                up.append(max(0.0, max(arrival.at for arrival in arrivals.values()) - cycle.pushed))
    return sum(float(np.median(way)) for way in (down, up) if way)


def _costs(timeline: Timeline) -> ShardCosts:
    """The mean durations of the shards' spans, which the simulation uses as CPU seconds.

    They include waits for a core or a disk, because a simulated shard has no such waits. Sending costs nothing, because
    the recorded transfers include it.
    """
    made = [each for shards in timeline.publications.values() for each in shards.values()]
    arrivals = [arrival for each in timeline.arrivals.values() for arrival in each.values()]

    def mean(name: str, count: int) -> float:
        return sum(each.spans[name] for each in made) / max(count, 1)

    return ShardCosts(
        receive_s=mean("receive", len(arrivals) + timeline.again.total()),
        accumulate_s=mean("accumulate", sum(arrival.outcome == USED for arrival in arrivals)),
        optimize_s=mean("optimize", len(made)),
        commit_s=mean("commit", len(made)),
        publish_s=mean("publish", len(made)),
    )


def _of_rank(tables: RunTables, rank: int) -> list[ProcessTables]:
    return [each for each in tables.of_role("worker") if each.process.number == rank]
