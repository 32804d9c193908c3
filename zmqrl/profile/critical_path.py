"""Finds the critical path of every version: the worker, the shard and the spans that the update waited for.

An update begins when the last shard has published version v, and ends when the last shard has published v+1. Its path
leads through the shard that published last, and through the worker whose contribution completed that shard's quorum.
Its parts are the transfer of the weights, the worker's spans, the transfer of the gradient and the shard's spans. They
add up to the time of the update.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from zmqrl.observe.spans import SHARD_SPANS, WORKER_SPANS
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.profile.clocks import Clocks
from zmqrl.profile.run_tables import ProcessTables, RunTables, Version
from zmqrl.profile.tables import NO_CONTRIBUTION, NOT_MADE

WEIGHTS, GRADIENT, OVERRUN, OTHER = "weights_transfer", "gradient_transfer", "overrun", "other"
TRANSFERS = (WEIGHTS, GRADIENT)
# In the order of a worker's loop. OTHER is all time between the other spans, shown as one part.
WORK = ("wait", "assemble", "env_step", "act", OTHER, "gradient", "straggle", "encode", "push")
AT_THE_SHARD = ("optimize", "commit", "publish")

T = TypeVar("T")
_ByProcess: TypeAlias = defaultdict[T, list[float]]


class PathPart(NamedTuple):
    """A part of a critical path: a span, the process and its host, the duration, and the usual duration."""

    cause: str
    process: ProcessId
    host: str
    seconds: float
    usual_s: float

    @property
    def excess_s(self) -> float:
        """The time beyond the usual time, or 0."""
        return max(0.0, self.seconds - self.usual_s)


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """One update: from the publication of ``version`` to that of the next version. Times are in seconds.

    ``shard`` published last. ``kth`` is the worker whose contribution completed the quorum of ``shard``.
    """

    generation: int
    version: int
    shard: ProcessId
    kth: ProcessId
    parts: tuple[PathPart, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


class Cycle(NamedTuple):
    """The work of a worker for one contribution. Times and ``spans`` (by name) are in seconds on the reference clock.

    ``queued_s`` is the time for which the worker was ready but had no core, except during the wait for weights. None in
    older profiles.
    """

    host: str
    began: float
    pulled: float
    pushed: float
    last_shard: int
    cpu_s: float
    spans: Mapping[str, float]
    queued_s: float | None

    @property
    def with_rollout(self) -> bool:
        """Whether the work includes a rollout."""
        return self.spans["env_step"] + self.spans["act"] > 0

    @property
    def worked_s(self) -> float:
        """The time outside the wait for weights."""
        return max(0.0, self.pushed - self.began - self.spans["wait"])


class PublishedVersion(NamedTuple):
    """How a shard on ``host`` made and published a version. Times are in seconds on the reference clock.

    ``closing_rank`` completed the quorum. It is ``NOT_MADE`` or ``NO_CONTRIBUTION`` if no rank did.
    """

    host: str
    closed: float
    published: float
    quorum: int
    closing_rank: int
    spans: Mapping[str, float]

    @property
    def is_made(self) -> bool:
        """Whether the shard made the version itself. It publishes version 0 and a loaded checkpoint, too."""
        return self.closing_rank != NOT_MADE


class Arrival(NamedTuple):
    """The arrival of a contribution at a shard, and the index of its outcome.

    Times are in seconds on the reference clock. The shard was busy from ``polled`` to ``at``.
    """

    polled: float
    at: float
    outcome: int


@dataclass(slots=True)
class Timeline:
    """All profiles, with times on the reference clock. Processes whose clocks cannot be converted are left out.

    ``arrivals`` has the first arrival of each slice at each shard. ``again`` counts the later ones by rank and shard.
    ``hosts`` has the newest host of each process. After a resume, a process can be on another host.
    ``shards`` is the number of shards of the run, some of which can lack a profile.
    """

    cycles: dict[tuple[Version, int], Cycle]
    publications: dict[Version, dict[int, PublishedVersion]]
    arrivals: dict[tuple[Version, int], dict[int, Arrival]]
    hosts: dict[ProcessId, str]
    again: Counter[tuple[int, int]] = field(default_factory=Counter)
    shards: int = 0
    ranks: int = 0

    @classmethod
    def of(cls, tables: RunTables, clocks: Clocks, shards: int = 0) -> "Timeline":
        """``shards`` is the number in the settings. If a profile has a higher number, the profile counts."""
        timeline = cls({}, defaultdict(dict), defaultdict(dict), {}, shards=shards)
        for each in tables.processes:
            timeline.hosts[each.process] = each.host
            if each.process.role == "shard":
                timeline.shards = max(timeline.shards, each.process.number + 1)
            if each.process.role == "worker":
                timeline.ranks = max(timeline.ranks, each.process.number + 1)
            if not clocks.knows(each):
                continue
            timeline.cycles.update(_cycles(each, clocks))
            for version, publication in _publications(each, clocks):
                timeline.publications[version].setdefault(each.process.number, publication)
            for key, arrival in _arrivals(each, clocks):
                first = timeline.arrivals[key].setdefault(each.process.number, arrival)
                timeline.again[key[1], each.process.number] += first is not arrival
        return timeline

    def missing_shards(self) -> list[int]:
        """The shards that recorded nothing."""
        return [shard for shard in range(self.shards) if shard_id(shard) not in self.hosts]

    def versions(self) -> Iterator[Version]:
        """The versions that all shards published, in order."""
        whole = (version for version, made in self.publications.items() if len(made) == self.shards)
        yield from sorted(whole)


def _columns(
    each: ProcessTables, clocks: Clocks, table: str, spans: Iterable[str]
) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """The columns of a table, with times in seconds on the reference clock, and the spans of each row in seconds."""
    found = each.table(table)
    columns = {
        name: (clocks.times_us(each, column) / 1e6).tolist() if name.endswith("_at_us") else column.tolist()
        for name, column in found.items()
    }
    names = list(spans)
    seconds = np.stack([found[name] / 1e6 for name in names], axis=1).tolist()
    return columns, [dict(zip(names, row, strict=True)) for row in seconds]


def _cycles(each: ProcessTables, clocks: Clocks) -> Iterator[tuple[tuple[Version, int], Cycle]]:
    columns, spans = _columns(each, clocks, "cycles", WORKER_SPANS)
    for i, row in enumerate(spans):
        began, pulled, pushed = (columns[name][i] for name in ("began_at_us", "pulled_at_us", "pushed_at_us"))
        row[OTHER] = max(0.0, pushed - began - sum(row.values()))
        version = int(columns["generation"][i]), int(columns["version"][i])
        queued_s = columns["queued_us"][i] / 1e6
        cycle = Cycle(
            each.host,
            began,
            pulled,
            pushed,
            int(columns["last_shard"][i]),
            columns["cpu_us"][i] / 1e6,
            row,
            queued_s if queued_s >= 0 else None,
        )
        yield (version, each.process.number), cycle


def _publications(each: ProcessTables, clocks: Clocks) -> Iterator[tuple[Version, PublishedVersion]]:
    columns, spans = _columns(each, clocks, "versions", SHARD_SPANS)
    for i, row in enumerate(spans):
        quorum, rank = int(columns["quorum"][i]), int(columns["closing_rank"][i])
        made = PublishedVersion(each.host, columns["closed_at_us"][i], columns["published_at_us"][i], quorum, rank, row)
        yield (int(columns["generation"][i]), int(columns["version"][i])), made


def _arrivals(each: ProcessTables, clocks: Clocks) -> Iterator[tuple[tuple[Version, int], Arrival]]:
    columns, _ = _columns(each, clocks, "arrivals", ("arrived_at_us",))
    for i, (polled, at) in enumerate(zip(columns["polled_at_us"], columns["arrived_at_us"], strict=True)):
        version = int(columns["generation"][i]), int(columns["version"][i])
        yield (version, int(columns["rank"][i])), Arrival(polled, at, int(columns["outcome"][i]))


class RecordedUpdate(NamedTuple):
    """One update: its start, the shard that published last, that shard's publication, and the version at the start."""

    began: float
    last: int
    made: PublishedVersion
    version: Version


