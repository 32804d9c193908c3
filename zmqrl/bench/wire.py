"""Measures the transport alone, and compares it with gloo, plain sockets and memcpy.

The implementations take turns, so noise affects all of them equally.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from zmqrl.bench.crew import Crew, PartFacts, Role
from zmqrl.bench.grid import TRIP_BYTES, Case, Grid, Implementation, Operation
from zmqrl.bench.parts import ADAM, ByteLimit, Copier, GlooRank, RawHub, RawWorker, ZmqrlPinger, ZmqrlWorker
from zmqrl.bench.samples import MeasureKind, Round, Row, rows, samples
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.profile.run_tables import ProcessTables, RunTables
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.ps.wire.messages import Codec

BLOCK: Final = 10  # rounds of one variant before the next variant's turn
WARM_UP: Final = 5
ALONE_FOR: Final = 1.5  # how long worker 0 has the network to itself, in durations of an update round
# While other variants have their turn, workers are idle. Shards must then neither ask for gradients nor log stalls.
PATIENT: Final = ShardTiming(need_s=3600.0, need_most_s=3600.0, stall_notice_s=3600.0)
KINDS: Final[dict[Operation, MeasureKind]] = {
    "update_round": "together",
    "ingest": "together",
    "fan_out": "together",
    "push": "alone",
    "round_trip": "round_trip",
}

Measure: TypeAlias = Callable[[int], list[Round]]  # runs the given number of rounds of one kind


class Variant(NamedTuple):
    """A variant to measure. ``told`` adds data to a round once the variant has ended."""

    measures: dict[MeasureKind, Measure]
    told: Callable[[Round], Round] = lambda each: each


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the variants of one group run. Workers are the first processes of ``crew``, and hubs the last."""

    crew: Crew
    first_hub: int
    directory: Path
    operations: tuple[Operation, ...]


def measure(grid: Grid, begin: Callable[[Case], None]) -> Iterator[list[Row]]:
    """Call ``begin``, then measure, for each group of ``grid``. Yields the rows of the group. Raises ClusterError."""
    first_hub = max(grid.workers)
    hubs = max(grid.shards) + 1 if "raw_tcp" in grid.implementation else 0
    groups, end_at = list(grid.groups()), time.monotonic() + 60 * grid.minutes
    with tempfile.TemporaryDirectory(prefix="zmqrl-bench-") as scratch, Crew(first_hub + hubs) as crew:
        for number, group in enumerate(groups):
            begin(group)
            directory = Path(scratch) / str(number)
            directory.mkdir()
            now = time.monotonic()
            share_s = (end_at - now) / (len(groups) - number)
            yield _measure_group(grid, group, Stage(crew, first_hub, directory, grid.operation), now + share_s)


def _measure_group(grid: Grid, group: Case, stage: Stage, end_at: float) -> list[Row]:
    names = list(grid.variants(group))
    blocks: list[dict[MeasureKind, list[list[Round]]]] = [{} for _ in names]
    with ExitStack() as stack:
        variants = [
            stack.enter_context(VARIANTS[implementation](str(number), case, stage))
            for number, (implementation, case) in enumerate(names)
        ]
        for variant in variants:
            for make in variant.measures.values():
                make(WARM_UP)
        turns = list(zip(variants, blocks, strict=True))
        for begun in range(0, grid.rounds, BLOCK):
            if begun and time.monotonic() > end_at:
                break
            for variant, mine in turns:
                for kind, make in variant.measures.items():
                    # One extra round: in the first one, the caches still hold another variant's data.
                    mine.setdefault(kind, []).append(make(min(BLOCK, grid.rounds - begun) + 1))
            turns.append(turns.pop(0))
    measured = []
    for (implementation, case), variant, mine in zip(names, variants, blocks, strict=True):
        told = {kind: [[variant.told(each) for each in block] for block in mine[kind]] for kind in mine}
        found = samples(told)
        measured.append((implementation, case, {name: found[name] for name in grid.operation if name in found}))
    return rows(measured)


# the variants


