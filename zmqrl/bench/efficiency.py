"""The arithmetic of ``zmqrl bench train``: the time of an agent step in training, and the time of its parts alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np

from zmqrl.errors import ClusterError
from zmqrl.profile.run_tables import Columns

PARTS: Final = ("env_step", "act", "gradient")  # names of spans of a worker
SPLIT: Final = (*PARTS, "wait", "rest")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """The times of an agent step of one worker, in seconds.

    ``bare_s`` has the time of each of ``PARTS`` alone. ``split_s`` divides the time in training into the spans and the
    rest, as in ``SPLIT``.
    """

    bare_s: Mapping[str, float]
    split_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """The result for ``workers`` workers. The figures are means over ``rounds``, at least one."""

    workers: int
    rounds: Sequence[StepTimes]

    @property
    def bare_s(self) -> dict[str, float]:
        """Seconds of each part alone, per agent step and worker."""
        return {name: fmean(each.bare_s[name] for each in self.rounds) for name in PARTS}

    @property
    def split_s(self) -> dict[str, float]:
        """Seconds of each part in training, per agent step and worker."""
        return {name: fmean(each.split_s[name] for each in self.rounds) for name in SPLIT}

    @property
    def steps_per_s(self) -> float:
        """Agent steps/s of all workers in training."""
        return self.workers / sum(self.split_s.values())

    @property
    def limit_steps_per_s(self) -> float:
        """Agent steps/s of all workers if an agent step took only the time of its bare parts."""
        return self.workers / sum(self.bare_s.values())

    @property
    def environment_steps_per_s(self) -> float:
        """Agent steps/s of all workers if they only played."""
        return self.workers / self.bare_s["env_step"]

    @property
    def efficiency(self) -> float:
        """``steps_per_s`` as a fraction of ``limit_steps_per_s``."""
        return self.steps_per_s / self.limit_steps_per_s

    def of_round(self, number: int) -> "Efficiency":
        return Efficiency(workers=self.workers, rounds=[self.rounds[number]])

    def to_json(self) -> dict[str, Any]:
        bare_s, split_s = self.bare_s, self.split_s
        each = [self.of_round(number) for number in range(len(self.rounds))]
        return {
            **self._totals(),
            "split_s": split_s,
            "bare_s": bare_s,
            "efficiency_by_part": {name: bare_s[name] / split_s[name] for name in PARTS},
            "environment_steps_per_s": self.environment_steps_per_s,
            "fraction_of_environment": self.steps_per_s / self.environment_steps_per_s,
            "rounds": [one._totals() | {"split_s": one.split_s, "bare_s": one.bare_s} for one in each],
        }

    def _totals(self) -> dict[str, float]:
        return {
            "agent_steps_per_s": self.steps_per_s,
            "component_limit_steps_per_s": self.limit_steps_per_s,
            "efficiency": self.efficiency,
        }


def per_step_s(measured: Iterable[Mapping[str, float]]) -> float:
    """Seconds per agent step of one worker, from the ``steps`` and ``seconds`` of each worker."""
    each = list(measured)
    return sum(one["seconds"] for one in each) / sum(one["steps"] for one in each)


def split_of(
    tables: Iterable[Columns], *, first_version: int, updates_per_rollout: int, steps_per_rollout: int
) -> dict[str, float]:
    """The ``split_s`` of a round, from the table ``cycles`` of each worker.

    Counts only whole iterations, from ``first_version`` on. A rollout takes much longer than a gradient, so part of an
    iteration would not be a fair sample. Raises ClusterError if there is no whole iteration.
    """
    spent_us, steps, window_us = dict.fromkeys(SPLIT[:-1], 0), 0, 0
    for cycles in tables:
        # A cycle in which a worker acted has the rollout and the first gradient of an iteration.
        begins = np.flatnonzero((cycles["act"] > 0) & (cycles["version"] >= first_version))
        if not len(begins):
            continue
        whole = len(cycles["version"]) - begins[-1] >= updates_per_rollout
        end = len(cycles["version"]) if whole else begins[-1]
        if end == begins[0]:
            continue
        steps += steps_per_rollout * (len(begins) - (not whole))
        window_us += int(cycles["pushed_at_us"][end - 1] - cycles["began_at_us"][begins[0]])
        for name in spent_us:
            spent_us[name] += int(cycles[name][begins[0] : end].sum())
    if not steps:
        raise ClusterError(
            "the run ended before a worker had learned from a whole rollout: its workers died too often."
        )
    spent_us["rest"] = window_us - sum(spent_us.values())
    return {name: spent_us[name] / steps / 1e6 for name in SPLIT}
