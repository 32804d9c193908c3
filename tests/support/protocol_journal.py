"""The versions and payloads of a simulated run, for a comparison with recomputed versions.

Weights are integers, so every version can be recomputed exactly from the ranks in its record.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from zmqrl.ps.shard import events as shard_events

PRIME = 2**31 - 1

Version: TypeAlias = tuple[int, int, int]  # generation, shard, version


@dataclass(frozen=True, slots=True)
class Slice:
    """The payload of a contribution: it names the weights that the gradient was computed on."""

    rank: int
    generation: int
    version: int
    shard: int
    forged: bool = False

    def gradient(self) -> int:
        return self.rank * 1009 + self.version * 31 + self.shard


def step(weights: int, gradients: list[int]) -> int:
    """A toy optimizer: its result depends on every contribution and on the number of contributions."""
    return (weights * 31 + sum(gradients) * 7 + len(gradients)) % PRIME


@dataclass(frozen=True, slots=True)
class Slot:
    """The state of one version on a shard."""

    record: shard_events.Record
    weights: int


@dataclass(slots=True)
class Journal:
    """Every version ever loaded or committed, and every payload ever published.

    ``elapsed`` is the progress of the run that workers use, by generation and version.
    """

    loaded: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    committed: dict[Version, Slot] = field(default_factory=dict)
    shown: dict[Version, int] = field(default_factory=dict)
    elapsed: dict[tuple[int, int], int] = field(default_factory=dict)

    def show(self, at: Version, weights: int) -> None:
        assert self.shown.setdefault(at, weights) == weights, f"two different payloads for {at}"

    def compute(self, at: tuple[int, int], elapsed: int) -> None:
        assert self.elapsed.setdefault(at, elapsed) == elapsed, f"workers use different progress for {at}"

    def check(self) -> None:
        """Recompute every version from the ranks in the records, and compare."""
        versions = {at: slot.weights for at, slot in self.committed.items()}
        for (generation, shard), (version, weights) in self.loaded.items():
            versions[generation, shard, version] = weights
        for (generation, shard, version), slot in self.committed.items():
            before = versions[generation, shard, version - 1]
            slices = [Slice(rank, generation, version - 1, shard) for rank in slot.record.ranks]
            assert slot.weights == step(before, [slice.gradient() for slice in slices])
        for at, weights in self.shown.items():
            assert versions[at] == weights
