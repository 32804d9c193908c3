"""Turns the instants of rounds into durations of operations, and these into the rows of the result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from zmqrl.bench.grid import OPERATIONS, Case, Implementation, Operation

# In a ``together`` round, all workers push at once. In an ``alone`` round, worker 0 pushes first. A round of any other
# kind measures the operation of that name directly.
MeasureKind: TypeAlias = Literal["together", "alone"] | Operation
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The instants of one round, in ns on the monotonic clock, which all processes of this machine share.

    The workers began to push at ``begun``, and had the weights of ``version`` + 1 at ``done``. Each shard had added the
    gradients at ``arrived``, and began to publish at ``published``. ``arrived`` and ``published`` are empty if unknown.
    """

    begun: tuple[int, ...]
    done: tuple[int, ...]
    arrived: tuple[tuple[int, ...], ...] = ()
    published: tuple[int, ...] = ()
    version: int = 0


Blocks: TypeAlias = Mapping[MeasureKind, Sequence[Sequence[Round]]]


def samples(blocks: Blocks) -> dict[Operation, list[float]]:
    """The durations of each operation in ms. The first round of each block is a warm-up and does not count.

    An update round lasts from the end of the previous round to its own end, so an early start gains nothing.
    """
    together, alone = list(_rounds(blocks, "together")), list(_rounds(blocks, "alone"))
    found: dict[Operation, list[int]] = {
        "update_round": [max(b.done) - max(a.done) for each in blocks.get("together", ()) for a, b in pairwise(each)],
        "push": [_pushed(each) - each.begun[0] for each in alone if each.arrived],
        "ingest": [max(shard) - min(each.begun) for each in together for shard in each.arrived],
        "fan_out": [max(each.done) - max(each.published) for each in together if each.published],
        "round_trip": [],
    }
    for operation, durations in found.items():
        durations += [max(each.done) - min(each.begun) for each in _rounds(blocks, operation)]
    return {operation: [ns / 1e6 for ns in durations] for operation, durations in found.items() if durations}


def _pushed(alone: Round) -> int:
    """When every shard had added the gradient of worker 0. If another worker began before, when it had added all."""
    first = max(map(min, alone.arrived))
    return first if first <= min(alone.begun[1:], default=first) else max(map(max, alone.arrived))


def _rounds(blocks: Blocks, kind: MeasureKind) -> Iterator[Round]:
    for block in blocks.get(kind, ()):
        yield from block[1:]


def rows(measured: Sequence[tuple[Implementation, Case, Mapping[Operation, Sequence[float]]]]) -> list[Row]:
    """One row for each operation of each variant, as ``--json`` prints it. Samples are in ms.

    ``fraction_of_memcpy`` is the time of memcpy for the same pieces, divided by the time of the row. None if memcpy was
    not measured. ``limit_ms`` is the least time of an update with the same bytes and shards, and ``times_limit`` is the
    time of the row divided by it. Both are None for other operations, and if the limit was not measured.
    """
    copied_ms = {
        (operation, case.pieces(operation)): float(np.median(found[operation]))
        for implementation, case, found in measured
        for operation in found
        if implementation == "memcpy"
    }
    limit_ms = {
        (operation, _work(case)): float(np.median(found[operation]))
        for implementation, case, found in measured
        for operation in found
        if implementation == "limit"
    }
    return [
        _row(
            implementation,
            operation,
            case,
            found[operation],
            copied_ms.get((operation, case.pieces(operation))),
            limit_ms.get((operation, _work(case))),
        )
        for operation in OPERATIONS
        for implementation, case, found in measured
        if operation in found
    ]


def _work(case: Case) -> tuple[object, ...]:
    """What determines the limit of a case."""
    return case.codec, case.parameters, case.workers, case.shards


def _row(
    implementation: Implementation,
    operation: Operation,
    case: Case,
    found: Sequence[float],
    copied_ms: float | None,
    limit_ms: float | None,
) -> Row:
    p50_ms, p99_ms = np.percentile(found, [50, 99]).tolist()
    pieces, piece_bytes = case.pieces(operation)
    return {
        "implementation": implementation,
        "operation": operation,
        **asdict(case),
        "rounds": len(found),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "bytes": pieces * piece_bytes,
        "bytes_per_s": pieces * piece_bytes / p50_ms * 1000,
        "fraction_of_memcpy": None if copied_ms is None else copied_ms / p50_ms,
        "limit_ms": limit_ms,
        "times_limit": None if limit_ms is None else p50_ms / limit_ms,
    }
