"""Checks frames that arrive at a shard, and turns them into events."""

import logging
from collections import Counter
from dataclasses import dataclass

import zmq

from zmqrl.ps.layout import Slice
from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.gradients import ReceivedSlice
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.ps.wire.keys import ShardKeys, Speaker
from zmqrl.ps.wire.memory import SharedMemory

# Properties of frames.
USER_ID = "User-Id"  # the sender's public key, which the authenticator sets
ADDRESS = "Peer-Address"  # an IP address, or localhost:USER:GROUP:PROCESS for ipc
HELLO = framing.kind_of(m.Hello)


@dataclass(frozen=True, slots=True)
class SharedGradients:
    """The memory of a worker, and where each of its gradients has the slice of this shard."""

    incarnation: int
    memory: SharedMemory
    codec: m.Codec
    cut: Slice

    def slice_of(self, number: int) -> memoryview:
        """The slice of gradient ``number``, read-only. The worker writes there again once the shard has handled it."""
        start, stop = (payload_bytes(self.codec, at) for at in (self.cut.start, self.cut.stop))
        return self.memory.slot(number)[start:stop].data


class Reception:
    """Turns frames into events. With ``keys``, a sender can use only the rank or role of its key."""

    def __init__(self, keys: ShardKeys | None, log: logging.Logger) -> None:
        self.speakers = keys.speakers() if keys is not None else None
        self.log = log
        self.false_names: Counter[str] = Counter()
        self.ignored = framing.Ignored()
        self.sharing: dict[int, SharedGradients] = {}  # by rank
        self.is_read = False  # whether a worker has subscribed to publications in memory

    def gradient(self, frames: list[zmq.Frame]) -> e.Event:
        """The event for a message on PULL."""
        try:
            header = framing.decode_at(m.GRADIENTS, frames[0].buffer, len(frames) - 1)
        except framing.MalformedMessage as error:
            return self._ignore(error, frames[0])
        if not self._may_say(frames[0], header):
            return e.MalformedArrived()
        payload = ReceivedSlice(header.codec, frames[1].buffer)
        if header.place and not len(frames[1]):
            shared = self.shared_by(header)
            if shared is None or shared.codec != header.codec or not shared.memory.holds(header.place):
                return self._ignore("a gradient in memory that is not shared, or was overwritten", frames[0])
            payload = ReceivedSlice(header.codec, shared.slice_of(header.place), is_shared=True)
        return e.GradientArrived(header, payload, payload.buffer.nbytes, payload.is_finite)

    def shared_by(self, header: m.Gradient) -> SharedGradients | None:
        """The memory of the worker that sent ``header``, or None if this process shares none."""
        shared = self.sharing.get(header.rank)
        return shared if shared is not None and shared.incarnation == header.incarnation else None

    def presence(self, frames: list[zmq.Frame]) -> e.Event | None:
        """The event for a subscription to a presence topic. Returns None for any other topic of the protocol."""
        message = frames[0].bytes
        if len(frames) != 1 or message[:1] not in (b"\0", b"\1"):
            return self._ignore("no subscription on XPUB of a shard", frames[0])
        here, topic = message[:1] == b"\1", message[1:]
        presence = framing.parse_presence(topic)
        if presence is None:
            self.is_read |= topic == m.TOPIC_SHARED
            known = topic in (*m.TOPICS, m.TOPIC_SHARED)
            return None if known else self._ignore("an unknown topic on XPUB of a shard", frames[0])
        if self.speakers is not None and not self._may_show(frames[0], presence[0], here):
            return e.MalformedArrived()
        return e.PresenceChanged(*presence, here=here)

    def control(self, frames: list[zmq.Frame]) -> e.Event:
        """The event for a message on ROUTER."""
        if len(frames) not in (2, 3):
            return self._ignore(f"a message of {len(frames) - 1} frames on ROUTER of a shard", frames[0])
        try:
            message = framing.decode_at(m.REQUESTS, frames[1].buffer, len(frames) - 2)
        except framing.MalformedMessage as error:
            if isinstance(error, framing.OtherProtocol) and error.kind == HELLO:
                return e.ForeignHello(frames[0].bytes, error.protocol)
            return self._ignore(error, frames[1])
        peer, payload = frames[0].bytes, frames[2].bytes if len(frames) == 3 else None
        if not self._may_say(frames[1], message):
            return e.FalseHello(peer) if isinstance(message, m.Hello) else e.MalformedArrived()
        return e.ControlArrived(peer, message, payload)

    def take_false_names(self) -> str:
        """How many messages since the last call came with the key of another rank or role, in words. Empty if none."""
        text = ", ".join(f"{count} x {name}" for name, count in sorted(self.false_names.items()))
        self.false_names.clear()
        return text

    def _ignore(self, reason: object, frame: zmq.Frame) -> e.MalformedArrived:
        """The event for a malformed message that contains ``frame``. Counts the message by reason and sender."""
        text = f"{reason} from {self._sender(frame)}"
        self.log.debug("malformed: %s", text)
        self.ignored.add(text)
        return e.MalformedArrived()

    def _sender(self, frame: zmq.Frame) -> str:
        """The sender of ``frame``, in words: the owner of its key or, without keys, its process or IP address."""
        if self.speakers is not None:
            return _named(self._speaker(frame))
        try:
            address = str(frame.get(ADDRESS))
        except zmq.ZMQError:
            return _named(None)
        if address.startswith("localhost:"):
            return f"process {address.rpartition(':')[2]}"
        return address.removeprefix("::ffff:")  # of an IPv4 address in IPv6 notation

    def _may_say(self, frame: zmq.Frame, message: m.Gradient | m.FromWorker | m.FromSupervisor) -> bool:
        """Whether the sender's key allows ``message``: the key of the rank in it, or the supervisor's key."""
        if self.speakers is None:
            return True
        speaker = self._speaker(frame)
        if isinstance(message, m.SnapshotRequest):
            allowed = True  # the state machine identifies the sender by its connection
        elif isinstance(message, m.ShardCommand) or (isinstance(message, m.Hello) and message.role == "supervisor"):
            allowed = speaker == "supervisor"
        else:
            allowed = speaker == message.rank
        if not allowed:
            self._note(speaker, framing.kind_of(type(message)))
        return allowed

    def _may_show(self, frame: zmq.Frame, rank: int, here: bool) -> bool:
        """Whether the sender may subscribe as ``rank``. When a connection closes, libzmq unsubscribes without a key."""
        speaker = self._speaker(frame)
        if speaker == rank or (speaker is None and not here):
            return True
        self._note(speaker, "subscription")
        return False

    def _speaker(self, frame: zmq.Frame) -> Speaker | None:
        """The owner of the key of ``frame``, or None if libzmq made the frame for a closed connection."""
        assert self.speakers is not None
        try:
            return self.speakers[str(frame.get(USER_ID))]
        except zmq.ZMQError:
            return None

    def _note(self, speaker: Speaker | None, what: str) -> None:
        self.false_names[f"{what} by {_named(speaker)}"] += 1


def _named(speaker: Speaker | None) -> str:
    if speaker is None:
        return "an unknown sender"
    return f"worker {speaker}" if isinstance(speaker, int) else speaker
