"""A simulated shard: the real state machine, with costs instead of arithmetic."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS
from zmqrl.ps.worker.events import PublicationArrived
from zmqrl.simulate.virtual.connections import PAYLOAD, VirtualConnections
from zmqrl.simulate.virtual.network import VirtualHost

if TYPE_CHECKING:
    from zmqrl.simulate.virtual.world import World

RUN, LAYOUT = "simulated", "simulated"
LOOK_S = 0.025  # the server checks its timers this often


class SimulatedShard:
    """One shard: a process, which can be killed and restarted, and the committed state, which survives."""

    def __init__(self, world: "World", number: int, host: VirtualHost, slice_bytes: int) -> None:
        self.world, self.number, self.host, self.slice_bytes = world, number, host, slice_bytes
        scenario = world.scenario
        self.costs = scenario.costs
        self.connections: list[VirtualConnections] = []
        self.peers: dict[bytes, VirtualConnections] = {}
        self.alive = False
        self.life = 0
        self.busy_s = 0.0
        self.lost: e.Totals = (0, 0, 0, 0)
        members = tuple(range(scenario.ranks))
        view = e.View(1, scenario.effective_quorum, members)
        record = replace(e.Record.handed_over(1, 0, view), stop=scenario.updates)
        self.slots: list[e.Record] = [record]  # the version before the newest, the newest
        self._inbox: deque[e.Event] = deque()
        self._serving: Iterator[float] | None = None
        self._owed_s = 0.0
        self.start()

    @property
    def version(self) -> int:
        return self.slots[-1].version

    def start(self) -> None:
        """Start the process, which continues from the committed state."""
        self.life += 1
        self.alive = True
        identity = e.Identity(
            run=RUN,
            layout=LAYOUT,
            shard=self.number,
            incarnation=self.world.number(),
            codec=self.world.scenario.codec,
            payload_bytes=dict.fromkeys(CODECS, self.slice_bytes),
            secret="",
        )
        need_s = self.world.scenario.need_s
        self.machine = ShardMachine(identity, ShardTiming(need_s=need_s))
        previous = self.slots[0].version if len(self.slots) > 1 else None
        recovered = self.life > 1
        self.feed(e.StateRestored(self.slots[-1], recovered=recovered, previous=previous))
        if recovered:  # workers can get this version even if no process of the shard published it
            self.world.published(self.number, self.slots[-1])
        self._tick(self.life)

    def crash(self) -> None:
        """Kill the process. The contributions that it held are lost."""
        self.alive = False
        self.life += 1
        self._inbox.clear()
        self._serving, self._owed_s = None, 0.0
        for each in self.connections:
            each.disconnect()

    def totals(self) -> e.Totals:
        machine = self.machine
        used, late, duplicate, rejected = map(
            sum, zip((0, 0, 0, 0), *machine.contributions.tallies.values(), strict=True)
        )
        return used, late, duplicate, rejected + machine.contributions.unattributed

    def feed(self, event: e.Event) -> None:
        """Queue an event. The process handles events one after another."""
        if not self.alive:
            return
        self._inbox.append(event)
        if self._serving is None:
            self._serving = self._serve()
            self._go_on(self.life)

    def _go_on(self, life: int) -> None:
        """Handle events until one of them takes time."""
        if life != self.life or self._serving is None:
            return
        for cpu_s in self._serving:
            self.busy_s += cpu_s
            self.host.work(cpu_s, self._go_on, life)
            return
        self._serving = None

    def _serve(self) -> Iterator[float]:
        """Handle all events. Yields the CPU seconds of each step that takes time."""
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, e.GradientArrived):
                self._owed_s += self.costs.receive_s
            yield from self._do(self.machine.handle(event, self.world.clock.now))
            if self._owed_s:
                yield self._pay()

    def _pay(self, cpu_s: float = 0.0) -> float:
        """The CPU seconds to use now: ``cpu_s`` plus the unpaid costs of earlier work."""
        owed_s, self._owed_s = self._owed_s + cpu_s, 0.0
        return owed_s

    def _do(self, actions: list[e.Action]) -> Iterator[float]:
        costs = self.costs
        for action in actions:
            match action:
                case e.Accumulate():
                    self.world.progressed()
                    self._owed_s += costs.accumulate_s
                case e.Update():
                    if cpu_s := self._pay(costs.optimize_s + costs.commit_s):
                        yield cpu_s
                    self.slots = [self.slots[-1], action.record]
                    yield from self._do(self.machine.handle(e.Updated(action.record), self.world.clock.now))
                case e.CommitAgain():
                    self.slots[-1] = action.record
                case e.PublishWeights():
                    if cpu_s := self._pay(costs.publish_s):
                        yield cpu_s
                    self._publish_weights()
                case e.Publish():
                    self._publish(action.message)
                case e.Send(peer, message) if peer in self.peers and isinstance(message, m.ToWorker):
                    self.peers[peer].answer(message)
                case e.SendSnapshot() if action.peer in self.peers:
                    record = next(slot for slot in self.slots if slot.version == action.version)
                    header = m.Snapshot(**self.machine.published_header(record), crc32=0)
                    self.peers[action.peer].answer(header)

    def _publish_weights(self) -> None:
        record = self.slots[-1]
        self.world.published(self.number, record)
        header = m.Weights(**self.machine.published_header(record), crc32=0)
        event = PublicationArrived(self.number, header, PAYLOAD)
        told, send_s = self._told(), self.costs.send_s
        if not send_s:
            for each in self.connections:
                each.publish_weights(event, told)
            return
        waiting = iter([each for each in self.connections if each.up])
        self._send_next(waiting, event, told, self.life)

    def _send_next(
        self, waiting: Iterator[VirtualConnections], event: PublicationArrived, told: tuple[object, ...], life: int
    ) -> None:
        """Let the I/O thread send to the subscribers one by one, while the process continues."""
        each = next(waiting, None)
        if each is not None and life == self.life:
            self.busy_s += self.costs.send_s
            self.host.work(self.costs.send_s, self._sent, each, waiting, event, told, life)

    def _sent(
        self,
        each: VirtualConnections,
        waiting: Iterator[VirtualConnections],
        event: PublicationArrived,
        told: tuple[object, ...],
        life: int,
    ) -> None:
        each.publish_weights(event, told)
        self._send_next(waiting, event, told, life)

    def _publish(self, message: m.Heartbeat | m.Need | m.Bye) -> None:
        event = PublicationArrived(self.number, message)
        told = self._told() if isinstance(message, m.Heartbeat) else None
        for each in self.connections:
            each.publish(event, told)

    def _told(self) -> tuple[object, ...]:
        machine = self.machine
        return machine.generation, machine.version, machine.view.id, machine.published

    def _tick(self, life: int) -> None:
        """Check the timers, and schedule the next check."""
        if life != self.life:
            return
        self.feed(e.Tick())
        machine, now = self.machine, self.world.clock.now
        due = min(machine.need_at + machine.need_wait_s, machine.heartbeat_at + machine.timing.heartbeat_s)
        self.world.clock.at(max(due, now + LOOK_S), self._tick, life)