@contextmanager
def _zmqrl(name: str, case: Case, stage: Stage) -> Iterator[Variant]:
    """Shard processes and workers, as in training. The shards record when gradients arrived."""
    crew, directory = stage.crew, stage.directory / name
    assert case.transport != "memory"
    with standalone_shards(
        case.layout,
        np.zeros(case.parameters, np.float32),
        optimizer=ADAM,
        workers=case.workers + 1,  # the last worker only sends PING
        quorum=case.workers,
        directory=directory,
        codec=case.codec,
        transport=case.transport,
        curve=case.curve,
        timing=PATIENT,
        profiler=ProfilerJob(directory / "profile", "localhost", trace_below=2**53),
    ) as shards:
        jobs = {rank: _job(shards, rank) for rank in range(case.workers)}
        ping = {0: _job(shards, case.workers)}
        with (
            crew.playing(name, ZmqrlWorker, jobs) as workers,
            crew.playing(f"{name}-ping", ZmqrlPinger, ping) as pinger,
        ):
            yield Variant(_measures(stage, workers, pinger), _recorded(directory / "profile", case))


def _job(shards: StandaloneShards, rank: int) -> PartFacts:
    keys = shards.keys
    return {
        "cluster": shards.cluster.to_json(),
        "keys": keys.of_worker(rank).to_json() if keys else None,
        "rank": rank,
    }


def _recorded(directory: Path, case: Case) -> Callable[[Round], Round]:
    """Make a function that adds the shards' instants to a round, once the shards have ended."""

    @functools.cache
    def shards() -> list[tuple[dict[int, list[int]], dict[int, int]]]:
        return [shard_instants(each) for each in RunTables.read(directory).of_role("shard")]

    def told(each: Round) -> Round:
        arrived = tuple(tuple(ends.get(each.version, ())) for ends, _ in shards())
        published = tuple(starts[each.version + 1] for _, starts in shards() if each.version + 1 in starts)
        if len(published) < case.shards or any(len(ends) < case.workers for ends in arrived):
            return each  # a profile can hold only a limited number of spans
        return replace(each, arrived=arrived, published=published)

    return told


def shard_instants(tables: ProcessTables) -> tuple[dict[int, list[int]], dict[int, int]]:
    """The instants, in ns and by version, at which a shard had added each contribution and began to publish."""
    arrived: dict[int, list[int]] = {}
    published: dict[int, int] = {}
    table = tables.table("spans")
    columns = (table[name].tolist() for name in ("name", "start_ns", "duration_ns", "version"))
    for number, start_ns, duration_ns, version in zip(*columns, strict=True):
        name = tables.span_names[number]
        if name == "accumulate":
            arrived.setdefault(version, []).append(start_ns + duration_ns)
        elif name == "publish":
            published.setdefault(version, start_ns)
    return arrived, published


