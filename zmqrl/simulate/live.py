"""A scenario with real processes and real sockets on this machine. Workers sleep instead of working."""

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from zmqrl.errors import ClusterError
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire import messages as m
from zmqrl.simulate.compute import ComputeTimes
from zmqrl.simulate.result import Result, Use
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.times import times_of

SLEEPER: Final = [sys.executable, "-m", "zmqrl.simulate.sleeper"]
READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 10.0
STUCK_S = 120.0
LOOK_S = 0.05
STATS_EVERY_S = 2.0
SHARD_SPANS: Final = ("receive", "accumulate", "optimize", "commit", "publish")
NOT_HERE: Final = ("hosts", "cores", "bandwidth", "latency", "loss", "loopback", "busy", "costs")
"""Settings without effect: this machine has its own cores, and connections within it."""


def ignored(scenario: Scenario) -> list[str]:
    """The settings of ``scenario`` that a live run cannot have."""
    default = Scenario()
    return [name for name in NOT_HERE if getattr(scenario, name) != getattr(default, name)]


@dataclass(frozen=True, slots=True)
class Observed:
    """A live run. ``shard_s`` are the mean seconds of a shard for each version, by span.

    ``worker_cpu_s`` is the CPU time of all threads of a worker for each gradient.
    """

    result: Result
    shard_s: dict[str, float]
    worker_cpu_s: float


def live(scenario: Scenario, *, compute: ComputeTimes | None = None) -> Result:
    """Run ``scenario`` in real time: see :func:`observe`."""
    return observe(scenario, compute=compute).result


def observe(scenario: Scenario, *, compute: ComputeTimes | None = None) -> Observed:
    """Run ``scenario`` in real time. Times are those at which the shards publish, by the clock of this machine.

    Raises UsageError when the scenario is not valid, ClusterError when a process fails or the run gets stuck.
    """
    scenario.check()
    times = compute or times_of(scenario)
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
            timing=ShardTiming(need_s=scenario.need_s, need_most_s=max(8.0, scenario.need_s)),
            trace_versions=scenario.updates + 2,
        ) as shards:
            for shard in range(scenario.shards):
                shards.control.send(shard, m.Stop(run=shards.cluster.run, version=scenario.updates))
            with _sleepers(scenario, times, shards) as sleepers:
                told = _Run(scenario, shards, sleepers).until_the_end()
            stats = shards.control.stats(range(scenario.shards), within_s=ANSWER_WITHIN_S, what="the end of the run")
        traces = [_Trace.read(Path(scratch) / "traces" / f"shard-{shard}.json") for shard in range(scenario.shards)]
    if not told:
        raise ClusterError("no worker has come to the end of the live run: the scenario kills all of them.")
    result = _result(scenario, traces, list(stats.values()), told)
    versions, gradients = scenario.updates * scenario.shards, sum(each["counts"]["gradients"] for each in told)
    spans = [(name, duration) for trace in traces for name, _, duration in trace.spans]
    return Observed(
        result,
        {name: sum(duration for each, duration in spans if each == name) / versions for name in SHARD_SPANS},
        sum(each["cpu_s"] for each in told) / max(1, gradients),
    )


