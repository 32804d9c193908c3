"""A recorded run again on virtual time, as it was or with a change: what would be, if."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from zmqrl.errors import ClusterError, UsageError
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile.critical_path import OTHER, Cycle, Step, Timeline
from zmqrl.profile.recording import ProcessRecording, Recording
from zmqrl.simulate.compute import ComputeTimes, Work
from zmqrl.simulate.scenario import Scenario, ShardCosts
from zmqrl.simulate.virtual.world import simulate

ROLLOUT = ("env_step", "act")
GRADIENT = ("assemble", OTHER, "gradient", "straggle", "encode", "push")
ASLEEP = ("straggle",)  # needs no core
MOST_UPDATES = 1000
UNCROWDED = 25  # percentile of the transfers that met no crowd


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the recorded run. ``spans`` and ``link`` are factors of the time, such as 0.5."""

    without: int | None = None
    backups: int = 0
    shards: int = 1
    spans: Mapping[str, float] | None = None
    link: float = 1.0


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A predicted change. ``replay_error`` is that of the replay without changes: 0.05 if it is 5 % too fast."""

    change: str
    updates_per_s: float
    replay_error: float


class Replay:
    """A recorded run to simulate. Raises UsageError when too little was recorded."""

    def __init__(self, recording: Recording, timeline: Timeline, steps: Sequence[Step], scenario: Scenario) -> None:
        """``scenario`` has the settings of the run; its hosts, costs and work come from the recording."""
        if not steps:
            raise UsageError("no update was recorded from its beginning to its end.")
        self.measured = 1 / fmean(step.seconds for step in steps)
        self._timeline = timeline
        self._cycles = {
            rank: [cycle for (_, each), cycle in sorted(timeline.cycles.items()) if each == rank]
            for rank in range(scenario.ranks)
        }
        if not all(self._cycles.values()):
            missing = ", ".join(str(rank) for rank, cycles in self._cycles.items() if not cycles)
            raise UsageError(f"rank {missing} recorded nothing, so the run cannot be replayed.")
        self._queued = {rank: _queued_share(recording, rank, cycles) for rank, cycles in self._cycles.items()}
        self._beside = {rank: _beside_s(recording, rank) for rank in self._cycles}
        hosts = {host: i for i, host in enumerate(dict.fromkeys(timeline.hosts.values()))}
        self.scenario = replace(
            scenario,
            compute="constant:0",
            updates=min(len(steps), MOST_UPDATES),
            hosts=len(hosts),
            cores=max(each.cores for each in recording.processes),
            worker_hosts=tuple(hosts[timeline.hosts[worker_id(rank)]] for rank in range(scenario.ranks)),
            shard_hosts=tuple(hosts[timeline.hosts[shard_id(shard)]] for shard in range(scenario.shards)),
            costs=_costs(recording, timeline),
        )

    def updates_per_s(self, changes: Changes = Changes()) -> float:
        """Predicted updates per second. Raises ClusterError when the changed run gets stuck."""
        scenario, ranks = self.scenario, list(range(self.scenario.ranks))
        if changes.without is not None:
            ranks.remove(changes.without)
            fewer = 1 if scenario.backups == 0 else 0
            scenario = replace(
                scenario,
                workers=scenario.workers - fewer,
                backups=max(0, scenario.backups - 1),
                quorum=None if scenario.quorum is None else min(scenario.quorum, len(ranks)),
            )
        for _ in range(changes.backups):
            ranks.append(len(ranks) % self.scenario.ranks)  # a new worker is like one of the others
        if changes.backups:
            scenario = replace(scenario, backups=scenario.backups + changes.backups)
        if changes.backups < 0:
            del ranks[changes.backups :]
        scenario = replace(
            scenario,
            shards=scenario.shards * changes.shards,
            worker_hosts=tuple(self.scenario.worker_hosts[rank] for rank in ranks),
            shard_hosts=self.scenario.shard_hosts * changes.shards,
            costs=_per_slice(scenario.costs, 1 / changes.shards),
        )
        return simulate(scenario, compute=self._times(ranks, changes)).updates_per_s

    def _times(self, ranks: Sequence[int], changes: Changes) -> ComputeTimes:
        """The work of the ranks, as recorded, with the ways of weights and gradient as time without a core."""
        spans = changes.spans or {}
        gradient, rollout = [], []
        for rank in ranks:
            cycles = self._cycles[rank]
            way_s = changes.link * _way_s(self._timeline, rank)
            played = [self._work(rank, cycle, ROLLOUT, spans) for cycle in cycles if cycle.with_rollout]
            learned = [self._work(rank, cycle, GRADIENT, spans) for cycle in cycles]
            beside_s = self._beside[rank]
            gradient.append(Work([cpu + beside_s for cpu, _ in learned], [idle + way_s for _, idle in learned]))
            rollout.append(Work([cpu for cpu, _ in played], [idle for _, idle in played]))
        return ComputeTimes(tuple(gradient), tuple(rollout) if all(len(each.cpu_s) for each in rollout) else ())

    def _work(self, rank: int, cycle: Cycle, names: Iterable[str], factors: Mapping[str, float]) -> tuple[float, float]:
        """CPU and idle seconds of some spans. The time in the run queue is left out: the simulation makes its own."""
        awake_s = sum(seconds for name, seconds in cycle.spans.items() if name not in ("wait", *ASLEEP))
        on_core = min(1.0, cycle.cpu_s / awake_s) if awake_s else 0.0
        cpu_s = idle_s = 0.0
        for name in names:
            seconds = cycle.spans[name] * factors.get(name, 1.0)
            if name in ASLEEP:
                idle_s += seconds
            else:
                cpu_s += on_core * seconds
                idle_s += (1 - on_core) * (1 - self._queued[rank]) * seconds
        return cpu_s, idle_s


def what_if(replay: Replay, steps: Sequence[Step]) -> list[WhatIf]:
    """Predict the changes that a user would think of, with the error of the replay without any."""
    scenario = replay.scenario
    error = replay.updates_per_s() / replay.measured - 1
    slowest = max(range(scenario.ranks), key=lambda rank: sum(step.kth.number == rank for step in steps))
    span = _longest_span(steps)
    questions = [("as it was", Changes())]
    if scenario.ranks > 1:
        questions.append((f"without rank {slowest}", Changes(without=slowest)))
    if scenario.backups:
        questions.append(("one backup fewer", Changes(backups=-1)))
    questions += [
        ("one backup more", Changes(backups=1)),
        ("twice as many shards", Changes(shards=2)),
        (f"{span} in half the time", Changes(spans={span: 0.5})),
        ("transfers in half the time", Changes(link=0.5)),
    ]
    found = []
    for change, changes in questions:
        try:
            found.append(WhatIf(change, replay.updates_per_s(changes), error))
        except (ClusterError, UsageError):  # more shards than the layout can have, for example
            continue
    return found


def _longest_span(steps: Sequence[Step]) -> str:
    """The span of workers that takes most of the critical path."""
    total: dict[str, float] = {}
    for step in steps:
        for part in step.parts:
            if part.process.role == "worker" and part.cause in (*ROLLOUT, *GRADIENT) and part.cause != OTHER:
                total[part.cause] = total.get(part.cause, 0.0) + part.seconds
    return max(total, key=lambda name: total[name], default="gradient")


def _queued_share(recording: Recording, rank: int, cycles: Sequence[Cycle]) -> float:
    """The share of a worker's time without a core, while it works, in which it waited for one."""
    queued_us = sum(_grown(each, "queued_us") for each in _of_rank(recording, rank))
    without_s = sum(max(0.0, cycle.worked_s - cycle.spans["straggle"] - cycle.cpu_s) for cycle in cycles)
    return min(1.0, queued_us / 1e6 / without_s) if without_s > 0 else 0.0


