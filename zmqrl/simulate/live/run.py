"""A scenario with real processes and sockets on this machine. Workers sleep instead of working."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError
from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.observe.spans import SHARD_SPANS
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.profile.run_tables import RunTables
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire import messages as m
from zmqrl.simulate.compute import ComputeTimes
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.simulated_run import SimulatedRun
from zmqrl.simulate.times import times_of

READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 10.0
STUCK_S = 120.0
LOOK_S = 0.05
STATS_EVERY_S = 2.0
NOT_HERE: Final = ("hosts", "cores", "host_cores", "bandwidth", "latency", "loss", "loopback", "busy", "costs")
"""Settings without effect: a live run uses the cores and loopback connections of this machine."""


def ignored(scenario: Scenario) -> list[str]:
    """The settings of ``scenario`` that have no effect in a live run."""
    default = Scenario()
    return [name for name in NOT_HERE if getattr(scenario, name) != getattr(default, name)]


def without_ignored(scenario: Scenario) -> Scenario:
    """``scenario`` without the settings that have no effect in a live run."""
    return replace(scenario, **{name: getattr(Scenario(), name) for name in NOT_HERE})


@dataclass(frozen=True, slots=True)
class Observed:
    """A live run. ``shard_s`` is the mean time of a shard per version, in seconds by span.

    ``worker_cpu_s`` is the CPU time per gradient of all threads of a worker together.
    """

    result: SimulatedRun
    shard_s: dict[str, float]
    worker_cpu_s: float


def live(scenario: Scenario) -> SimulatedRun:
    """Run ``scenario`` in real time, as :func:`observe` does."""
    return observe(scenario).result


def observe(scenario: Scenario, *, address: str = "127.0.0.1", workers_through: Sequence[str] = ()) -> Observed:
    """Run ``scenario`` in real time, and measure when the shards publish.

    The shards listen at ``address``. The command ``workers_through`` starts the workers: ``ip netns exec h1``, for
    example, puts them behind a network slower than loopback. Raises UsageError if the scenario is not valid, and
    ClusterError if a process fails or the run gets stuck.
    """
    scenario.check()
    times = times_of(without_ignored(scenario))
    layout = Layout.of([("parameters", (scenario.parameters,))], scenario.shards)
    with tempfile.TemporaryDirectory(prefix="zmqrl-live-") as scratch:
        with standalone_shards(
            layout,
            np.zeros(scenario.parameters, np.float32),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            workers=scenario.ranks,
            quorum=scenario.effective_quorum,
            directory=Path(scratch),
            codec=scenario.codec,
            transport="tcp",
            address=address,
            timing=ShardTiming(need_s=scenario.need_s),
            profiler=ProfilerJob(Path(scratch) / "profile", "localhost"),
        ) as shards:
            for shard in range(scenario.shards):
                shards.control.send(shard, m.Stop(run=shards.cluster.run, version=scenario.updates))
            with _sleepers(scenario, times, shards, workers_through) as sleepers:
                told = _Run(scenario, shards, sleepers).until_the_end()
            stats = shards.control.stats(range(scenario.shards), within_s=ANSWER_WITHIN_S, what="the end of the run")
        tables = RunTables.read(Path(scratch) / "profile")
    shards_told = [_Shard.of(tables, shard) for shard in range(scenario.shards)]
    if not told:
        raise ClusterError("no worker has finished the live run: the scenario kills all of them.")
    result = _result(scenario, shards_told, list(stats.values()), told)
    versions, gradients = scenario.updates * scenario.shards, sum(each["counts"]["gradients"] for each in told)
    return Observed(
        result,
        {name: sum(each.spans_s[name] for each in shards_told) / versions for name in SHARD_SPANS},
        sum(each["cpu_s"] for each in told) / max(1, gradients),
    )


@dataclass(slots=True)
class _Sleeper:
    """A worker process. ``told`` is its report at the end."""

    rank: int
    job: dict[str, Any]
    through: Sequence[str]
    child: ChildProcess
    told: dict[str, Any] | None = None
    down: bool = False  # killed by a failure in the scenario

    @classmethod
    def start(cls, rank: int, job: dict[str, Any], through: Sequence[str]) -> "_Sleeper":
        program = ["-m", "zmqrl.simulate.live.sleeper"]
        return cls(rank, job, through, ChildProcess(f"worker {rank}", program, job, through=through))


@contextmanager
def _sleepers(
    scenario: Scenario, times: ComputeTimes, shards: StandaloneShards, through: Sequence[str]
) -> Iterator[list[_Sleeper]]:
    """Start all workers, and wait until they have imported everything, so that the first versions are not slow."""
    cluster = shards.cluster.to_json()
    iterations = -(-scenario.updates // scenario.updates_per_rollout) + 1
    sleepers: list[_Sleeper] = []
    try:
        for rank in range(scenario.ranks):
            factor, seconds = scenario.slowness(rank)
            job = {
                "cluster": cluster,
                "rank": rank,
                "incarnation": 1,
                "gradient_s": [
                    factor * sum(times.gradient_s(rank, each)) + seconds for each in range(scenario.updates)
                ],
                "rollout_s": [factor * sum(times.rollout_s(rank, each)) for each in range(iterations)]
                if times.rollout
                else [],
                "updates_per_rollout": scenario.updates_per_rollout,
                "drops": scenario.abandon == "immediately",
            }
            sleepers.append(_Sleeper.start(rank, job, through))
        for sleeper in sleepers:
            _wait_ready(sleeper)
        yield sleepers
    finally:
        for sleeper in sleepers:
            sleeper.child.kill()


def _wait_ready(sleeper: _Sleeper) -> None:
    if sleeper.child.hear(READY_WITHIN_S) is None:
        raise ClusterError(f"worker {sleeper.rank} did not start within {READY_WITHIN_S:g} s: see its log above.")


class _Run:
    """The main loop of a live run, which kills and restarts processes as the scenario requires."""

    def __init__(self, scenario: Scenario, shards: StandaloneShards, sleepers: list[_Sleeper]) -> None:
        self.scenario, self.shards, self.sleepers = scenario, shards, sleepers
        self.begun_at = time.monotonic()
        self.due: list[tuple[float, int, bool]] = []  # time, index of the failure, whether to restart
        for number, failure in enumerate(scenario.failures):
            self.due.append((failure.at, number, False))
            if failure.restart_s is not None:
                self.due.append((failure.at + failure.restart_s, number, True))
        self.due.sort()
        self.seen = -1
        self.seen_at = self.asked_at = self.begun_at

    def until_the_end(self) -> list[dict[str, Any]]:
        """Start the workers' loops, and wait until all workers have ended. Returns their reports."""
        for sleeper in self.sleepers:
            sleeper.child.tell({"go": True})
        while waiting := [each for each in self.sleepers if each.told is None and not each.down]:
            now = time.monotonic()
            while self.due and now - self.begun_at >= self.due[0][0]:
                _, number, is_restart = self.due.pop(0)
                self._restart(number) if is_restart else self._kill(number)
            for number, sleeper in enumerate(waiting):
                if not sleeper.down:
                    sleeper.told = sleeper.child.hear(LOOK_S if number == 0 else 0.0)
            if now - self.asked_at >= STATS_EVERY_S:
                self._check_moving(now)
        return [sleeper.told for sleeper in self.sleepers if sleeper.told is not None]

    def _check_moving(self, now: float) -> None:
        """Raise ClusterError if the slowest shard has made no version for ``STUCK_S``."""
        self.asked_at = now
        up = [n for n, process in enumerate(self.shards.processes) if process.poll() is None]
        stats = self.shards.control.stats(up, within_s=ANSWER_WITHIN_S, what="asking for the version")
        version = min((each.version for each in stats.values()), default=-1)
        if version > self.seen:
            self.seen, self.seen_at = version, now
        elif now - self.seen_at > STUCK_S:
            raise ClusterError(f"the live run is stuck at version {version}: no new version for {STUCK_S:g} s.")

    def _kill(self, number: int) -> None:
        ranks, shards = self.scenario.processes_of(self.scenario.failures[number])
        for rank in ranks:
            self.sleepers[rank].down = True
            self.sleepers[rank].child.process.kill()
        for shard in shards:
            self.shards.processes[shard].kill()

    def _restart(self, number: int) -> None:
        ranks, shards = self.scenario.processes_of(self.scenario.failures[number])
        for shard in shards:
            self.shards.start(shard)
        for rank in ranks:
            before = self.sleepers[rank]
            before.child.kill()
            job = before.job | {"incarnation": before.job["incarnation"] + 1}
            self.sleepers[rank] = _Sleeper.start(rank, job, before.through)
            _wait_ready(self.sleepers[rank])
            self.sleepers[rank].child.tell({"go": True})


