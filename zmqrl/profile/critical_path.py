"""Which worker, shard and span each update waited for: the critical path of every version.

An update begins when the last shard has published version v, and ends when the last one has published v+1. The path
between the two leads through one worker and one shard: the shard that published last, and the worker whose contribution
completed its quorum. Its parts are: the weights reach the worker, the worker's spans, the gradient reaches the shard,
the shard's spans. They add up to the time of the update.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from zmqrl.observe.spans import SHARD_SPANS, WORKER_SPANS
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.profile.clocks import Clocks
from zmqrl.profile.recording import ProcessRecording, Recording

WEIGHTS, GRADIENT, OVERRUN, OTHER = "weights_transfer", "gradient_transfer", "overrun", "other"
TRANSFERS = (WEIGHTS, GRADIENT)
# In the order in which a worker works. What lies between the spans comes before the gradient.
WORK = ("wait", "assemble", "env_step", "act", OTHER, "gradient", "straggle", "encode", "push")
AT_THE_SHARD = ("optimize", "commit", "publish")

Version: TypeAlias = tuple[int, int]
"""Generation and version."""


class Part(NamedTuple):
    """A part of a critical path: what was done by whom, for how long, and how long that usually takes."""

    cause: str
    process: ProcessId
    seconds: float
    usual_s: float

    @property
    def excess_s(self) -> float:
        """The time above what is usual, 0 if it is below."""
        return max(0.0, self.seconds - self.usual_s)


@dataclass(frozen=True, slots=True)
class Step:
    """One update of the version ``version``: from its publication to that of the next. Times are in seconds.

    ``began_s`` is on the reference clock. ``kth`` is the worker whose contribution completed the quorum of ``last``,
    the shard that was last. ``with_rollout``: that worker played before.
    """

    generation: int
    version: int
    began_s: float
    kth: ProcessId
    last: ProcessId
    with_rollout: bool
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """The time of the update."""
        return sum(part.seconds for part in self.parts)


class Cycle(NamedTuple):
    """What a worker did for one contribution. Times in seconds on the reference clock; ``spans`` by name."""

    began: float
    pulled: float
    pushed: float
    last_shard: int
    cpu_s: float
    spans: Mapping[str, float]

    @property
    def with_rollout(self) -> bool:
        """Whether it contains a rollout."""
        return self.spans["env_step"] + self.spans["act"] > 0

    @property
    def worked_s(self) -> float:
        """The time without waiting for weights."""
        return max(0.0, self.pushed - self.began - self.spans["wait"])


class Publication(NamedTuple):
    """How a shard made and published a version. Times in seconds on the reference clock."""

    closed: float
    published: float
    quorum: int
    closing_rank: int
    spans: Mapping[str, float]


class Arrival(NamedTuple):
    """A contribution that reached a shard, at a time in seconds on the reference clock; the index of its outcome."""

    at: float
    outcome: int


@dataclass(slots=True)
class Timeline:
    """Everything that was recorded, on the reference clock. Processes with other clocks are not in it."""

    cycles: dict[tuple[Version, int], Cycle]
    publications: dict[Version, dict[int, Publication]]
    arrivals: dict[tuple[Version, int], dict[int, Arrival]]
    hosts: dict[ProcessId, str]
    shards: int

    @classmethod
    def of(cls, recording: Recording, clocks: Clocks) -> "Timeline":
        """Join the recordings of all processes."""
        timeline = cls({}, defaultdict(dict), defaultdict(dict), {}, 0)
        for each in recording.processes:
            timeline.hosts[each.process] = each.host
            if each.process.role == "shard":
                timeline.shards = max(timeline.shards, each.process.number + 1)
            if not clocks.knows(each):
                continue
            timeline.cycles.update(_cycles(each, clocks))
            for version, publication in _publications(each, clocks):
                timeline.publications[version].setdefault(each.process.number, publication)
            for key, arrival in _arrivals(each, clocks):
                timeline.arrivals[key].setdefault(each.process.number, arrival)
        return timeline

    def versions(self) -> Iterator[Version]:
        """The versions that all shards published, in order."""
        whole = (version for version, made in self.publications.items() if len(made) == self.shards)
        yield from sorted(whole)


def _columns(
    each: ProcessRecording, clocks: Clocks, table: str, times: Iterable[str], spans: Iterable[str]
) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """The columns of a table: times on the reference clock and other numbers, and the spans of each row, in seconds."""
    found = each.table(table)
    columns = {name: (clocks.times_us(each, found[name]) / 1e6).tolist() for name in times}
    columns |= {name: found[name].tolist() for name in found if name not in columns}
    names = list(spans)
    in_seconds = np.stack([found[name] / 1e6 for name in names], axis=1) if names else np.empty((0, 0))
    return columns, [dict(zip(names, row, strict=True)) for row in in_seconds.tolist()]


def _cycles(each: ProcessRecording, clocks: Clocks) -> Iterator[tuple[tuple[Version, int], Cycle]]:
    times = ("began_at_us", "pulled_at_us", "pushed_at_us")
    columns, spans = _columns(each, clocks, "cycles", times, WORKER_SPANS)
    names = ("generation", "version", *times, "last_shard", "cpu_us")
    for row, (generation, version, *when, shard, cpu_us) in zip(
        spans, zip(*(columns[name] for name in names), strict=True), strict=True
    ):
        began, _, pushed = when
        row[OTHER] = max(0.0, pushed - began - sum(row.values()))
        yield ((int(generation), int(version)), each.process.number), Cycle(*when, int(shard), cpu_us / 1e6, row)


def _publications(each: ProcessRecording, clocks: Clocks) -> Iterator[tuple[Version, Publication]]:
    times = ("closed_at_us", "published_at_us")
    columns, spans = _columns(each, clocks, "versions", times, SHARD_SPANS)
    names = ("generation", "version", *times, "quorum", "closing_rank")
    for row, (generation, version, *when, quorum, rank) in zip(
        spans, zip(*(columns[name] for name in names), strict=True), strict=True
    ):
        yield (int(generation), int(version)), Publication(*when, int(quorum), int(rank), row)


def _arrivals(each: ProcessRecording, clocks: Clocks) -> Iterator[tuple[tuple[Version, int], Arrival]]:
    columns, _ = _columns(each, clocks, "arrivals", ("arrived_at_us",), ())
    names = ("generation", "version", "rank", "outcome", "arrived_at_us")
    for generation, version, rank, outcome, at in zip(*(columns[name] for name in names), strict=True):
        yield ((int(generation), int(version)), int(rank)), Arrival(at, int(outcome))


def critical_path(timeline: Timeline) -> list[Step]:
    """The steps of all versions whose next one follows in the same generation and whose K-th worker recorded it."""
    usual = Usual(timeline)
    steps = []
    for generation, version in timeline.versions():
        made = timeline.publications.get((generation, version + 1), {})
        if len(made) < timeline.shards:
            continue
        before = timeline.publications[generation, version]
        began = max(publication.published for publication in before.values())
        last = max(made, key=lambda shard: made[shard].published)
        kth = made[last].closing_rank
        cycle = timeline.cycles.get(((generation, version), kth))
        if cycle is not None:
            parts: list[Part] = []
            for cause, process, seconds in _parts(began, cycle, made[last], worker_id(kth), shard_id(last)):
                part = Part(cause, process, seconds, usual(cause, process, cycle.with_rollout, seconds))
                parts += usual.split(part, shard_id(cycle.last_shard if cause == WEIGHTS else last))
            path = tuple(part for part in parts if part.seconds > 0)
            steps.append(Step(generation, version, began, worker_id(kth), shard_id(last), cycle.with_rollout, path))
    return steps


def _parts(
    began: float, cycle: Cycle, made: Publication, worker: ProcessId, shard: ProcessId
) -> Iterator[tuple[str, ProcessId, float]]:
    """Cause, process and seconds along the path, from ``began`` to the publication of the next version."""
    starts = max(began, cycle.began)  # before, it still worked on an earlier version
    yield OVERRUN, worker, starts - began
    pulled = min(max(starts, cycle.pulled), max(starts, cycle.pushed))
    yield WEIGHTS, worker, pulled - starts
    skip = max(0.0, pulled - cycle.began)  # what the worker did before: waiting, or a rollout that began earlier
    pushed = max(pulled, cycle.pushed)
    for name in WORK:
        seconds = cycle.spans[name]
        yield (OTHER if name == "wait" else name), worker, max(0.0, seconds - skip)
        skip = max(0.0, skip - seconds)
    closed = max(pushed, made.closed)
    yield GRADIENT, worker, closed - pushed
    published = max(closed, made.published)
    known = [(name, made.spans[name]) for name in AT_THE_SHARD]
    yield "accumulate", shard, max(0.0, published - closed - sum(seconds for _, seconds in known))
    yield from ((name, shard, seconds) for name, seconds in known)


class Usual:
    """How long each part of a path usually takes: the lower of a process's own median and that of the others.

    So a process that is always slow has an excess over the others, and one that is slow at times over itself.
    """

    def __init__(self, timeline: Timeline) -> None:
        found: defaultdict[tuple[str, bool], defaultdict[ProcessId, list[float]]]
        found = defaultdict(lambda: defaultdict(list))
        for (version, rank), cycle in timeline.cycles.items():
            for name in WORK:
                found[name, cycle.with_rollout][worker_id(rank)].append(cycle.spans[name])
            sent = timeline.publications.get(version, {}).get(cycle.last_shard)
            if sent is not None and cycle.began < sent.published:
                for process in (worker_id(rank), shard_id(cycle.last_shard)):
                    found[WEIGHTS, False][process].append(max(0.0, cycle.pulled - sent.published))
            for shard, arrival in timeline.arrivals.get((version, rank), {}).items():
                for process in (worker_id(rank), shard_id(shard)):
                    found[GRADIENT, False][process].append(max(0.0, arrival.at - cycle.pushed))
        for made in timeline.publications.values():
            for shard, publication in made.items():
                if publication.closing_rank >= 0:
                    for cause, process, seconds in _shard_parts(publication, shard_id(shard)):
                        found[cause, False][process].append(seconds)
        self._medians = {
            key: {process: float(np.median(seconds)) for process, seconds in each.items()}
            for key, each in found.items()
        }

    def __call__(self, cause: str, process: ProcessId, with_rollout: bool, seconds: float) -> float:
        """The usual seconds of a part; those of an overrun are 0."""
        if cause == OVERRUN:
            return 0.0
        played = with_rollout and process.role == "worker" and cause not in TRANSFERS
        own = self._medians.get((cause, played), {}).get(process, seconds)
        others = self._others(cause, process, played)
        return min(own, float(np.median(others))) if others else own

    def split(self, part: Part, shard: ProcessId) -> list[Part]:
        """A transfer in two: its excess that all transfers with ``shard`` have is the shard's, the rest the worker's."""
        others = self._others(part.cause, shard, False) if part.cause in TRANSFERS else []
        if not others:
            return [part]
        away = self._medians[part.cause, False].get(shard, 0.0) - float(np.median(others))
        late_s = min(part.excess_s, max(0.0, away))
        return [Part(part.cause, shard, late_s, 0.0), part._replace(seconds=part.seconds - late_s)]

    def _others(self, cause: str, process: ProcessId, played: bool) -> list[float]:
        """The medians of the other processes of the same role."""
        medians = self._medians.get((cause, played), {}).items()
        return [median for other, median in medians if other != process and other.role == process.role]


def _shard_parts(made: Publication, shard: ProcessId) -> Iterator[tuple[str, ProcessId, float]]:
    known = [(name, made.spans[name]) for name in AT_THE_SHARD]
    yield "accumulate", shard, max(0.0, made.published - made.closed - sum(seconds for _, seconds in known))
    yield from ((name, shard, seconds) for name, seconds in known)
