"""A worker's connection to all shards, which pulls weights and pushes gradients.

A separate thread owns the sockets and the state machine of ``machine.py``, so the worker answers the shards even during
a long rollout.
"""

import contextlib
import logging
import math
import os
import queue
import socket as host_socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

import msgpack
import numpy as np
import zmq

from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.spans import WORKER_SPANS, Spans
from zmqrl.process import LOOK_UP_EVERY_S
from zmqrl.process_id import worker_id
from zmqrl.profile.profiler import Profiler, ProfilerJob, now_us
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector, payload_bytes
from zmqrl.ps.wire.memory import SharedMemory, SharedPayload
from zmqrl.ps.wire.sockets import FailureMonitor, connect, new_context, worker_sockets
from zmqrl.ps.worker import events as e
from zmqrl.ps.worker.gradients import Gradients, Outgoing
from zmqrl.ps.worker.known_shard import Tally
from zmqrl.ps.worker.machine import WorkerMachine, WorkerTiming
from zmqrl.words import counted

POLL_MS = 50
CLOSED_WITHIN_S = 5.0


class NotFinite(ClusterError):
    """Shards would reject a gradient, because a number is not finite."""


@dataclass(frozen=True, slots=True)
class PulledWeights:
    """The parameter vector of one version: float32 (count,), valid until the next ``pull``.

    ``versions`` has the version of each slice. They differ only in asynchronous mode. ``elapsed`` is the progress of
    the run, from 0 to 1. All workers and shards use the same progress for a version.
    """

    generation: int
    versions: tuple[int, ...]
    vector: FloatVector
    elapsed: float = 0.0

    @property
    def version(self) -> int:
        """The version of the oldest slice."""
        return min(self.versions)


class PublishedMemory(NamedTuple):
    """The memory in which one process of a shard publishes."""

    incarnation: int
    memory: SharedMemory


