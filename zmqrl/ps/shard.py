"""What a shard decides: a state machine without sockets, clock, files or arithmetic.

Events go in, actions come out in the order in which they must be carried out. ``server.py`` does the rest.
"""

import hmac
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from zmqrl.ps import messages as m
from zmqrl.ps.shard_events import (
    OUTCOMES,
    Accumulate,
    Action,
    Capture,
    ControlArrived,
    Event,
    GradientArrived,
    Log,
    MalformedArrived,
    Outcome,
    PresenceChanged,
    Publish,
    PublishWeights,
    Record,
    Send,
    SendChunk,
    SendSnapshot,
    StateRestored,
    TakeChunk,
    Tick,
    Update,
    View,
)

NOT_FINITE = "not finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timers of a shard, in seconds. ``need_s`` is to be longer than a slice takes to cross the network."""

    heartbeat_s: float = 0.25
    need_s: float = 1.0
    need_most_s: float = 8.0
    stall_notice_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a message must name to be meant for this shard of this run, and what only its supervisor knows."""

    run: str
    layout: str
    shard: int
    incarnation: int
    codec: m.Codec
    payload_bytes: dict[m.Codec, int]
    secret: str


@dataclass(slots=True)
class Worker:
    """What the shard knows of a member."""

    incarnation: int | None = None
    peer: bytes | None = None
    here: Counter[int] = field(default_factory=Counter)  # live subscriptions by incarnation
    heard_at: float | None = None
    progress: int = 0

    def present(self) -> bool:
        """Whether the subscription of the newest incarnation is alive."""
        return bool(self.here if self.incarnation is None else self.here[self.incarnation])


class Shard:
    """One slice of the parameter vector: which contributions make its next version.

    ``handle(event, now)`` returns the actions; ``now`` is monotonic, in seconds.
    """

    def __init__(self, identity: Identity, timing: Timing, *, consistent: bool = False) -> None:
        self.identity = identity
        self.timing = timing
        self.consistent = consistent
        self.state: Literal["empty", "open", "ended"] = "empty"
        self.generation = 0
        self.version = 0
        self.view = View(0, 1, ())
        self.last: Record | None = None
        self.previous: int | None = None
        self.published = False
        self.stop: int | None = None
        self.armed: int | None = None
        self.captured: int | None = None
        self.supervisor: bytes | None = None
        self.workers: dict[int, Worker] = {}
        self.held: dict[int, tuple[Any, m.Codec] | None] = {}  # rank -> payload not yet accumulated
        self.accumulated = 0
        self.tallies: dict[int, list[int]] = {}
        self.unattributed = 0
        self.since_last = {"late": 0, "duplicate": 0, "rejected": 0}
        self.progress_at = 0.0
        self.need_at = 0.0
        self.need_wait_s = timing.need_s
        self.heartbeat_at = 0.0
        self.notice_at = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; return what is to be done, in order."""
        match event:
            case GradientArrived():
                actions = self._gradient(event, now)
            case ControlArrived():
                actions = self._control(event, now)
            case PresenceChanged():
                actions = self._presence(event, now)
            case MalformedArrived():
                self._count(None, "rejected")
                actions = []
            case StateRestored():
                actions = self._restored(event, now)
            case Tick():
                actions = self._tick(now)
        self._check()
        return actions

    # contributions

    def _gradient(self, event: GradientArrived, now: float) -> list[Action]:
        header = event.header
        outcome, why = self._judge(event)
        if outcome != "used":
            self._count(header.rank, outcome)
            level: Literal["debug", "warning"] = "warning" if why == NOT_FINITE else "debug"
            actions: list[Action] = [Log(level, f"{outcome}: rank {header.rank}, version {header.version}: {why}")]
            if why == "ahead" and self.supervisor is not None:
                actions.append(Send(self.supervisor, self._lost(header.rank, header.version)))
            return actions
        self.held[header.rank] = (event.payload, header.codec)
        self.workers[header.rank].heard_at = now
        self._progressed(now)
        return [*self._accumulate(), *self._close_if_complete(now)]

    def _judge(self, event: GradientArrived) -> tuple[Outcome, str]:
        g, me = event.header, self.identity
        if g.run != me.run or g.layout != me.layout or g.shard != me.shard:
            return "rejected", "of another run, layout or shard"
        if me.payload_bytes[g.codec] != event.payload_bytes:
            return "rejected", f"{event.payload_bytes} bytes of {g.codec}"
        if self.state == "empty" or g.generation > self.generation:
            return "rejected", "of a generation that is not here"
        if g.rank not in self.view.members:
            return "rejected", "no member"
        if self.workers[g.rank].incarnation != g.incarnation:
            return "rejected", "not the newest incarnation"
        if g.generation < self.generation:
            return "late", "of a generation that was rolled back"
        if g.version > self.version:
            return "rejected", "ahead"
        if g.version < self.version:
            if self.last is not None and g.version == self.last.version - 1 and g.rank in self.last.ranks:
                return "duplicate", "used already"
            return "late", f"{self.version - g.version} versions"
        if self.state == "ended":
            return "late", "after the last version"
        if g.rank in self.held:
            return "duplicate", "held already"
        if g.view != self.view.id:
            return "rejected", f"of view {g.view}"
        if not event.is_finite():
            return "rejected", NOT_FINITE
        return "used", ""

    def _accumulate(self) -> list[Action]:
        """Hand on payloads: as they come, or in consistent mode those whose lower ranks have all come."""
        actions: list[Action] = []
        for rank in sorted(self.held):
            if self.consistent and any(r not in self.held for r in self.view.members if r < rank):
                break
            actions += self._accumulate_one(rank)
        return actions

    def _accumulate_one(self, rank: int) -> list[Action]:
        waiting = self.held[rank]
        if waiting is None:
            return []
        payload, codec = waiting
        self.held[rank] = None
        self.accumulated += 1
        return [Accumulate(payload, codec, first=self.accumulated == 1)]

    def _close_if_complete(self, now: float) -> list[Action]:
        """Make the next version when the quorum is complete."""
        if self.state != "open" or len(self.held) < self.view.quorum:
            return []
        actions: list[Action] = []
        for rank in sorted(self.held):
            actions += self._accumulate_one(rank)
        ranks = tuple(sorted(self.held))
        for rank in ranks:
            self._count(rank, "used")
        record = Record(
            generation=self.generation,
            version=self.version + 1,
            view=self.view,
            quorum=len(ranks),
            ranks=ranks,
            tallies={rank: (t[0], t[1], t[2], t[3]) for rank, t in self.tallies.items()},
            unattributed=self.unattributed,
            stop=self.stop,
            **self.since_last,
        )
        assert self.accumulated == len(ranks) >= 1
        self.previous, self.version, self.last = self.version, record.version, record
        self.since_last = dict.fromkeys(self.since_last, 0)
        self.held, self.accumulated, self.published = {}, 0, True
        self._progressed(now)
        actions += [Update(record), PublishWeights()]
        self.heartbeat_at = now
        return actions + self._milestones()

    def _milestones(self) -> list[Action]:
        """What is due because the newest version is what it is: a copy for a checkpoint, the end of the run."""
        actions: list[Action] = []
        if self.state == "empty":
            return actions
        if self.armed == self.version:
            actions += self._checkpoint(self.version)
        if self.stop is not None and self.version >= self.stop:
            if self.state == "open" and self.version == self.stop:
                self.state = "ended"
                actions.append(Publish(m.TOPIC_BYE, self._bye()))
        elif self.state == "ended":
            self.state = "open"
        return actions

    def _checkpoint(self, version: int) -> list[Action]:
        """Set ``version`` aside, now if it is held, when it is made if it is to come."""
        self.armed = version if version > self.version else None
        if self.state == "empty" or version not in (self.version, self.previous) or version == self.captured:
            return []
        self.captured = version
        return [Capture(version)]

    def _count(self, rank: int | None, outcome: Outcome) -> None:
        if rank in self.view.members or rank in self.tallies:
            self.tallies.setdefault(rank, [0, 0, 0, 0])[OUTCOMES.index(outcome)] += 1
        else:
            self.unattributed += 1
        if outcome != "used":
            self.since_last[outcome] += 1

    # state and members

    def _restored(self, event: StateRestored, now: float) -> list[Action]:
        record = event.record
        for rank in self.held:
            self._count(rank, "late")
        self.state = "open"
        self.generation, self.version, self.last = record.generation, record.version, record
        self.previous = event.previous
        self.held, self.accumulated = {}, 0
        self._set_view(record.view)
        if event.recovered:
            self.tallies = {rank: list(t) for rank, t in record.tallies.items()}
            self.unattributed = record.unattributed
        self.published = event.recovered
        self.armed = self.captured = None
        self.stop = record.stop
        self._progressed(now)
        answers = [action for rank in sorted(self.workers) for action in self._answer_hello(rank)]
        return [*answers, *self._publish_first(), *self._milestones(), self._heartbeat(now)]

    def _set_view(self, view: View) -> None:
        self.view = view
        for rank in view.members:
            self.workers.setdefault(rank, Worker())

    def _presence(self, event: PresenceChanged, now: float) -> list[Action]:
        worker = self.workers.get(event.rank)
        if worker is None:
            if event.rank >= m.MAX_WORKERS:
                return []
            worker = self.workers[event.rank] = Worker()
        if not event.here:
            # The subscription of a connection that was cut may end after that of the next one began.
            worker.here -= Counter([event.incarnation])
            return [Log("info", f"worker {event.rank} is gone")] if not worker.here else []
        # Bounded: an honest rank has one live subscription, or two while it is being replaced.
        if len(worker.here) >= 16 and event.incarnation != worker.incarnation:
            return []
        worker.here[event.incarnation] += 1
        worker.heard_at = now
        actions: list[Action] = [Log("info", f"worker {event.rank} is here")]
        if worker.incarnation == event.incarnation:
            actions += self._answer_hello(event.rank)
        return actions + self._publish_first()

    def _publish_first(self) -> list[Action]:
        """At first start nothing is published before a quorum of subscribers is there to hear it."""
        if self.state == "empty" or self.published:
            return []
        if sum(self.workers[rank].present() for rank in self.view.members) < self.view.quorum:
            return []
        self.published = True
        return [PublishWeights()]

    # control

    def _control(self, event: ControlArrived, now: float) -> list[Action]:
        peer, message = event.peer, event.message
        if isinstance(message, m.Hello):
            return self._hello(peer, message, now)
        if getattr(message, "run", None) != self.identity.run:
            self._count(None, "rejected")
            return []
        match message:
            case m.Ping():
                return self._ping(peer, message, now)
            case m.SnapshotRequest() if peer == self.supervisor or self._rank_of(peer) is not None:
                wanted = self.version if message.version is None else message.version
                if self.state != "empty" and wanted in (self.version, self.previous):
                    return [SendSnapshot(peer, wanted)]
                return [Send(peer, m.Missing(run=message.run, shard=self.identity.shard, version=wanted))]
            case m.Leave():
                worker = self.workers.get(message.rank)
                if worker is None or (worker.peer, worker.incarnation) != (peer, message.incarnation):
                    self._count(None, "rejected")
                    return []
                del worker.here[message.incarnation]
                worker.peer = None
                return [
                    Send(peer, m.Left(run=message.run, shard=self.identity.shard)),
                    Log("info", f"worker {message.rank} leaves"),
                ]
            case m.Report() if self._rank_of(peer) == message.rank:
                return [Send(self.supervisor, message)] if self.supervisor is not None else []
        if peer != self.supervisor:
            self._count(None, "rejected")
            return []
        match message:
            case m.StatsRequest():
                return [Send(peer, self._stats(now))]
            case m.ViewChange():
                return self._view_change(peer, message, now)
            case m.Stop():
                return [*self._stop(message.version, now), Send(peer, self._stats(now))]
            case m.Checkpoint():
                return [*self._checkpoint(message.version), Send(peer, self._stats(now))]
            case m.Fetch():
                return [SendChunk(peer, message)]
            case m.Load() if self.state == "empty" or message.generation > self.generation:
                return [TakeChunk(peer, message, event.payload)]
        self._count(None, "rejected")
        return []

    def _hello(self, peer: bytes, hello: m.Hello, now: float) -> list[Action]:
        refusal = self._refusal(hello)
        if refusal is not None:
            self._count(None, "rejected")
            return [Send(peer, refusal)]
        if hello.role == "supervisor":
            self.supervisor = peer
            return [Send(peer, self._welcome())]
        worker = self.workers.setdefault(hello.rank, Worker())
        actions: list[Action] = []
        if worker.peer not in (None, peer) and worker.incarnation != hello.incarnation:
            actions.append(Send(worker.peer, self._refuse("replaced", f"a newer process took rank {hello.rank}.")))
        worker.incarnation, worker.peer, worker.heard_at = hello.incarnation, peer, now
        return [*actions, *self._answer_hello(hello.rank), *self._publish_first()]

    def _answer_hello(self, rank: int) -> list[Action]:
        """A HELLO is answered when there is something to be welcomed to, and the subscription to hear it is there."""
        worker = self.workers[rank]
        if self.state == "empty" or worker.peer is None or worker.incarnation not in worker.here:
            return []
        if rank not in self.view.members:
            return [Send(worker.peer, self._refuse("rank", f"rank {rank} is no member of this run."))]
        return [Send(worker.peer, self._welcome())]

    def _refusal(self, hello: m.Hello) -> m.Refuse | None:
        me = self.identity
        if hello.run != me.run:
            return self._refuse("run", f"shard {me.shard} here serves run {me.run}, not run {hello.run}.")
        if hello.layout != me.layout:
            return self._refuse("layout", f"the parameters here have layout {me.layout}, yours {hello.layout}.")
        if hello.role == "supervisor":
            wrong = not hmac.compare_digest(hello.secret.encode(), me.secret.encode())
            return self._refuse("secret", "only the supervisor of this run may say so.") if wrong else None
        if hello.rank >= m.MAX_WORKERS or (self.state != "empty" and hello.rank not in self.view.members):
            return self._refuse("rank", f"rank {hello.rank} is no member of this run.")
        known = self.workers[hello.rank].incarnation if hello.rank in self.workers else None
        if known is not None and hello.incarnation < known:
            return self._refuse("replaced", f"a newer process took rank {hello.rank}.")
        return None

    def _refuse(self, code: Literal["run", "layout", "rank", "replaced", "secret"], reason: str) -> m.Refuse:
        return m.Refuse(run=self.identity.run, code=code, reason=reason)

    def _ping(self, peer: bytes, ping: m.Ping, now: float) -> list[Action]:
        worker = self.workers.get(ping.rank)
        actions: list[Action] = []
        if worker is not None and worker.incarnation == ping.incarnation:
            # A connection that was cut and made again is another peer.
            worker.peer, worker.heard_at, worker.progress = peer, now, ping.progress
            ahead = ping.generation == self.generation and ping.version > self.version
            if ahead and self.supervisor is not None:
                actions.append(Send(self.supervisor, self._lost(ping.rank, ping.version)))
        now_us = int(now * 1e6)
        pong = m.Pong(
            run=self.identity.run,
            shard=self.identity.shard,
            sent_us=ping.sent_us,
            received_us=now_us,
            answered_us=now_us,
        )
        return [*actions, Send(peer, pong)]

    def _view_change(self, peer: bytes, change: m.ViewChange, now: float) -> list[Action]:
        actions: list[Action] = []
        if change.view > self.view.id and self.state != "empty" and 1 <= change.quorum <= len(change.members):
            self._set_view(View(change.view, change.quorum, change.members))
            actions.append(Log("info", f"view {change.view}: {change.quorum} of {len(change.members)} members"))
            actions += [*self._publish_first(), *self._accumulate(), *self._close_if_complete(now)]
            self._progressed(now)
            actions.append(self._heartbeat(now))
        return [*actions, Send(peer, self._stats(now))]

    def _stop(self, version: int | None, now: float) -> list[Action]:
        if self.state == "empty" or (version is not None and version < self.version):
            return []
        self.stop = version
        # A version that is open again may have had its quorum all the while.
        return [*self._milestones(), *self._close_if_complete(now), self._heartbeat(now)]

    def _rank_of(self, peer: bytes) -> int | None:
        return next((rank for rank, worker in self.workers.items() if worker.peer == peer), None)

    # time

    def _progressed(self, now: float) -> None:
        self.progress_at = self.need_at = self.notice_at = now
        self.need_wait_s = self.timing.need_s

    def _tick(self, now: float) -> list[Action]:
        if self.state == "empty":
            return []
        actions: list[Action] = []
        waiting = self.state == "open" and self.published
        if waiting and now - self.need_at >= self.need_wait_s:
            self.need_at, self.need_wait_s = now, min(2 * self.need_wait_s, self.timing.need_most_s)
            self.heartbeat_at = now
            actions.append(Publish(m.TOPIC_NEED, self._need()))
        if now - self.heartbeat_at >= self.timing.heartbeat_s:
            actions.append(self._heartbeat(now))
        if self.state == "open" and now - self.notice_at >= self.timing.stall_notice_s:
            self.notice_at = now
            actions.append(Log("warning", self._stall(now)))
        return actions

    def _stall(self, now: float) -> str:
        missing = []
        for rank in self.view.members:
            worker = self.workers[rank]
            if rank not in self.held:
                silent = "" if worker.heard_at is None else f", last heard {now - worker.heard_at:.1f} s ago"
                missing.append(f"worker {rank} ({'here' if worker.present() else 'absent'}{silent})")
        return (
            f"version {self.version} waits for {now - self.progress_at:.0f} s with {len(self.held)} of "
            f"{self.view.quorum} contributions; missing: {', '.join(missing)}"
        )

    # messages about oneself

    def _about(self) -> dict[str, Any]:
        me = self.identity
        return {
            "run": me.run,
            "shard": me.shard,
            "incarnation": me.incarnation,
            "generation": self.generation,
            "version": self.version,
        }

    def _heartbeat(self, now: float) -> Publish:
        self.heartbeat_at = now
        if self.state == "ended":
            return Publish(m.TOPIC_BYE, self._bye())
        held = tuple(sorted(self.held))
        message = m.Heartbeat(**self._about(), view=self.view.id, held=held, published=self.published)
        return Publish(m.TOPIC_HEARTBEAT, message)

    def _need(self) -> m.Need:
        return m.Need(**self._about(), view=self.view.id, held=tuple(sorted(self.held)))

    def _bye(self) -> m.Bye:
        return m.Bye(**self._about())

    def _welcome(self) -> m.Welcome:
        return m.Welcome(
            **self._about(),
            view=self.view.id,
            quorum=self.view.quorum,
            members=self.view.members,
            codec=self.identity.codec,
            state=self.state,
            published=self.published,
        )

    def _lost(self, rank: int, version: int) -> m.Lost:
        return m.Lost(run=self.identity.run, shard=self.identity.shard, rank=rank, version=version)

    def _stats(self, now: float) -> m.Stats:
        present = [rank for rank in self.view.members if self.workers[rank].present()]
        heard = [self.workers[rank].heard_at for rank in present]
        return m.Stats(
            **self._about(),
            view=self.view.id,
            quorum=self.view.quorum,
            state=self.state,
            held=tuple(sorted(self.held)),
            present=tuple(present),
            silent_ms=tuple(0 if at is None else max(0, int(1000 * (now - at))) for at in heard),
            tallies=tuple((rank, *t) for rank, t in sorted(self.tallies.items())),
            unattributed=self.unattributed,
            captured=self.captured,
        )

    def _check(self) -> None:
        """Invariants, after every event."""
        assert self.state != "open" or len(self.held) < self.view.quorum, "a complete quorum was not closed"
        assert self.accumulated == sum(payload is None for payload in self.held.values())
        assert self.stop is None or self.state != "ended" or self.version == self.stop
        assert self.last is None or self.last.version == self.version
