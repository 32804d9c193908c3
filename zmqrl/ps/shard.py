"""What a shard decides: a state machine without sockets, clock, files or arithmetic.

Events go in, actions come out in the order in which they must be carried out. ``server.py`` does the rest.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from zmqrl.ps import messages as m
from zmqrl.ps.contributions import Contributions
from zmqrl.ps.roster import Roster
from zmqrl.ps.shard_events import (
    Action,
    Capture,
    CommitAgain,
    ControlArrived,
    Event,
    FalseHello,
    ForeignHello,
    GradientArrived,
    Identity,
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
    Totals,
    Update,
    Updated,
    View,
    added,
)

NOT_FINITE = "not finite"
RANKS_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timers of a shard, in seconds. ``need_s`` is to be longer than a slice takes to cross the network."""

    heartbeat_s: float = 0.25
    need_s: float = 1.0
    need_most_s: float = 8.0
    stall_notice_s: float = 5.0


class Shard:
    """One slice of the parameter vector: which contributions make its next version.

    ``asynchronous``: each contribution makes one, whatever version it was computed on; the quorum must be 1.
    ``frozen``: the state that is found can be read, but no version is made from it.
    ``handle(event, now)`` returns the actions; ``now`` is monotonic, in seconds.
    """

    def __init__(
        self,
        identity: Identity,
        timing: Timing,
        *,
        consistent: bool = False,
        asynchronous: bool = False,
        frozen: bool = False,
    ) -> None:
        self.identity = identity
        self.timing = timing
        self.frozen = frozen
        self.state: Literal["empty", "open", "ended"] = "empty"
        self.generation = 0
        self.version = 0
        self.view = View(0, 1, ())
        self.last: Record | None = None
        self.making: Record | None = None  # of the version that an Update asks for
        self.failure = ""
        self.previous: int | None = None
        self.published = False
        self.stop: int | None = None
        self.armed: int | None = None
        self.captured: int | None = None
        self.captured_totals: Totals = (0, 0, 0, 0)
        self.roster = Roster(identity)
        self.contributions = Contributions(consistent=consistent, asynchronous=asynchronous)
        self.progress_at = self.need_at = self.heartbeat_at = self.notice_at = 0.0
        self.need_wait_s = timing.need_s

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; return what is to be done, in order."""
        match event:
            case GradientArrived():
                actions = self._gradient(event, now)
            case ControlArrived():
                actions = self._control(event, now)
            case PresenceChanged():
                actions = self.roster.presence(event, self._welcome(), now) + self._publish_first(now)
            case MalformedArrived():
                actions = self._reject()
            case FalseHello():
                actions = self._refuse(event.peer, self.roster.wrong_key())
            case ForeignHello():
                actions = self._refuse(event.peer, self.roster.foreign(event.protocol))
            case StateRestored():
                actions = self._restored(event, now)
            case Updated():
                actions = self._updated(event, now)
            case Tick():
                actions = self._tick(now)
        self._check()
        return actions

    # versions

    def _gradient(self, event: GradientArrived, now: float) -> list[Action]:
        header = event.header
        if header.run != self.identity.run:  # its ranks are not ours
            return self._reject()
        if self.roster.is_newest(header.rank, header.incarnation):
            self.roster.heard(header.rank, now)
        outcome, why = self._judge(event)
        if outcome != "used":
            self.contributions.count(header.rank, outcome, self.view)
            level: Literal["debug", "warning"] = "warning" if why == NOT_FINITE else "debug"
            actions: list[Action] = [Log(level, f"{outcome}: rank {header.rank}, version {header.version}: {why}")]
            return actions + (self._lost(header) if why == "ahead" else [])
        self.contributions.hold(header, event.payload)
        self._progressed(now)
        return [*self.contributions.accumulate(self.view), *self._close_if_complete(now)]

    def _judge(self, event: GradientArrived) -> tuple[Outcome, str]:
        g, me = event.header, self.identity
        if g.layout != me.layout or g.shard != me.shard:
            return "rejected", "of another layout or shard"
        if me.payload_bytes[g.codec] != event.payload_bytes:
            return "rejected", f"{event.payload_bytes} bytes of {g.codec}"
        if self.state == "empty" or g.generation > self.generation:
            return "rejected", "of a generation that is not here"
        if g.rank not in self.view.members:
            return "rejected", "no member"
        if not self.roster.is_newest(g.rank, g.incarnation):
            return "rejected", "not the newest incarnation"
        if g.generation < self.generation:
            return "late", "of a generation that was rolled back"
        if g.version > self.version:
            return "rejected", "ahead"
        if self.contributions.asynchronous and self.contributions.counts_already(g.rank, g.version):
            return "duplicate", "used already"
        if g.version < self.version and not self.contributions.asynchronous:
            if self.last is not None and g.version == self.last.version - 1 and g.rank in self.last.ranks:
                return "duplicate", "used already"
            return "late", f"{self.version - g.version} versions"
        if self.state == "ended":
            return "late", "after the last version"
        if g.rank in self.contributions.held:
            return "duplicate", "held already"
        if g.view != self.view.id:
            return "rejected", f"of view {g.view}"
        if not event.is_finite():
            return "rejected", NOT_FINITE
        return "used", ""

    def _close_if_complete(self, now: float) -> list[Action]:
        """Make the next version when the quorum is complete."""
        if self.state != "open" or len(self.contributions.held) < self.view.quorum:
            return []
        assert self.last is not None
        actions, self.making = self.contributions.close(
            generation=self.generation,
            version=self.version + 1,
            view=self.view,
            stop=self.stop,
            totals=self.last.totals,
        )
        return [*actions, Update(self.making)]

    def _updated(self, event: Updated, now: float) -> list[Action]:
        """The next version is made: publish it. Without finite numbers there is none, and there cannot be one."""
        record, self.making = event.record, None
        if not event.finite:
            ranks = ", ".join(map(str, record.ranks[:RANKS_NAMED]))
            more = len(record.ranks) - RANKS_NAMED
            self.failure = (
                f"version {record.version} has numbers that are not finite, from those of ranks {ranks}"
                f"{f' and {more} more' if more > 0 else ''}"
            )
            self.state, self.stop = "ended", self.version
            told = self.roster.to_supervisor(self._stats(now))
            return [Log("warning", self.failure), *told, self._heartbeat(now)]
        self.previous, self.version, self.last = self.version, record.version, record
        self.published = True
        self._progressed(now)
        self.heartbeat_at = now
        return [PublishWeights(), *self._milestones()]

    def _milestones(self) -> list[Action]:
        """What is due because the newest version is what it is: a copy for a checkpoint, the end of the run."""
        actions = self._checkpoint(self.version) if self.armed == self.version else []
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
        self.captured, self.captured_totals = version, self._totals(version)
        return [Capture(version)]

    def _restored(self, event: StateRestored, now: float) -> list[Action]:
        record = event.record
        self.contributions.drop(self.view)
        if event.recovered:
            self.contributions.recover(record)
        self.state = "ended" if self.frozen else "open"
        self.generation, self.version, self.last = record.generation, record.version, record
        self.previous = event.previous
        self._set_view(record.view)
        self.published = event.recovered
        self.armed = self.captured = None
        self.failure = ""
        self.stop = record.version if self.frozen else record.stop
        self._progressed(now)
        answers = self.roster.answer_all(self._welcome())
        return [*answers, *self._publish_first(now), *self._milestones(), self._heartbeat(now)]

    def _set_view(self, view: View) -> None:
        self.view = view
        self.roster.admit(view.members)

    def _publish_first(self, now: float) -> list[Action]:
        """At first start nothing is published before a quorum of subscribers is there to hear it."""
        if self.state == "empty" or self.published or len(self.roster.present(now)) < self.view.quorum:
            return []
        self.published = True
        return [PublishWeights()]

    # control

    def _control(self, event: ControlArrived, now: float) -> list[Action]:
        peer, message = event.peer, event.message
        if message.run != self.identity.run:  # of a run that had these endpoints before
            return self._refuse(peer, self.roster.other_run(message.run))
        if isinstance(message, m.Hello):
            return self._hello(peer, message, now)
        by_supervisor = peer == self.roster.supervisor
        match message:
            case m.Ping():
                return self._ping(peer, message, now)
            case m.SnapshotRequest() if by_supervisor or self.roster.rank_of(peer) is not None:
                return self._snapshot(peer, message)
            case m.Leave():
                return self.roster.leave(peer, message) or self._reject()
            case m.Report() if self.roster.rank_of(peer) == message.rank:
                return self.roster.to_supervisor(message)
            case _ if by_supervisor:
                return self._command(event, now)
        return self._reject()

    def _command(self, event: ControlArrived, now: float) -> list[Action]:
        """Do what the supervisor says; unless it moves state, the answer is STATS."""
        peer, message = event.peer, event.message
        actions: list[Action] = []
        match message:
            case m.StatsRequest():
                pass
            case m.ViewChange():
                actions = self._view_change(message, now)
            case m.Stop():
                actions = self._stop(message.version, now)
            case m.Checkpoint():
                actions = self._checkpoint(message.version)
            case m.Fetch():
                return [SendChunk(peer, message)]
            case m.Load() if self.state == "empty" or message.generation > self.generation:
                return [TakeChunk(peer, message, event.payload)]
            case _:
                return self._reject()
        return [*actions, Send(peer, self._stats(now))]

    def _reject(self) -> list[Action]:
        self.contributions.reject()
        return []

    def _hello(self, peer: bytes, hello: m.Hello, now: float) -> list[Action]:
        refusal = self.roster.refusal(hello)
        if refusal is not None:
            return self._refuse(peer, refusal)
        return [*self.roster.hello(peer, hello, self._welcome(), now), *self._publish_first(now)]

    def _refuse(self, peer: bytes, refuse: m.Refuse) -> list[Action]:
        return [*self._reject(), Send(peer, refuse), *self.roster.tell_refused(refuse)]

    def _ping(self, peer: bytes, ping: m.Ping, now: float) -> list[Action]:
        if self.roster.is_replaced(ping.rank, ping.incarnation, now):
            return self._refuse(peer, self.roster.replaced(ping.rank))
        actions = self.roster.ping(peer, ping, now)
        known = self.roster.is_newest(ping.rank, ping.incarnation)
        ahead = ping.generation == self.generation and ping.version > self.version
        now_us = int(now * 1e6)
        pong = m.Pong(
            run=self.identity.run,
            shard=self.identity.shard,
            sent_us=ping.sent_us,
            received_us=now_us,
            answered_us=now_us,
        )
        return [*actions, *(self._lost(ping) if known and ahead else []), Send(peer, pong)]

    def _lost(self, evidence: m.Gradient | m.Ping) -> list[Action]:
        """A worker has seen a version that this shard has not: the state that is here is not the newest."""
        me = self.identity
        lost = m.Lost(run=me.run, shard=me.shard, rank=evidence.rank, version=evidence.version)
        return self.roster.to_supervisor(lost)

    def _snapshot(self, peer: bytes, request: m.SnapshotRequest) -> list[Action]:
        version = self.version if request.version is None else request.version
        if self.state != "empty" and version in (self.version, self.previous):
            return [SendSnapshot(peer, version, self.roster.rank_of(peer))]
        return [Send(peer, m.Missing(run=request.run, shard=self.identity.shard, version=version))]

    def _view_change(self, change: m.ViewChange, now: float) -> list[Action]:
        if change.view <= self.view.id or self.state == "empty" or not 1 <= change.quorum <= len(change.members):
            return []
        self._set_view(View(change.view, change.quorum, change.members))
        actions: list[Action] = [Log("info", f"view {change.view}: {change.quorum} of {len(change.members)} members")]
        actions += [*self._commit_again(view=self.view), *self._publish_first(now)]
        actions += [*self.contributions.accumulate(self.view), *self._close_if_complete(now)]
        self._progressed(now)
        return actions + self._tell_state(now)

    def _stop(self, version: int | None, now: float) -> list[Action]:
        if self.state == "empty" or self.failure or (version is not None and version < self.version):
            return []
        assert self.last is not None
        actions = self._commit_again(stop=version) if version != self.last.stop else []
        self.stop = version
        # A version that is open again may have had its quorum all the while.
        return [*actions, *self._milestones(), *self._close_if_complete(now), *self._tell_state(now)]

    def _commit_again(self, **news: Any) -> list[Action]:
        """Keep ``news`` with the newest version: a process that is started again acts before it can be told."""
        assert self.last is not None
        self.last = replace(self.last, **news)
        return [CommitAgain(self.last)]

    def _tell_state(self, now: float) -> list[Action]:
        """Publish where the shard stands, unless a version is in the making: its publication says it."""
        return [self._heartbeat(now)] if self.making is None else []

    # time

    def _progressed(self, now: float) -> None:
        self.progress_at = self.need_at = self.notice_at = now
        self.need_wait_s = self.timing.need_s

    def _tick(self, now: float) -> list[Action]:
        if self.state == "empty":
            return []
        actions = self._publish_first(now)  # a worker that was absent may be back
        waiting = self.state == "open" and self.published
        if waiting and now - self.need_at >= self.need_wait_s:
            self.need_at, self.need_wait_s = now, min(2 * self.need_wait_s, self.timing.need_most_s)
            self.heartbeat_at = now
            need = m.Need(**self._about(), view=self.view.id, held=self.contributions.ranks())
            actions.append(Publish(m.TOPIC_NEED, need))
        if now - self.heartbeat_at >= self.timing.heartbeat_s:
            actions.append(self._heartbeat(now))
        if self.state == "open" and now - self.notice_at >= self.timing.stall_notice_s:
            self.notice_at = now
            actions.append(Log("warning", self._stall(now)))
        return actions

    def _stall(self, now: float) -> str:
        held = self.contributions.held
        missing = [self.roster.describe(rank, now) for rank in self.view.members if rank not in held]
        return (
            f"version {self.version} waits for {now - self.progress_at:.0f} s with {len(held)} of "
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
        held = self.contributions.ranks()
        message = m.Heartbeat(**self._about(), view=self.view.id, held=held, published=self.published)
        return Publish(m.TOPIC_HEARTBEAT, message)

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

    def _stats(self, now: float) -> m.Stats:
        present = self.roster.present(now)
        return m.Stats(
            **self._about(),
            view=self.view.id,
            quorum=self.view.quorum,
            state=self.state,
            held=self.contributions.ranks(),
            present=tuple(present),
            silent_ms=tuple(self.roster.silent_ms(rank, now) for rank in present),
            tallies=tuple((rank, *t) for rank, t in sorted(self.contributions.tallies.items())),
            unattributed=self.contributions.unattributed,
            captured=self.captured,
            totals=self._totals(self.version),
            captured_totals=() if self.captured is None else self.captured_totals,
            stop=self.stop,
            failure=self.failure,
        )

    def _totals(self, version: int) -> Totals:
        """Those of the history up to ``version``, the newest or the one before."""
        if self.last is None:
            return 0, 0, 0, 0
        return self.last.totals if version == self.version else added(self.last.totals, self.last.counts(), -1)

    def _check(self) -> None:
        """Invariants, after every event."""
        complete = len(self.contributions.held) >= self.view.quorum
        assert self.state != "open" or not complete, "a complete quorum was not closed"
        assert self.stop is None or self.state != "ended" or self.version == self.stop
        assert self.last is None or self.last.version == self.version