@dataclass(frozen=True, slots=True)
class _Shard:
    """The profile of a shard: when the shard published each version, and the seconds in each span."""

    published_at: dict[int, float]
    spans_s: dict[str, float]

    @classmethod
    def of(cls, tables: RunTables, shard: int) -> "_Shard":
        """Read the profiles of a shard. That of a killed process lacks the last seconds before its death."""
        published_at: dict[int, float] = {}
        spans_s = dict.fromkeys(SHARD_SPANS, 0.0)
        for each in tables.of_role("shard"):
            if each.process.number == shard:
                table = each.table("versions")
                for version, at_us in zip(table["version"].tolist(), table["published_at_us"].tolist(), strict=True):
                    published_at.setdefault(version, at_us / 1e6)
                for name in SHARD_SPANS:
                    spans_s[name] += float(table[name][table["version"] > 0].sum()) / 1e6
        return cls(published_at, spans_s)


def _result(scenario: Scenario, shards: list[_Shard], stats: list[m.Stats], told: list[dict[str, Any]]) -> SimulatedRun:
    done_at = []
    for version in range(scenario.updates + 1):
        known = [each.published_at[version] for each in shards if version in each.published_at]
        if not known:
            raise ClusterError(
                f"the time of version {version} is unknown: all shards were killed before they recorded it."
            )
        done_at.append(max(known))
    elapsed_s = done_at[-1] - done_at[0]
    used, late, duplicate, rejected = (
        sum(getattr(tally, outcome) for each in stats for tally in each.tallies) for outcome in SHARD_OUTCOMES
    )
    counts = {name: sum(each["counts"][name] for each in told) for name in told[0]["counts"]}
    rollouts = counts["rollouts"] or counts["gradients"] / scenario.updates_per_rollout
    return SimulatedRun(
        live=True,
        scenario=scenario,
        step_s=tuple(after - before for before, after in pairwise(done_at)),
        elapsed_s=elapsed_s,
        agent_steps=round(rollouts * scenario.agent_steps_per_rollout),
        used=used,
        late=late,
        duplicate=duplicate,
        rejected=rejected + sum(each.unattributed for each in stats),
        skipped=sum(each["tally"]["skipped"] for each in told) + counts["abandoned"] * scenario.shards,
        resent=sum(each["tally"]["resent"] for each in told),
        abandoned=counts["abandoned"],
        abandoned_rollouts=counts["abandoned_rollouts"],
        waiting_s=tuple(within_s(each["waits"], done_at[0], done_at[-1]) for each in told),
        nics=(),
        shards_busy=tuple(sum(each.spans_s.values()) / elapsed_s for each in shards),
    )


def within_s(spans: Iterable[tuple[float, float]], began: float, ended: float) -> float:
    """The total seconds of ``spans``, pairs of start and end, between ``began`` and ``ended``."""
    return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in spans)