class Connection:
    """One worker's connection to all shards of a run.

    Call ``pull`` and ``push`` from the same thread. Use the connection as a context manager, or call ``close``.
    """

    def __init__(
        self,
        cluster: Cluster,
        rank: int,
        *,
        incarnation: int | None = None,
        code: str = "",
        spans: Spans | None = None,
        profiler: ProfilerJob | None = None,
        timing: WorkerTiming | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        """``incarnation`` must be greater than that of the previous process of this rank. None: use the current time.

        ``code`` identifies the zmqrl source code of the worker. Shards refuse a code that differs from their own. Leave
        ``code`` empty in your own program. With ``profiler``, the worker records its time. Raises UsageError when the
        run uses CURVE and ``cluster`` has no keys.
        """
        if cluster.key_files is not None and cluster.keys is None:
            raise UsageError(f"this run is encrypted: worker {rank} cannot join without its keys.")
        self.cluster = cluster
        self.rank = rank
        self.incarnation = incarnation or time.time_ns() // 1_000_000
        self.spans = spans or Spans()
        self._log = log or logging.getLogger("zmqrl.ps.worker.connection")
        self._profiler = (
            None
            if profiler is None
            else Profiler(
                profiler, worker_id(rank), self.spans, run=cluster.run, incarnation=self.incarnation, log=self._log
            )
        )
        self._cycle_began_us = now_us()
        self._arrivals_us = [0] * len(cluster.layout.slices)  # when the newest slice of each shard arrived
        self._pulled = (0, 0)  # when the last slice of the version arrived, and from which shard
        self._slices = cluster.layout.slices
        self._vector = np.zeros(cluster.layout.count, np.float32)
        self._generation = -1  # the generation that ``pull`` returned last
        self._gradients = Gradients(cluster, rank, self._log)
        self._published: list[PublishedMemory | None] = [None] * len(self._slices)
        self._outgoing: Outgoing | None = None  # the newest contribution that the machine knows
        self._machine = WorkerMachine(
            run=cluster.run,
            layout=cluster.layout.hash,
            shards=len(self._slices),
            rank=rank,
            incarnation=self.incarnation,
            codec=cluster.codec,
            host=host_socket.gethostname()[:64],
            pid=os.getpid(),
            now=time.monotonic(),
            timing=timing,
            asynchronous=cluster.asynchronous,
            code=code,
        )
        self._lock = threading.Lock()  # guards the machine, which the computing thread reads
        self._inbox: queue.SimpleQueue[e.Event | Outgoing | m.Report | None] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._answers: queue.SimpleQueue[e.Assembled | e.Ended | e.Failed] = queue.SimpleQueue()
        self._pulls = 0
        self._final: e.Ended | e.Failed | None = None
        self._failed = False
        self.reports_too_large = 0
        self._monitors: list[FailureMonitor] = []
        self._left = 0
        self._ignored = framing.Ignored()
        self._thread = threading.Thread(target=self._run, name="zmqrl-connection", daemon=True)
        self._thread.start()

    # for the computing thread

    def pull(self, above: int = -1, *, timeout_s: float | None = None) -> PulledWeights | None:
        """Wait for a complete version above ``above``. Returns None when the run has ended.

        A rollback makes version numbers smaller, so the first version after a rollback counts even if it is not above
        ``above``. In asynchronous mode, ``above`` has no effect: ``pull`` waits for slices that are newer than those of
        the last contribution. The result has the version of the oldest slice. Its vector is valid until the next call
        of ``pull``. Raises ClusterError after ``timeout_s``, when a shard is silent for ``WorkerTiming.lease_s``, or
        when a shard refuses this worker.
        """
        give_up_at = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while self._final is None:
            self._pulls += 1
            self._post(e.Pulling(above, self._generation, self._pulls))
            with self.spans("wait"), self._profiler.waiting() if self._profiler else contextlib.nullcontext():
                answer = self._answer(give_up_at)
            if answer is None:
                raise ClusterError(f"no version above {above} within {timeout_s} s: {self.where()}.")
            if not isinstance(answer, e.Assembled):
                self._final = answer
            elif (weights := self._assemble(answer)) is not None:
                return weights
        if isinstance(self._final, e.Failed):
            raise ClusterError(self._final.reason)
        return None

    def gradient_buffer(self) -> FloatVector:
        """A float32 (count,) vector for the next gradient, the same until you push it. Nothing else uses it before."""
        return self._gradients.buffer()

    def push(self, weights: PulledWeights, gradient: FloatVector) -> None:
        """Contribute ``gradient``, float32 (count,), computed on ``weights``. Does not block.

        ``gradient`` is read in place until the next ``pull`` returns, or longer. Call ``gradient_buffer`` for each
        push. Raises NotFinite, a ClusterError.
        """
        assert gradient.dtype == np.float32
        assert gradient.shape == self._vector.shape
        codec = self.cluster.codec
        with self.spans("encode"):
            payload = CODECS[codec].encode(gradient)
            is_finite = CODECS[codec].is_finite(payload)
        if not is_finite:
            raise NotFinite(f"the gradient of version {weights.version} is not finite as {codec}.")
        with self.spans("push"):
            contributed = e.Contributed(weights.generation, weights.versions, round(weights.elapsed * WHOLE))
            self._post(self._gradients.outgoing(contributed, gradient, payload))
        if self._profiler is not None:
            self._record_cycle(self._profiler, weights)

    def _record_cycle(self, profiler: Profiler, weights: PulledWeights) -> None:
        began_us, self._cycle_began_us = self._cycle_began_us, now_us()
        pulled_us, shard = self._pulled
        times = (began_us, pulled_us, self._cycle_began_us)
        used = *profiler.spent_us(*WORKER_SPANS), *profiler.used(), profiler.queued_us()
        profiler.add("cycles", weights.generation, weights.version, *times, shard, *used)
        profiler.step(time.monotonic())

    def passed(self, version: int) -> bool:
        """Whether every shard is past ``version``, so that no shard can use a gradient computed on ``version``."""
        with self._lock:
            return self._machine.passed(version)

    def tally(self) -> Tally:
        """The outcomes of this worker's slices."""
        with self._lock:
            return self._machine.tally

    def where(self) -> str:
        """Describe the state of each shard."""
        with self._lock:
            return self._machine.where(time.monotonic())

    def report(self, figures: Mapping[str, object]) -> None:
        """Send metrics to the supervisor of the run: numbers, strings, lists and maps, at most 16 KiB.

        A larger report is not sent. ``reports_too_large`` counts such reports, and the first one is logged.
        """
        packed = msgpack.packb(figures)
        if len(packed) > m.MAX_REPORT_BYTES:
            self._note_too_large(figures, len(packed))
            return
        self._post(m.Report(run=self.cluster.run, rank=self.rank, incarnation=self.incarnation, figures=packed))

    def _note_too_large(self, figures: Mapping[str, object], size: int) -> None:
        self.reports_too_large += 1
        if self.reports_too_large == 1:
            sizes = {name: len(msgpack.packb(part)) for name, part in figures.items()}
            largest = max(sizes, key=lambda name: sizes[name])
            self._log.warning(
                "a report of %d bytes was not sent: the limit is %d bytes, and %r alone takes %d. "
                "When the worker ends, this log shows how many reports were not sent",
                size,
                m.MAX_REPORT_BYTES,
                largest,
                sizes[largest],
            )

    def close(self, timeout_s: float = 2.0) -> None:
        """Tell the shards that this worker leaves, wait at most ``timeout_s`` for the answers, and close everything."""
        if self._thread.is_alive():
            self._post(e.Leaving())
            deadline = time.monotonic() + timeout_s
            while self._left < len(self._slices) and time.monotonic() < deadline and self._thread.is_alive():
                time.sleep(0.01)
            self._post(None)
            self._thread.join(CLOSED_WITHIN_S)
        if self._profiler is not None:
            self._profiler.close()
        if not self._thread.is_alive():  # otherwise the thread still uses the descriptor
            os.close(self._wake)
        self._gradients.close()
        if self.reports_too_large:
            self._log.warning(
                "%s too large and not sent", counted(self.reports_too_large, "report was", "reports were")
            )

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, event: "e.Event | Outgoing | m.Report | None") -> None:
        self._inbox.put(event)
        os.eventfd_write(self._wake, 1)

    def _answer(self, give_up_at: float) -> e.Assembled | e.Ended | e.Failed | None:
        """The answer to the newest ``Pulling``, or None if it has not come at the time ``give_up_at``."""
        while True:
            left_s = give_up_at - time.monotonic()
            try:  # short waits: a signal that arrives just before a wait does not end the wait
                answer = self._answers.get(timeout=max(0.0, min(left_s, LOOK_UP_EVERY_S)))
            except queue.Empty:
                if left_s > LOOK_UP_EVERY_S:
                    continue
                return None
            if not isinstance(answer, e.Assembled) or answer.pull == self._pulls:  # else the pull has timed out
                return answer

    def _assemble(self, answer: e.Assembled) -> PulledWeights | None:
        """Returns None if a shard has overwritten a slice in its memory. Then a newer version is about to arrive."""
        self.spans.version = answer.version
        with self.spans("assemble"):
            for cut, version, (name, payload) in zip(self._slices, answer.versions, answer.payloads, strict=True):
                CODECS[name].decode_into(payload.buffer, self._vector[cut.start : cut.stop])
                if isinstance(payload, SharedPayload) and not payload.is_whole():
                    self._post(e.Overwritten(cut.shard, version))
                    return None
        self._generation = answer.generation
        return PulledWeights(answer.generation, answer.versions, self._vector, answer.elapsed / WHOLE)

    # for the thread that owns the sockets

    def _run(self) -> None:
        context = new_context()
        try:
            self._sockets = [
                worker_sockets(context, self.rank, self.incarnation, self.cluster.keys, cut.shard)
                for cut in self._slices
            ]
            # Monitor before connecting: some failures happen only once. One socket is enough, as all three use the same
            # keys.
            self._monitors = [FailureMonitor(sockets["control"]) for sockets in self._sockets]
            for sockets, endpoints in zip(self._sockets, self.cluster.endpoints, strict=True):
                connect(sockets, endpoints)
            self._serve()
        except Exception as error:
            self._log.exception("the connection failed")
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            self._answers.put(e.Failed(f"the connection of worker {self.rank} failed: {reason.rstrip('.')}."))
        finally:
            if ignored := self._ignored.take_all():
                self._log.warning("%s", ignored)
            for monitor in self._monitors:
                monitor.close()
            context.destroy(linger=0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        for sockets in self._sockets:
            poller.register(sockets["weights"], zmq.POLLIN)
            poller.register(sockets["control"], zmq.POLLIN)
        self._handle(self._tick())
        tick_at = time.monotonic()
        while not self._failed:
            for shard, sockets in enumerate(self._sockets):
                poller.register(sockets["grad"], zmq.POLLOUT if self._machine.pending(shard) else 0)
            ready = dict(poller.poll(POLL_MS))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            while not self._inbox.empty():
                event = self._inbox.get()
                if event is None:
                    return
                if isinstance(event, m.Report):
                    # Stops at the first shard to which the report can be sent.
                    any(self._send(shard, event) for shard in self._machine.report_order())
                elif isinstance(event, Outgoing):
                    self._release()
                    self._outgoing = event
                    self._handle(event.contributed)
                else:
                    self._handle(event)
            for shard, sockets in enumerate(self._sockets):
                if sockets["weights"] in ready:
                    self._receive_publications(shard)
                if sockets["control"] in ready:
                    self._receive_control(shard)
                if sockets["grad"] in ready:
                    self._handle(e.Writable(shard))
            if time.monotonic() - tick_at >= POLL_MS / 1000:
                tick_at = time.monotonic()
                for shard, monitor in enumerate(self._monitors):
                    monitor.read()
                    if "handshake" in monitor.take():
                        self._handle(e.HandshakeFailed(shard))
                if ignored := self._ignored.take(tick_at):
                    self._log.warning("%s", ignored)
                self._handle(self._tick())

    def _tick(self) -> e.Tick:
        current = self.spans.current
        if current is None:
            return e.Tick()
        name, started_ns = current
        return e.Tick(name[: m.LONGEST_SPAN_NAME], max(0, (time.monotonic_ns() - started_ns) // 1_000_000))

    def _receive_publications(self, shard: int) -> None:
        for frames in _all_messages(self._sockets[shard]["weights"]):
            decoded = self._decode(m.PUBLICATIONS, shard, frames[1:])  # without the topic
            if decoded is None:
                continue
            message, frame = decoded
            payload: e.Payload | None = frame
            if isinstance(message, m.Weights) and frames[0].bytes == m.TOPIC_SHARED:
                published = self._published[shard]
                if published is not None and published.incarnation == message.incarnation and message.place:
                    payload = SharedPayload(published.memory, message.place)
                else:  # from a new process of the shard, whose memory is not known yet
                    payload = None
            if isinstance(message, m.Weights) and payload is not None and not self._is_slice(shard, message, payload):
                continue
            self._handle(e.PublicationArrived(shard, message, payload))

    def _receive_control(self, shard: int) -> None:
        for frames in _all_messages(self._sockets[shard]["control"]):
            decoded = self._decode(m.ANSWERS, shard, frames)
            if decoded is None:
                continue
            message, payload = decoded
            if isinstance(message, m.Left):
                self._left += 1
                continue
            if isinstance(message, m.MemoryShared):
                self._shared(shard, message)
                continue
            if isinstance(message, m.Welcome):
                self._share(shard, message)
            if isinstance(message, m.Snapshot) and not self._is_slice(shard, message, payload):
                continue
            if isinstance(message, m.Pong) and self._profiler is not None:
                times = (message.sent_us, message.received_us, message.answered_us, now_us())
                self._profiler.add("pings", shard, *times)
            self._handle(e.ControlArrived(shard, message, payload))

    def _share(self, shard: int, welcome: m.Welcome) -> None:
        """Offer the memory of the gradients to a shard. The publications of a new process still are in messages."""
        memory, published = self._gradients.memory, self._published[shard]
        if memory is None or welcome.run != self.cluster.run:
            return
        if published is not None and published.incarnation < welcome.incarnation:
            published.memory.is_gone, self._published[shard] = True, None
            self._subscribe(shard, m.TOPIC_WEIGHTS, instead_of=m.TOPIC_SHARED)
        run, rank, incarnation = self.cluster.run, self.rank, self.incarnation
        self._send(shard, m.ShareMemory(run=run, rank=rank, incarnation=incarnation, memory=memory.name))

    def _shared(self, shard: int, shared: m.MemoryShared) -> None:
        """Read the publications of a shard in its memory from now on, if possible."""
        if shared.run != self.cluster.run or shared.incarnation != self._machine.shards[shard].incarnation:
            return
        if self._published[shard] is not None:
            return
        memory = SharedMemory.open(shared.memory, payload_bytes(self.cluster.codec, self._slices[shard].count))
        if memory is None:
            self._ignored.add(
                f"MEMORY_SHARED of memory that cannot be read, so payloads are in messages, from shard {shard}"
            )
            return
        self._published[shard] = PublishedMemory(shared.incarnation, memory)
        self._subscribe(shard, m.TOPIC_SHARED, instead_of=m.TOPIC_WEIGHTS)

    def _subscribe(self, shard: int, topic: bytes, *, instead_of: bytes) -> None:
        socket = self._sockets[shard]["weights"]
        socket.subscribe(topic)
        socket.unsubscribe(instead_of)

    def _decode(
        self, inbox: m.Inbox[m.Kind], shard: int, frames: list[zmq.Frame]
    ) -> tuple[m.Kind, zmq.Frame | None] | None:
        """The message of a header, and its payload if it has one. None if the worker must ignore the message."""
        try:
            message = framing.decode_at(inbox, frames[0].buffer if frames else b"", len(frames) - 1)
        except framing.MalformedMessage as error:
            self._ignored.add(f"{error} from shard {shard}")
            return None
        return message, frames[1] if len(frames) > 1 else None

    def _is_slice(self, shard: int, message: m.Weights | m.Snapshot, payload: "e.Payload | None") -> bool:
        """Whether ``payload`` has the length of the slice of ``shard``. Records when the slice arrived."""
        assert payload is not None, "weights without a payload"
        if len(payload) != payload_bytes(message.codec, self._slices[shard].count):
            self._ignored.add(f"{framing.kind_of(type(message))} of the wrong length from shard {shard}")
            return False
        self._arrivals_us[shard] = now_us()
        return True

    def _handle(self, event: e.Event) -> None:
        with self._lock:
            actions = self._machine.handle(event, time.monotonic())
        for action in actions:
            match action:
                case e.SendControl():
                    self._send(action.shard, action.message)
                case e.SendGradient():
                    self._send_gradient(action.shard, action.header)
                case e.Release():
                    self._release()
                case e.Assembled():
                    last_us = max(self._arrivals_us)
                    self._pulled = last_us, self._arrivals_us.index(last_us)
                    self._answers.put(action)
                case e.Ended():
                    self._answers.put(action)
                case e.Failed():
                    self._answers.put(action)
                    self._failed = True
                case e.Log():
                    self._log.log(logging.getLevelNamesMapping()[action.level.upper()], action.text)
                case _:
                    assert_never(action)

    def _release(self) -> None:
        if self._outgoing is not None:
            self._outgoing.released = True

    def _send(self, shard: int, message: m.FromWorker) -> bool:
        """Send without waiting. Returns whether ``message`` was sent."""
        try:
            self._sockets[shard]["control"].send(framing.encode(message), zmq.NOBLOCK)
        except zmq.Again:  # not connected: timers resend important messages
            self._log.debug("%s to shard %d not sent", type(message).__name__, shard)
            return False
        return True

    def _send_gradient(self, shard: int, header: m.Gradient) -> None:
        cut = self._slices[shard]
        outgoing = self._outgoing
        assert outgoing is not None
        assert header.version == outgoing.contributed.versions[shard]
        payload = outgoing.payload[cut.start : cut.stop].data.cast("B")
        header = replace(header, place=outgoing.number)
        published = self._published[shard]
        try:
            if published is not None and outgoing.is_shared and header.attempt == 0:
                self._sockets[shard]["grad"].send_multipart([framing.encode(header), b""], zmq.NOBLOCK)
                outgoing.readers.append(published.memory)
                return
            tracker = self._sockets[shard]["grad"].send_multipart(
                [framing.encode(header), payload], zmq.NOBLOCK, copy=False, track=True
            )
            assert tracker is not None
            outgoing.trackers.append(tracker)
        except zmq.Again:
            self._handle(e.SendBlocked(shard))


def _all_messages(socket: "zmq.Socket[bytes]") -> list[list[zmq.Frame]]:
    messages = []
    while True:
        try:
            messages.append(socket.recv_multipart(zmq.NOBLOCK, copy=False))
        except zmq.Again:
            return messages
