"""How long the work of each rank takes: drawn from laws, or recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from zmqrl.simulate.laws import Law

STRIDE = 7919  # ranks that share a recording begin at different places of it


@dataclass(frozen=True, slots=True)
class Work:
    """Durations of one piece of work after another, in seconds.

    ``cpu_s`` needs a core, which the processes of a host share. ``idle_s`` does not: the process sleeps or is blocked.
    Either may be empty. A recording that is too short starts again.
    """

    cpu_s: Sequence[float]
    idle_s: Sequence[float] = ()

    def at(self, index: int) -> tuple[float, float]:
        """CPU and idle seconds of piece ``index``."""
        return (
            self.cpu_s[index % len(self.cpu_s)] if len(self.cpu_s) else 0.0,
            self.idle_s[index % len(self.idle_s)] if len(self.idle_s) else 0.0,
        )


@dataclass(frozen=True, slots=True)
class ComputeTimes:
    """The work of each rank: ``gradient`` for each version, ``rollout`` for each iteration (empty: no rollouts).

    With more workers than recorded ranks, several workers replay the same recording from different places.
    """

    gradient: tuple[Work, ...]
    rollout: tuple[Work, ...] = ()

    @classmethod
    def drawn(
        cls, *, gradient: Law, rollout: Law | None, ranks: int, versions: int, per_rollout: int, busy: float, seed: int
    ) -> Self:
        """Draw the work of ``versions`` versions. A rank draws the same numbers whatever the number of ranks is."""

        def of(law: Law, what: int, pieces: int) -> tuple[Work, ...]:
            draws = (law.draw(np.random.default_rng((seed, rank, what)), pieces) for rank in range(ranks))
            return tuple(Work((busy * drawn).tolist(), ((1 - busy) * drawn).tolist()) for drawn in draws)

        iterations = -(-versions // per_rollout) + 1
        return cls(of(gradient, 0, versions), of(rollout, 1, iterations) if rollout is not None else ())

    def gradient_s(self, rank: int, version: int) -> tuple[float, float]:
        """CPU and idle seconds of the gradient on ``version``."""
        return _of(self.gradient, rank, version)

    def rollout_s(self, rank: int, iteration: int) -> tuple[float, float]:
        """CPU and idle seconds of the rollout of ``iteration``."""
        return _of(self.rollout, rank, iteration)


def _of(recorded: tuple[Work, ...], rank: int, index: int) -> tuple[float, float]:
    again, which = divmod(rank, len(recorded))
    return recorded[which].at(index + again * STRIDE)
