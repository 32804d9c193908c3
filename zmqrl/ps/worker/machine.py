"""The decisions of a worker's connection: a state machine without sockets, clock or arithmetic.

``connection.py`` carries out the actions.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, assert_never

from zmqrl.ps.story import Story
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker import events as e
from zmqrl.ps.worker.known_shard import KnownShard, Statement, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTiming:
    """Timers of a worker, in seconds."""

    hello_s: float = 1.0
    ping_s: float = 1.0
    snapshot_s: float = 2.0
    stall_notice_s: float = 10.0
    lease_s: float = 60.0


class WorkerMachine:
    """Decides which weights a worker computes on, and what to send to each shard. ``now`` is monotonic, in seconds."""

    def __init__(
        self,
        *,
        run: str,
        layout: str,
        shards: int,
        rank: int,
        incarnation: int,
        codec: m.Codec,
        host: str,
        pid: int,
        now: float,
        timing: WorkerTiming | None = None,
        asynchronous: bool = False,
        code: str = "",
    ) -> None:
        """If ``asynchronous``, each contribution makes a version, so the slices may have different versions."""
        self.run, self.layout, self.rank, self.incarnation = run, layout, rank, incarnation
        self.codec, self.host, self.pid, self.code = codec, host, pid, code
        self.timing = timing or WorkerTiming()
        self.tally = Tally()
        self.asynchronous = asynchronous
        self.shards = [KnownShard(shard, self.tally, asynchronous, heard_at=now) for shard in range(shards)]
        # The generation of the contribution. ``KnownShard.computed_on`` has the version at each shard.
        self.contributed_under: int | None = None
        self.elapsed = 0  # progress of the run for the contribution, in millionths
        self.slowest = -1  # version that every shard has reached
        self.pulling: e.Pulling | None = None
        self.ended = False
        self.computed = 0
        self.ping_at = now
        self.notice_at = now
        self.story = Story()

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Handle one event. Returns the actions to carry out, in order."""
        if not isinstance(event, e.Tick):
            self.story.add(now, type(event), e.gist(event))
        try:
            actions = self._take(event, now)
            number = getattr(event, "shard", None)
            for shard in self.shards if number is None else (self.shards[number],):
                shard.check(self.contributed_under)
        except AssertionError as error:
            where = f"worker {self.rank}, {type(event).__name__}"
            raise self.story.broken(where, error, shard=getattr(event, "shard", None)) from error
        return actions

    def _take(self, event: e.Event, now: float) -> list[e.Action]:
        match event:
            # A shard that serves another run names that run in its REFUSE.
            case e.PublicationArrived() | e.ControlArrived() if event.message.run != self.run and not isinstance(
                event.message, m.Refuse
            ):
                return [e.Log("debug", f"ignored a message of another run from shard {event.shard}")]
            case e.PublicationArrived():
                return self._publication(self.shards[event.shard], event.message, event.payload, now)
            case e.ControlArrived():
                return self._control(self.shards[event.shard], event.message, event.payload, now)
            case e.Pulling():
                self.pulling, self.notice_at = event, now
                self.computed += 1
                return self._assemble(now)
            case e.Overwritten():
                self.shards[event.shard].payloads.pop(event.version, None)
                return []
            case e.Contributed():
                return self._contribute(event)
            case e.SendBlocked():
                self.shards[event.shard].blocked(now)
                return []
            case e.Writable():
                self.shards[event.shard].blocked_at = None
                return self._push(self.shards[event.shard])
            case e.HandshakeFailed():
                return self._locked_out(self.shards[event.shard], now)
            case e.Leaving():
                message = m.Leave(run=self.run, rank=self.rank, incarnation=self.incarnation)
                return [e.SendControl(shard.number, message) for shard in self.shards]
            case e.Tick():
                return self._tick(event, now)

    def pending(self, shard: int) -> bool:
        """Whether to ask if the PUSH socket of ``shard`` is writable: a slice waits, or the last one was blocked."""
        return self.shards[shard].can_push() or self.shards[shard].blocked_at is not None

    def report_order(self) -> list[int]:
        """The shards to try for a report, in order. Each rank begins at a different shard, to share the load."""
        first = self.rank % len(self.shards)
        order = [*range(first, len(self.shards)), *range(first)]
        return [shard for shard in order if self.shards[shard].welcomed]

    def passed(self, version: int) -> bool:
        return all(shard.version > version for shard in self.shards)

    def where(self, now: float) -> str:
        return ", ".join(shard.where(now) for shard in self.shards)

    # weights

    def _publication(
        self,
        shard: KnownShard,
        message: m.Publication,
        payload: "e.Payload | None",
        now: float,
    ) -> list[e.Action]:
        shard.published_at = now
        actions = self._heard(shard, message, now)
        if shard.is_outdated(message):
            return actions
        if isinstance(message, m.Bye):
            shard.final = message.version
            actions += [*self._reached(shard, message.version), *self._end()]
            if self.asynchronous and not self.ended:  # other shards continue, and we need the last slice of this shard
                actions += self._request(shard, None, now) if message.version not in shard.payloads else []
                actions += self._assemble(now)
            return actions
        shard.final, shard.view = None, message.view
        match message:
            case m.Weights() if payload is not None:
                actions += self._slice(shard, message, payload)
            case m.Weights() | m.Heartbeat():
                actions += self._catch_up(shard, message, now)
            case m.Need():
                actions += self._reached(shard, message.version)
                if message.version == shard.version:
                    again = shard.need(self.contributed_under, wanted=self.rank not in message.held)
                    actions += self._push(shard) if again else []
            case _:
                assert_never(message)
        return actions + self._assemble(now)

    def _heard(self, shard: KnownShard, message: Statement, now: float) -> list[e.Action]:
        """Record the sender's state: send HELLO after a restart, and forget the versions that a rollback undid."""
        shard.heard_at = now
        actions: list[e.Action] = []
        if message.incarnation > shard.incarnation:
            if shard.incarnation:
                actions.append(e.Log("info", f"shard {shard.number} has restarted"))
            shard.restart(message.incarnation)
            actions.append(self._hello(shard, now))
        if message.incarnation == shard.incarnation and message.generation > shard.generation:
            if shard.generation >= 0:
                actions.append(
                    e.Log("info", f"shard {shard.number} was rolled back to generation {message.generation}")
                )
            shard.roll_back(message.generation)
            actions += self._close(shard)
        return actions

    def _catch_up(self, shard: KnownShard, message: m.Weights | m.Heartbeat | m.Welcome, now: float) -> list[e.Action]:
        """Ask for a version that the shard has published and this worker has missed."""
        actions = self._reached(shard, message.version)
        published = isinstance(message, m.Weights) or message.published
        missed = published and message.version not in shard.payloads
        return actions + (self._request(shard, None, now) if missed else [])

    def _slice(self, shard: KnownShard, message: m.Weights | m.Snapshot, payload: "e.Payload | None") -> list[e.Action]:
        """Keep a slice, and learn the outcome of this worker's contribution from the record of the slice."""
        assert payload is not None, "weights without a payload"
        shard.keep(message.version, (message.codec, payload), message.elapsed)
        actions: list[e.Action] = []
        if self.contributed_under == message.generation:
            at = bisect_left(message.ranks, self.rank)  # ranks are in order, and there can be a thousand
            outcome = shard.learns(message.version, named=message.ranks[at : at + 1] == (self.rank,))
            actions = self._close(shard, outcome) if outcome is not None else []
        return actions + self._reached(shard, message.version)

    def _reached(self, shard: KnownShard, version: int) -> list[e.Action]:
        """Record that the shard is at ``version``: close older contributions and drop older payloads."""
        shard.reach(version)
        slowest = min([other.version for other in self.shards])
        for other in self.shards if slowest != self.slowest else (shard,):
            other.prune(slowest)
        self.slowest = slowest
        return self._close(shard) if shard.is_past() else []

    def _close(self, shard: KnownShard, outcome: Literal["used", "unused", "unknown"] = "unknown") -> list[e.Action]:
        """Close the contribution at this shard. Release the contribution once it is closed at all shards."""
        closed = shard.close(outcome)
        return [e.Release()] if closed and not any(other.is_open() for other in self.shards) else []

    def _assemble(self, now: float) -> list[e.Action]:
        """Give the waiting worker a complete version, or request slices so that the worker can help a stuck shard."""
        pulling = self.pulling
        if pulling is None or self.ended or not all(shard.welcomed for shard in self.shards):
            return []
        generation = self.shards[0].generation
        if any(shard.generation != generation for shard in self.shards):
            return []
        if self.asynchronous:
            return self._assemble_newest(pulling, generation)
        low = min(shard.version for shard in self.shards)
        # After a rollback, versions have lower numbers but are new.
        if generation == pulling.generation and low <= pulling.above:
            return []
        lagging = [shard for shard in self.shards if shard.version == low]
        if len(lagging) < len(self.shards) and not self._may_help(low, lagging):
            return []
        if any(shard.final is not None and shard.final <= low for shard in self.shards):
            return []  # no shard accepts contributions to the last version
        missing = [shard for shard in self.shards if low not in shard.payloads]
        if missing:
            # Do not ask the lagging shards: at the start they publish their version once a quorum is present.
            return [action for shard in missing if shard.version > low for action in self._request(shard, low, now)]
        return self._hand_out(pulling, generation, (low,) * len(self.shards))

    def _assemble_newest(self, pulling: e.Pulling, generation: int) -> list[e.Action]:
        """Give the worker the newest slices, once each is newer than the slice that the last contribution used."""
        open_shards = [shard for shard in self.shards if shard.final is None]
        if not open_shards or any(shard.version <= shard.computed_on for shard in open_shards):
            return []
        if any(shard.version not in shard.payloads for shard in self.shards):
            return []  # we ask for a lost slice at the next heartbeat of its shard
        # From now on the gradient may be overwritten, so it cannot be sent again.
        closed = [action for shard in self.shards for action in self._close(shard)]
        return [*closed, *self._hand_out(pulling, generation, tuple(shard.version for shard in self.shards))]

    def _hand_out(self, pulling: e.Pulling, generation: int, versions: tuple[int, ...]) -> list[e.Action]:
        self.pulling = None
        kept = [shard.payloads[version] for shard, version in zip(self.shards, versions, strict=True)]
        # Shards learn the progress at different times. All workers find the same greatest value: see docs/protocol.md.
        elapsed = max(each.elapsed for each in kept)
        return [e.Assembled(generation, versions, tuple(each.payload for each in kept), elapsed, pulling.number)]

    def _may_help(self, low: int, lagging: list[KnownShard]) -> bool:
        """Whether this idle worker can help the shards stuck at version ``low``: see Repair in docs/protocol.md."""
        stuck = all(shard.needs_heard >= 2 for shard in lagging) and any(shard.wanted for shard in lagging)
        return stuck and all(shard.version <= low + 1 for shard in self.shards)

    def _request(self, shard: KnownShard, version: int | None, now: float) -> list[e.Action]:
        if not shard.may_request(now):
            return []
        shard.requested(now, self.timing.snapshot_s)
        return [e.SendControl(shard.number, m.SnapshotRequest(run=self.run, version=version))]

    def _end(self) -> list[e.Action]:
        generations, finals = {shard.generation for shard in self.shards}, {shard.final for shard in self.shards}
        # In asynchronous mode each shard has its own last version.
        if self.ended or None in finals or len(generations) > 1 or (len(finals) > 1 and not self.asynchronous):
            return []
        self.ended = True
        return [e.Ended(min(shard.version for shard in self.shards))]

    # contributions

    def _contribute(self, event: e.Contributed) -> list[e.Action]:
        self.contributed_under, self.elapsed = event.generation, event.elapsed
        self.pulling = None
        self.computed += 1
        for shard, version in zip(self.shards, event.versions, strict=True):
            shard.offer(event.generation, version)
        if not any(shard.is_open() for shard in self.shards):
            return [e.Release()]
        return [action for shard in self.shards for action in self._push(shard)]

    def _push(self, shard: KnownShard) -> list[e.Action]:
        if not shard.can_push():
            return []
        assert self.contributed_under is not None
        header = m.Gradient(
            run=self.run,
            layout=self.layout,
            generation=self.contributed_under,
            view=shard.view,
            shard=shard.number,
            version=shard.computed_on,
            rank=self.rank,
            incarnation=self.incarnation,
            attempt=min(shard.attempt, 0xFFFF),
            codec=self.codec,
            elapsed=self.elapsed,
        )
        shard.pushed()
        return [e.SendGradient(shard.number, header)]

    # control

    def _control(
        self, shard: KnownShard, message: m.ToWorker, payload: "e.Payload | None", now: float
    ) -> list[e.Action]:
        shard.heard_at = now
        match message:
            case m.Welcome():
                actions = self._heard(shard, message, now)
                if shard.is_outdated(message) or message.state == "empty":
                    return actions
                shard.welcome(message.view, now)
                # A restarted shard that has already welcomed us needs no HELLO.
                actions = [a for a in actions if not (isinstance(a, e.SendControl) and isinstance(a.message, m.Hello))]
                return [*actions, *self._catch_up(shard, message, now), *self._push(shard), *self._assemble(now)]
            case m.Snapshot():
                actions = self._heard(shard, message, now)
                shard.snapshot_at = None
                if shard.is_outdated(message):
                    return actions
                return [*actions, *self._slice(shard, message, payload), *self._assemble(now)]
            case m.Refuse():
                return [e.Failed(f"shard {shard.number} refuses worker {self.rank}: {message.reason}")]
            case m.Missing() | m.Pong() | m.Left() | m.MemoryShared():
                return []
            case _:
                assert_never(message)

    def _hello(self, shard: KnownShard, now: float) -> e.SendControl:
        shard.hello_at = now
        hello = m.Hello(
            run=self.run,
            layout=self.layout,
            role="worker",
            rank=self.rank,
            incarnation=self.incarnation,
            host=self.host,
            pid=self.pid,
            secret="",
            code=self.code,
        )
        return e.SendControl(shard.number, hello)

    def _locked_out(self, shard: KnownShard, now: float) -> list[e.Action]:
        known = shard.is_locked_out()
        shard.handshake_failed_at = now
        return [] if known else [e.Log("warning", shard.locked_out())]

    def _tick(self, tick: e.Tick, now: float) -> list[e.Action]:
        actions: list[e.Action] = []
        ping = now - self.ping_at >= self.timing.ping_s
        for shard in self.shards:
            failure = shard.failure(now, self.timing.lease_s)
            if failure is not None:
                return [e.Failed(failure)]
            if not shard.welcomed and (shard.hello_at is None or now - shard.hello_at >= self.timing.hello_s):
                actions.append(self._hello(shard, now))
            if ping and shard.welcomed:
                actions.append(e.SendControl(shard.number, self._ping(shard, tick, now)))
        if ping:
            self.ping_at = now
        if self.pulling is not None and now - self.notice_at >= self.timing.stall_notice_s:
            self.notice_at = now
            actions.append(e.Log("info", f"waiting for a version above {self.pulling.above}: {self.where(now)}"))
        return actions + self._assemble(now)

    def _ping(self, shard: KnownShard, tick: e.Tick, now: float) -> m.Ping:
        return m.Ping(
            run=self.run,
            rank=self.rank,
            incarnation=self.incarnation,
            generation=max(shard.generation, 0),
            version=max(shard.version, 0),
            computed=self.computed,
            sent_us=int(now * 1e6),
            span=tick.span,
            span_ms=tick.span_ms,
        )
