"""The supervisor's control connections: one DEALER socket to each shard."""

import os
import socket as host_socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import zmq

from zmqrl.errors import ClusterError
from zmqrl.ps import framing
from zmqrl.ps import messages as m
from zmqrl.ps.security import ClientKeys
from zmqrl.ps.sockets import new_context, new_socket

T = TypeVar("T")
Arrival = tuple[int, m.Message, bytes | None]

ASK_AGAIN_S = 0.5


class ShardControl:
    """Speaks to every shard as the supervisor of the run."""

    def __init__(
        self, run: str, layout: str, secret: str, endpoints: list[str], keys: ClientKeys | None = None
    ) -> None:
        self.run, self.layout, self.secret = run, layout, secret
        self.incarnation = time.time_ns() // 1_000_000
        self.context = new_context()
        self.poller = zmq.Poller()
        self.backlog: list[Arrival] = []
        self.sockets: list[zmq.Socket[bytes]] = []
        for shard, endpoint in enumerate(endpoints):
            socket = new_socket(self.context, zmq.DEALER, send_most=64, receive_most=256)
            if keys is not None:
                keys.secure(socket, shard)
            socket.connect(endpoint)
            self.poller.register(socket, zmq.POLLIN)
            self.sockets.append(socket)

    def hello(self) -> m.Hello:
        """Who we are; the secret proves it."""
        return m.Hello(
            run=self.run,
            layout=self.layout,
            role="supervisor",
            rank=0,
            incarnation=self.incarnation,
            host=host_socket.gethostname()[:64],
            pid=os.getpid(),
            secret=self.secret,
        )

    def greet(
        self, shards: Iterable[int], *, within_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[int, m.Welcome]:
        """Say HELLO to ``shards`` and wait to be welcomed by each. Raises ClusterError."""
        what = "greeting the shards"
        return self.ask(
            shards, lambda _: self.hello(), only(m.Welcome), within_s=within_s, what=what, meanwhile=meanwhile
        )

    def send(self, shard: int, message: m.Message, payload: bytes | None = None) -> bool:
        """Send without waiting; False when the shard is not connected now."""
        frames = [framing.encode(message)] + ([payload] if payload is not None else [])
        try:
            self.sockets[shard].send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def arrivals(self, timeout_s: float) -> Iterator[Arrival]:
        """What has arrived, after waiting at most ``timeout_s`` for the first."""
        if self.backlog:
            timeout_s = 0
        ready = dict(self.poller.poll(int(timeout_s * 1000)))
        backlog, self.backlog = self.backlog, []
        yield from backlog
        for shard, socket in enumerate(self.sockets):
            if socket in ready:
                yield from self._read(shard, socket)

    def ask(
        self,
        shards: Iterable[int],
        question: Callable[[int], m.Message],
        answer: Callable[[m.Message], T | None],
        *,
        within_s: float,
        what: str,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[int, T]:
        """Ask ``shards`` and wait for the answer of each; what else arrives is kept for ``arrivals``.

        ``answer`` returns None for a message that is not the answer. The question is repeated, as either may be lost.
        ``meanwhile`` is called again and again, to look after what else may happen. Raises ClusterError that names the
        silent shards after ``within_s``.
        """
        waiting = set(shards)
        answers: dict[int, T] = {}
        # What is there already answers an earlier question.
        self.backlog += [arrival for shard, socket in enumerate(self.sockets) for arrival in self._read(shard, socket)]
        deadline = time.monotonic() + within_s
        ask_at, again = 0.0, False
        while waiting:
            meanwhile()
            now = time.monotonic()
            if now >= deadline:
                silent = ", ".join(f"shard {shard}" for shard in sorted(waiting))
                raise ClusterError(f"{what}: no answer from {silent} within {within_s:g} s.")
            if now >= ask_at:
                ask_at = now + ASK_AGAIN_S
                for shard in waiting:
                    message = question(shard)
                    if again and not isinstance(message, m.Hello):
                        # A connection that was cut and made again is a stranger to the shard.
                        self.send(shard, self.hello())
                    self.send(shard, message)
                again = True
            for socket, _ in self.poller.poll(50):
                shard = self.sockets.index(socket)
                for arrival in self._read(shard, socket):
                    found = answer(arrival[1]) if shard in waiting else None
                    if found is None:
                        self.backlog.append(arrival)
                    else:
                        answers[shard] = found
                        waiting.discard(shard)
        return answers

    def stats(
        self, shards: Iterable[int], *, within_s: float, what: str, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[int, m.Stats]:
        """Where ``shards`` stand now."""
        question = m.StatsRequest(run=self.run)
        return self.ask(shards, lambda _: question, only(m.Stats), within_s=within_s, what=what, meanwhile=meanwhile)

    def load(
        self, shard: int, generation: int, version: int, view: int, quorum: int, members: tuple[int, ...], state: bytes
    ) -> None:
        """Give ``state`` (weights, then optimizer state) to ``shard``, piece by piece. Raises ClusterError."""
        for offset in range(0, len(state), m.CHUNK_BYTES):
            piece = state[offset : offset + m.CHUNK_BYTES]
            load = m.Load(
                run=self.run,
                generation=generation,
                version=version,
                view=view,
                quorum=quorum,
                members=members,
                offset=offset,
                total=len(state),
            )
            loaded = m.Loaded(run=self.run, shard=shard, generation=generation, offset=offset + len(piece))
            self._exchange(shard, load, piece, lambda answer, loaded=loaded: answer == loaded)  # type: ignore[misc]

    def fetch(self, shard: int, version: int) -> bytes:
        """The copy of ``version`` that ``shard`` has set aside. Raises ClusterError when it has none."""
        state = bytearray()
        total = 1
        while len(state) < total:
            fetch = m.Fetch(run=self.run, version=version, offset=len(state))
            chunk, piece = self._exchange(shard, fetch, None, _is_chunk)
            if isinstance(chunk, m.Missing):
                raise ClusterError(f"shard {shard} no longer has version {version} set aside.")
            assert isinstance(chunk, m.Chunk)
            if chunk.version == version and chunk.offset == len(state) and piece:
                state += piece
                total = chunk.total
        return bytes(state)

    def close(self) -> None:
        """Close every connection."""
        self.context.destroy(linger=0)

    def _exchange(
        self,
        shard: int,
        message: m.Message,
        payload: bytes | None,
        is_answer: Callable[[m.Message], bool],
        *,
        within_s: float = 10.0,
    ) -> tuple[m.Message, bytes | None]:
        """Send one message to one shard and wait for its answer. A lost one is not repeated: it raises ClusterError."""
        socket = self.sockets[shard]
        deadline = time.monotonic() + within_s
        sent = False
        while time.monotonic() < deadline:
            if not sent:
                sent = self.send(shard, message, payload)
            if not socket.poll(50 if sent else 5):
                continue
            for arrival in self._read(shard, socket):
                if is_answer(arrival[1]):
                    return arrival[1], arrival[2]
                self.backlog.append(arrival)
        kind = framing.kind_of(type(message))
        raise ClusterError(f"shard {shard} did not answer {kind} within {within_s:g} s.")

    def _read(self, shard: int, socket: "zmq.Socket[bytes]") -> Iterator[Arrival]:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = framing.decode(frames[0])
            except framing.MalformedMessage:
                continue
            yield shard, message, frames[1] if len(frames) > 1 else None


def only(kind: type[T]) -> Callable[[object], T | None]:
    """An ``answer`` for ``ask``: any message of one kind."""
    return lambda message: message if isinstance(message, kind) else None


def _is_chunk(message: m.Message) -> bool:
    return isinstance(message, m.Chunk | m.Missing)
