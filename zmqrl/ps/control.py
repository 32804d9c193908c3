"""Brings up shards, and talks to them as their supervisor: one DEALER socket to each shard."""

import logging
import os
import socket as host_socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import zmq

from zmqrl.errors import ClusterError
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import ClientKeys
from zmqrl.ps.wire.sockets import ShardUp, new_context, new_socket

T = TypeVar("T")

ASK_AGAIN_S = 0.5
ANSWER_WITHIN_S = 10.0  # for each piece of a state
TURN_S = 0.02
LOG = logging.getLogger(__name__)


class NoAnswer(ClusterError):
    """``shards`` did not answer a repeated question in time."""

    def __init__(self, sentence: str, shards: Collection[int]) -> None:
        super().__init__(sentence)
        self.shards = shards


class ShardControl:
    """Sends the supervisor's messages to all shards of a run, and receives the answers.

    ``other`` gets each message that does not answer the current question. ``other`` must not call ``ask``. ``warn``
    gets sentences about messages that are ignored because they are malformed or not for a supervisor.
    """

    def __init__(
        self,
        run: str,
        layout: str,
        secret: str,
        endpoints: list[str],
        keys: ClientKeys | None = None,
        other: Callable[[int, m.ToSupervisor], None] = lambda shard, message: None,
        warn: Callable[[str], None] = LOG.warning,
    ) -> None:
        self.run, self.layout, self.secret, self.other = run, layout, secret, other
        self.warn, self._ignored = warn, framing.Ignored()
        self.incarnation = time.time_ns() // 1_000_000
        self.context = new_context()
        self.poller = zmq.Poller()
        self.sockets: list[zmq.Socket[bytes]] = []
        for shard, endpoint in enumerate(endpoints):
            socket = new_socket(self.context, zmq.DEALER, send_most=64, receive_most=256)
            if keys is not None:
                keys.secure(socket, shard)
            socket.connect(endpoint)
            self.poller.register(socket, zmq.POLLIN)
            self.sockets.append(socket)

    def hello(self) -> m.Hello:
        """The supervisor's HELLO. Its secret proves the identity of the sender."""
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
        """Send HELLO to ``shards`` and wait for each WELCOME. Raises NoAnswer, as ``ask`` does."""
        what = "connecting to the shards"
        return self.ask(
            shards, lambda _: self.hello(), only(m.Welcome), within_s=within_s, what=what, meanwhile=meanwhile
        )

    def send(self, shard: int, message: m.FromSupervisor, payload: bytes | None = None) -> bool:
        """Send without blocking. Returns False when the shard is not connected."""
        frames = [framing.encode(message)] + ([payload] if payload is not None else [])
        try:
            self.sockets[shard].send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def arrivals(self, timeout_s: float) -> Iterator[tuple[int, m.ToSupervisor]]:
        """Wait at most ``timeout_s`` for messages. Yields pairs of shard number and message.

        ``arrivals`` drops payloads: the supervisor needs only that of CHUNK, for which ``fetch`` waits.
        """
        ready = dict(self.poller.poll(int(timeout_s * 1000)))
        for shard, socket in enumerate(self.sockets):
            if socket in ready:
                yield from ((shard, message) for message, _ in self._read(socket))
        self._tell_ignored()

    def ask(
        self,
        shards: Iterable[int],
        question: Callable[[int], m.FromSupervisor],
        answer: Callable[[m.ToSupervisor], T | None],
        *,
        within_s: float,
        what: str,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[int, T]:
        """Send each shard its ``question`` and wait for all answers. Other messages go to ``other``.

        ``answer`` returns None for a message that is not the answer. A message may be lost, so ``ask`` repeats the
        question. ``meanwhile`` is called repeatedly during the wait. Raises NoAnswer, which names the silent shards,
        after ``within_s``.
        """
        waiting = set(shards)
        answers: dict[int, T] = {}
        for shard, message in self.arrivals(0.0):  # late answers to earlier questions
            self.other(shard, message)
        deadline = time.monotonic() + within_s
        ask_at, again = 0.0, False
        while waiting:
            meanwhile()
            now = time.monotonic()
            if now >= deadline:
                silent = ", ".join(f"shard {shard}" for shard in sorted(waiting))
                raise NoAnswer(f"{what}: no answer from {silent} within {within_s:g} s.", waiting)
            if now >= ask_at:
                ask_at = now + ASK_AGAIN_S
                for shard in waiting:
                    asked = question(shard)
                    if again and not isinstance(asked, m.Hello):
                        # After a reconnect, a shard does not know us until we send HELLO.
                        self.send(shard, self.hello())
                    self.send(shard, asked)
                again = True
            for socket, _ in self.poller.poll(50):
                shard = self.sockets.index(socket)
                for message, _ in self._read(socket):
                    found = answer(message) if shard in waiting else None
                    if found is None:
                        self.other(shard, message)
                    else:
                        answers[shard] = found
                        waiting.discard(shard)
            self._tell_ignored()
        return answers

    def stats(
        self, shards: Iterable[int], *, within_s: float, what: str, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[int, m.Stats]:
        """Ask ``shards`` for their STATS. Raises NoAnswer, as ``ask`` does."""
        question = m.StatsRequest(run=self.run)
        return self.ask(shards, lambda _: question, only(m.Stats), within_s=within_s, what=what, meanwhile=meanwhile)

    def load(
        self,
        shard: int,
        generation: int,
        version: int,
        view: int,
        quorum: int,
        members: tuple[int, ...],
        state: bytes,
        *,
        elapsed: int = 0,
    ) -> None:
        """Load ``state`` (weights, then optimizer state) into ``shard``, in pieces.

        Raises ClusterError when the shard does not confirm a piece in time.
        """
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
                elapsed=elapsed,
            )
            loaded = m.Loaded(run=self.run, shard=shard, generation=generation, offset=offset + len(piece))
            self._exchange(shard, load, piece, lambda answer, loaded=loaded: answer == loaded)  # type: ignore[misc]

    def fetch(self, shard: int, version: int) -> bytes:
        """Fetch the copy of ``version`` that ``shard`` keeps for a checkpoint.

        Raises ClusterError when the shard has no such copy or does not answer in time.
        """
        state = bytearray()
        total = 1
        while len(state) < total:
            fetch = m.Fetch(run=self.run, version=version, offset=len(state))
            chunk, piece = self._exchange(shard, fetch, None, _is_chunk)
            if isinstance(chunk, m.Missing):
                raise ClusterError(f"shard {shard} no longer keeps a copy of version {version}.")
            assert isinstance(chunk, m.Chunk)
            if chunk.version == version and chunk.offset == len(state) and piece:
                state += piece
                total = chunk.total
        return bytes(state)

    def close(self) -> None:
        if ignored := self._ignored.take_all():
            self.warn(ignored)
        self.context.destroy(linger=0)

    def _exchange(
        self,
        shard: int,
        message: m.FromSupervisor,
        payload: bytes | None,
        is_answer: Callable[[m.ToSupervisor], bool],
    ) -> tuple[m.ToSupervisor, bytes | None]:
        """Send ``message`` once and wait for the answer. Raises ClusterError when no answer arrives in time.

        HELLO goes first, because the shard does not know the sender after a reconnect.
        """
        socket = self.sockets[shard]
        deadline = time.monotonic() + ANSWER_WITHIN_S
        sent = False
        while time.monotonic() < deadline:
            self._tell_ignored()
            if not sent:
                sent = self.send(shard, self.hello()) and self.send(shard, message, payload)
            if not socket.poll(50 if sent else 5):
                continue
            answer: tuple[m.ToSupervisor, bytes | None] | None = None
            for arrived, piece in self._read(socket):
                if answer is None and is_answer(arrived):
                    answer = arrived, piece
                else:
                    self.other(shard, arrived)
            if answer is not None:
                return answer
        kind = framing.kind_of(type(message))
        raise ClusterError(f"shard {shard} did not answer {kind} within {ANSWER_WITHIN_S:g} s.")

    def _read(self, socket: "zmq.Socket[bytes]") -> Iterator[tuple[m.ToSupervisor, bytes | None]]:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                message = framing.decode_at(m.TOLD, frames[0], len(frames) - 1)
            except framing.MalformedMessage as error:
                self._ignored.add(f"{error} from shard {self.sockets.index(socket)}")
                continue
            yield message, frames[1] if len(frames) > 1 else None

    def _tell_ignored(self) -> None:
        if ignored := self._ignored.take(time.monotonic()):
            self.warn(ignored)


def bring_up(
    shards: Collection[int],
    start: Callable[[int], None],
    poll: Callable[[], Mapping[int, ShardUp]],
    *,
    within_s: float,
    advice: str = "",
) -> dict[int, ShardUp]:
    """Start ``shards`` and wait until all are up. Raises ClusterError, which ends with ``advice``, after ``within_s``.

    ``poll`` returns the shards that came up since its last call. It never waits, and raises ClusterError if one died.
    The supervisor of a run does not use this function: while its shards start, it also restarts those that die,
    handles other events and shows the progress.
    """
    for shard in shards:
        start(shard)
    up: dict[int, ShardUp] = {}
    deadline = time.monotonic() + within_s
    while True:
        up |= poll()
        missing = ", ".join(f"shard {shard}" for shard in shards if shard not in up)
        if not missing:
            return {shard: up[shard] for shard in shards}
        if time.monotonic() >= deadline:
            raise ClusterError(f"{missing} did not come up within {within_s:g} s{advice}.")
        time.sleep(TURN_S)


def only(kind: type[T]) -> Callable[[object], T | None]:
    """Make an ``answer`` function for ``ask`` that accepts only messages of class ``kind``."""
    return lambda message: message if isinstance(message, kind) else None


def _is_chunk(message: m.ToSupervisor) -> bool:
    return isinstance(message, m.Chunk | m.Missing)
