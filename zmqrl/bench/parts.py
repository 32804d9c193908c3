"""The parts of ``zmqrl bench wire``: a worker for each implementation, and a hub for plain sockets.

``run(rounds, pause_s)`` runs rounds, each after a pause. It returns their starts and ends, in ns on the monotonic
clock. A hub does not pause, because it waits for the workers.
"""

import os
import selectors
import socket
import time
from typing import Any, Final

import numpy as np

from zmqrl.bench.crew import Part, PartFacts
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.shard.gradients import GradientSum, ReceivedSlice
from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.wire.keys import ClientKeys
from zmqrl.ps.wire.sockets import new_context, worker_sockets
from zmqrl.ps.worker.connection import Connection, PulledWeights

ADAM: Final = OptimizerConfig(name="adam", learning_rate=1e-4)
HOST: Final = "127.0.0.1"


def gradient(count: int) -> FloatVector:
    """A gradient with the same numbers on every worker: float32 (count,)."""
    return np.random.default_rng(7).standard_normal(count, np.float32)


class TimedPart(Part):
    """A part that takes the time of each of its rounds."""

    def run(self, rounds: int, pause_s: float) -> PartFacts:
        begun, done = [], []
        for _ in range(rounds):
            self._prepare()
            if pause_s:  # skip sleep(0), which is a system call too
                time.sleep(pause_s)
            begun.append(time.monotonic_ns())
            self._round()
            done.append(time.monotonic_ns())
        return {"begun": begun, "done": done}

    def _prepare(self) -> None:
        """Do what each round needs before its pause. It does not count."""

    def _round(self) -> None:
        raise NotImplementedError


class ZmqrlWorker(TimedPart):
    """A worker with the connection of training. Like a backward pass, each round writes a gradient."""

    def __init__(self, *, cluster: dict[str, Any], keys: dict[str, Any] | None, rank: int) -> None:
        self.connection = Connection(Cluster.from_json(cluster, _keys(keys)), rank)
        self.gradient = gradient(self.connection.cluster.layout.count)
        self.weights = self._pull(-1)

    def run(self, rounds: int, pause_s: float) -> PartFacts:
        """Also returns the ``version`` of the first round."""
        return {"version": self.weights.version, **super().run(rounds, pause_s)}

    def close(self) -> None:
        self.connection.close()

    def _prepare(self) -> None:
        self.buffer = self.connection.gradient_buffer()
        self.buffer[:] = self.gradient

    def _round(self) -> None:
        self.connection.push(self.weights, self.buffer)
        self.weights = self._pull(self.weights.version)

    def _pull(self, above: int) -> PulledWeights:
        weights = self.connection.pull(above)
        assert weights is not None, "the shards ended the run"
        return weights


class ZmqrlPinger(TimedPart):
    """An otherwise idle worker that sends PING to shard 0 and waits for PONG."""

    def __init__(self, *, cluster: dict[str, Any], keys: dict[str, Any] | None, rank: int) -> None:
        found = Cluster.from_json(cluster)
        self.ping = m.Ping(run=found.run, rank=rank, incarnation=1, generation=0, version=0, computed=0, sent_us=0)
        self.context = new_context()
        self.socket = worker_sockets(self.context, rank, 1, _keys(keys), shard=0)["control"]
        self.socket.connect(found.endpoints[0]["control"])

    def close(self) -> None:
        self.context.destroy(linger=0)

    def _round(self) -> None:
        self.socket.send(framing.encode(self.ping))
        assert isinstance(framing.decode(self.socket.recv()), m.Pong)


class AdamSteps:
    """The optimizer of the shards, on one vector in this process."""

    def __init__(self, count: int) -> None:
        self.optimizer, self.version = Optimizer(ADAM), 0
        arrays = 1 + len(self.optimizer.state_names)
        self.old, self.new = (np.full((arrays, count), 0, np.float32) for _ in range(2))  # weights, then state

    def step(self, gradient_sum: FloatVector, workers: int) -> None:
        """Make the next version from the sum of the gradients, float32 (count,), of ``workers`` workers."""
        names = self.optimizer.state_names
        (weights, *state), (new_weights, *new_state) = self.old, self.new
        self.optimizer.step(
            self.version,
            gradient_sum,
            workers,
            weights,
            dict(zip(names, state, strict=True)),
            new_weights,
            dict(zip(names, new_state, strict=True)),
        )
        self.old, self.new, self.version = self.new, self.old, self.version + 1


class GlooRank(TimedPart):
    """A worker without shards: the workers sum their gradients in the format of ``codec``, and take the same step."""

    def __init__(self, *, store: str, rank: int, workers: int, count: int, codec: m.Codec) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import torch  # takes seconds, and only this part needs it
        from torch import distributed

        torch.set_num_threads(1)
        self.torch, self.distributed, self.workers = torch, distributed, workers
        self.dtype = getattr(torch, CODECS[codec].torch_dtype)
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
        self.gradient = gradient(count)
        self.sum = self.gradient.copy()
        self.steps = AdamSteps(count)

    def close(self) -> None:
        self.distributed.destroy_process_group()

    def _prepare(self) -> None:
        self.sum[:] = self.gradient

    def _round(self) -> None:
        self._all_reduce()
        self.steps.step(self.sum, self.workers)

    def _all_reduce(self) -> None:
        tensor = self.torch.from_numpy(self.sum)
        encoded = tensor.to(self.dtype)
        self.distributed.all_reduce(encoded)
        if encoded is not tensor:
            tensor.copy_(encoded)