@contextmanager
def _raw_tcp(name: str, case: Case, stage: Stage) -> Iterator[Variant]:
    """Send the same bytes over the same number of plain sockets. The hubs add the gradients, and do nothing else."""
    codec = case.codec
    sizes = [payload_bytes(codec, cut.count) for cut in case.layout.slices]
    with ExitStack() as stack:
        first, *others = range(stage.first_hub, stage.first_hub + 1 + case.shards)
        workers, hubs = _connected(stack, stage.crew, name, case.workers, dict(zip(others, sizes, strict=True)), codec)
        caller, answerer = _connected(stack, stage.crew, f"{name}-trip", 1, {first: TRIP_BYTES // 2}, None)
        yield Variant(_measures(stage, [*workers, *hubs], [*caller, *answerer]))


def _connected(
    stack: ExitStack, crew: Crew, name: str, workers: int, hubs_bytes: dict[int, int], codec: Codec | None
) -> tuple[list[Role], list[Role]]:
    """Start workers and hubs, until ``stack`` is closed. ``hubs_bytes`` has the bytes of a slice by process number."""
    jobs = {hub: {"workers": workers, "slice_bytes": size, "codec": codec} for hub, size in hubs_bytes.items()}
    hubs = stack.enter_context(crew.playing(f"{name}-hub", RawHub, jobs))
    job = {"ports": [hub.facts["port"] for hub in hubs], "slices_bytes": list(hubs_bytes.values())}
    return stack.enter_context(crew.playing(name, RawWorker, dict.fromkeys(range(workers), job))), hubs


@contextmanager
def _gloo(name: str, case: Case, stage: Stage) -> Iterator[Variant]:
    job = {
        "store": str(stage.directory / name),
        "workers": case.workers,
        "count": case.parameters,
        "codec": case.codec,
    }
    with stage.crew.playing(name, GlooRank, {rank: job | {"rank": rank} for rank in range(case.workers)}) as ranks:
        yield Variant(_measures(stage, ranks, []))


@contextmanager
def _memcpy(name: str, case: Case, stage: Stage) -> Iterator[Variant]:
    with ExitStack() as stack:
        measures: dict[MeasureKind, Measure] = {}
        for operation in stage.operations:
            pieces, piece_bytes = case.pieces(operation)
            job = {"pieces": pieces, "piece_bytes": piece_bytes}
            copier = stack.enter_context(stage.crew.playing(f"{name}-{operation}", Copier, {0: job}))
            measures[operation] = functools.partial(_made, stage.crew, copier)
        yield Variant(measures)


@contextmanager
def _limit(name: str, case: Case, stage: Stage) -> Iterator[Variant]:
    """Copy the payloads of an update, and make one step of the optimizer for the largest shard, in one process."""
    pieces, piece_bytes = case.pieces("update_round")
    job = {"pieces": pieces, "piece_bytes": piece_bytes, "workers": case.workers, "count": case.largest_slice}
    with stage.crew.playing(name, ByteLimit, {0: job}) as roles:
        yield Variant({"update_round": functools.partial(_made, stage.crew, roles)})


VARIANTS: Final[dict[Implementation, Callable[[str, Case, Stage], AbstractContextManager[Variant]]]] = {
    "zmqrl": _zmqrl,
    "raw_tcp": _raw_tcp,
    "gloo": _gloo,
    "memcpy": _memcpy,
    "limit": _limit,
}


def _measures(stage: Stage, players: Sequence[Role], trip: Sequence[Role]) -> dict[MeasureKind, Measure]:
    """Measure rounds of ``players`` (workers, then hubs), and round trips between the roles of ``trip``."""
    took_ns = 0.0

    def together(rounds: int) -> list[Round]:
        nonlocal took_ns
        made = _made(stage.crew, players, rounds)
        took_ns = statistics.median(max(b.done) - max(a.done) for a, b in pairwise(made))
        return made

    def alone(rounds: int) -> list[Round]:
        pause_s = ALONE_FOR * took_ns / 1e9
        return _made(stage.crew, players, rounds, [0.0, *[pause_s] * (len(players) - 1)])

    needed = {KINDS[operation] for operation in stage.operations}
    measures: dict[MeasureKind, Measure] = {}
    if "together" in needed or (trip and "alone" in needed):  # ``alone`` needs the duration of ``together``
        measures["together"] = together
    if trip and "alone" in needed:
        measures["alone"] = alone
    if trip and "round_trip" in needed:
        measures["round_trip"] = functools.partial(_made, stage.crew, trip)
    return measures


def _made(crew: Crew, roles: Sequence[Role], rounds: int, pauses_s: Sequence[float] = ()) -> list[Round]:
    """Run ``rounds`` rounds of ``roles``. Roles that return ``published`` are hubs."""
    answers = crew.run(roles, rounds, pauses_s)
    workers, hubs = ([answer for answer in answers if key in answer] for key in ("begun", "published"))
    version = workers[0].get("version", 0)
    return [
        Round(
            begun=tuple(worker["begun"][i] for worker in workers),
            done=tuple(worker["done"][i] for worker in workers),
            arrived=tuple(tuple(hub["arrived"][i]) for hub in hubs),
            published=tuple(hub["published"][i] for hub in hubs),
            version=version + i,
        )
        for i in range(rounds)
    ]
