"""The simulation of a run from its start to its last version: hosts, processes and connections."""

import gc
import math
from itertools import count, pairwise

from zmqrl.errors import ClusterError, UsageError
from zmqrl.process_id import shard_id, worker_id
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.events import Record
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.simulate.compute import LONGEST_S, ComputeTimes
from zmqrl.simulate.scenario import Failure, Scenario
from zmqrl.simulate.simulated_run import SimulatedRun, Use
from zmqrl.simulate.times import times_of
from zmqrl.simulate.virtual.clock import VirtualClock
from zmqrl.simulate.virtual.connections import VirtualConnections
from zmqrl.simulate.virtual.network import Network, VirtualHost
from zmqrl.simulate.virtual.shard import SimulatedShard
from zmqrl.simulate.virtual.worker import SimulatedWorker
from zmqrl.words import counted

STUCK_S = 120.0


def simulate(scenario: Scenario, *, compute: ComputeTimes | None = None) -> SimulatedRun:
    """Run ``scenario`` in virtual time. The same arguments give the same result.

    ``compute`` replaces the times of work that ``scenario.compute`` and ``scenario.rollout`` describe. Raises
    UsageError if the scenario is not valid or takes too long, and ClusterError if the run gets stuck.
    """
    scenario.check()
    return World(scenario, compute or times_of(scenario)).run()


