"""Makes ZeroMQ sockets with the options that the protocol needs, and counts failed connections."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, get_args

import zmq

from zmqrl.errors import ClusterError
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.framing import presence_topic
from zmqrl.ps.wire.keys import ClientKeys, ShardKeys

SocketRole: TypeAlias = Literal["grad", "weights", "control"]
Transport: TypeAlias = Literal["shm", "ipc", "tcp"]
"""How processes reach each other. With shm, as with ipc, but payloads stay in memory that the processes share."""
SOCKET_ROLES: tuple[SocketRole, ...] = get_args(SocketRole)

LIBZMQ = (4, 3, 5)
MARGIN_BYTES = 64 * 1024
MOST_EVENTS = 1 << 16  # in the queue of a monitor: when many connections close at once, each causes an event
# Not EVENT_ACCEPT_FAILED: while a process has no free descriptor, libzmq sends this event in an endless loop.
FAILURES = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@dataclass(frozen=True, slots=True)
class ShardUp:
    """The first message of a shard process: it has bound its sockets to these ``endpoints``, by role."""

    endpoints: dict[SocketRole, str]

    def to_json(self) -> dict[str, Any]:
        return {"endpoints": self.endpoints}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`. A frozen shard binds only the role control. Raises ClusterError."""
        found = data.get("endpoints")
        endpoints = {role: found[role] for role in SOCKET_ROLES if role in found} if isinstance(found, dict) else {}
        if "control" not in endpoints or not all(isinstance(endpoint, str) for endpoint in endpoints.values()):
            raise ClusterError(f"a shard did not report its endpoints, but {dict(data)!r:.200}.")
        return cls(endpoints)


def new_context(io_threads: int = 1) -> "zmq.Context[zmq.Socket[bytes]]":
    """Make a context, which must not be used after a fork. Raises ClusterError when libzmq is too old."""
    if zmq.zmq_version_info() < LIBZMQ:
        raise ClusterError(f"libzmq {zmq.zmq_version()} is too old: install pyzmq with libzmq 4.3.5 or newer.")
    context = zmq.Context(io_threads)
    context.linger = 0
    return context


def new_socket(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, *, send_most: int, receive_most: int, most_bytes: int = -1
) -> "zmq.Socket[bytes]":
    """Make a socket that queues at most ``send_most`` and ``receive_most`` (both above 0) messages for each peer.

    ZeroMQ disconnects a peer that sends more than ``most_bytes`` in one frame. -1: no limit, for sockets that receive
    slices from a shard.
    """
    assert send_most > 0
    assert receive_most > 0
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm, socket.rcvhwm = send_most, receive_most
    socket.maxmsgsize = most_bytes
    socket.ipv6 = True
    socket.backlog = 1024
    socket.handshake_ivl = 5000
    # No ZMTP heartbeats: in libzmq 4.3.5 their timer aborts the process (`!_io_error`) when a connection breaks while
    # its queue is full. TCP keepalive finds broken connections. PING and HEARTBEAT find stopped processes.
    socket.heartbeat_ivl = 0
    socket.reconnect_ivl, socket.reconnect_ivl_max = 100, 3000
    socket.tcp_keepalive, socket.tcp_keepalive_idle = 1, 3
    socket.tcp_keepalive_intvl, socket.tcp_keepalive_cnt = 2, 3
    socket.setsockopt(zmq.TCP_MAXRT, 8_000)
    if kind in (zmq.PUSH, zmq.DEALER):
        socket.immediate = True
    if kind == zmq.XPUB:
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
    if kind == zmq.ROUTER:
        socket.router_mandatory = True
    return socket


def shard_sockets(
    context: "zmq.Context[zmq.Socket[bytes]]", slice_bytes: int, keys: ShardKeys | None = None
) -> "dict[SocketRole, zmq.Socket[bytes]]":
    """Make the three sockets of a shard, not yet bound."""
    sockets: dict[SocketRole, zmq.Socket[bytes]] = {
        "grad": new_socket(context, zmq.PULL, send_most=1, receive_most=2, most_bytes=slice_bytes + MARGIN_BYTES),
        "weights": new_socket(context, zmq.XPUB, send_most=2, receive_most=64, most_bytes=m.MAX_SUBSCRIPTION_BYTES),
        "control": new_socket(context, zmq.ROUTER, send_most=64, receive_most=64, most_bytes=m.MAX_CONTROL_BYTES),
    }
    if keys is not None:
        for socket in sockets.values():
            keys.secure(socket)
    return sockets


def worker_sockets(
    context: "zmq.Context[zmq.Socket[bytes]]",
    rank: int,
    incarnation: int,
    keys: ClientKeys | None = None,
    shard: int = 0,
) -> "dict[SocketRole, zmq.Socket[bytes]]":
    """Make the three sockets of a worker for ``shard``: subscribed, but not yet connected."""
    grad = new_socket(context, zmq.PUSH, send_most=2, receive_most=1)
    weights = new_socket(context, zmq.SUB, send_most=64, receive_most=3)
    control = new_socket(context, zmq.DEALER, send_most=8, receive_most=8)
    for topic in (*m.TOPICS, presence_topic(rank, incarnation)):
        weights.subscribe(topic)
    sockets: dict[SocketRole, zmq.Socket[bytes]] = {"grad": grad, "weights": weights, "control": control}
    if keys is not None:
        for socket in sockets.values():
            keys.secure(socket, shard)
    return sockets


def connect(sockets: "dict[SocketRole, zmq.Socket[bytes]]", endpoints: dict[SocketRole, str]) -> None:
    """Connect each socket of a worker to the endpoint of the same role."""
    for role, socket in sockets.items():
        socket.connect(endpoints[role])


class FailureMonitor:
    """Counts the connections of a socket that were closed, or whose handshake failed."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self.socket = socket
        self.monitor = socket.context.socket(zmq.PAIR)
        self.monitor.linger, self.monitor.rcvhwm = 0, MOST_EVENTS
        address = f"inproc://monitor-{id(self)}"
        socket.monitor(address, FAILURES)
        self.monitor.connect(address)
        self.counts: Counter[int] = Counter()  # by the number of the event

    def read(self) -> None:
        """Empty the monitor socket. Call this often: while it is full, libzmq's I/O thread blocks all traffic."""
        try:
            while True:
                event, _ = self.monitor.recv_multipart(zmq.NOBLOCK)
                self.counts[int.from_bytes(event[:2], sys.byteorder)] += 1
        except zmq.Again:
            return

    def take(self) -> str:
        """The counts since the last call, in words. Empty if nothing was counted."""
        named = {str(zmq.Event(event).name).lower().replace("_", " "): count for event, count in self.counts.items()}
        text = ", ".join(f"{count} x {name}" for name, count in sorted(named.items()))
        self.counts.clear()
        return text

    def close(self) -> None:
        """Close the monitor. Call this before you close the monitored socket."""
        self.socket.disable_monitor()
        self.monitor.close()
