"""A simulated run, and what it used."""

import math
from dataclasses import dataclass
from typing import Any, Self

from zmqrl.observe.histogram import statistics_ms
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.virtual.clock import Shared


@dataclass(frozen=True, slots=True)
class Use:
    """The average share of a network card's bandwidth that a run used, for each direction."""

    outgoing: float
    incoming: float

    @classmethod
    def of(cls, outgoing: Shared | None, incoming: Shared | None, most_bytes: float) -> Self:
        """The shares of a network card that could have transferred ``most_bytes`` in each direction."""
        if outgoing is None or incoming is None or not most_bytes:
            return cls(0.0, 0.0)
        return cls(min(1.0, outgoing.served / most_bytes), min(1.0, incoming.served / most_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """A simulated run, from the publication of version 0 to that of the last version. If ``live``, times are real.

    ``step_s`` has the times from one version to the next. A version counts from the moment when the last shard has
    published it. Contributions are counted in slices, as in ``summary.json``. ``abandoned`` counts abandoned gradients,
    whose slices count as skipped. ``waiting_s`` has one value per rank, and ``nics`` one per host, or none if ``live``.
    ``shards_busy`` has, for each shard, the seconds of work per second.
    """

    scenario: Scenario
    step_s: tuple[float, ...]
    elapsed_s: float
    agent_steps: int
    used: int
    late: int
    duplicate: int
    rejected: int
    skipped: int
    resent: int
    abandoned: int
    abandoned_rollouts: int
    waiting_s: tuple[float, ...]
    nics: tuple[Use, ...]
    shards_busy: tuple[float, ...]
    live: bool = False

    @property
    def updates_per_s(self) -> float:
        """Versions per second, or infinity if nothing takes time."""
        return len(self.step_s) / self.elapsed_s if self.elapsed_s else math.inf

    @property
    def agent_steps_per_s(self) -> float:
        """Agent steps per second of all workers together, as in the reports of a run."""
        return self.agent_steps / self.elapsed_s if self.elapsed_s else math.inf

    @property
    def learned_steps_per_s(self) -> float:
        """Agent steps per second that went into used contributions."""
        scenario = self.scenario
        steps = self.used / scenario.shards * scenario.agent_steps_per_rollout / scenario.updates_per_rollout
        return steps / self.elapsed_s if self.elapsed_s else math.inf

    @property
    def waiting(self) -> float:
        """The workers' waits for versions, as a share of the workers' time."""
        most_s = self.elapsed_s * len(self.waiting_s)
        return sum(self.waiting_s) / most_s if most_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``zmqrl simulate --json`` prints it. Infinite numbers become None."""
        scenario = self.scenario
        return {
            "updates": len(self.step_s),
            "updates_per_s": _finite(self.updates_per_s),
            "agent_steps_per_s": _finite(self.agent_steps_per_s),
            "learned_steps_per_s": _finite(self.learned_steps_per_s),
            "step_ms": statistics_ms(self.step_s),
            **{
                name: getattr(self, name)
                for name in ("used", "late", "skipped", "duplicate", "rejected", "resent", "abandoned")
            },
            "abandoned_rollouts": self.abandoned_rollouts,
            "agent_steps": self.agent_steps,
            "elapsed_s": self.elapsed_s,
            "waiting": self.waiting,
            "waiting_s": list(self.waiting_s),
            "nic_use": {
                "outgoing": [use.outgoing for use in self.nics],
                "incoming": [use.incoming for use in self.nics],
            },
            "shards_busy": list(self.shards_busy),
            **{name: getattr(scenario, name) for name in ("workers", "backups", "shards", "hosts", "seed")},
            "quorum": scenario.effective_quorum,
            "bandwidth": _finite(scenario.bandwidth),
            "parameters": scenario.parameters,
            "live": self.live,
        }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
