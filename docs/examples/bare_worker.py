"""A worker written from docs/protocol.md alone. It needs pyzmq, msgpack and numpy, but not zmqrl.

``work(cluster, rank, gradient)`` contributes ``gradient(weights, version)`` to every version until the run ends. For
brevity it uses one thread. If a gradient takes longer than a second or two, compute it in another thread.
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
HELLO_S, PING_S, SNAPSHOT_S, LEASE_S, LEAVE_S = 1.0, 1.0, 2.0, 60.0, 2.0


class Shard:
    """One shard as the worker sees it, and the sockets that connect to this shard."""

    def __init__(
        self,
        context: "zmq.Context[Any]",
        index: int,
        endpoints: dict[str, Any],
        topics: list[bytes],
        keys: dict[str, Any] | None,
    ) -> None:
        self.index = index
        self.incarnation, self.generation, self.version, self.view = 0, -1, -1, 0
        self.welcomed = False
        self.final: int | None = None  # the version of the shard's BYE, if BYE is its latest publication
        self.slices: dict[int, Floats] = {}
        self.elapsed: dict[int, int] = {}  # version -> progress of the run, as published with its slice
        self.needs = 0  # the NEEDs that have arrived for its open version
        self.wanted = False  # whether the last NEED does not name our rank
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
            end.linger = 0
            end.tcp_keepalive, end.tcp_keepalive_idle, end.tcp_keepalive_intvl, end.tcp_keepalive_cnt = 1, 3, 2, 3
            end.setsockopt(zmq.TCP_MAXRT, 8000)
            end.reconnect_ivl, end.reconnect_ivl_max = 100, 3000
            if keys is not None:
                end.curve_publickey, end.curve_secretkey = keys["public"].encode(), keys["secret"].encode()
                end.curve_serverkey = keys["shards"][index].encode()
            end.connect(endpoints[role])


class Worker:
    """One rank of the run that ``cluster`` (the parsed cluster.json) describes, with the ``keys`` of its key file."""

    def __init__(self, cluster: dict[str, Any], rank: int, keys: dict[str, Any] | None) -> None:
        self.run, self.layout, self.cuts = cluster["run"], cluster["layout"]["hash"], cluster["layout"]["slices"]
        self.rank, self.incarnation = rank, time.time_ns() // 1_000_000
        self.contribution: tuple[int, int, Floats, int] | None = None  # generation, version, gradient, progress
        self.elapsed = 0  # progress of the run at the weights in use
        self.ping_at = 0.0
        self.context = zmq.Context()
        topics = [b"W", b"H", b"N", b"X", b"P/%d/%d" % (rank, self.incarnation)]
        self.shards = [Shard(self.context, i, endpoints, topics, keys) for i, endpoints in enumerate(cluster["shards"])]

    def ended(self) -> bool:
        """Whether every shard has sent BYE, all with the same generation and version."""
        ends = {(shard.generation, shard.final) for shard in self.shards}
        return self.shards[0].final is not None and len(ends) == 1

    def read(self, wait_ms: int) -> None:
        """Handle everything that has arrived."""
        poller = zmq.Poller()
        for shard in self.shards:
            poller.register(shard.weights, zmq.POLLIN)
            poller.register(shard.control, zmq.POLLIN)
        ready = dict(poller.poll(wait_ms))
        for shard in self.shards:
            while shard.weights in ready and shard.weights.poll(0):
                self._received(shard, shard.weights.recv_multipart()[1:])
            while shard.control in ready and shard.control.poll(0):
                self._received(shard, shard.control.recv_multipart())

    def tick(self) -> None:
        """Send the pending slices, and HELLO and PING if they are due."""
        now = time.monotonic()
        ping = now - self.ping_at > PING_S
        for shard in self.shards:
            if now - shard.heard_at > LEASE_S:
                raise TimeoutError(f"no word from shard {shard.index} for {LEASE_S:g} s")
            if not shard.welcomed and now - shard.hello_at > HELLO_S:
                self._hello(shard)
            if shard.welcomed and ping:
                about = (self.rank, self.incarnation, max(shard.generation, 0), max(shard.version, 0))
                self._send(shard.control, "PING", *about, 0, int(now * 1e6))
            self._push(shard)
        self.ping_at = now if ping else self.ping_at

    def whole_version(self) -> tuple[int, int, Floats] | None:
        """The generation, version and weights to compute on. None if there is nothing to compute now."""
        generation, low = self.shards[0].generation, min(shard.version for shard in self.shards)
        if not all(shard.welcomed and shard.generation == generation for shard in self.shards):
            return None
        if any(shard.final == low for shard in self.shards):
            return None
        if self.contribution and self.contribution[0] == generation and low <= self.contribution[1]:
            return None
        lagging = [shard for shard in self.shards if shard.version == low]
        repair = len(lagging) < len(self.shards)
        if repair and not (all(shard.needs >= 2 for shard in lagging) and any(shard.wanted for shard in lagging)):
            return None
        missing = [shard for shard in self.shards if low not in shard.slices]
        for shard in missing:
            if repair:
                self._request(shard, low)
        if missing:
            return None
        self.elapsed = max(shard.elapsed[low] for shard in self.shards)
        return generation, low, np.concatenate([shard.slices[low] for shard in self.shards])

    def contribute(self, generation: int, version: int, gradient: Floats) -> None:
        """Send each shard its slice, unless the slice is too late for that shard."""
        self.contribution = generation, version, np.asarray(gradient, "<f4"), self.elapsed
        for shard in self.shards:
            late = shard.generation != generation or shard.version > version
            shard.push, shard.attempt = "closed" if late else "pending", 0
            self._push(shard)

    def close(self, leave: bool) -> None:
        """Close everything. Before that, ``leave`` the run, but not after a REFUSE."""
        leaving = self.shards if leave else []
        for shard in leaving:
            self._send(shard.control, "LEAVE", self.rank, self.incarnation)
        deadline = time.monotonic() + LEAVE_S
        for shard in leaving:
            while shard.control.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                if b"LEFT" in shard.control.recv_multipart()[0]:
                    break
        self.context.destroy(linger=0)

    def _send(self, end: "zmq.Socket[Any]", kind: str, *fields: object, payload: bytes | None = None) -> bool:
        header = msgpack.packb(["zmqrl/1", kind, self.run, *fields])
        try:
            end.send_multipart([header] if payload is None else [header, payload], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _hello(self, shard: Shard) -> None:
        shard.hello_at = time.monotonic()
        about = (self.layout, "worker", self.rank, self.incarnation, socket.gethostname()[:64], os.getpid(), "")
        self._send(shard.control, "HELLO", *about)

    def _request(self, shard: Shard, version: int | None) -> None:
        if shard.welcomed and time.monotonic() - shard.request_at > SNAPSHOT_S:
            shard.request_at = time.monotonic()
            self._send(shard.control, "SNAPSHOT_REQUEST", version)

    def _push(self, shard: Shard) -> None:
        if shard.push != "pending" or not shard.welcomed or self.contribution is None:
            return
        generation, version, gradient, elapsed = self.contribution
        start, stop = self.cuts[shard.index]
        about = (
            generation,
            shard.view,
            shard.index,
            version,
            self.rank,
            self.incarnation,
            shard.attempt,
            "f32",
            elapsed,
        )
        if self._send(shard.grad, "GRADIENT", self.layout, *about, payload=gradient[start:stop].tobytes()):
            shard.push, shard.attempt = "sent", shard.attempt + 1

    def _received(self, shard: Shard, frames: list[bytes]) -> None:
        try:
            header = msgpack.unpackb(frames[0])
            protocol, kind, run = header[:3]
            if kind == "REFUSE":
                raise ConnectionRefusedError(header[4])
            if (protocol, run) != ("zmqrl/1", self.run) or header[3] != shard.index:
                return
            shard.heard_at = time.monotonic()
            if kind in STATES:
                self._said(shard, header, frames)
        except (ValueError, TypeError, LookupError, msgpack.UnpackException):
            return  # ignore a message that cannot be decoded

    def _said(self, shard: Shard, header: list[Any], frames: list[bytes]) -> None:
        kind = header[1]
        incarnation, generation, version = header[4:7]
        if incarnation > shard.incarnation:
            shard.incarnation, shard.welcomed, shard.final, shard.needs = incarnation, False, None, 0
            shard.request_at = float("-inf")
            if kind != "WELCOME":
                self._hello(shard)
        if incarnation == shard.incarnation and generation > shard.generation:
            shard.generation, shard.version, shard.final, shard.needs = generation, -1, None, 0
            shard.slices, shard.elapsed, shard.push, shard.request_at = {}, {}, "closed", float("-inf")
        if incarnation < shard.incarnation or generation < shard.generation:
            return
        if version > shard.version:
            shard.version, shard.needs = version, 0
            if self.contribution is not None and version > self.contribution[1]:
                shard.push = "closed"
        if kind in ("WEIGHTS", "SNAPSHOT"):
            self._store(shard, version, header[11], frames[1], elapsed=header[13] if len(header) > 13 else 0)
        if kind in ("WEIGHTS", "HEARTBEAT", "NEED", "BYE"):
            shard.final = version if kind == "BYE" else None
        if kind in ("WEIGHTS", "HEARTBEAT", "NEED", "WELCOME"):
            shard.view = header[7]
        if kind == "WELCOME":
            shard.welcomed = True
        if kind in ("HEARTBEAT", "WELCOME") and header[-1] and shard.version not in shard.slices:
            self._request(shard, None)
        if kind == "NEED" and version == shard.version:
            shard.needs, shard.wanted = shard.needs + 1, self.rank not in header[8]
            if shard.wanted and shard.push == "sent":
                shard.push = "pending"

    def _store(self, shard: Shard, version: int, codec: str, payload: bytes, elapsed: int) -> None:
        numbers = np.frombuffer(payload, "<f4" if codec == "f32" else "<u2")
        start, stop = self.cuts[shard.index]
        if len(numbers) != stop - start:
            return
        shard.elapsed[version] = elapsed
        shard.slices[version] = numbers if codec == "f32" else (numbers.astype("<u4") << 16).view("<f4")
        shard.request_at = float("-inf")
        for old in [v for v in shard.slices if v < shard.version - 1]:
            del shard.slices[old], shard.elapsed[old]


def work(
    cluster: dict[str, Any], rank: int, gradient: Callable[[Floats, int], Floats], keys: dict[str, Any] | None = None
) -> None:
    """Contribute to every version until the run ends.

    Raises ValueError for a run that this worker cannot join, ConnectionRefusedError and TimeoutError.
    """
    if (cluster["protocol"], cluster["mode"]) != ("zmqrl/1", "sync") or cluster["codec"] not in ("f32", "bf16"):
        raise ValueError("this worker does not know the protocol, the mode or the codec of the run")
    worker, refused = Worker(cluster, rank, keys), False
    try:
        while not worker.ended():
            worker.read(wait_ms=50)
            worker.tick()
            if (whole := worker.whole_version()) is not None:
                generation, version, weights = whole
                worker.contribute(generation, version, gradient(weights, version))
    except ConnectionRefusedError:
        refused = True
        raise
    finally:
        worker.close(leave=not refused)
