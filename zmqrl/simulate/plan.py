"""Searches for the best numbers of workers, backups and shards."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from zmqrl.errors import require
from zmqrl.ps.layout import ALIGNMENT
from zmqrl.ps.wire.messages import MAX_WORKERS
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.simulated_run import SimulatedRun
from zmqrl.simulate.virtual.world import simulate
from zmqrl.words import counted

SHARDS: Final = (1, 2, 4, 8, 16, 32)
MOST_BACKUPS: Final = 6
NO_BETTER: Final = 0.03
"""A gain at or below this does not justify more machines."""

Setting: TypeAlias = tuple[int, int, int]
"""Ranks (N + b), shards, backups: a plan minimizes them in this order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The recommended run, all runs that the search tried, and the reasons in sentences."""

    best: SimulatedRun
    tried: tuple[SimulatedRun, ...]
    reasons: tuple[str, ...]


@dataclass(slots=True)
class _Search:
    scenario: Scenario
    found: dict[Setting, SimulatedRun] = field(default_factory=dict)

    def run(self, setting: Setting) -> SimulatedRun:
        if setting not in self.found:
            ranks, shards, backups = setting
            scenario = replace(
                self.scenario.with_shards(shards),
                workers=ranks - backups,
                backups=backups,
                quorum=None,
                worker_hosts=(),
                shard_hosts=(),
                host_cores=(),
                stragglers=tuple(each for each in self.scenario.stragglers if each.rank < ranks),
                failures=(),
            )
            self.found[setting] = simulate(scenario)
        return self.found[setting]

    def best(self, settings: Iterator[Setting]) -> Setting:
        """The smallest of the ``settings`` that are at most ``NO_BETTER`` slower than the fastest setting."""
        rates = {setting: self.run(setting).learned_steps_per_s for setting in settings}
        most = max(rates.values())
        return min(setting for setting, rate in rates.items() if rate >= (1 - NO_BETTER) * most)


def plan(scenario: Scenario, workers_up_to: int) -> Plan:
    """Find the settings that learn from the most agent steps per second with at most ``workers_up_to`` workers.

    The search first chooses the number of shards, with all workers and no backups. Next, it chooses the number of
    backups. Then it tries fewer workers. It prefers fewer processes if they are at most ``NO_BETTER`` slower. Raises
    UsageError and ClusterError.
    """
    require(
        1 <= workers_up_to <= MAX_WORKERS,
        f"--workers-up-to {workers_up_to}: must be from 1 to {MAX_WORKERS}.",
    )
    scenario.with_shards(1).check()
    search, most = _Search(scenario), workers_up_to
    shards_that_fit = [shards for shards in SHARDS if shards * ALIGNMENT <= scenario.parameters]
    _, shards, _ = search.best((most, each, 0) for each in shards_that_fit)
    require(
        math.isfinite(search.found[most, shards, 0].learned_steps_per_s),
        "nothing in this scenario takes time, so there is nothing to plan: set --compute, --bandwidth or --latency.",
    )
    _, _, backups = search.best((most, shards, each) for each in range(min(MOST_BACKUPS, most - 1) + 1))
    fewer = {max(1, most >> halvings) for halvings in range(most.bit_length())}
    search.best((ranks, shards, min(ranks - 1, round(backups * ranks / most))) for ranks in fewer)
    best = search.best(iter(list(search.found)))
    tried = tuple(search.found[setting] for setting in sorted(search.found))
    return Plan(search.found[best], tried, tuple(_reasons(search, best)))


def _reasons(search: _Search, best: Setting) -> Iterator[str]:
    ranks, shards, backups = best
    rate = search.found[best].learned_steps_per_s
    numbers = counted(ranks - backups, "worker"), counted(backups, "backup"), counted(shards, "shard")
    yield f"use {', '.join(numbers)} (quorum {ranks - backups}): this run learns from {rate:.0f} agent steps/s"
    others: dict[str, Callable[[int, int, int], bool]] = {
        "without backups": lambda r, s, b: (r, s) == (ranks, shards) and b == 0 < backups,
        "with more backups": lambda r, s, b: (r, s) == (ranks, shards) and b > backups,
        "with fewer shards": lambda r, s, b: r == ranks and b == 0 and s < shards,
        "with more shards": lambda r, s, b: r == ranks and b == 0 and s > shards,
        "with fewer workers": lambda r, s, b: r < ranks,
        "with more workers": lambda r, s, b: r > ranks,
    }
    for words, alike in others.items():
        rates = [result.learned_steps_per_s for setting, result in search.found.items() if alike(*setting)]
        if rates and words.endswith("shards"):
            same = search.found[ranks, shards, 0].learned_steps_per_s
            note = ", both without backups" if backups else ""
            yield f"{words}: {max(rates):.0f} at best ({max(rates) / same - 1:+.0%}{note})"
        elif rates:
            yield f"{words}: {max(rates):.0f} at best ({max(rates) / rate - 1:+.0%})"
