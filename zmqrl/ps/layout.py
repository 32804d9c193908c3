"""The layout of the parameter vector: its tensors, and the cuts between the slices of the shards."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zmqrl.errors import UsageError
from zmqrl.words import counted

ALIGNMENT = 16  # float32 elements: 64 bytes, one cache line
MAX_SHARDS = 64
AVERAGED = "running_statistics."  # begins the names of tensors that shards average instead of optimizing
MAX_COUNT = 2**40  # float32 elements: 4 TiB


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements ``start`` to ``stop`` of the parameter vector, owned by shard ``shard``."""

    shard: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of float32 elements."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of the tensors in the parameter vector, in order, and the cuts between slices.

    Two processes use the same vector if and only if their layouts have the same ``hash``.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    shards: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Iterable[int]]], shards: int) -> "Layout":
        """Build the layout of named shapes. Raises UsageError when the vector cannot be cut into ``shards`` slices."""
        layout = cls(tuple((name, tuple(int(n) for n in shape)) for name, shape in tensors), shards)
        if not 1 <= shards <= MAX_SHARDS:
            raise UsageError(f"shards is {shards}, but must be from 1 to {MAX_SHARDS}.")
        if any(n < 0 for _, shape in layout.tensors for n in shape) or layout.count > MAX_COUNT:
            raise UsageError(f"a tensor has a negative length, or there are more than {MAX_COUNT} parameters.")
        if layout.blocks < shards:
            raise UsageError(
                f"{layout.count} parameters cannot be cut into {counted(shards, 'shard')} of at least "
                f"{ALIGNMENT * 4} bytes: use at most {max(layout.blocks, 1)}."
            )
        return layout

    @property
    def count(self) -> int:
        """Length of the parameter vector, in float32 elements."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def blocks(self) -> int:
        """Number of 64-byte blocks. The last block may be partly filled."""
        return -(-self.count // ALIGNMENT)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices, which are contiguous and 64-byte aligned. Their lengths differ by at most 64 bytes.

        If the shards cannot get equal numbers of blocks, the last ones get one block more.
        """
        small, extra = divmod(self.blocks, self.shards)
        slices = []
        start = 0
        for shard in range(self.shards):
            blocks = small + (shard >= self.shards - extra)
            stop = min(start + blocks * ALIGNMENT, self.count)
            slices.append(Slice(shard, start, stop))
            start = stop
        return tuple(slices)

    def pieces(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """The name and shape of each tensor, and the tensor's piece of the parameter vector."""
        start = 0
        for name, shape in self.tensors:
            stop = start + math.prod(shape)
            yield name, shape, slice(start, stop)
            start = stop

    def averaged(self, shard: int) -> tuple[slice, ...]:
        """The parts of a shard's slice that hold running statistics, as positions in the slice.

        An update subtracts from each element the mean of its gradients.
        """
        cut, parts = self.slices[shard], list[slice]()
        for name, _, piece in self.pieces():
            low, high = max(piece.start, cut.start), min(piece.stop, cut.stop)
            if name.startswith(AVERAGED) and low < high:
                parts.append(slice(low - cut.start, high - cut.start))
        return tuple(parts)

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of names, shapes, dtype and cuts."""
        text = json.dumps(
            ["float32", [[name, list(shape)] for name, shape in self.tensors], [s.stop for s in self.slices]],
            separators=(",", ":"),
            ensure_ascii=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        """Plain data for ``cluster.json`` and checkpoints."""
        return {
            "tensors": [[name, list(shape)] for name, shape in self.tensors],
            "dtype": "float32",
            "shards": self.shards,
            "count": self.count,
            "slices": [[s.start, s.stop] for s in self.slices],
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, data: dict[str, object]) -> "Layout":
        """Inverse of :meth:`to_json`. Raises UsageError when the data is unreadable or does not match its own hash."""
        try:
            tensors, shards = data["tensors"], data["shards"]
            if not isinstance(tensors, list) or not isinstance(shards, int):
                raise TypeError("tensors is not a list, or shards is not an integer")
            layout = cls.of(((str(name), shape) for name, shape in tensors), shards)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"unreadable layout: {error!r}.") from error
        if layout.hash != data.get("hash"):
            raise UsageError(
                f"the layout has hash {data.get('hash')!r}, but the hash of its tensors and cuts is {layout.hash!r}."
            )
        return layout
