"""A simulated worker: the real state machine of the connection, and ``zmqrl.worker.work`` with simulated work."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker import events as e
from zmqrl.ps.worker.machine import WorkerMachine, WorkerTiming
from zmqrl.simulate.virtual.clock import Job
from zmqrl.simulate.virtual.connections import VirtualConnections
from zmqrl.simulate.virtual.network import VirtualHost
from zmqrl.simulate.virtual.shard import LAYOUT, RUN

if TYPE_CHECKING:
    from zmqrl.simulate.virtual.world import World

RESTART_S = 1.0  # delay before the restart of a process that has given up
POLL_S = 0.05  # the connection checks its timers this often
# Real workers send a PING every second. In a simulation, PONG only has to show that a shard is not silent.
TIMING = WorkerTiming(ping_s=10.0, stall_notice_s=float("inf"))


@dataclass(frozen=True, slots=True)
class PullStep:
    """Wait for a version above ``above``. The result is the version, or None at the end of the run."""

    above: int


@dataclass(frozen=True, slots=True)
class ComputeStep:
    """Work for ``cpu_s`` seconds on a core and ``idle_s`` seconds without one.

    The result is ``on``, the version of this work, or None if the work was dropped.
    """

    cpu_s: float
    idle_s: float
    on: e.Assembled
    drops: bool


WorkerStep: TypeAlias = PullStep | ComputeStep


class SimulatedWorker:
    """One worker: a process, which can be killed and restarted, and the counts, which survive."""

    def __init__(self, world: "World", rank: int, host: VirtualHost) -> None:
        self.world, self.rank, self.host = world, rank, host
        self.connections: list[VirtualConnections] = []
        self.alive = False
        self.agent_steps = 0.0
        self.abandoned = self.abandoned_rollouts = 0
        self.skipped = self.resent = 0  # counts of earlier processes of this rank
        self.waiting_s = 0.0
        self.cpu_s = self.queued_s = 0.0  # time on a core, and extra time because others share the cores
        self._factor, self._sleep_s = world.scenario.slowness(rank)
        self._beside = world.times.beside[rank % len(world.times.beside)]
        self._state: Literal["pulling", "computing", "ended"] = "ended"
        self._life = 0
        self._computing: ComputeStep | None = None
        self._job: Job | None = None
        self._waits_from = self._queues_from = 0.0

    def start(self) -> None:
        scenario = self.world.scenario
        self._life += 1
        self.alive = True
        self.incarnation = self.world.number()
        self.machine = WorkerMachine(
            run=RUN,
            layout=LAYOUT,
            shards=scenario.shards,
            rank=self.rank,
            incarnation=self.incarnation,
            codec=scenario.codec,
            host="simulated",
            pid=1,
            now=self.world.clock.now,
            timing=TIMING,
        )
        for each in self.connections:
            each.connect()
        self._tick(self._life)
        self._generation = -1  # of the newest weights
        self._work = self._run()
        self._go_on(None)

    def _start_again(self, life: int) -> None:
        if life == self._life:
            self.start()

    def crash(self) -> None:
        self._wait_ends()
        self._stop_computing()
        self.alive, self._state = False, "ended"
        self._life += 1
        self.skipped += self.machine.tally.skipped
        self.resent += self.machine.tally.resent
        for each in self.connections:
            each.disconnect()

    @property
    def computes(self) -> bool:
        """Whether the worker is computing, and so continues even if no message arrives."""
        return self._state == "computing"

    def totals(self) -> tuple[int, int]:
        """The numbers of skipped and of resent slices."""
        now = self.machine.tally if self.alive else None
        skipped, resent = (now.skipped, now.resent) if now else (0, 0)
        return self.skipped + skipped + self.abandoned * len(self.connections), self.resent + resent

    # what the computing thread does: compare with zmqrl/worker.py

    def _run(self) -> Generator[WorkerStep, e.Assembled | None, None]:
        scenario, times = self.world.scenario, self.world.times
        per_rollout = scenario.updates_per_rollout
        drops = scenario.abandon == "immediately"
        weights = yield PullStep(-1)
        while weights is not None:
            acted, iteration = weights, weights.version // per_rollout
            if times.rollout:
                yield self._effort(*times.rollout_s(self.rank, iteration), acted)
                self.agent_steps += scenario.agent_steps_per_rollout
                weights = yield PullStep(acted.version - 1)
                if weights is None:
                    break
                iteration = weights.version // per_rollout
                if weights.generation != acted.generation or iteration > acted.version // per_rollout + 1:
                    self.abandoned_rollouts += 1
                    continue
            while weights is not None and (weights.generation, weights.version // per_rollout) == (
                acted.generation,
                iteration,
            ):
                gradient_s = times.gradient_s(self.rank, weights.version)
                if (yield self._effort(*gradient_s, weights, self._sleep_s, drops)) is None:
                    self.abandoned += 1
                else:
                    self.feed(e.Contributed(weights.generation, weights.versions, weights.elapsed))
                weights = yield PullStep(weights.version)

    def _effort(
        self, cpu_s: float, idle_s: float, on: e.Assembled, sleep_s: float = 0.0, drops: bool = False
    ) -> ComputeStep:
        return ComputeStep(self._factor * cpu_s, self._factor * idle_s + sleep_s, on, drops)

    def _go_on(self, answer: e.Assembled | None) -> None:
        """Take the next step. Its end calls this method again."""
        try:
            step = self._work.send(answer)
        except StopIteration:
            self._state = "ended"
            return
        if isinstance(step, PullStep):
            self._state, self._waits_from = "pulling", self.world.clock.now
            self.feed(e.Pulling(step.above, self._generation))
        else:
            self._state, self._computing = "computing", step
            if step.cpu_s and self.host.cores is not None:
                self._queues_from = self.world.clock.now
                self._job = self.host.cores.start(step.cpu_s, self._sleep, step)
                if self._beside:
                    self.host.cores.start(self._beside * step.cpu_s, lambda: None)
            else:
                self.world.clock.after(step.cpu_s + step.idle_s, self._computed, step)

    def _sleep(self, step: ComputeStep) -> None:
        self._job = None
        self.cpu_s += step.cpu_s
        self.queued_s += self.world.clock.now - self._queues_from - step.cpu_s
        self.world.clock.after(step.idle_s, self._computed, step)

    def _computed(self, step: ComputeStep) -> None:
        if step is self._computing:  # else the step was dropped
            self._computing = None
            if not self.world.times.rollout:
                self.agent_steps += self.world.steps_per_gradient
            self._go_on(step.on)

    def _stop_computing(self) -> None:
        if self._job is not None:
            assert self.host.cores is not None
            self.host.cores.cancel(self._job)
        self._computing = self._job = None

    def _wait_ends(self) -> None:
        if self._state == "pulling":
            self.waiting_s += max(0.0, self.world.clock.now - max(self._waits_from, self.world.begun_at))
            self._waits_from = self.world.clock.now

    # what the connection does

    def feed(self, event: e.Event) -> None:
        """Pass an event to the state machine, and carry out its actions."""
        if not self.alive:
            return
        for action in self.machine.handle(event, self.world.clock.now):
            match action:
                case e.SendGradient():
                    if not self.connections[action.shard].push(action.header):
                        self.feed(e.SendBlocked(action.shard))
                case e.SendControl():
                    self.connections[action.shard].request(action.message)
                    self._look_again(action.message)
                case e.Assembled():
                    self._wait_ends()
                    self._generation = action.generation
                    self._go_on(action)
                case e.Ended():
                    self._wait_ends()
                    if self._state == "pulling":
                        self._go_on(None)
                case e.Failed():  # the process ends and restarts
                    self.crash()
                    self.world.clock.after(RESTART_S, self._start_again, self._life)
                    return
        step = self._computing
        if step is not None and step.drops and self.machine.passed(step.on.version):
            self._stop_computing()
            self._go_on(None)

    def _look_again(self, message: m.Message) -> None:
        """Schedule a tick for the time when an unanswered message is sent again."""
        if isinstance(message, m.Hello | m.SnapshotRequest):
            wait_s = TIMING.hello_s if isinstance(message, m.Hello) else TIMING.snapshot_s
            self.world.clock.after(wait_s + POLL_S, self._tick_once, self._life)

    def _tick_once(self, life: int) -> None:
        if life == self._life:
            self.feed(e.Tick())

    def _tick(self, life: int) -> None:
        if life == self._life:
            self.feed(e.Tick())
            self.world.clock.after(TIMING.ping_s, self._tick, life)

    def stop(self) -> None:
        """End the current wait, because the simulation ends."""
        if self.alive:
            self._wait_ends()