@dataclass(slots=True)
class _Sleeper:
    """A worker process."""

    rank: int
    job: dict[str, Any]
    process: "subprocess.Popen[bytes]"
    told: dict[str, Any] | None = None  # at its end
    down: bool = False  # by a failure of the scenario

    @classmethod
    def start(cls, rank: int, job: dict[str, Any]) -> "_Sleeper":
        process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        sleeper = cls(rank, job, process)
        sleeper.say(job)
        return sleeper

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next message. None if there is none. Raises ClusterError when the process has ended."""
        assert self.process.stdout is not None
        said = select.poll()
        said.register(self.process.stdout, select.POLLIN)
        if not said.poll(1000 * within_s):
            return None
        line = self.process.stdout.readline()
        if not line:
            raise ClusterError(f"worker {self.rank} ended with status {self.process.wait()}: its log is above.")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the process, if it still runs."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


@contextmanager
def _sleepers(scenario: Scenario, times: ComputeTimes, shards: StandaloneShards) -> Iterator[list[_Sleeper]]:
    """Start all workers. They have imported everything when they connect, so that the first versions are not slow."""
    cluster = {
        "protocol": m.PROTOCOL,
        "run": shards.cluster.run,
        "layout": shards.cluster.layout.to_json(),
        "codec": scenario.codec,
        "shards": list(shards.cluster.endpoints),
    }
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
            sleepers.append(_Sleeper.start(rank, job))
        for sleeper in sleepers:
            _wait_ready(sleeper)
        yield sleepers
    finally:
        for sleeper in sleepers:
            sleeper.close()


def _wait_ready(sleeper: _Sleeper) -> None:
    if sleeper.hear(READY_WITHIN_S) is None:
        raise ClusterError(f"worker {sleeper.rank} did not start within {READY_WITHIN_S:g} s: see its log above.")


class _Run:
    """The run itself: it begins, processes fail and come back as the scenario says, and it ends."""

    def __init__(self, scenario: Scenario, shards: StandaloneShards, sleepers: list[_Sleeper]) -> None:
        self.scenario, self.shards, self.sleepers = scenario, shards, sleepers
        self.begun_at = time.monotonic()
        self.due: list[tuple[float, int, bool]] = []  # when, which failure, whether it is a restart
        for number, failure in enumerate(scenario.failures):
            self.due.append((failure.at, number, False))
            if failure.restart_s is not None:
                self.due.append((failure.at + failure.restart_s, number, True))
        self.due.sort()
        self.seen = -1
        self.seen_at = self.asked_at = self.begun_at

    def until_the_end(self) -> list[dict[str, Any]]:
        """Let the workers begin, and wait until all of them have ended. Returns what they have counted."""
        for sleeper in self.sleepers:
            sleeper.say({"go": True})
        while waiting := [each for each in self.sleepers if each.told is None and not each.down]:
            now = time.monotonic()
            while self.due and now - self.begun_at >= self.due[0][0]:
                _, number, is_restart = self.due.pop(0)
                self._restart(number) if is_restart else self._kill(number)
            for number, sleeper in enumerate(waiting):
                if not sleeper.down:
                    sleeper.told = sleeper.hear(LOOK_S if number == 0 else 0.0)
            if now - self.asked_at >= STATS_EVERY_S:
                self._check_moving(now)
        return [sleeper.told for sleeper in self.sleepers if sleeper.told is not None]

    def _check_moving(self, now: float) -> None:
        """Raise ClusterError if there has been no version for a long time."""
        self.asked_at = now
        up = [n for n, process in enumerate(self.shards.processes) if process.poll() is None]
        stats = self.shards.control.stats(up, within_s=ANSWER_WITHIN_S, what="asking for the version")
        version = min((each.version for each in stats.values()), default=-1)
        if version > self.seen:
            self.seen, self.seen_at = version, now
        elif now - self.seen_at > STUCK_S:
            raise ClusterError(f"the live run is stuck at version {version}: there is no other for {STUCK_S:g} s.")

    def _kill(self, number: int) -> None:
        ranks, shards = self.scenario.processes_of(self.scenario.failures[number])
        for rank in ranks:
            self.sleepers[rank].down = True
            self.sleepers[rank].process.kill()
        for shard in shards:
            self.shards.processes[shard].kill()

    def _restart(self, number: int) -> None:
        ranks, shards = self.scenario.processes_of(self.scenario.failures[number])
        for shard in shards:
            self.shards.start(shard)
        for rank in ranks:
            before = self.sleepers[rank]
            before.close()
            job = before.job | {"incarnation": before.job["incarnation"] + 1}
            self.sleepers[rank] = _Sleeper.start(rank, job)
            _wait_ready(self.sleepers[rank])
            self.sleepers[rank].say({"go": True})


@dataclass(frozen=True, slots=True)
class _Trace:
    """When a shard published each version, and the spans of its work: name, start and duration in seconds."""

    published_at: dict[int, float]
    spans: list[tuple[str, float, float]]

    @classmethod
    def read(cls, path: Path) -> "_Trace":
        """Read what a shard wrote when it ended. A shard that was killed wrote nothing about the time before."""
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"] if path.exists() else []
        spans = [
            (event["name"], event["ts"] / 1e6, event["dur"] / 1e6, event["args"]["version"])
            for event in events
            if event["name"] in SHARD_SPANS
        ]
        published_at: dict[int, float] = {}
        for name, start, _, version in spans:
            if name == "publish":
                published_at.setdefault(version, start)
        # A shard looks at its sockets all the time. Only what it found there was received.
        found = {id(span) for span, after in pairwise(spans) if after[0] == "accumulate"}
        return cls(published_at, [span[:3] for span in spans if span[0] != "receive" or id(span) in found])


def _result(scenario: Scenario, traces: list[_Trace], stats: list[m.Stats], told: list[dict[str, Any]]) -> Result:
    """Put together what the processes have told."""
    done_at = []
    for version in range(scenario.updates + 1):
        known = [trace.published_at[version] for trace in traces if version in trace.published_at]
        if not known:
            raise ClusterError(f"nothing tells when version {version} was published: its shard was killed later.")
        done_at.append(max(known))
    begun_at, elapsed_s = done_at[0], done_at[-1] - done_at[0]
    used, late, duplicate, rejected = (
        sum(each.tallies[n][outcome] for each in stats for n in range(len(each.tallies))) for outcome in range(1, 5)
    )
    counts = {name: sum(each["counts"][name] for each in told) for name in told[0]["counts"]}
    rollouts = counts["rollouts"] or counts["gradients"] / scenario.updates_per_rollout
    return Result(
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
        waiting_s=tuple(each["spans"].get("wait", 0.0) for each in told),
        nics=(Use(0.0, 0.0),),
        shards_busy=tuple(
            sum(duration for _, start, duration in trace.spans if begun_at <= start) / elapsed_s for trace in traces
        ),
    )
