"""The durations of the work of each rank, drawn from laws or recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from zmqrl.errors import require
from zmqrl.simulate.laws import Law

CHUNK = 1024  # number of durations that are drawn at once
LONGEST_S = 36_000.0  # real work takes seconds, and the simulation of an hour of waiting takes about a second
STRIDE = 7919  # workers that replay the same profile start this many pieces apart


@dataclass(frozen=True, slots=True)
class Work:
    """The durations of successive pieces of work, in seconds.

    A piece needs one of the host's cores for ``cpu_s`` seconds, and then no core for ``idle_s`` seconds, because the
    process sleeps or is blocked. Either sequence may be empty. A sequence that is too short is repeated.
    """

    cpu_s: Sequence[float]
    idle_s: Sequence[float] = ()

    def at(self, index: int) -> tuple[float, float]:
        """CPU and idle seconds of piece ``index``."""
        return (
            self.cpu_s[index % len(self.cpu_s)] if len(self.cpu_s) else 0.0,
            self.idle_s[index % len(self.idle_s)] if len(self.idle_s) else 0.0,
        )


class Draws:
    """The random durations of one rank, in seconds. They depend only on the arguments."""

    def __init__(self, law: Law, seed: int, rank: int, what: int = 0) -> None:
        self._law, self._seed = law, (seed, rank, what)
        self._drawn: list[float] = []

    def at(self, index: int) -> float:
        """The duration of piece ``index``."""
        while index >= len(self._drawn):
            chunk = len(self._drawn) // CHUNK
            random = np.random.default_rng((*self._seed, chunk) if chunk else self._seed)
            self._drawn += self._law.draw(random, CHUNK).tolist()
        return self._drawn[index]


class Pace:
    """A real worker's minimum time for each gradient, as in a simulation with the same seed, and its slowdown."""

    def __init__(self, *, law: str | None, seed: int, rank: int, factor: float = 1.0, seconds: float = 0.0) -> None:
        self._draws = Draws(Law.parse(law, "--pace"), seed, rank) if law is not None else None
        self._factor, self._seconds = factor, seconds

    def sleep_s(self, version: int, worked_s: float) -> float:
        """How long to sleep after ``worked_s`` of work on ``version``."""
        least_s = self._draws.at(version) if self._draws is not None else 0.0
        return max(0.0, self._factor * max(worked_s, least_s) + self._seconds - worked_s)


@dataclass(frozen=True, slots=True)
class ComputeTimes:
    """The work of each rank.

    ``gradient`` has the work for each version, and ``rollout`` the work for each iteration. Without rollouts,
    ``rollout`` is empty. ``beside`` has, for each rank, the CPU seconds that other threads of the process use at the
    same time, per CPU second of work. If there are more workers than recorded ranks, several workers replay the same
    profile from different offsets.
    """

    gradient: tuple[Work, ...]
    rollout: tuple[Work, ...] = ()
    beside: tuple[float, ...] = (0.0,)

    @classmethod
    def drawn(
        cls, *, gradient: Law, rollout: Law | None, ranks: int, versions: int, per_rollout: int, busy: float, seed: int
    ) -> Self:
        """Draw the work of ``versions`` versions. The durations of a rank do not depend on the number of ranks.

        Raises UsageError if one of them is longer than ``LONGEST_S``.
        """

        def of(law: Law, what: int, pieces: int) -> tuple[Work, ...]:
            draws = [Draws(law, seed, rank, what) for rank in range(ranks)]
            drawn = [[each.at(piece) for piece in range(pieces)] for each in draws]
            short = all(s <= LONGEST_S for each in drawn for s in each)
            limit = f"the limit of {LONGEST_S:,.0f} s"
            require(short, f"{law.where}: some times are above {limit}; choose smaller numbers.")
            return tuple(Work([busy * s for s in each], [(1 - busy) * s for s in each]) for each in drawn)

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