class World:
    """The hosts, processes and connections of a run."""

    def __init__(self, scenario: Scenario, times: ComputeTimes) -> None:
        self.scenario, self.times = scenario, times
        self.steps_per_gradient = scenario.agent_steps_per_rollout / scenario.updates_per_rollout
        self.clock = VirtualClock()
        self._numbers = count(1)
        self.network = Network(
            self.clock,
            latency_s=scenario.latency,
            loss=scenario.loss,
            loopback=scenario.loopback,
            seed=scenario.seed,
        )
        most_each = self.network.most_each()
        self.hosts = [
            VirtualHost(self.clock, cores, scenario.bandwidth, most_each) for cores in scenario.cores_of_host()
        ]
        layout = Layout.of([("parameters", (scenario.parameters,))], scenario.shards)
        self.made_at: list[list[float]] = [[] for _ in range(scenario.shards)]
        self.begun_at = math.inf
        self._progressed_at = 0.0
        self._to_come = 0  # number of failures and restarts still to come
        self.shards = [
            SimulatedShard(self, number, self.hosts[host], payload_bytes(scenario.codec, layout.slices[number].count))
            for number, host in enumerate(scenario.host_of_shard())
        ]
        self.workers = [
            SimulatedWorker(self, rank, self.hosts[host]) for rank, host in enumerate(scenario.host_of_rank())
        ]
        for worker in self.workers:
            for shard in self.shards:
                each = VirtualConnections(self, worker, shard)
                worker.connections.append(each)
                shard.connections.append(each)
        for worker in self.workers:
            worker.start()

    def number(self) -> int:
        """The next number for an incarnation or a connection."""
        return next(self._numbers)

    def progressed(self) -> None:
        """Record that a shard has accepted a contribution."""
        self._progressed_at = self.clock.now

    def published(self, shard: int, record: Record) -> None:
        """Record that a shard publishes a version."""
        made_at = self.made_at[shard]
        if record.version == len(made_at):  # else the shard publishes the version again, after a restart
            made_at.append(self.clock.now)
        if self.begun_at == math.inf and all(self.made_at):
            self._begin()
        if record.version == self.scenario.updates and all(len(made) > record.version for made in self.made_at):
            self.clock.stop()

    def _begin(self) -> None:
        """Begin the measurement, at the publication of version 0. The times of failures count from here."""
        self.begun_at = self.clock.now
        for shard in self.shards:
            shard.busy_s = 0.0
        for failure in self.scenario.failures:
            self._to_come += 1
            self.clock.after(failure.at, self._fail, failure)

    def run(self) -> SimulatedRun:
        """Run until every shard has published the last version. Raises ClusterError if the run gets stuck."""
        self.clock.after(STUCK_S, self._check_moving)
        collects = gc.isenabled()
        gc.disable()  # events form no reference cycles, and garbage collection takes a tenth of the time
        try:
            self.clock.run()
        finally:
            if collects:
                gc.enable()
        return self._result()

    def _check_moving(self) -> None:
        """Raise ClusterError if no scheduled event can continue the run, and UsageError if it takes too long."""
        self.clock.after(STUCK_S, self._check_moving)
        if not self._to_come and self.clock.now - self._progressed_at > LONGEST_S:
            raise UsageError(
                f"no contribution arrived in {LONGEST_S:,.0f} s of virtual time: "
                "choose shorter times of work, or a faster network."
            )
        to_come = self._to_come or self.network.under_way or any(worker.computes for worker in self.workers)
        if to_come or self.clock.now - self._progressed_at < STUCK_S:
            return
        gone = [str(worker_id(worker.rank)) for worker in self.workers if not worker.alive]
        gone += [str(shard_id(shard.number)) for shard in self.shards if not shard.alive]
        version = min(shard.version for shard in self.shards)
        after_s = max(0.0, self.clock.now - self.begun_at)
        raise ClusterError(
            f"the simulated run is stuck at version {version} after {after_s:.0f} s: "
            f"it needs {self.scenario.effective_quorum} of {counted(self.scenario.ranks, 'worker')} and all shards, "
            f"but {', '.join(gone) or 'no process'} {'are' if len(gone) > 1 else 'is'} gone."
        )

    # failures

    def _fail(self, failure: Failure) -> None:
        self._to_come -= 1
        for process in self._processes(failure):
            if process.alive:
                process.crash()
        if failure.restart_s is not None:
            self._to_come += 1
            self.clock.after(failure.restart_s, self._restart, failure)

    def _restart(self, failure: Failure) -> None:
        self._to_come -= 1
        for process in self._processes(failure):
            if not process.alive:
                process.start()
        self._reconnect()

    def _reconnect(self) -> None:
        """Reconnect restarted processes at once. Real ones take a fraction of a second."""
        for worker in self.workers:
            for each in worker.connections:
                each.connect()

    def _processes(self, failure: Failure) -> list[SimulatedWorker | SimulatedShard]:
        ranks, shards = self.scenario.processes_of(failure)
        return [*(self.workers[rank] for rank in ranks), *(self.shards[shard] for shard in shards)]

    # the result

    def _result(self) -> SimulatedRun:
        last = self.clock.now
        elapsed_s = last - self.begun_at
        done_at = [max(times) for times in zip(*self.made_at, strict=True)]
        used, late, duplicate, rejected = map(sum, zip(*(shard.totals() for shard in self.shards), strict=True))
        skipped, resent = map(sum, zip(*(worker.totals() for worker in self.workers), strict=True))
        for worker in self.workers:
            worker.stop()
        return SimulatedRun(
            scenario=self.scenario,
            step_s=tuple(after - before for before, after in pairwise(done_at)),
            elapsed_s=elapsed_s,
            agent_steps=round(sum(worker.agent_steps for worker in self.workers)),
            used=used,
            late=late,
            duplicate=duplicate,
            rejected=rejected,
            skipped=skipped,
            resent=resent,
            abandoned=sum(worker.abandoned for worker in self.workers),
            abandoned_rollouts=sum(worker.abandoned_rollouts for worker in self.workers),
            waiting_s=tuple(worker.waiting_s for worker in self.workers),
            nics=tuple(
                Use.of(host.outgoing, host.incoming, self.scenario.bandwidth * elapsed_s) for host in self.hosts
            ),
            shards_busy=tuple(shard.busy_s / elapsed_s if elapsed_s else 0.0 for shard in self.shards),
        )
