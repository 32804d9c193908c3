"""The process of one shard: sockets, arithmetic and storage around the state machine in ``machine.py``.

``python -m zmqrl.ps.shard.server`` reads its job from standard input and prints its endpoints to standard output.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import assert_never
from urllib.parse import urlsplit

import numpy as np
import zmq

try:
    from isal.isal_zlib import crc32  # ten times as fast
except ImportError:  # it has no wheels for this processor
    from zlib import crc32

from zmqrl.errors import DISK_IS_FULL, ClusterError, FullDiskError
from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.observe.spans import SHARD_SPANS, Spans
from zmqrl.process import ended_by_sigterm, log_to_stderr, raise_open_files, read_job, say
from zmqrl.process_id import shard_id
from zmqrl.profile.profiler import Profiler, now_us
from zmqrl.profile.tables import NO_CONTRIBUTION, NOT_MADE
from zmqrl.ps.schedule import WHOLE, elapsed_at
from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.gradients import GradientSum
from zmqrl.ps.shard.history import History, LostState, UndoneState, pack_record, unpack_record
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.machine import ShardMachine
from zmqrl.ps.shard.optimizer import Optimizer
from zmqrl.ps.shard.reception import Reception, SharedGradients
from zmqrl.ps.shard.store import Slot, SlotStore, is_blank
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector, WireVector, payload_bytes
from zmqrl.ps.wire.keys import Authenticator
from zmqrl.ps.wire.memory import NO_MEMORY, SharedMemory
from zmqrl.ps.wire.sockets import FailureMonitor, ShardUp, SocketRole, new_context, shard_sockets

POLL_MS = 25
MAPPED = re.compile(r"\[::ffff:([0-9.]+)\]")  # an IPv4 address in IPv6 notation
WILDCARDS = ("0.0.0.0", "::")
BIND_WITHIN_S = 10.0
FAILURES_EVERY_S = 5.0
UNUSED_S = 2.0  # gradients of a process that has left can still arrive
MOST_UNREAD_SNAPSHOTS = 2  # per rank, each as large as the slice


class ShardServer:
    """A running shard. ``serve`` returns when standard input ends. SIGTERM ends the process."""

    def __init__(self, job: ShardJob, log: logging.Logger) -> None:
        self.job = job
        self.log = log
        self.count = job.layout.slices[job.shard].count
        self.spans = Spans()
        self.optimizer = Optimizer(job.optimizer, job.layout.averaged(job.shard))
        self.sum = GradientSum(self.count)
        self.identity = e.Identity(
            run=job.run,
            layout=job.layout.hash,
            shard=job.shard,
            incarnation=job.incarnation or time.time_ns() // 1_000_000,
            codec=job.codec,
            payload_bytes={name: payload_bytes(name, self.count) for name in CODECS},
            secret=job.secret,
            code=job.code,
        )
        self.profiler = (
            None
            if job.profiler is None
            else Profiler(
                job.profiler,
                shard_id(job.shard),
                self.spans,
                run=job.run,
                incarnation=self.identity.incarnation,
                log=log,
            )
        )
        self.polled_us = self.handled_us = self.closed_us = 0
        self.machine = ShardMachine(
            self.identity,
            job.timing,
            consistent=job.consistent,
            asynchronous=job.asynchronous,
            frozen=job.frozen,
            horizon=job.horizon,
        )
        self.history = History(job.history_path)
        self.store = self._open_store()
        self.captured: tuple[int, bytes] | None = None
        self.context = new_context(io_threads=2)
        self.authenticator = Authenticator(self.context, job.keys) if job.keys else None
        self.reception = Reception(job.keys, log)
        self.sockets = shard_sockets(self.context, max(self.identity.payload_bytes.values()), job.keys)
        self.monitors = [FailureMonitor(socket) for socket in self.sockets.values()]
        self.memory: SharedMemory | None = None  # made when the first worker shares its own
        self.unused: deque[tuple[float, int, SharedGradients]] = deque()  # when to unmap, rank, memory
        self.payload: WireVector = self.sum.buffer  # the newest weights, encoded for publication
        self.loading = bytearray()
        self.snapshots: dict[int, list[zmq.MessageTracker]] = {}  # snapshots in transit, by rank
        self.tick_at = self.failures_at = 0.0
        self.endpoints: dict[SocketRole, str] = {}

    def bind(self) -> dict[SocketRole, str]:
        """Bind the sockets to the endpoints in ``job.bind``. Returns the endpoints, with the ports chosen for port 0.

        Raises ClusterError when binding keeps failing, for example because an address is in use, and for a wildcard.
        """
        for role in self.job.bind:
            socket = self.sockets[role]
            deadline = time.monotonic() + BIND_WITHIN_S
            while True:
                try:
                    socket.bind(self.job.bind[role])
                    break
                except zmq.ZMQError as error:
                    if time.monotonic() > deadline:
                        raise ClusterError(f"cannot bind {self.job.bind[role]}: {error.strerror}.") from error
                    time.sleep(0.1)
            endpoint = MAPPED.sub(r"\1", str(socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0"))
            if urlsplit(endpoint).hostname in WILDCARDS:
                raise ClusterError(f"cannot bind {self.job.bind[role]}: it would listen on every network.")
            self.endpoints[role] = endpoint
        return self.endpoints

    def serve(self) -> None:
        """Serve until standard input ends: the supervisor has died or wants this shard to stop."""
        self._recover()
        poller = zmq.Poller()
        for socket in self.sockets.values():
            poller.register(socket, zmq.POLLIN)
        poller.register(0, zmq.POLLIN)
        while True:
            longest_us = now_us() + 1000 * POLL_MS
            ready = dict(poller.poll(POLL_MS))
            self.polled_us = min(now_us(), longest_us)  # a longer wait means that the process did not run
            if 0 in ready and not os.read(0, 4096):
                return
            self._drain(self.sockets["control"], self.reception.control)
            self._drain(self.sockets["weights"], self.reception.presence)
            self._drain(self.sockets["grad"], self.reception.gradient)
            now = time.monotonic()
            if now - self.tick_at >= POLL_MS / 1000:
                self.tick_at = now
                self._handle(e.Tick())
                for monitor in self.monitors:
                    monitor.read()
                if ignored := self.reception.ignored.take(now):
                    self.log.warning("%s", ignored)
                self._unmap_unused(now)
            if now - self.failures_at >= FAILURES_EVERY_S:
                self.failures_at = now
                self._log_failures()
            if self.profiler is not None:
                self.profiler.step(now)

    def close(self) -> None:
        if ignored := self.reception.ignored.take_all():
            self.log.warning("%s", ignored)
        for monitor in self.monitors:
            monitor.close()
        if self.authenticator is not None:
            self.authenticator.stop()
        self.context.destroy(linger=0)
        for endpoint in self.endpoints.values():
            if endpoint.startswith("ipc://"):  # libzmq does not remove the file
                Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        self.store.close()
        self.history.close()
        if self.profiler is not None:
            self.profiler.close()

    # events

    def _drain(self, socket: "zmq.Socket[bytes]", receive: Callable[[list[zmq.Frame]], e.Event | None]) -> None:
        """Handle at most 64 messages that have arrived, so that the other sockets get their turn."""
        for _ in range(64):
            started_ns = time.monotonic_ns()
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.spans("receive").add(started_ns)
            event = receive(frames)
            if event is None:
                continue
            arrived_us = self.handled_us = now_us()
            self._handle(event)
            if isinstance(event, e.GradientArrived):
                if event.header.place:
                    self._finish_reading(event)
                if self.profiler is not None:
                    g, outcome = event.header, SHARD_OUTCOMES.index(self.machine.judged)
                    times = (self.polled_us, arrived_us)
                    self.profiler.add("arrivals", g.generation, g.version, g.rank, outcome, *times)

    # actions

    def _handle(self, event: e.Event) -> None:
        for action in self.machine.handle(event, time.monotonic()):
            self._do(action)

    def _do(self, action: e.Action) -> None:
        match action:
            case e.Accumulate():
                with self.spans("accumulate"):
                    self.sum.add(action.payload, first=action.first)
            case e.Update():
                finite = self._update(action.record)
                self._handle(e.Updated(action.record, finite))
            case e.CommitAgain():
                self._commit_again(action.record)
            case e.PublishWeights():
                self._publish_weights()
            case e.Publish():
                self.sockets["weights"].send_multipart([action.topic, framing.encode(action.message)])
            case e.Send():
                self._send(action.peer, action.message)
            case e.SendSnapshot():
                self._send_snapshot(action.peer, action.version, action.rank)
            case e.Capture():
                self._capture(action.version)
            case e.SendChunk():
                self._send_chunk(action.peer, action.request)
            case e.TakeChunk():
                self._take_chunk(action.peer, action.message, action.payload)
            case e.AcceptShare():
                self._share(action.peer, action.offer)
            case e.ForgetMemory():
                if (shared := self.reception.sharing.get(action.rank)) is not None:
                    self.unused.append((time.monotonic() + UNUSED_S, action.rank, shared))
            case e.Log():
                self.log.log(logging.getLevelNamesMapping()[action.level.upper()], action.text)
            case _:
                assert_never(action)

    def _update(self, record: e.Record) -> bool:
        """Make and commit the version of ``record``. If its numbers are not finite, store nothing and return False."""
        self.spans.version = record.version
        self.closed_us = self.handled_us
        old, new = self.store.newest, self.store.free_slot()
        assert old is not None
        with self.spans("optimize"):
            finite = self.sum.is_finite() and self.optimizer.step(
                record.version - 1,
                self.sum.value,
                record.quorum,
                old.weights,
                old.state,
                new.weights,
                new.state,
                elapsed=record.made_at / WHOLE,
            )
            self.sum.value = self.sum.buffer
        if finite:
            with self.spans("commit"):
                codec, payload = CODECS[self.job.codec], self._encoded(new)
                # The greatest numbers of float32 are infinite in a shorter format.
                finite = codec.keeps_float32 or codec.is_finite(payload)
                if finite:
                    self.history.append(record, self._commit(new, record, payload))
        return finite

    def _commit_again(self, record: e.Record) -> None:
        old, new = self.store.newest, self.store.free_slot()
        assert old is not None
        for target, source in zip(self._arrays(new), self._arrays(old), strict=True):
            target[:] = source
        self._commit(new, record, self._encoded(new))

    def _commit(self, slot: Slot, record: e.Record, payload: WireVector) -> int:
        """Make ``slot`` the newest version, with its encoded weights. Returns the CRC-32 of the published weights."""
        self.payload = payload
        checksum = crc32(payload.data.cast("B"))
        self.store.commit(
            slot, generation=record.generation, version=record.version, record=pack_record(record), crc32=checksum
        )
        return checksum

    def _publish_weights(self) -> None:
        slot, record = self.store.newest, self.machine.last
        assert slot is not None
        assert record is not None
        with self.spans("publish"):
            header = m.Weights(**self.machine.published_header(record), crc32=slot.crc32)
            if self.reception.is_read:
                there = replace(header, place=self.memory.write(self.payload) if self.memory is not None else 0)
                self.sockets["weights"].send_multipart([m.TOPIC_SHARED, framing.encode(there), b""])
            payload = self.payload
            # Slow subscribers read from the slot itself, unless too many slots are already being read.
            is_slot = CODECS[self.job.codec].keeps_float32
            in_place = is_slot and self.store.can_pin()
            if is_slot and not in_place:
                payload = payload.copy()
            tracker = self.sockets["weights"].send_multipart(
                [m.TOPIC_WEIGHTS, framing.encode(header), payload.data.cast("B")], copy=False, track=True
            )
            if in_place:
                assert tracker is not None
                self.store.pin(slot, lambda: tracker.done)
        self._record_version(record)

    def _share(self, peer: bytes, offer: m.ShareMemory) -> None:
        """Read the gradients of a worker in its memory, and publish in memory too, if this process can do both."""
        job, codec, earlier = self.job, self.job.codec, self.reception.sharing.get(offer.rank)
        memory = SharedMemory.open(offer.memory, payload_bytes(codec, job.layout.count))
        if memory is None:
            self.reception.ignored.add("SHARE_MEMORY of memory that cannot be read, so gradients are in messages")
            return
        try:
            self.memory = self.memory or SharedMemory.create(self.identity.payload_bytes[codec])
        except OSError as error:
            self.log.warning("%s", NO_MEMORY.format(error.strerror))
            return
        if earlier is None or earlier.incarnation != offer.incarnation:
            self.memory.handled[offer.rank] = 0
        me, cut = self.identity.incarnation, job.layout.slices[job.shard]
        self.reception.sharing[offer.rank] = SharedGradients(offer.incarnation, memory, codec, cut)
        self._send(peer, m.MemoryShared(run=job.run, shard=job.shard, incarnation=me, memory=self.memory.name))

    def _unmap_unused(self, now: float) -> None:
        while self.unused and self.unused[0][0] <= now:
            _, rank, shared = self.unused.popleft()
            if self.reception.sharing.get(rank) is shared:
                del self.reception.sharing[rank]

    def _finish_reading(self, event: e.GradientArrived) -> None:
        """Let a worker overwrite the gradient of ``event``, if it is in the worker's memory."""
        header, held = event.header, self.machine.contributions.held
        if self.memory is not None and self.reception.shared_by(header) is not None:
            if held.get(header.rank) is event.payload:  # it waits for contributions of lower ranks
                event.payload.keep()
            self.memory.handled[header.rank] = max(header.place, int(self.memory.handled[header.rank]))

    def _record_version(self, record: e.Record) -> None:
        if self.profiler is None:
            return
        made, published_us = bool(record.ranks), now_us()
        closing = NOT_MADE
        if made:
            closing = NO_CONTRIBUTION if self.machine.closing_rank is None else self.machine.closing_rank
        times = (self.closed_us if made else published_us, published_us)
        spent, (cpu_us, *_) = self.profiler.spent_us(*SHARD_SPANS), self.profiler.used()
        self.profiler.add("versions", record.generation, record.version, record.quorum, closing, *times, *spent, cpu_us)

    def _encoded(self, slot: Slot) -> WireVector:
        return CODECS[self.job.codec].encode(slot.weights)

    def _send(self, peer: bytes, message: e.Answer, payload: bytes | None = None) -> zmq.MessageTracker | None:
        """Send without blocking. Returns a tracker of the payload, or None if nothing was sent."""
        frames = [peer, framing.encode(message)] + ([payload] if payload is not None else [])
        large = payload is not None
        try:
            return self.sockets["control"].send_multipart(frames, zmq.NOBLOCK, copy=not large, track=large)
        except zmq.ZMQError as error:  # the peer is gone or its queue is full. A live peer asks again
            self.log.debug("%s not sent: %s", type(message).__name__, error)
            return None

    def _send_snapshot(self, peer: bytes, version: int, rank: int) -> None:
        slot, unread = self._held(version), [each for each in self.snapshots.get(rank, []) if not each.done]
        assert slot is not None
        if len(unread) < MOST_UNREAD_SNAPSHOTS:  # otherwise drop the request: the worker asks again
            header = m.Snapshot(**self.machine.published_header(unpack_record(slot.record)), crc32=slot.crc32)
            tracker = self._send(peer, header, self._encoded(slot).tobytes())
            unread += [tracker] if tracker is not None else []
        self.snapshots[rank] = unread

    def _held(self, version: int) -> Slot | None:
        slots = (self.store.newest, self.store.previous)
        return next((slot for slot in slots if slot is not None and slot.version == version), None)

    # Data of checkpoints and loads, little-endian float32: weights, then optimizer state in the order of state names.

    def _arrays(self, slot: Slot) -> list[FloatVector]:
        return [slot.weights, *(slot.state[name] for name in self.optimizer.state_names)]

    def _capture(self, version: int) -> None:
        slot = self._held(version)
        assert slot is not None
        self.captured = slot.version, b"".join(array.tobytes() for array in self._arrays(slot))

    def _send_chunk(self, peer: bytes, request: m.Fetch) -> None:
        if self.captured is None or self.captured[0] != request.version:
            self._send(peer, m.Missing(run=self.job.run, shard=self.job.shard, version=request.version))
            return
        state = self.captured[1]
        chunk = m.Chunk(
            run=self.job.run,
            shard=self.job.shard,
            version=request.version,
            offset=request.offset,
            total=len(state),
        )
        self._send(peer, chunk, state[request.offset : request.offset + m.CHUNK_BYTES])

    def _take_chunk(self, peer: bytes, load: m.Load, payload: bytes) -> None:
        total = 4 * self.count * (1 + len(self.optimizer.state_names))
        if load.offset == 0:
            self.loading = bytearray()
        if load.total != total or load.offset != len(self.loading) or load.offset + len(payload) > total:
            self._handle(e.MalformedArrived())
            return
        self.loading += payload
        if len(self.loading) == total:
            self._load(load)
        offset = load.offset + len(payload)
        loaded = m.Loaded(run=self.job.run, shard=self.job.shard, generation=load.generation, offset=offset)
        self._send(peer, loaded)

    def _load(self, load: m.Load) -> None:
        view, totals = e.View(load.view, load.quorum, load.members), self.history.totals(load.version)
        elapsed = elapsed_at(load.version, horizon=self.job.horizon, told=load.elapsed)
        record = e.Record.handed_over(load.generation, load.version, view, totals, elapsed=elapsed)
        slot = self.store.free_slot()
        numbers = np.frombuffer(self.loading, "<f4").reshape(-1, self.count)
        for array, source in zip(self._arrays(slot), numbers, strict=True):
            array[:] = source
        # Commit first: if the process is killed before the rewind, the next process does the rewind.
        self._commit(slot, record, self._encoded(slot))
        self.history.rewind(load.version, load.generation)
        self._tell_of_history()
        self.loading = bytearray()
        self.captured = None
        self.spans.version = record.version
        self.log.info("loaded version %d, generation %d", load.version, load.generation)
        self._handle(e.StateRestored(record, recovered=False))

    def _recover(self) -> None:
        """Continue from the state that an earlier process committed.

        If the newest version is lost, the shard stays empty until the supervisor loads a state. A frozen shard serves
        the newest version that is left, unless a rollback has undone this version.
        """
        slot = self.store.newest
        if slot is None:
            return
        record = unpack_record(slot.record)
        try:
            self.history.recover(record, slot.crc32)
        except LostState as lost:
            self.log.warning("state is lost: %s", lost)
            if not self.job.frozen or isinstance(lost, UndoneState):
                return
        if not any(record.totals):  # an older zmqrl kept no totals
            record = replace(record, totals=self.history.totals(record.version))
        self._tell_of_history()
        self.spans.version = record.version
        self.payload = self._encoded(slot)
        self.log.info("recovered version %d, generation %d", slot.version, slot.generation)
        previous = self.store.previous.version if self.store.previous is not None else None
        self._handle(e.StateRestored(record, recovered=True, previous=previous))

    def _tell_of_history(self) -> None:
        for text in self.history.news:
            self.log.warning("%s", text)
        self.history.news.clear()

    def _open_store(self) -> SlotStore:
        names = self.optimizer.state_names
        identity = f"{self.job.run} {self.job.layout.hash} {self.job.shard} {self.job.codec}".encode()
        path = self.job.state_path
        try:
            found = SlotStore.open(path, identity=identity, count=self.count, state_names=names)
            if found is not None:
                return found
            if self.job.frozen:  # do not overwrite the file: it may be all that remains of a run
                raise ClusterError(f"{path} is damaged, or belongs to another run.")
            path.parent.mkdir(parents=True, exist_ok=True)
            return SlotStore.create(path, identity=identity, count=self.count, state_names=names)
        except OSError as error:
            raise ClusterError(
                f"cannot store the state of shard {self.job.shard} in {path}: {error.strerror}."
            ) from error

    def _log_failures(self) -> None:
        for role, monitor in zip(self.sockets, self.monitors, strict=True):
            if failures := monitor.take():
                self.log.info("connections to %s: %s", role, failures)
        try:
            os.close(os.dup(0))
        except OSError:
            self.log.warning("no new connection can be accepted: all descriptors of this process are in use")
        if false_names := self.reception.take_false_names():
            self.log.warning("refused messages, because the sender's key is for another rank or role: %s", false_names)


def _has_no_state(path: Path) -> bool:
    """Whether the file is missing or never held a version. False for an unreadable file."""
    try:
        return is_blank(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def main() -> None:
    job = ShardJob.from_json(read_job(signal.SIGTERM))
    raise_open_files()
    log = log_to_stderr("zmqrl.ps.shard")
    if job.frozen and _has_no_state(job.state_path):
        say({"missing": str(job.state_path)})
        return
    try:
        # If our parent died, SIGTERM follows the end of standard input, and may interrupt the end of the inner block.
        with contextlib.ExitStack() as cleanup, ended_by_sigterm():
            server = ShardServer(job, log)
            cleanup.callback(server.close)
            say(ShardUp(server.bind()).to_json() | {"pid": os.getpid()})
            server.serve()
    except ClusterError as error:
        log.error("%s", error)
        sys.exit(DISK_IS_FULL if isinstance(error, FullDiskError) else error.exit_status)


if __name__ == "__main__":
    main()
