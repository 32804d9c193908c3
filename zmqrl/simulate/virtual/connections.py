"""The simulated connections between one worker and one shard."""

from typing import TYPE_CHECKING, Any, Final, cast

from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker import events as worker_events

if TYPE_CHECKING:
    from zmqrl.ps.shard.gradients import ReceivedSlice
    from zmqrl.simulate.virtual.shard import SimulatedShard
    from zmqrl.simulate.virtual.worker import SimulatedWorker
    from zmqrl.simulate.virtual.world import World

PAYLOAD: Final = cast("Any", b"")  # nothing reads the numbers in the payload
MOST_PUSHED = 2  # the high-water mark of PUSH
MOST_PUBLISHED = 3  # versions: two in the queue of XPUB, and one on its way
REPEAT_S = 20.0  # often enough that a worker never considers the shard dead


def is_finite() -> bool:
    return True


class VirtualConnections:
    """The three connections between a worker and a shard, one for each pair of sockets.

    A heartbeat without news is delivered only every ``REPEAT_S``. More heartbeats would not change the result, but
    would take most of the time of a simulation.
    """

    __slots__ = (
        "asking",
        "behind",
        "epoch",
        "peer",
        "publishing",
        "pushing",
        "shard",
        "told",
        "told_at",
        "up",
        "worker",
        "world",
    )

    def __init__(self, world: "World", worker: "SimulatedWorker", shard: "SimulatedShard") -> None:
        self.world, self.worker, self.shard = world, worker, shard
        self.up = False
        self.epoch = 0  # grows when the connection breaks: messages of an older epoch are lost
        self.peer = b""
        self.pushing = self.publishing = 0
        self.asking = False  # a snapshot was requested and has not arrived
        self.told: tuple[object, ...] = ()
        self.told_at = 0.0
        self.behind: list[worker_events.PublicationArrived] = []  # held until the weights on their way have arrived

    def connect(self) -> None:
        """Connect, if both processes are alive. The shard sees a new peer."""
        if self.up or not self.worker.alive or not self.shard.alive:
            return
        self.up, self.told = True, ()
        self.peer = b"%d-%d" % (self.worker.rank, self.world.number())
        self.shard.peers[self.peer] = self
        self._to_shard(shard_events.PresenceChanged(self.worker.rank, self.worker.incarnation, here=True))
        if self.worker.machine.pending(self.shard.number):
            self.worker.feed(worker_events.Writable(self.shard.number))

    def disconnect(self) -> None:
        """Close the connections, because a process has died."""
        if not self.up:
            return
        self.up = False
        self.epoch += 1
        self.pushing = self.publishing = 0
        self.asking = False
        self.behind.clear()
        self.shard.peers.pop(self.peer, None)
        if self.shard.alive:
            self.shard.feed(shard_events.PresenceChanged(self.worker.rank, self.worker.incarnation, here=False))

    # messages from the worker

    def request(self, message: m.FromWorker) -> None:
        """Send a control message to the shard."""
        if self.up:
            self.asking |= isinstance(message, m.SnapshotRequest)
            self._to_shard(shard_events.ControlArrived(self.peer, message))

    def push(self, header: m.Gradient) -> bool:
        """Send a slice of a contribution. Returns False if the queue is full or there is no connection."""
        if not self.up or self.pushing >= MOST_PUSHED:
            return False
        self.pushing += 1
        size = self.shard.slice_bytes
        self.world.network.transfer(self.worker.host, self.shard.host, size, self._pushed, header, self.epoch)
        return True

    def _pushed(self, header: m.Gradient, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self.pushing -= 1
        payload = cast("ReceivedSlice", PAYLOAD)
        self.shard.feed(shard_events.GradientArrived(header, payload, self.shard.slice_bytes, is_finite))
        if self.worker.machine.pending(self.shard.number):
            self.worker.feed(worker_events.Writable(self.shard.number))

    def _to_shard(self, event: shard_events.Event) -> None:
        self.world.network.tell(self.worker.host, self.shard.host, self._at_shard, event, self.epoch)

    def _at_shard(self, event: shard_events.Event, epoch: int) -> None:
        if epoch == self.epoch:
            self.shard.feed(event)

    # messages from the shard

    def publish_weights(self, event: worker_events.PublicationArrived, told: tuple[object, ...]) -> None:
        """Send a version, or drop it if the worker has not yet received the previous versions."""
        if not self.up or self.publishing >= MOST_PUBLISHED:
            return
        self.publishing += 1
        self.told, self.told_at = told, self.world.clock.now
        size = self.shard.slice_bytes
        self.world.network.transfer(self.shard.host, self.worker.host, size, self._published, event, self.epoch)

    def _published(self, event: worker_events.PublicationArrived, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self.publishing -= 1
        self.worker.feed(event)
        if not self.publishing and self.behind:
            behind, self.behind = self.behind, []
            for each in behind:
                self.worker.feed(each)

    def publish(self, event: worker_events.PublicationArrived, told: tuple[object, ...] | None) -> None:
        """Send a publication without payload. ``told`` is the contents of a heartbeat, or None for other messages."""
        if not self.up:
            return
        now = self.world.clock.now
        if told is not None:
            if told == self.told and not self.asking and now - self.told_at < REPEAT_S:
                return
            self.told, self.told_at = told, now
        self.world.network.tell(self.shard.host, self.worker.host, self._at_worker, event, self.epoch)

    def answer(self, message: m.ToWorker) -> None:
        """Send a control message to the worker, and the slice if the message is a snapshot."""
        if not self.up:
            return
        event = worker_events.ControlArrived(self.shard.number, message)
        if isinstance(message, m.Snapshot):
            event = worker_events.ControlArrived(self.shard.number, message, PAYLOAD)
            size = self.shard.slice_bytes
            self.world.network.transfer(self.shard.host, self.worker.host, size, self._snapshot, event, self.epoch)
        else:
            self.world.network.tell(self.shard.host, self.worker.host, self._at_worker, event, self.epoch)

    def _snapshot(self, event: worker_events.ControlArrived, epoch: int) -> None:
        if epoch == self.epoch:
            self.asking = False
            self.worker.feed(event)

    def _at_worker(self, event: worker_events.Event, epoch: int) -> None:
        if epoch != self.epoch:
            return
        if self.publishing and isinstance(event, worker_events.PublicationArrived):
            self.behind.append(event)
        else:
            self.worker.feed(event)
