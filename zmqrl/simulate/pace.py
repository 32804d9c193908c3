"""Slows down a real worker as a scenario describes."""

from zmqrl.simulate.compute import Draws
from zmqrl.simulate.laws import Law


class Pace:
    """A worker's minimum time for each gradient, as in a simulation with the same seed, and a straggler's slowdown."""

    def __init__(self, *, law: str | None, seed: int, rank: int, factor: float = 1.0, seconds: float = 0.0) -> None:
        self._draws = Draws(Law.parse(law, "--pace"), seed, rank) if law is not None else None
        self._factor, self._seconds = factor, seconds

    def sleep_s(self, version: int, worked_s: float) -> float:
        """How long to sleep after ``worked_s`` of work on ``version``."""
        least_s = self._draws.at(version) if self._draws is not None else 0.0
        return max(0.0, self._factor * max(worked_s, least_s) + self._seconds - worked_s)
