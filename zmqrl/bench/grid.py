"""The cases that ``zmqrl bench wire`` measures, and the bytes that each operation moves."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from zmqrl.errors import require
from zmqrl.ps.layout import MAX_SHARDS, Layout
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.ps.wire.messages import Codec
from zmqrl.ps.wire.sockets import Transport

T = TypeVar("T")

Implementation: TypeAlias = Literal["zmqrl", "gloo", "raw_tcp", "memcpy", "limit"]
Operation: TypeAlias = Literal["update_round", "push", "ingest", "fan_out", "round_trip"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

MOST_WORKERS = 64
MOST_PARAMETERS = 2**28  # 1 GiB
TRIP_BYTES = 140  # about the size of PING and PONG together


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A case to measure: ``workers`` share one vector through ``shards``. The fields are columns of the result.

    Only zmqrl uses encryption. gloo has no shards, so its cases have 1. memcpy and limit have no network, so their
    transport is ``memory``.
    """

    transport: Transport | Literal["memory"]
    codec: Codec
    curve: bool
    parameters: int
    workers: int
    shards: int

    @property
    def layout(self) -> Layout:
        """The vector, cut for the shards. Raises UsageError if it is too short."""
        return Layout.of([("vector", (self.parameters,))], self.shards)

    @property
    def largest_slice(self) -> int:
        """The number of parameters of the shard with the most."""
        return max(cut.count for cut in self.layout.slices)

    def pieces(self, operation: Operation) -> tuple[int, int]:
        """The number of payloads that ``operation`` moves, and the bytes of each.

        An update moves the gradient of each worker to the shards, and the weights back to each worker. ``ingest``
        concerns one shard.
        """
        vector = payload_bytes(self.codec, self.parameters)
        widest = payload_bytes(self.codec, self.largest_slice)
        pieces: dict[Operation, tuple[int, int]] = {
            "update_round": (2 * self.workers, vector),
            "push": (1, vector),
            "ingest": (self.workers, widest),
            "fan_out": (self.workers, vector),
            "round_trip": (1, TRIP_BYTES),
        }
        return pieces[operation]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every combination of these values. Raises UsageError for values that cannot be measured.

    If ``rounds`` rounds would take longer than ``minutes``, fewer are measured.
    """

    transport: tuple[Transport, ...]
    codec: tuple[Codec, ...]
    curve: tuple[bool, ...]
    parameters: tuple[int, ...]
    workers: tuple[int, ...]
    shards: tuple[int, ...]
    operation: tuple[Operation, ...]
    implementation: tuple[Implementation, ...]
    rounds: int
    minutes: float

    def __post_init__(self) -> None:
        for field in fields(self):
            require(getattr(self, field.name) != (), f"--{field.name}: give at least one value.")
        require(0 < self.minutes < float("inf"), f"--minutes {self.minutes:g}: must be above 0 and finite.")
        limits = {"parameters": MOST_PARAMETERS, "workers": MOST_WORKERS, "shards": MAX_SHARDS, "rounds": 10**6}
        for name, most in limits.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                require(1 <= value <= most, f"--{name} {value}: must be from 1 to {most}.")
        alone = [name for name in _once(self.implementation) if name not in ("gloo", "limit")]
        require(
            bool(alone) or "update_round" in self.operation,
            f"--implementation {' '.join(_once(self.implementation))}: has no result without --operation update_round.",
        )
        for parameters, shards in itertools.product(self.parameters, self.shards):
            Layout.of([("vector", (parameters,))], shards)

    def groups(self) -> Iterator[Case]:
        """The groups: cases with the same parameters, workers and codec. The cases of a group take turns."""
        for parameters, workers, codec in _each(self.parameters, self.workers, self.codec):
            yield Case(transport="tcp", codec=codec, curve=False, parameters=parameters, workers=workers, shards=1)

    def variants(self, group: Case) -> Iterator[tuple[Implementation, Case]]:
        """The variants of ``group``: implementations and their cases."""
        for implementation in _once(self.implementation):
            match implementation:
                case "zmqrl":
                    for transport, curve, shards in _each(self.transport, self.curve, self.shards):
                        yield implementation, replace(group, transport=transport, curve=curve, shards=shards)
                case "gloo":
                    yield implementation, group
                case "raw_tcp":
                    yield from ((implementation, replace(group, shards=shards)) for shards in _once(self.shards))
                case "memcpy" | "limit":
                    if implementation == "limit" and "update_round" not in self.operation:
                        continue
                    for shards in _once(self.shards):
                        yield implementation, replace(group, transport="memory", shards=shards)


def _once(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _each(*choices: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*map(_once, choices))