def recorded_updates(timeline: Timeline) -> Iterator[RecordedUpdate]:
    """The updates that all shards recorded."""
    for generation, version in timeline.versions():
        made = timeline.publications.get((generation, version + 1), {})
        if len(made) == timeline.shards:
            before = timeline.publications[generation, version]
            last = max(made, key=lambda shard: made[shard].published)
            began = max(publication.published for publication in before.values())
            yield RecordedUpdate(began, last, made[last], (generation, version))


def without_path(timeline: Timeline) -> Counter[int]:
    """How many updates have no critical path because their K-th worker recorded no work, by that worker's rank."""
    ranks = ((update.version, update.made.closing_rank) for update in recorded_updates(timeline))
    return Counter(rank for version, rank in ranks if rank >= 0 and (version, rank) not in timeline.cycles)


def without_kth(timeline: Timeline) -> int:
    """How many updates have no critical path because no contribution completed them, but a smaller quorum."""
    return sum(update.made.closing_rank == NO_CONTRIBUTION for update in recorded_updates(timeline))


def critical_paths(timeline: Timeline) -> list[CriticalPath]:
    """A path for each version with a successor in the same generation, if the K-th worker recorded its work."""
    usual = Usual(timeline)
    paths = []
    for began, last, made, (generation, version) in recorded_updates(timeline):
        kth = made.closing_rank
        cycle = timeline.cycles.get(((generation, version), kth))
        if cycle is not None:
            parts: list[PathPart] = []
            for cause, process, seconds in _parts(began, cycle, made, worker_id(kth), shard_id(last)):
                shard = cycle.last_shard if cause == WEIGHTS else last
                usual_s = usual(cause, process, shard_id(shard), seconds, with_rollout=cycle.with_rollout)
                host = cycle.host if process.role == "worker" else made.host
                part = PathPart(cause, process, host, seconds, usual_s)
                shards_s = min(
                    part.excess_s, _caused_by_shard_s(timeline, (generation, version), cause, kth, shard, usual_s)
                )
                other = timeline.publications[generation, version + (cause != WEIGHTS)][shard].host
                parts += [
                    PathPart(cause, shard_id(shard), other, shards_s, 0.0),
                    part._replace(seconds=seconds - shards_s),
                ]
            whole = tuple(part for part in parts if part.seconds > 0)
            paths.append(CriticalPath(generation, version, shard_id(last), worker_id(kth), whole))
    return paths


