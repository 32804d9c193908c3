"""Helpers for the wire: a listener, raw connections, an eavesdropper, a TCP proxy that fails on command, free ports."""

import contextlib
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import zmq
from support.rig import WITHIN_S

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import ClientKeys
from zmqrl.ps.wire.sockets import SOCKET_ROLES, SocketRole, new_context, shard_sockets

# Constants of Linux that Python does not define.
ETH_P_IP, PACKET_OUTGOING, SO_RCVBUFFORCE, ETHERNET_BYTES = 0x0800, 4, 33, 14


class Listener:
    """A thread that subscribes to every topic of every shard and keeps the published frames as received."""

    def __init__(self, cluster: Cluster) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.linger = 0
        self.sockets: list[zmq.Socket[Any]] = []
        for endpoints in cluster.endpoints:
            subscriber = self.context.socket(zmq.SUB)
            subscriber.rcvhwm = 1000
            for topic in m.TOPICS:
                subscriber.subscribe(topic)
            subscriber.reconnect_ivl_max = 0
            subscriber.connect(endpoints["weights"])
            self.sockets.append(subscriber)
        self.weights: list[dict[tuple[int, int], tuple[m.Weights, int]]] = [{} for _ in self.sockets]
        self.contradictions: list[str] = []
        self.said: list[list[m.Message]] = [[] for _ in self.sockets]
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def newest(self, shard: int) -> int:
        """The newest version of ``shard`` for which weights were received."""
        return max((version for _, version in self.weights[shard]), default=-1)

    def __enter__(self) -> "Listener":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.thread.join(WITHIN_S)
        self.context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        for subscriber in self.sockets:
            poller.register(subscriber, zmq.POLLIN)
        while not self.closing.is_set():
            for subscriber, _ in poller.poll(50):
                frames = subscriber.recv_multipart()
                shard = self.sockets.index(subscriber)
                message = framing.decode(frames[1])
                if not isinstance(message, m.Weights):
                    self.said[shard].append(message)
                    continue
                key, crc32 = (message.generation, message.version), zlib.crc32(frames[2])
                if self.weights[shard].setdefault(key, (message, crc32))[1] != crc32:
                    self.contradictions.append(f"shard {shard} published two variants of {key}")


class Wire:
    """Raw connections to one shard, for messages that no honest worker sends."""

    def __init__(
        self,
        endpoints: dict[SocketRole, str],
        *,
        send_most: int = 1000,
        receive_most: int = 1000,
        keys: ClientKeys | None = None,
        shard: int = 0,
    ) -> None:
        self.keys, self.shard, self.receive_most = keys, shard, receive_most
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.linger = 0
        self.grad = self._connect(zmq.PUSH, endpoints["grad"], send_most)
        self.weights = self._connect(zmq.XSUB, endpoints["weights"], send_most)
        self.control = self._connect(zmq.DEALER, endpoints["control"], send_most)

    def _connect(self, kind: int, endpoint: str, send_most: int) -> "zmq.Socket[Any]":
        made: zmq.Socket[Any] = self.context.socket(kind)
        made.sndhwm, made.rcvhwm = send_most, self.receive_most
        made.sndtimeo = int(1000 * WITHIN_S)
        if self.keys is not None:
            self.keys.secure(made, self.shard)
        made.connect(endpoint)
        return made

    def ask(self, message: m.Message, payload: bytes | None = None) -> m.Message:
        """Send a message over the control connection and wait for one answer."""
        self.control.send_multipart([framing.encode(message)] + ([payload] if payload is not None else []))
        return self.answer()

    def answer(self, within_s: float = WITHIN_S) -> m.Message:
        assert self.control.poll(int(1000 * within_s)), "no answer"
        return framing.decode(self.control.recv_multipart()[0])

    def hello(self, cluster: Cluster, rank: int, incarnation: int) -> m.Hello:
        return m.Hello(
            run=cluster.run,
            layout=cluster.layout.hash,
            role="worker",
            rank=rank,
            incarnation=incarnation,
            host="test",
            pid=1,
            secret="",
        )

    def join(self, cluster: Cluster, rank: int, incarnation: int) -> m.Message:
        """Join as the protocol requires. Returns the answer to HELLO."""
        for topic in (*m.TOPICS, framing.presence_topic(rank, incarnation)):
            self.weights.send(b"\1" + topic)
        return self.ask(self.hello(cluster, rank, incarnation))

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)