def _beside_s(recording: Recording, rank: int) -> float:
    """CPU seconds per contribution of the other threads of a worker, such as the one with its sockets."""
    others_us = contributions = 0
    for each in _of_rank(recording, rank):
        others_us += max(0, _grown(each, "process_cpu_us") - _grown(each, "cpu_us"))
        contributions += len(each.table("cycles")["version"])
    return others_us / 1e6 / contributions if contributions else 0.0


def _way_s(timeline: Timeline, rank: int) -> float:
    """The usual way of the weights to a worker and of its gradient to the last shard, where no crowd delayed it."""
    down, up = [], []
    for (version, each), cycle in timeline.cycles.items():
        if each == rank:
            sent = timeline.publications.get(version, {}).get(cycle.last_shard)
            if sent is not None and cycle.began < sent.published:
                down.append(max(0.0, cycle.pulled - sent.published))
            if arrivals := timeline.arrivals.get((version, each)):
                up.append(max(0.0, max(arrival.at for arrival in arrivals.values()) - cycle.pushed))
    return sum(float(np.percentile(way, UNCROWDED)) for way in (down, up) if way)


def _costs(recording: Recording, timeline: Timeline) -> ShardCosts:
    """The mean seconds of the shards. What their processes need beside the spans counts as sending."""
    made = [each for shards in timeline.publications.values() for each in shards.values()]
    arrivals = sum(len(each) for each in timeline.arrivals.values())

    def mean(name: str, count: int) -> float:
        return sum(each.spans[name] for each in made) / max(count, 1)

    return ShardCosts(
        receive_s=mean("receive", arrivals),
        accumulate_s=mean("accumulate", arrivals),
        optimize_s=mean("optimize", len(made)),
        commit_s=mean("commit", len(made)),
        publish_s=mean("publish", len(made)),
    )


def _per_slice(costs: ShardCosts, factor: float) -> ShardCosts:
    """The costs of a slice of another size, where all of them grow with the size."""
    return replace(
        costs,
        receive_s=costs.receive_s * factor,
        accumulate_s=costs.accumulate_s * factor,
        optimize_s=costs.optimize_s * factor,
        commit_s=costs.commit_s * factor,
        publish_s=costs.publish_s * factor,
    )


def _of_rank(recording: Recording, rank: int) -> list[ProcessRecording]:
    return [each for each in recording.of_role("worker") if each.process.number == rank]


def _grown(each: ProcessRecording, column: str) -> int:
    values = each.table("machine")[column]
    return int(values[-1] - values[0]) if len(values) > 1 else 0