def _parts(
    began: float, cycle: Cycle, made: PublishedVersion, worker: ProcessId, shard: ProcessId
) -> Iterator[tuple[str, ProcessId, float]]:
    """Cause, process and seconds of each part, from ``began`` to the publication of the next version.

    A worker can record the end of its push after the shard has closed the version, and the clock of a worker has an
    error. The times of the shard count, so that the end of an update is the start of the next one.
    """
    closed = max(began, made.closed)
    pushed = max(began, min(cycle.pushed, closed))
    starts = min(max(began, cycle.began), pushed)  # before that, the worker was busy with an earlier version
    yield OVERRUN, worker, starts - began
    pulled = min(max(starts, cycle.pulled), pushed)
    yield WEIGHTS, worker, pulled - starts
    skip = max(0.0, pulled - cycle.began)  # time of the cycle before the weights arrived: a wait, or part of a rollout
    left = pushed - pulled
    for name in WORK:
        seconds = min(left, max(0.0, cycle.spans[name] - skip))
        yield (OTHER if name == "wait" else name), worker, seconds
        skip, left = max(0.0, skip - cycle.spans[name]), left - seconds
    yield GRADIENT, worker, closed - pushed
    yield from _shard_parts(made, shard, max(closed, made.published) - closed)


def _caused_by_shard_s(
    timeline: Timeline, version: Version, cause: str, rank: int, shard: int, usual_s: float
) -> float:
    """The seconds of a transfer's delay that the shard caused, not the worker or its link.

    The shard causes late weights if all workers received them late.
    """
    cycle = timeline.cycles[version, rank]
    if cause == GRADIENT:
        return max(_busy_s(timeline, version, rank, shard), _late_for_all_s(timeline, version, shard))
    if cause == WEIGHTS:
        published = timeline.publications[version][shard].published
        others = [
            other.pulled - published
            for each in range(timeline.ranks)
            if each != rank and (other := timeline.cycles.get((version, each))) is not None
        ]
        return max(0.0, min(cycle.pulled - published, *others) - usual_s) if others else 0.0
    return 0.0


