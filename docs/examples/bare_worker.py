"""A worker written from docs/protocol.md alone: it needs pyzmq, msgpack and numpy, and nothing of zmqrl.

``work(cluster, rank, gradient)`` contributes ``gradient(weights, version)`` to every version until the run ends. For
brevity everything is done in one thread; where a gradient takes longer than a second or two, compute it in another.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any, Literal

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

Floats = npt.NDArray[np.float32]
STATES = ("WEIGHTS", "SNAPSHOT", "HEARTBEAT", "NEED", "BYE", "WELCOME")
HELLO_S, PING_S, SNAPSHOT_S, LEASE_S = 1.0, 1.0, 2.0, 60.0


class Link:
    """What the worker knows of one shard, and its sockets to it."""

    def __init__(
        self,
        context: "zmq.Context[Any]",
        index: int,
        shard: dict[str, Any],
        topics: list[bytes],
        keys: dict[str, Any] | None,
    ) -> None:
        self.index = index
        self.incarnation, self.generation, self.version, self.view = 0, -1, -1, 0
        self.welcomed = False
        self.final: int | None = None  # the version of its BYE, if that is its newest word
        self.slices: dict[int, Floats] = {}
        self.needs = 0  # NEEDs for its version
        self.wanted = False  # the last of them does not name us
        self.push: Literal["none", "pending", "sent", "closed"] = "none"
        self.attempt = 0
        self.hello_at = self.request_at = float("-inf")
        self.heard_at = time.monotonic()
        self.grad, self.weights, self.control = (context.socket(kind) for kind in (zmq.PUSH, zmq.SUB, zmq.DEALER))
        for topic in topics:
            self.weights.subscribe(topic)
        self.grad.sndhwm, self.weights.rcvhwm = 2, 3
        self.grad.immediate = self.control.immediate = 1
        for end, role in ((self.grad, "grad"), (self.weights, "weights"), (self.control, "control")):
            end.linger, end.ipv6 = 0, 1
            end.tcp_keepalive, end.tcp_keepalive_idle, end.tcp_keepalive_intvl, end.tcp_keepalive_cnt = 1, 3, 2, 3
            end.setsockopt(zmq.TCP_MAXRT, 8000)
            end.reconnect_ivl, end.reconnect_ivl_max = 100, 3000
            if keys is not None:
                end.curve_publickey, end.curve_secretkey = keys["public"].encode(), keys["secret"].encode()
                end.curve_serverkey = keys["shards"][index].encode()
            end.connect(shard[role])


class Worker:
    """One rank of the run that ``cluster`` (the parsed cluster.json) describes, with the ``keys`` of its key file."""

    def __init__(self, cluster: dict[str, Any], rank: int, keys: dict[str, Any] | None) -> None:
        self.run, self.layout, self.cuts = cluster["run"], cluster["layout"]["hash"], cluster["layout"]["slices"]
        self.rank, self.incarnation = rank, time.time_ns() // 1_000_000
        self.contribution: tuple[int, int, Floats] | None = None  # generation, version, gradient
        self.ping_at = 0.0
        self.context = zmq.Context()
        topics = [b"W", b"H", b"N", b"X", b"P/%d/%d" % (rank, self.incarnation)]
        self.links = [Link(self.context, i, shard, topics, keys) for i, shard in enumerate(cluster["shards"])]

    def ended(self) -> bool:
        """Whether every shard has said BYE at the same version."""
        return self.links[0].final is not None and len({link.final for link in self.links}) == 1

    def read(self, wait_ms: int) -> None:
        """Take in everything that has arrived."""
        poller = zmq.Poller()
        for link in self.links:
            poller.register(link.weights, zmq.POLLIN)
            poller.register(link.control, zmq.POLLIN)
        ready = dict(poller.poll(wait_ms))
        for link in self.links:
            while link.weights in ready and link.weights.poll(0):
                self._received(link, link.weights.recv_multipart()[1:])
            while link.control in ready and link.control.poll(0):
                self._received(link, link.control.recv_multipart())

    def tick(self) -> None:
        """What is due: greetings, pings, pushes that wait."""
        now = time.monotonic()
        ping = now - self.ping_at > PING_S
        for link in self.links:
            if now - link.heard_at > LEASE_S:
                raise TimeoutError(f"no word from shard {link.index} for {LEASE_S:g} s")
            if not link.welcomed and now - link.hello_at > HELLO_S:
                self._hello(link)
            if link.welcomed and ping:
                about = (self.rank, self.incarnation, max(link.generation, 0), max(link.version, 0))
                self._send(link.control, "PING", *about, 0, int(now * 1e6))
            self._push(link)
        self.ping_at = now if ping else self.ping_at

    def whole_version(self) -> tuple[int, int, Floats] | None:
        """Generation, version and weights to compute on, if there is something to compute."""
        generation, low = self.links[0].generation, min(link.version for link in self.links)
        if not all(link.welcomed and link.generation == generation for link in self.links):
            return None
        if any(link.final == low for link in self.links):
            return None
        if self.contribution and self.contribution[0] == generation and low <= self.contribution[1]:
            return None
        lagging = [link for link in self.links if link.version == low]
        repair = len(lagging) < len(self.links)
        if repair and not (all(link.needs >= 2 for link in lagging) and any(link.wanted for link in lagging)):
            return None
        missing = [link for link in self.links if low not in link.slices]
        for link in missing:
            if repair:
                self._request(link, low)
        return None if missing else (generation, low, np.concatenate([link.slices[low] for link in self.links]))

    def contribute(self, generation: int, version: int, gradient: Floats) -> None:
        """Send each shard its slice, but not where it is late already."""
        self.contribution = generation, version, np.asarray(gradient, "<f4")
        for link in self.links:
            late = link.generation != generation or link.version > version
            link.push, link.attempt = "closed" if late else "pending", 0
            self._push(link)

    def leave(self) -> None:
        """Say goodbye and close everything."""
        for link in self.links:
            self._send(link.control, "LEAVE", self.rank, self.incarnation)
            while link.control.poll(2000) and b"LEFT" not in link.control.recv_multipart()[0]:
                pass
        self.context.destroy(linger=0)

    def _send(self, end: "zmq.Socket[Any]", kind: str, *fields: object, payload: bytes | None = None) -> bool:
        header = msgpack.packb(["zmqrl/1", kind, self.run, *fields])
        try:
            end.send_multipart([header] if payload is None else [header, payload], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _hello(self, link: Link) -> None:
        link.hello_at = time.monotonic()
        about = (self.layout, "worker", self.rank, self.incarnation, socket.gethostname()[:64], os.getpid(), "")
        self._send(link.control, "HELLO", *about)

    def _request(self, link: Link, version: int | None) -> None:
        if link.welcomed and time.monotonic() - link.request_at > SNAPSHOT_S:
            link.request_at = time.monotonic()
            self._send(link.control, "SNAPSHOT_REQUEST", version)

    def _push(self, link: Link) -> None:
        if link.push != "pending" or not link.welcomed or self.contribution is None:
            return
        generation, version, gradient = self.contribution
        start, stop = self.cuts[link.index]
        about = (generation, link.view, link.index, version, self.rank, self.incarnation, link.attempt, "f32")
        if self._send(link.grad, "GRADIENT", self.layout, *about, payload=gradient[start:stop].tobytes()):
            link.push, link.attempt = "sent", link.attempt + 1

    def _received(self, link: Link, frames: list[bytes]) -> None:
        try:
            header = msgpack.unpackb(frames[0])
            protocol, kind, run = header[:3]
            if kind == "REFUSE":
                raise ConnectionRefusedError(header[4])
            if (protocol, run) != ("zmqrl/1", self.run):
                return
            link.heard_at = time.monotonic()
            if kind in STATES:
                self._said(link, header, frames)
        except (ValueError, TypeError, LookupError, msgpack.UnpackException):
            return  # what cannot be decoded is ignored

    def _said(self, link: Link, header: list[Any], frames: list[bytes]) -> None:
        kind = header[1]
        incarnation, generation, version = header[4:7]
        if incarnation > link.incarnation:
            link.incarnation, link.welcomed, link.needs, link.request_at = incarnation, False, 0, float("-inf")
            if kind != "WELCOME":
                self._hello(link)
        if incarnation == link.incarnation and generation > link.generation:
            link.generation, link.version, link.final, link.needs = generation, -1, None, 0
            link.slices, link.push, link.request_at = {}, "closed", float("-inf")
        if incarnation < link.incarnation or generation < link.generation:
            return
        if version > link.version:
            link.version, link.needs = version, 0
            if self.contribution is not None and version > self.contribution[1]:
                link.push = "closed"
        if kind in ("WEIGHTS", "SNAPSHOT"):
            self._store(link, version, header[11], frames[1])
        if kind in ("WEIGHTS", "HEARTBEAT", "NEED", "BYE"):
            link.final = version if kind == "BYE" else None
        if kind in ("WEIGHTS", "HEARTBEAT", "NEED", "WELCOME"):
            link.view = header[7]
        if kind == "WELCOME":
            link.welcomed = True
        if kind in ("HEARTBEAT", "WELCOME") and header[-1] and link.version not in link.slices:
            self._request(link, None)
        if kind == "NEED" and version == link.version:
            link.needs, link.wanted = link.needs + 1, self.rank not in header[8]
            if link.wanted and link.push == "sent":
                link.push = "pending"

    def _store(self, link: Link, version: int, codec: str, payload: bytes) -> None:
        numbers = np.frombuffer(payload, "<f4" if codec == "f32" else "<u2")
        link.slices[version] = numbers if codec == "f32" else (numbers.astype("<u4") << 16).view("<f4")
        link.request_at = float("-inf")
        for old in [v for v in link.slices if v < link.version - 1]:
            del link.slices[old]


def work(
    cluster: dict[str, Any], rank: int, gradient: Callable[[Floats, int], Floats], keys: dict[str, Any] | None = None
) -> None:
    """Contribute to every version until the run ends. Raises ConnectionRefusedError and TimeoutError."""
    worker = Worker(cluster, rank, keys)
    try:
        while not worker.ended():
            worker.read(wait_ms=50)
            worker.tick()
            if (whole := worker.whole_version()) is not None:
                generation, version, weights = whole
                worker.contribute(generation, version, gradient(weights, version))
    finally:
        worker.leave()
