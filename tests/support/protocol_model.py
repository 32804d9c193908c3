"""Simulated processes that run the real state machines: shards and workers that can crash, and their connections.

Conditions on single steps are asserted here. ``Journal`` checks the conditions on the whole history.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from support.protocol_journal import Slice, Slot, step
from support.stand_ins import frame, received, stood_in

from zmqrl.ps.schedule import elapsed_at
from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.shard.history import line_of
from zmqrl.ps.shard.machine import PublishedHeader, ShardMachine, ShardTiming
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker import events as worker_events
from zmqrl.ps.worker.machine import WorkerMachine

if TYPE_CHECKING:
    import zmq
    from support.protocol_world import World

RUN, LAYOUT, SECRET, SUPERVISOR = "run", "layout", "secret", b"supervisor"


@dataclass(slots=True, eq=False)
class Link:
    """The three connections between one worker process and one shard, as queues in the order of sending."""

    worker: "WorkerHost"
    shard: "ShardHost"
    up: bool = False
    cut: bool = False  # a network partition that lasts until it heals
    peer: bytes = b""
    gradients: deque[shard_events.GradientArrived] = field(default_factory=deque)
    requests: deque[m.Message] = field(default_factory=deque)
    presence: deque[shard_events.Event] = field(default_factory=deque)
    publications: deque[worker_events.PublicationArrived] = field(default_factory=deque)
    answers: deque[worker_events.ControlArrived] = field(default_factory=deque)

    def queues(self) -> list[deque[Any]]:
        return [self.gradients, self.requests, self.presence, self.publications, self.answers]

    def connect(self) -> None:
        """Connect. The shard's ROUTER sees each new connection as a new peer."""
        if not self.up and not self.cut and self.shard.machine and self.worker.alive:
            self.up = True
            self.peer = b"peer %d" % self.worker.world.number()
            self.presence.append(shard_events.PresenceChanged(self.worker.rank, self.worker.incarnation, here=True))

    def disconnect(self, *, arrived: bool) -> None:
        """Disconnect. With ``arrived``, messages in transit to the worker still arrive."""
        if not self.up:
            return
        self.up = False
        self.gradients.clear()
        self.requests.clear()
        if not arrived:
            self.publications.clear()
            self.answers.clear()
        self.presence.append(shard_events.PresenceChanged(self.worker.rank, self.worker.incarnation, here=False))

    def deliver(self, queue: deque[Any]) -> None:
        """Deliver the oldest message of a queue."""
        message = queue.popleft()
        if queue is self.requests:
            self.shard.feed(shard_events.ControlArrived(self.peer, message))
        elif queue is self.gradients or queue is self.presence:
            self.shard.feed(message)
        else:
            self.worker.feed(message)