def _busy_s(timeline: Timeline, version: Version, rank: int, shard: int) -> float:
    """Seconds for which the last slice of a gradient waited for a busy shard."""
    arrivals = timeline.arrivals.get((version, rank), {})
    if shard not in arrivals:
        return 0.0
    others = [arrival.at for other, arrival in arrivals.items() if other != shard]
    waits_since = max([timeline.cycles[version, rank].pushed, arrivals[shard].polled, *others])
    return max(0.0, arrivals[shard].at - waits_since)


def _late_for_all_s(timeline: Timeline, version: Version, shard: int) -> float:
    """The seconds by which a worker's slice for ``shard`` arrived after its other slices: the minimum over all workers.

    The slices of a worker share its link, so one of them always arrives last. The link explains a delay that is no
    longer than the time of all other slices together. If the link explains the delay of any worker, the result is 0.
    """
    delays = []
    for rank in range(timeline.ranks):
        arrivals, cycle = timeline.arrivals.get((version, rank), {}), timeline.cycles.get((version, rank))
        others = [arrival.at for other, arrival in arrivals.items() if other != shard]
        if cycle is not None and others and shard in arrivals:
            delay_s, explained_s = arrivals[shard].at - max(others), max(others) - cycle.pushed
            delays.append(delay_s if delay_s > explained_s else 0.0)
    return min(delays) if len(delays) > 1 else 0.0


class Usual:
    """The usual duration of each part: the median of its process or that of all other processes, whichever is lower.

    A process that is always slow exceeds the median of the others. A process that is sometimes slow exceeds its own
    median. For transfers, each pair of worker and shard counts as one process.
    """

    def __init__(self, timeline: Timeline) -> None:
        work: defaultdict[tuple[str, bool], _ByProcess[ProcessId]] = defaultdict(_by_process)
        transfers: defaultdict[str, _ByProcess[tuple[ProcessId, ProcessId]]] = defaultdict(_by_process)
        for (version, rank), cycle in timeline.cycles.items():
            worker = worker_id(rank)
            for name in WORK:
                work[name, cycle.with_rollout][worker].append(cycle.spans[name])
            sent = timeline.publications.get(version, {}).get(cycle.last_shard)
            if sent is not None and cycle.began < sent.published:
                pair = worker, shard_id(cycle.last_shard)
                transfers[WEIGHTS][pair].append(max(0.0, cycle.pulled - sent.published))
            for shard, arrival in timeline.arrivals.get((version, rank), {}).items():
                transfers[GRADIENT][worker, shard_id(shard)].append(max(0.0, arrival.at - cycle.pushed))
        for made in timeline.publications.values():
            for shard, publication in made.items():
                if publication.is_made:
                    took_s = publication.published - publication.closed
                    for cause, process, seconds in _shard_parts(publication, shard_id(shard), took_s):
                        work[cause, False][process].append(seconds)
        self._work = {key: _medians(each) for key, each in work.items()}
        self._transfers = {cause: _medians(each) for cause, each in transfers.items()}

    def __call__(
        self, cause: str, process: ProcessId, shard: ProcessId, seconds: float, *, with_rollout: bool
    ) -> float:
        """The usual seconds of a part. ``shard`` is at the other end of a transfer.

        Returns 0 for an overrun, in which the worker is still busy with an earlier version.
        """
        if cause == OVERRUN:
            return 0.0
        if cause in TRANSFERS:
            return _usual(self._transfers.get(cause, {}), (process, shard), seconds)
        played = with_rollout and process.role == "worker"
        return _usual(self._work.get((cause, played), {}), process, seconds)


def _by_process() -> Any:
    return defaultdict(list)


def _medians(by_process: Mapping[T, list[float]]) -> dict[T, float]:
    return {process: float(np.median(seconds)) for process, seconds in by_process.items()}


def _usual(medians: Mapping[T, float], process: T, seconds: float) -> float:
    """The lower of two medians, as in ``Usual``. Returns ``seconds`` if none is known."""
    others = [median for other, median in medians.items() if other != process]
    return min([medians.get(process, seconds), *([median_low(others)] if others else [])])


def _shard_parts(made: PublishedVersion, shard: ProcessId, took_s: float) -> Iterator[tuple[str, ProcessId, float]]:
    """The parts of the ``took_s`` seconds from quorum to publication. Time outside all spans counts as accumulation."""
    left = took_s
    for name in reversed(AT_THE_SHARD):
        seconds = min(left, made.spans[name])
        yield name, shard, seconds
        left -= seconds
    yield "accumulate", shard, left
