"""Synthetic profiles of processes, for the tests of the profile."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from zmqrl.observe.spans import SHARD_SPANS, WORKER_SPANS
from zmqrl.process_id import ProcessId
from zmqrl.profile.run_tables import ProcessTables
from zmqrl.profile.tables import COLUMNS

US = 1_000_000


def _profile(
    process: ProcessId, clock: str, host: str, tables: Mapping[str, Iterable[Sequence[float]]]
) -> ProcessTables:
    arrays = {
        name: np.array(list(rows), np.float64).astype(np.int64).reshape(-1, len(COLUMNS[name]))
        for name, rows in tables.items()
    }
    return ProcessTables(
        process=process,
        incarnation=1,
        run="r",
        host=host,
        clock=clock,
        cores=2,
        machine_cores=2,
        tables={name: [rows] for name, rows in arrays.items()},
    )


def worker(
    rank: int,
    *,
    clock: str = "a",
    host: str = "h1",
    cycles: Iterable[Sequence[float]] = (),
    pings: Iterable[Sequence[float]] = (),
) -> ProcessTables:
    """The profile of a worker. ``cycle`` makes its rows."""
    return _profile(ProcessId("worker", rank), clock, host, {"cycles": cycles, "pings": pings})


def shard(
    number: int,
    *,
    clock: str = "a",
    host: str = "h1",
    versions: Iterable[Sequence[float]] = (),
    arrivals: Iterable[Sequence[float]] = (),
) -> ProcessTables:
    """The profile of a shard. ``publication`` and ``arrival`` make its rows."""
    return _profile(ProcessId("shard", number), clock, host, {"versions": versions, "arrivals": arrivals})


def cycle(
    version: int,
    began_s: float,
    pulled_s: float,
    pushed_s: float,
    *,
    last_shard: int = 0,
    cpu_s: float | None = None,
    queued_s: float = 0.0,
    **spans_s: float,
) -> list[float]:
    """A row of ``cycles``: times and spans in seconds. Without ``cpu_s``, the worker is never off its core."""
    spans = [US * spans_s.get(name, 0.0) for name in WORKER_SPANS]
    return [
        1,
        version,
        US * began_s,
        US * pulled_s,
        US * pushed_s,
        last_shard,
        *spans,
        US * (pushed_s - pulled_s if cpu_s is None else cpu_s),
        0,
        0,
        US * queued_s,
    ]


def publication(
    version: int, closed_s: float, published_s: float, *, rank: int, quorum: int, **spans_s: float
) -> list[float]:
    """A row of ``versions``: times and spans in seconds."""
    spans = [US * spans_s.get(name, 0.0) for name in SHARD_SPANS]
    return [1, version, quorum, rank, US * closed_s, US * published_s, *spans, 0]


def arrival(version: int, rank: int, at_s: float, outcome: int = 0, *, busy_s: float = 0.0) -> list[float]:
    """A row of ``arrivals``: the time in seconds, and how long the shard was busy before that time."""
    return [1, version, rank, outcome, US * (at_s - busy_s), US * at_s]


def asynchronous_run() -> list[ProcessTables]:
    """The profile of an asynchronous run: rank 0 makes three versions of two shards while rank 1 makes one."""
    cycles: list[list[list[float]]] = [[], []]
    made: list[list[list[float]]] = [[publication(0, 1.0, 1.0, rank=-1, quorum=0)] for _ in range(2)]
    arrivals: list[list[list[float]]] = [[], []]
    version = 0
    for turn in range(8):
        began = 1.0 + 0.4 * turn
        work = ((0, 0.0, 0.1, version), (0, 0.1, 0.2, version + 1), (0, 0.2, 0.3, version + 2), (1, 0.0, 0.31, version))
        for rank, start, end, computed_on in work:
            times = began + start, began + start, began + end
            cycles[rank].append(cycle(computed_on, *times, gradient=end - start))
            version += 1
            for number in range(2):
                arrived = began + end + 0.001 * (number + 1)
                arrivals[number].append(arrival(computed_on, rank, arrived))
                made[number].append(publication(version, arrived, arrived + 0.0005, rank=rank, quorum=1))
    return [
        *(shard(number, versions=made[number], arrivals=arrivals[number]) for number in range(2)),
        *(worker(rank, cycles=cycles[rank], host=f"w{rank}") for rank in range(2)),
    ]


USUAL_S = {"env_step": 0.05, "act": 0.02, "gradient": 0.1, "encode": 0.001, "push": 0.001}
SHARD_S = {"optimize": 0.004, "commit": 0.002, "publish": 0.001}
TRANSFER_S = 0.003
ACCUMULATE_S = 0.001


def synthetic_run(
    *,
    workers: int = 3,
    shards: int = 2,
    versions: int = 40,
    quorum: int | None = None,
    worker_extra_s: Mapping[tuple[str, int], float] | None = None,
    shard_extra_s: Mapping[tuple[str, int], float] | None = None,
    link_extra_s: Mapping[int, float] | None = None,
    busy_s: Mapping[tuple[int, int], float] | None = None,
    in_turn_s: Mapping[int, float] | None = None,
    stalls_s: Mapping[tuple[int, int], float] | None = None,
    every: int = 1,
    per_rollout: int = 1,
    hosts: Mapping[str, str] | None = None,
) -> list[ProcessTables]:
    """The profile of a run in which every span takes exactly its usual time, and all ranks start together.

    Extra seconds are given by span (or ``"gradient_transfer"``) and by rank or shard. They apply to every ``every``-th
    version. A worker finishes its contribution even if the contribution is late. ``link_extra_s`` are extra seconds per
    slice on the link of a rank, which sends one slice after the other. ``busy_s`` are the seconds that a slice waits
    for a busy shard, by rank and shard. The ranks of ``in_turn_s`` take turns: in each version, the gradient of one of
    them takes its extra seconds. ``stalls_s`` are extra seconds of a gradient by version and rank. Workers play only in
    every ``per_rollout``-th version.
    """
    link_extra_s, busy_s = link_extra_s or {}, busy_s or {}
    worker_extra_s, shard_extra_s = worker_extra_s or {}, shard_extra_s or {}
    quorum = workers if quorum is None else quorum
    cycles: list[list[list[float]]] = [[] for _ in range(workers)]
    made: list[list[list[float]]] = [[publication(0, 1.0, 1.0, rank=-1, quorum=0)] for _ in range(shards)]
    arrivals: list[list[list[float]]] = [[] for _ in range(shards)]
    published = [1.0] * shards
    free = [0.5] * workers
    for version in range(versions):
        extra = version % every == 0
        reached: list[list[tuple[float, int]]] = [[] for _ in range(shards)]
        last = published.index(max(published))
        for rank in range(workers):
            if free[rank] > max(published) + 1.0:  # far behind: it skips this version
                continue
            pulled = max(published) + TRANSFER_S
            spans = {name: s + extra * worker_extra_s.get((name, rank), 0.0) for name, s in USUAL_S.items()}
            if in_turn_s and rank == list(in_turn_s)[version % len(in_turn_s)]:
                spans["gradient"] += in_turn_s[rank]
            spans["gradient"] += (stalls_s or {}).get((version, rank), 0.0)
            if version % per_rollout:
                spans["env_step"] = spans["act"] = 0.0
            begins = max(pulled, free[rank])
            pushed = begins + sum(spans.values())
            waited = begins - free[rank]
            cycles[rank].append(cycle(version, free[rank], pulled, pushed, last_shard=last, wait=waited, **spans))
            free[rank] = pushed
            sent = TRANSFER_S + extra * worker_extra_s.get(("gradient_transfer", rank), 0.0)
            for number in range(shards):
                late = extra * shard_extra_s.get(("gradient_transfer", number), 0.0)
                link = extra * (number + 1) * link_extra_s.get(rank, 0.0)
                reached[number].append((pushed + sent + late + link + extra * busy_s.get((rank, number), 0.0), rank))
        for number in range(shards):
            order = sorted(reached[number])
            closed, closing = order[quorum - 1]
            spans = {name: s + extra * shard_extra_s.get((name, number), 0.0) for name, s in SHARD_S.items()}
            published[number] = closed + ACCUMULATE_S + sum(spans.values())
            made[number].append(
                publication(version + 1, closed, published[number], rank=closing, quorum=quorum, **spans)
            )
            for i, (at, rank) in enumerate(order):
                busy = extra * busy_s.get((rank, number), 0.0)
                arrivals[number].append(arrival(version, rank, at, 0 if i < quorum else 1, busy_s=busy))
    named = hosts or {}
    return [
        *(shard(s, versions=made[s], arrivals=arrivals[s], host=named.get(f"shard-{s}", "h1")) for s in range(shards)),
        *(worker(r, cycles=cycles[r], host=named.get(f"worker-{r}", f"w{r}")) for r in range(workers)),
    ]


def resumed(
    processes: Iterable[ProcessTables],
    *,
    at: int = 0,
    run: str = "resumed",
    clock: str | None = None,
    later_s: float = 0,
) -> list[ProcessTables]:
    """The profiles as those of generation 2, which begins at version ``at``, ``later_s`` seconds later.

    With another ``run``, they belong to a later session. ``clock`` is their clock, if another one.
    """
    found = []
    for each in processes:
        tables = {name: [part.copy() for part in parts] for name, parts in each.tables.items()}
        for name, parts in tables.items():
            for i, column in enumerate(COLUMNS[name]):
                for part in parts:
                    if column == "generation":
                        part[:, i] = 2
                    elif column == "version":
                        part[:, i] += at
                    elif column.endswith("_at_us"):
                        part[:, i] += int(US * later_s)
        found.append(replace(each, run=run, clock=clock or each.clock, incarnation=2, tables=tables))
    return found


def rolled_back(before: Sequence[ProcessTables], after: Sequence[ProcessTables]) -> list[ProcessTables]:
    """The profiles of processes that recorded ``before``, then a rollback, then ``after``."""
    return [
        replace(one, tables={name: [*parts, *other.tables[name]] for name, parts in one.tables.items()})
        for one, other in zip(before, after, strict=True)
    ]


def ending_at(each: ProcessTables, version: int) -> ProcessTables:
    """A profile of which only the rows up to the publication of ``version`` were written."""
    tables = dict(each.tables)
    for name in {"cycles", "arrivals", "versions"} & tables.keys():
        last = version if name == "versions" else version - 1
        tables[name] = [part[part[:, COLUMNS[name].index("version")] <= last] for part in tables[name]]
    return replace(each, tables=tables)