class ShardHost:
    """One shard: a process that can crash and restart, and state that survives it."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.machine: ShardMachine | None = None
        # The previous version, perhaps of an older generation, and the newest version.
        self.slots: list[Slot] = []
        self.sum: list[Slice] = []
        self.history: list[dict[str, Any]] = []
        self.undone_by = 0  # the newest generation whose rollback has removed lines
        self.updates = 0  # the number of updates that the shard has made, in all generations
        self.captured: Slot | None = None
        self.crash_after: int | None = None  # the number of actions
        self.torn = False  # the crash comes between the commit and the line in the history
        self.paused = False

    def start(self, *, frozen: bool = False) -> None:
        if self.machine is not None:
            return
        identity = shard_events.Identity(
            run=RUN,
            layout=LAYOUT,
            shard=self.number,
            incarnation=self.world.number(),
            codec="f32",
            payload_bytes={"f32": 4, "bf16": 2},
            secret=SECRET,
        )
        self.machine = ShardMachine(
            identity, ShardTiming(), consistent=self.world.consistent, horizon=self.world.horizon, frozen=frozen
        )
        found = self._mend_history() if self.slots else "lost"
        if self.slots and (found == "intact" or (found == "lost" and frozen)):
            newest, before = self.slots[-1].record, self.slots[0].record
            is_before = (before.generation, before.version + 1) == (newest.generation, newest.version)
            previous = before.version if is_before else None
            self.feed(shard_events.StateRestored(newest, recovered=True, previous=previous))
        for link in self.links():
            link.connect()

    def _mend_history(self) -> Literal["intact", "lost", "undone"]:
        """Stand-in for ``History.recover``. Says whether the newest version that was made is lost or undone."""
        record, (generation, version) = self.slots[-1].record, self.last_made()
        if version > record.version:
            if generation >= record.generation:
                return "lost"
            self.rewind(record.version, record.generation)
            _, version = self.last_made()
        if version < record.version:
            if self.undone_by > record.generation:
                return "undone"
            if record.ranks:
                self.history.append(line_of(record, self.slots[-1].weights))
        return "intact"

    def rewind(self, version: int, generation: int) -> None:
        """Stand-in for ``History.rewind``."""
        if self.history and self.history[-1]["version"] > version:
            self.undone_by = generation
        while self.history and self.history[-1]["version"] > version:
            self.history.pop()

    def crash(self, *, arrived: bool = True) -> None:
        self.machine, self.captured, self.crash_after, self.torn, self.paused = None, None, None, False, False
        self.sum.clear()
        for link in self.links():
            link.disconnect(arrived=arrived)
            for queue in (link.gradients, link.requests, link.presence):
                queue.clear()

    def at(self) -> tuple[int, int]:
        """Generation and version of the newest state."""
        return (self.slots[-1].record.generation, self.slots[-1].record.version) if self.slots else (0, 0)

    def last_made(self) -> tuple[int, int]:
        """Generation and version of the newest line in the history."""
        return (self.history[-1]["generation"], self.history[-1]["version"]) if self.history else (0, 0)

    def links(self) -> list[Link]:
        return [link for link in self.world.links if link.shard is self]

    def feed(self, event: shard_events.Event) -> None:
        machine = self.machine
        if machine is None:
            return
        if isinstance(event, shard_events.ControlArrived | shard_events.Tick) or (
            isinstance(event, shard_events.StateRestored) and event.recovered
        ):
            generation, version = machine.generation, machine.version
            actions = machine.handle(event, self.world.now)
        else:
            before, generation, version = self._accounted(), machine.generation, machine.version
            actions = machine.handle(event, self.world.now)
            arrived = isinstance(event, shard_events.GradientArrived)
            assert self._accounted() == before + arrived, "a contribution was not counted"
        assert (machine.generation, machine.version) >= (generation, version)
        for action in actions:
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after < 0:
                    self.crash()
                    return
            self._do(action)

    def _accounted(self) -> int:
        assert self.machine is not None
        contributions = self.machine.contributions
        return sum(map(sum, contributions.tallies.values())) + contributions.unattributed + len(contributions.held)

    def _do(self, action: shard_events.Action) -> None:
        match action:
            case shard_events.Accumulate():
                if action.first:
                    self.sum.clear()
                record = self.slots[-1].record
                slice = stood_in(Slice, action.payload)
                assert not slice.forged
                assert (slice.shard, slice.generation) == (self.number, record.generation)
                assert slice.version == record.version, "computed on another version"
                self.sum.append(slice)
            case shard_events.Update():
                self._update(action.record)
                if self.torn:
                    self.crash()
                    return
                self.history.append(line_of(action.record, self.slots[-1].weights))
                self.feed(shard_events.Updated(action.record))
            case shard_events.CommitAgain():
                newest = self.slots[-1]
                assert (action.record.generation, action.record.version) == self.at()
                self.slots[-1] = Slot(action.record, newest.weights)
            case shard_events.PublishWeights():
                header = m.Weights(**self._header(self.slots[-1]), crc32=0)
                self._publish(worker_events.PublicationArrived(self.number, header, self._show(self.slots[-1])))
            case shard_events.Publish():
                self._publish(worker_events.PublicationArrived(self.number, action.message))
            case shard_events.Send():
                self._send(action.peer, action.message)
            case shard_events.SendSnapshot():
                slot = next(slot for slot in reversed(self.slots) if slot.record.version == action.version)
                snapshot = m.Snapshot(**self._header(slot), crc32=0)
                self._send(action.peer, snapshot, slice=self._show(slot))
            case shard_events.Capture():
                self.captured = next(slot for slot in reversed(self.slots) if slot.record.version == action.version)
            case shard_events.SendChunk():
                self._send_chunk(action.peer, action.request)
            case shard_events.TakeChunk():
                load = action.message
                self._load(load, int(action.payload))
                loaded = m.Loaded(run=RUN, shard=self.number, generation=load.generation, offset=len(action.payload))
                self._send(action.peer, loaded)

    def _update(self, record: shard_events.Record) -> None:
        at = (record.generation, self.number, record.version)
        assert at not in self.world.journal.committed, f"{at} was made twice"
        assert record.version == self.slots[-1].record.version + 1
        assert record.generation == self.slots[-1].record.generation
        ranks = [slice.rank for slice in self.sum]
        assert tuple(sorted(ranks)) == record.ranks, "the record names the wrong ranks"
        assert len(set(ranks)) == record.quorum >= record.view.quorum, "not a quorum of distinct ranks"
        assert set(ranks) <= set(record.view.members)
        before = self.slots[-1].record
        assert record.made_at == self.world.journal.elapsed[before.generation, before.version] >= before.elapsed
        assert not self.world.consistent or ranks == sorted(ranks)
        gradients = [slice.gradient() for slice in self.sum]
        slot = Slot(record, step(self.slots[-1].weights, gradients))
        self.sum.clear()
        self.slots = [self.slots[-1], slot]
        self.updates += 1
        self.world.journal.committed[at] = slot

    def _load(self, load: m.Load, weights: int) -> None:
        view = shard_events.View(load.view, load.quorum, load.members)
        elapsed = elapsed_at(load.version, horizon=self.world.horizon, told=load.elapsed)
        totals = next(
            (tuple(line["totals"]) for line in reversed(self.history) if line["version"] <= load.version), None
        )
        record = shard_events.Record.handed_over(
            load.generation, load.version, view, totals or (0, 0, 0, 0), elapsed=elapsed
        )
        at = (load.generation, self.number)
        assert at not in self.world.journal.loaded
        self.world.journal.loaded[at] = load.version, weights
        self.slots, self.captured = [*self.slots[-1:], Slot(record, weights)], None
        if self.torn:
            self.crash()
            return
        self.rewind(load.version, load.generation)
        self.feed(shard_events.StateRestored(record, recovered=False))

    def _show(self, slot: Slot) -> "zmq.Frame":
        self.world.journal.show((slot.record.generation, self.number, slot.record.version), slot.weights)
        return frame(slot.weights)

    def _header(self, slot: Slot) -> PublishedHeader:
        assert self.machine is not None
        assert slot.record.generation == self.machine.generation
        return self.machine.published_header(slot.record)

    def _publish(self, event: worker_events.PublicationArrived) -> None:
        for link in self.world.links:
            if link.shard is self and link.up:
                link.publications.append(event)

    def _send_chunk(self, peer: bytes, fetch: m.Fetch) -> None:
        answer: m.Missing | m.Chunk = m.Missing(run=RUN, shard=self.number, version=fetch.version)
        payload = None
        if self.captured is not None and self.captured.record.version == fetch.version:
            payload = b"%d" % self.captured.weights
            about = {"run": RUN, "shard": self.number, "version": fetch.version, "offset": 0}
            answer = m.Chunk(**about, total=len(payload))  # type: ignore[arg-type]
        self._send(peer, answer, payload)

    def _send(self, peer: bytes, message: shard_events.Answer, payload: bytes | None = None, slice: Any = None) -> None:
        if peer == self.world.supervisor.peer(self.number):
            assert isinstance(message, m.ToSupervisor)
            self.world.supervisor.hear(self.number, message, payload)
        for link in self.world.links:
            if link.peer == peer and link.up:
                assert isinstance(message, m.ToWorker)
                link.answers.append(worker_events.ControlArrived(self.number, message, slice))


class WorkerHost:
    """One worker process: its computing thread and its links."""

    def __init__(self, world: "World", rank: int, incarnation: int | None = None) -> None:
        self.world, self.rank = world, rank
        self.incarnation = world.number() if incarnation is None else incarnation
        self.paused = False
        self.exit_status = -9  # if it dies
        self.state: Literal["idle", "pulling", "computing", "ended", "dead"] = "idle"
        self.above = -1
        self.done = 0  # gradients and abandoned rollouts
        self.weights: tuple[int, int] | None = None  # generation, version
        self.elapsed = 0
        self.released = True
        self.machine = WorkerMachine(
            run=RUN,
            layout=LAYOUT,
            shards=len(world.shards),
            rank=rank,
            incarnation=self.incarnation,
            codec="f32",
            host="host",
            pid=1,
            now=world.now,
        )
        self.links = [Link(self, shard) for shard in world.shards]
        world.links += self.links
        for link in self.links:
            link.connect()

    @property
    def alive(self) -> bool:
        return self.state not in ("ended", "dead")

    def die(self, state: Literal["ended", "dead"] = "dead") -> None:
        """End the process. Messages that it has sent still arrive."""
        self.state = state
        for link in self.links:
            underway = [*link.gradients], [*link.requests]
            link.disconnect(arrived=False)
            link.gradients.extend(underway[0])
            link.requests.extend(underway[1])

    def act(self) -> None:
        """Let the computing thread do its next step."""
        if self.state == "idle":
            self.state = "pulling"
            self.feed(worker_events.Pulling(self.above, self.weights[0] if self.weights else -1))
        elif self.state == "computing":
            assert self.weights is not None
            generation, version = self.weights
            self.state, self.above, self.released = "idle", version, False
            self.done += 1
            self.feed(worker_events.Contributed(generation, (version,) * len(self.links), self.elapsed))

    def abandon(self) -> None:
        """Drop the current work, as after a rollout that took too long."""
        if self.state == "computing":
            assert self.weights is not None
            self.state, self.above = "idle", self.weights[1] - 1
            self.done += 1

    def tick(self) -> None:
        """Let time pass for the connection."""
        self.write()
        self.feed(worker_events.Tick())

    def write(self) -> None:
        """Report the sockets that can send again."""
        for link in self.links:
            if self.alive and link.up and self.machine.pending(link.shard.number) and len(link.gradients) < 2:
                self.feed(worker_events.Writable(link.shard.number))

    def feed(self, event: worker_events.Event) -> None:
        if not self.alive:
            return
        machine = self.machine
        before = [(shard.generation, shard.version) for shard in machine.shards]
        actions = machine.handle(event, self.world.now)
        if not actions and isinstance(event, worker_events.Tick):
            return
        for action in actions:
            self._do(action)
        open_slices = 0
        for old, shard in zip(before, machine.shards, strict=True):
            assert old <= (shard.generation, shard.version), "a generation or version decreased"
            open_slices += shard.push in ("pending", "sent") and shard.attempt > 0
        tally = machine.tally
        assert tally.sent == tally.used + tally.unused + tally.unknown + open_slices

    def _do(self, action: worker_events.Action) -> None:
        match action:
            case worker_events.SendControl():
                if self.links[action.shard].up:
                    self.links[action.shard].requests.append(action.message)
            case worker_events.SendGradient():
                self._send(action.shard, action.header)
            case worker_events.Assembled():
                self._assembled(action)
            case worker_events.Release():
                assert not self.released
                self.released = True
            case worker_events.Ended():
                self.world.ends.add(action.version)
                self.die("ended")
            case worker_events.Failed():
                lost = any(each.failure(self.world.now, 60.0) == action.reason for each in self.machine.shards)
                assert lost or self.world.may_be_refused(self), action.reason
                self.die()

    def _send(self, shard: int, header: m.Gradient) -> None:
        assert not self.released, "the gradient may already be overwritten"
        assert (header.generation, header.version) == self.weights
        link = self.links[shard]
        if not link.up or len(link.gradients) >= 2:
            self.feed(worker_events.SendBlocked(shard))
            return
        payload = Slice(self.rank, header.generation, header.version, shard)
        link.gradients.append(shard_events.GradientArrived(header, received(payload), 4, lambda: True))

    def _assembled(self, weights: worker_events.Assembled) -> None:
        assert self.state == "pulling"
        for shard, (_, payload) in enumerate(weights.payloads):
            assert self.world.journal.shown[weights.generation, shard, weights.version] == stood_in(int, payload)
        at = (weights.generation, weights.version)
        assert self.weights is None or at > self.weights or at == (self.weights[0], self.above + 1)
        assert weights.generation != (self.weights or (None,))[0] or weights.version > self.above
        self.world.journal.compute(at, weights.elapsed)
        self.weights, self.elapsed, self.state = at, weights.elapsed, "computing"