class Proxy:
    """A TCP proxy in front of one endpoint, which can hold, delay and cut the traffic."""

    def __init__(self, endpoint: str) -> None:
        self.target = "127.0.0.1", int(endpoint.rpartition(":")[2])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.flowing = threading.Event()
        self.flowing.set()
        self.open = True
        self.delay_s = 0.0
        self.cut_after_bytes: int | None = None  # applies to data that the clients send from now on
        self.cuts = 0
        self.hit: Counter[str] = Counter()  # what the failures have done to connections and data
        self.overheard = bytearray()  # the bytes that an eavesdropper would see, in both directions
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def cut(self, *, heal: bool = False) -> None:
        """Reset every connection. With ``heal``, new connections pass. Without it, they are also reset."""
        self.open = heal
        self.cuts += 1
        pairs, self.pairs = self.pairs, []
        self.hit["connections reset"] += len(pairs)
        for pair in pairs:
            for end in pair:
                _reset(end)

    def heal(self) -> None:
        self.open = True
        self.flowing.set()

    def close(self) -> None:
        self.flowing.set()
        self.cut()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not self.open:
                self.hit["connections refused"] += 1
                _reset(client)
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                client.close()
                continue
            self.pairs.append((client, server))
            for source, sink, counts in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pump, args=(source, sink, counts), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(16 * 1024):
                self.overheard += data
                if not self.flowing.is_set():
                    self.hit["pieces held"] += 1
                    self.flowing.wait()
                if self.delay_s:
                    self.hit["pieces delayed"] += 1
                    time.sleep(self.delay_s)
                if counts and self.cut_after_bytes is not None:
                    self.cut_after_bytes -= len(data)
                    if self.cut_after_bytes <= 0:
                        self.cut_after_bytes = None
                        self.hit["pieces cut in half"] += 1
                        sink.sendall(data[: len(data) // 2])
                        self.cut(heal=True)
                        return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            if not counts:
                source.close()
                sink.close()
                with contextlib.suppress(ValueError):  # cut
                    self.pairs.remove((sink, source))


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(cluster: Cluster, shards: set[int]) -> Iterator[tuple[Cluster, dict[tuple[int, SocketRole], Proxy]]]:
    """The same cluster with a proxy in front of each socket of ``shards``."""
    proxies = {
        (shard, role): Proxy(cluster.endpoints[shard][role]) for shard in sorted(shards) for role in SOCKET_ROLES
    }
    endpoints = tuple(
        {role: proxies[shard, role].endpoint if (shard, role) in proxies else there[role] for role in SOCKET_ROLES}
        for shard, there in enumerate(cluster.endpoints)
    )
    try:
        yield replace(cluster, endpoints=endpoints), proxies
    finally:
        for proxy in proxies.values():
            proxy.close()


class Eavesdropper:
    """A context manager that records the TCP packets of the loopback interface. It needs root."""

    def __init__(self) -> None:
        self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self.packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
        self.packets.bind(("lo", ETH_P_IP))
        self.packets.settimeout(0.1)
        self.streams: dict[tuple[int, int], bytearray] = {}  # by the ports of sender and receiver
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def overheard(self, ports: set[int]) -> bytes:
        """The bytes of all connections to ``ports``, in both directions."""
        return b"\n".join(bytes(said) for ends, said in self.streams.items() if ports & set(ends))

    def __enter__(self) -> "Eavesdropper":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.thread.join(WITHIN_S)
        self.packets.close()

    def _run(self) -> None:
        while not self.closing.is_set():
            try:
                packet, address = self.packets.recvfrom(1 << 17)
            except TimeoutError:
                continue
            datagram = packet[ETHERNET_BYTES:]
            if address[2] == PACKET_OUTGOING or datagram[9] != socket.IPPROTO_TCP:  # each packet is seen twice
                continue
            segment = datagram[4 * (datagram[0] & 15) : int.from_bytes(datagram[2:4]) or None]
            sender, receiver = struct.unpack_from(">HH", segment)
            self.streams.setdefault((sender, receiver), bytearray()).extend(segment[4 * (segment[12] >> 4) :])


def free_ports(count: int) -> range:
    """``count`` consecutive free ports. The kernel does not give these ports to clients."""
    for first in random.Random().sample(range(20_000, 32_000, 10), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return range(first, first + count)
    raise AssertionError("no free ports")


class BareShard:
    """The sockets of a shard without its program."""

    def __init__(self, path: Path, slice_bytes: int) -> None:
        self.context = new_context()
        self.sockets = shard_sockets(self.context, slice_bytes)
        self.endpoints: dict[SocketRole, str] = {role: f"ipc://{path}/{role}" for role in self.sockets}
        for role, endpoint in self.endpoints.items():
            self.sockets[role].bind(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)