class RawHub(Part):
    """A shard on plain sockets: adds a slice from each worker as shards do, then sends a slice to each worker.

    Without a ``codec``, the bytes are not numbers, and nothing is added.
    """

    def __init__(self, *, workers: int, slice_bytes: int, codec: m.Codec | None) -> None:
        self.listener = socket.create_server((HOST, 0), backlog=workers)
        self.facts = {"port": self.listener.getsockname()[1]}
        self.slice = b"\1" * slice_bytes
        self.inboxes: list[memoryview] = [memoryview(bytearray(slice_bytes)) for _ in range(workers)]
        self.connections: list[socket.socket] = []
        self.codec = codec
        self.sum = GradientSum(slice_bytes // CODECS[codec].element_bytes if codec else 0)

    def run(self, rounds: int, pause_s: float) -> PartFacts:
        """Returns when each worker's slice had been added (``arrived``), and when the answers began (``published``)."""
        while len(self.connections) < len(self.inboxes):
            self.connections.append(_quick(self.listener.accept()[0]))
        arrived, published = [], []
        for _ in range(rounds):
            arrived.append(self._take_in())
            published.append(time.monotonic_ns())
            for connection in self.connections:
                connection.sendall(self.slice)
        return {"arrived": arrived, "published": published}

    def close(self) -> None:
        for each in (self.listener, *self.connections):
            each.close()

    def _take_in(self) -> list[int]:
        whole = dict(zip(self.connections, self.inboxes, strict=True))
        left = whole.copy()
        ends: list[int] = []
        with selectors.DefaultSelector() as incoming:
            for connection in left:
                incoming.register(connection, selectors.EVENT_READ, connection)
            while left:
                for key, _ in incoming.select():
                    left[key.data] = _received(key.data, left[key.data])
                    if not left[key.data]:
                        if self.codec is not None:
                            self.sum.add(ReceivedSlice(self.codec, whole[key.data]), first=not ends)
                        ends.append(time.monotonic_ns())
                        incoming.unregister(key.data)
                        del left[key.data]
        return ends


class RawWorker(TimedPart):
    """Sends a slice to each hub and receives a slice from each hub, on plain sockets."""

    def __init__(self, *, ports: list[int], slices_bytes: list[int]) -> None:
        self.connections = [_quick(socket.create_connection((HOST, port))) for port in ports]
        self.gradient = [b"\1" * size for size in slices_bytes]
        self.outbox, self.inbox = ([memoryview(bytearray(size)) for size in slices_bytes] for _ in range(2))

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    def _prepare(self) -> None:
        for buffer, written in zip(self.outbox, self.gradient, strict=True):
            buffer[:] = written

    def _round(self) -> None:
        for connection, buffer in zip(self.connections, self.outbox, strict=True):
            connection.sendall(buffer)
        for connection, left in zip(self.connections, self.inbox, strict=True):
            while left:
                left = _received(connection, left)


class Copier(TimedPart):
    """Copies one array to another."""

    def __init__(self, *, pieces: int, piece_bytes: int) -> None:
        self.pieces = pieces
        self.source, self.target = np.full(piece_bytes, 1, np.uint8), np.full(piece_bytes, 0, np.uint8)

    def _round(self) -> None:
        for _ in range(self.pieces):
            np.copyto(self.target, self.source)


class ByteLimit(Part):
    """The least work of an update: a copy of each payload, and one step of the optimizer over ``count`` parameters.

    A round has the sum of the two times. All copies of a block precede all steps, so both find their data in the
    caches.
    """

    def __init__(self, *, pieces: int, piece_bytes: int, workers: int, count: int) -> None:
        self.copier, self.steps = Copier(pieces=pieces, piece_bytes=piece_bytes), AdamSteps(count)
        self.workers, self.gradient = workers, gradient(count)

    def run(self, rounds: int, pause_s: float) -> PartFacts:
        copies, done = self.copier.run(rounds, pause_s), []
        for copied in copies["done"]:
            step_begun = time.monotonic_ns()
            self.steps.step(self.gradient, self.workers)
            done.append(copied + time.monotonic_ns() - step_begun)
        return {"begun": copies["begun"], "done": done}


def _keys(data: dict[str, Any] | None) -> ClientKeys | None:
    return ClientKeys.from_json(data) if data else None


def _quick(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _received(connection: socket.socket, buffer: memoryview) -> memoryview:
    """Receive into ``buffer``. Returns its unfilled part."""
    count = connection.recv_into(buffer)
    if not count:
        raise ConnectionError("the other end has closed a plain socket")
    return buffer[count:]
