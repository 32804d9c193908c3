"""Replays a recorded run in virtual time, to predict the effect of changes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from zmqrl.errors import ClusterError, UsageError
from zmqrl.process_id import ProcessId
from zmqrl.profile.critical_path import OTHER, CriticalPath
from zmqrl.profile.report import AS_IT_WAS, ONE_BACKUP_FEWER
from zmqrl.simulate.recorded import GRADIENT_SPANS, ROLLOUT_SPANS, RecordedRun
from zmqrl.simulate.virtual.world import World, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """The differences from the recorded run. ``spans``, ``transfers`` and ``shards`` are factors, such as 0.5."""

    without: int | None = None
    backups: int = 0
    shards: int = 1
    spans: Mapping[str, float] | None = None
    transfers: float = 1.0


AS_RECORDED = Variation()
COMPARISONS = 2
BLAMED_FROM = 0.1  # share of all blame: ranks with less get no prediction
MOST_BLAMED = 4


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A predicted change. ``replay_error`` is the error of the replay without changes: 0.05 is 5 % too fast."""

    change: str
    updates_per_s: float
    replay_error: float


def replay(recorded: RecordedRun, variation: Variation = AS_RECORDED) -> float:
    """Predict the updates per second. Raises ClusterError if the changed run gets stuck."""
    scenario, ranks = recorded.scenario, list(range(recorded.scenario.ranks))
    if variation.without is not None:
        ranks.remove(variation.without)
        fewer = 1 if scenario.backups == 0 else 0
        scenario = replace(
            scenario,
            workers=scenario.workers - fewer,
            backups=max(0, scenario.backups - 1),
            quorum=None if scenario.quorum is None else min(scenario.quorum, len(ranks)),
        )
    ranks += [recorded.typical_rank()] * variation.backups
    if variation.backups:
        scenario = replace(scenario, backups=scenario.backups + variation.backups)
    if variation.backups < 0:
        del ranks[variation.backups :]
    scenario = replace(
        scenario.with_shards(scenario.shards * variation.shards),
        worker_hosts=tuple(recorded.scenario.worker_hosts[rank] for rank in ranks),
        shard_hosts=recorded.scenario.shard_hosts * variation.shards,
    )
    late = delays(recorded)
    times = recorded.times(ranks, scenario.updates, spans=variation.spans, transfers=variation.transfers, delays=late)
    return simulate(scenario, compute=times).updates_per_s


@lru_cache(maxsize=1)  # a profile replays the same run many times
def delays(recorded: RecordedRun) -> dict[int, float]:
    """For each rank, the time in the run queue that the sharing of cores does not explain, per second on a core.

    This is the recorded time in the run queue minus that of the replay. The delays make the replay less crowded, so the
    function compares again with these delays.
    """
    scenario, found = recorded.scenario, dict[int, float]()
    for _ in range(COMPARISONS):
        world = World(scenario, recorded.times(range(scenario.ranks), scenario.updates, delays=found))
        world.run()
        found = {
            worker.rank: recorded.delay(worker.rank, worker.queued_s / worker.cpu_s if worker.cpu_s else 0.0)
            for worker in world.workers
        }
    return found


def what_if(recorded: RecordedRun, notice: Callable[[str], None], without: Sequence[int] = ()) -> list[WhatIf]:
    """Predict the effect of typical changes, such as removing one of the most blamed ranks.

    ``without`` names additional ranks to remove, one at a time. If the network limits the run, there is no prediction
    for more shards. ``notice`` gets a sentence for each change that cannot be predicted.
    """
    scenario, paths = recorded.scenario, recorded.paths
    as_it_was = replay(recorded)
    replay_error = as_it_was / recorded.measured - 1
    span = _longest_span(paths)
    if no_answer := recorded.no_answer_for_shards():
        notice(f"no prediction for more shards: {no_answer}")
    questions: list[tuple[str, Variation]] = []
    if scenario.ranks > 1:
        ranks = dict.fromkeys((*most_blamed(paths), *without))
        questions += [(f"without rank {rank}", Variation(without=rank)) for rank in ranks]
    if scenario.backups:
        questions.append((ONE_BACKUP_FEWER, Variation(backups=-1)))
    questions += [
        ("one backup more", Variation(backups=1)),
        *([] if no_answer else [("twice as many shards", Variation(shards=2))]),
        (f"{span} in half the time", Variation(spans={span: 0.5})),
        ("transfers in half the time", Variation(transfers=0.5)),
    ]
    found = [WhatIf(AS_IT_WAS, as_it_was, replay_error)]
    for change, variation in questions:
        try:
            found.append(WhatIf(change, replay(recorded, variation), replay_error))
        except (ClusterError, UsageError) as error:  # for example, more shards than the layout allows
            notice(f"no prediction for {change!r}: {error}")
    return found


def most_blamed(paths: Sequence[CriticalPath]) -> list[int]:
    """The ranks with the most ``excess_s`` on the critical path. Each has at least ``BLAMED_FROM`` of the total."""
    lost_s: defaultdict[ProcessId, float] = defaultdict(float)
    for path in paths:
        for part in path.parts:
            lost_s[part.process] += part.excess_s
    least_s = BLAMED_FROM * sum(lost_s.values())
    blamed = [each for each in lost_s if each.role == "worker" and lost_s[each] >= least_s > 0]
    return [each.number for each in sorted(blamed, key=lambda each: -lost_s[each])[:MOST_BLAMED]]


def _longest_span(paths: Sequence[CriticalPath]) -> str:
    """The worker span that takes the most time of the critical path."""
    total: dict[str, float] = {}
    for path in paths:
        for part in path.parts:
            if (
                part.process.role == "worker"
                and part.cause in (*ROLLOUT_SPANS, *GRADIENT_SPANS)
                and part.cause != OTHER
            ):
                total[part.cause] = total.get(part.cause, 0.0) + part.seconds
    return max(total, key=lambda name: total[name], default="gradient")
