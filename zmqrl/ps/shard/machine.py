"""The decisions of a shard: a state machine without sockets, clock, files or arithmetic.

``server.py`` carries out the actions.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypedDict, assert_never

from zmqrl.observe.metrics import Outcome
from zmqrl.ps.schedule import elapsed_at
from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.contributions import Contributions
from zmqrl.ps.shard.roster import Roster
from zmqrl.ps.story import Story
from zmqrl.ps.wire import messages as m
from zmqrl.words import counted

RANKS_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTiming:
    """Timers of a shard, in seconds. ``need_s`` must be longer than the time to send a slice over the network."""

    heartbeat_s: float = 0.25
    need_s: float = 1.0
    need_most_s: float = 8.0
    stall_notice_s: float = 5.0


class Ruling(NamedTuple):
    """The outcome of a contribution, and why it was not used. ``is_ahead``: the worker has seen a newer version."""

    outcome: Outcome
    why: str = ""
    level: Literal["debug", "warning"] = "debug"
    is_ahead: bool = False


class ShardHeader(TypedDict):
    """The first fields of most messages of a shard."""

    run: str
    shard: int
    incarnation: int
    generation: int
    version: int


class PublishedHeader(ShardHeader):
    """The fields of WEIGHTS and SNAPSHOT, without ``crc32`` and ``place``."""

    view: int
    quorum: int
    members: tuple[int, ...]
    ranks: tuple[int, ...]
    codec: m.Codec
    elapsed: int


class ShardMachine:
    """Decides which contributions make the next version of one slice.

    If ``asynchronous``, the quorum must be 1, and a contribution counts even if it was computed on an older version. If
    ``frozen``, the state can be read, but the shard makes no versions. ``horizon`` is the version at which schedules
    end, or None if unknown. ``now`` is monotonic time in seconds.
    """

    def __init__(
        self,
        identity: e.Identity,
        timing: ShardTiming,
        *,
        consistent: bool = False,
        asynchronous: bool = False,
        frozen: bool = False,
        horizon: float | None = None,
    ) -> None:
        self.identity = identity
        self.timing = timing
        self.horizon = horizon
        self.told = 0  # progress of the run that the supervisor has measured, in millionths
        self.frozen = frozen
        self.state: Literal["empty", "open", "ended"] = "empty"
        self.generation = 0
        self.version = 0
        self.view = e.View(0, 1, ())
        self.last: e.Record | None = None
        self.judged: Outcome = "rejected"  # the outcome of the newest contribution
        self.closing_rank: int | None = None  # whose contribution closed the newest version; None if none did
        self.making: e.Record | None = None  # the record of the version that the pending Update makes
        self.failure = ""
        self.previous: int | None = None
        self.published = False
        self.stop: int | None = None
        self.armed: int | None = None
        self.captured: int | None = None
        self.captured_totals: e.Totals = (0, 0, 0, 0)
        self.roster = Roster(identity)
        self.contributions = Contributions(consistent=consistent, asynchronous=asynchronous)
        self.progress_at = self.need_at = self.heartbeat_at = self.notice_at = 0.0
        self.need_wait_s = timing.need_s
        self.story = Story()

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Handle one event. Returns the actions to carry out, in order."""
        if not isinstance(event, e.Tick):
            self.story.add(now, type(event), e.gist(event))
        try:
            actions = self._take(event, now)
            self._check()
        except AssertionError as error:
            rank = getattr(e.gist(event), "rank", None)
            where = f"shard {self.identity.shard} at version {self.version}, {type(event).__name__}"
            raise self.story.broken(where, error, version=self.version, rank=rank) from error
        return actions

    def _take(self, event: e.Event, now: float) -> list[e.Action]:
        match event:
            case e.GradientArrived():
                return self._gradient(event, now)
            case e.ControlArrived():
                return self._control(event, now)
            case e.PresenceChanged():
                return self.roster.presence(event, self._welcome(), now) + self._publish_first(now)
            case e.MalformedArrived():
                return self._reject()
            case e.FalseHello():
                return self._refuse(event.peer, self.roster.wrong_key())
            case e.ForeignHello():
                return self._refuse(event.peer, self.roster.foreign(event.protocol))
            case e.StateRestored():
                return self._restored(event, now)
            case e.Updated():
                return self._updated(event, now)
            case e.Tick():
                return self._tick(now)

    # versions

    def _gradient(self, event: e.GradientArrived, now: float) -> list[e.Action]:
        header = event.header
        self.judged = "rejected"
        if header.run != self.identity.run:  # in another run, the rank belongs to another worker
            return self._reject()
        if self.roster.is_newest(header.rank, header.incarnation):
            self.roster.heard(header.rank, now)
        ruling = self._judge(event)
        self.judged = outcome = ruling.outcome
        if outcome != "used":
            self.contributions.count(header.rank, outcome, self.view)
            text = f"{outcome}: rank {header.rank}, version {header.version}: {ruling.why}"
            actions: list[e.Action] = [e.Log(ruling.level, text)]
            return actions + (self._lost(header) if ruling.is_ahead else [])
        self.contributions.hold(header, event.payload)
        self._progressed(now)
        return [*self.contributions.accumulate(self.view), *self._close_if_complete(header.rank)]

    def _judge(self, event: e.GradientArrived) -> Ruling:
        g, me = event.header, self.identity
        if g.layout != me.layout or g.shard != me.shard:
            return Ruling("rejected", "it is for another layout or shard")
        if me.payload_bytes[g.codec] != event.payload_bytes:
            return Ruling(
                "rejected", f"{event.payload_bytes} bytes of {g.codec} instead of {me.payload_bytes[g.codec]}"
            )
        if self.state == "empty" or g.generation > self.generation:
            return Ruling("rejected", "its generation is unknown")
        if g.rank not in self.roster.member_set:
            return Ruling("rejected", "not a member")
        if not self.roster.is_newest(g.rank, g.incarnation):
            return Ruling("rejected", "not the newest incarnation")
        if g.generation < self.generation:
            return Ruling("late", "its generation was rolled back")
        if g.version > self.version:
            return Ruling("rejected", "ahead", is_ahead=True)
        if self.contributions.asynchronous and self.contributions.counts_already(g.rank, g.version):
            return Ruling("duplicate", "already used")
        if g.version < self.version and not self.contributions.asynchronous:
            if self.last is not None and g.version == self.last.version - 1 and g.rank in self.last.ranks:
                return Ruling("duplicate", "already used")
            return Ruling("late", f"by {counted(self.version - g.version, 'version')}")
        if self.state == "ended":
            return Ruling("late", "after the last version")
        if g.rank in self.contributions.held:
            return Ruling("duplicate", "already held")
        if g.view != self.view.id:
            return Ruling("rejected", f"its view is {g.view}, not {self.view.id}")
        if not event.is_finite():
            return Ruling("rejected", "not finite", "warning")
        return Ruling("used")

    def _close_if_complete(self, rank: int | None = None) -> list[e.Action]:
        """Make the next version if the contributions reach the quorum. ``rank`` has just contributed."""
        if self.state != "open" or len(self.contributions.held) < self.view.quorum:
            return []
        assert self.last is not None
        self.closing_rank = rank
        actions, self.making = self.contributions.close(
            generation=self.generation,
            version=self.version + 1,
            view=self.view,
            stop=self.stop,
            last=self.last,
            elapsed=elapsed_at(self.version + 1, horizon=self.horizon, told=self.told),
        )
        return [*actions, e.Update(self.making)]

    def _updated(self, event: e.Updated, now: float) -> list[e.Action]:
        """Publish the new version. If the new numbers are not finite, keep the old version and end the run."""
        record, self.making = event.record, None
        if not event.finite:
            noun = "rank" if len(record.ranks) == 1 else "ranks"
            self.failure = (
                f"version {record.version} has numbers that are not finite, from contributions of {noun} "
                f"{_first([*map(str, record.ranks[:RANKS_NAMED])], len(record.ranks))}"
            )
            self.state, self.stop = "ended", self.version
            told = self.roster.to_supervisor(self._stats(now))
            return [e.Log("warning", self.failure), *told, self._heartbeat(now)]
        self.previous, self.version, self.last = self.version, record.version, record
        self.published = True
        self._progressed(now)
        self.heartbeat_at = now
        return [e.PublishWeights(), *self._milestones()]

    def _milestones(self) -> list[e.Action]:
        """Copy the newest version if a checkpoint is due, and end the run if this is the last version."""
        actions = self._checkpoint(self.version) if self.armed == self.version else []
        if self.stop is not None and self.version >= self.stop:
            if self.state == "open" and self.version == self.stop:
                self.state = "ended"
                actions.append(e.Publish(m.TOPIC_BYE, self._bye()))
        elif self.state == "ended":
            self.state = "open"
        return actions

    def _checkpoint(self, version: int) -> list[e.Action]:
        """Copy ``version`` for a checkpoint, now or when the shard has made ``version``."""
        self.armed = version if version > self.version else None
        if self.state == "empty" or version not in (self.version, self.previous) or version == self.captured:
            return []
        self.captured, self.captured_totals = version, self._totals(version)
        return [e.Capture(version)]

    def _restored(self, event: e.StateRestored, now: float) -> list[e.Action]:
        record = event.record
        self.contributions.drop(self.view)
        if event.recovered:
            self.contributions.recover(record)
        self.state = "ended" if self.frozen else "open"
        self.generation, self.version, self.last = record.generation, record.version, record
        self.previous, self.told = event.previous, record.elapsed
        self._set_view(record.view)
        self.published = event.recovered
        self.armed = self.captured = None
        self.failure = ""
        self.stop = record.version if self.frozen else record.stop
        self._progressed(now)
        answers = self.roster.answer_all(self._welcome())
        return [*answers, *self._publish_first(now), *self._milestones(), self._heartbeat(now)]

    def _set_view(self, view: e.View) -> None:
        self.view = view
        self.roster.admit(view.members)

    def _publish_first(self, now: float) -> list[e.Action]:
        """After a load, do not publish until a quorum of workers is present."""
        if self.state == "empty" or self.published or not self.roster.has_present(self.view.quorum, now):
            return []
        self.published = True
        return [e.PublishWeights()]

    # control

    def _control(self, event: e.ControlArrived, now: float) -> list[e.Action]:
        peer, message = event.peer, event.message
        if message.run != self.identity.run:  # the sender belongs to an earlier run with the same endpoints
            return self._refuse(peer, self.roster.other_run(message.run))
        if isinstance(message, m.Hello):
            return self._hello(peer, message, now)
        match message:
            case m.Ping():
                return self._ping(peer, message, now)
            case m.SnapshotRequest():
                return self._snapshot(peer, message)
            case m.Leave():
                return self.roster.leave(peer, message) or self._reject()
            case m.ShareMemory():
                is_own = self.roster.rank_of(peer) == message.rank
                return [e.AcceptShare(peer, message)] if is_own else self._reject()
            case m.Report():
                is_own = self.roster.rank_of(peer) == message.rank
                return self.roster.to_supervisor(message) if is_own else self._reject()
            case _:
                by_supervisor = peer == self.roster.supervisor
                return self._command(peer, message, event.payload, now) if by_supervisor else self._reject()

    def _command(self, peer: bytes, message: m.ShardCommand, payload: bytes | None, now: float) -> list[e.Action]:
        """Carry out a command of the supervisor. Answer STATS to every command except ELAPSED, FETCH and LOAD."""
        actions: list[e.Action] = []
        match message:
            case m.StatsRequest():
                pass
            case m.ViewChange():
                actions = self._view_change(message, now)
            case m.Stop():
                actions = self._stop(message.version, now)
            case m.Checkpoint():
                actions = self._checkpoint(message.version)
            case m.Elapsed():
                self.told = message.elapsed
                return []
            case m.Fetch():
                return [e.SendChunk(peer, message)]
            case m.Load():
                assert payload is not None, "LOAD without a payload"
                is_next = self.state == "empty" or message.generation > self.generation
                return [e.TakeChunk(peer, message, payload)] if is_next else self._reject()
            case _:
                assert_never(message)
        return [*actions, e.Send(peer, self._stats(now))]

    def _reject(self) -> list[e.Action]:
        self.contributions.reject()
        return []

    def _hello(self, peer: bytes, hello: m.Hello, now: float) -> list[e.Action]:
        refusal = self.roster.refusal(hello)
        if refusal is not None:
            return self._refuse(peer, refusal)
        return [*self.roster.hello(peer, hello, self._welcome(), now), *self._publish_first(now)]

    def _refuse(self, peer: bytes, refuse: m.Refuse) -> list[e.Action]:
        return [*self._reject(), e.Send(peer, refuse), *self.roster.tell_refused(refuse)]

    def _ping(self, peer: bytes, ping: m.Ping, now: float) -> list[e.Action]:
        if self.roster.is_replaced(ping.rank, ping.incarnation, now):
            return self._refuse(peer, self.roster.replaced(ping.rank))
        actions = self.roster.ping(peer, ping, self._welcome(), now)
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
        return [*actions, *(self._lost(ping) if known and ahead else []), e.Send(peer, pong)]

    def _lost(self, evidence: m.Gradient | m.Ping) -> list[e.Action]:
        """Report to the supervisor that this shard has lost state: a worker has seen a newer version."""
        me = self.identity
        lost = m.Lost(run=me.run, shard=me.shard, rank=evidence.rank, version=evidence.version)
        return self.roster.to_supervisor(lost)

    def _snapshot(self, peer: bytes, request: m.SnapshotRequest) -> list[e.Action]:
        rank = self.roster.rank_of(peer)
        if rank is None:
            return self._reject()
        version = self.version if request.version is None else request.version
        if self.state != "empty" and version in (self.version, self.previous):
            return [e.SendSnapshot(peer, version, rank)]
        return [e.Send(peer, m.Missing(run=request.run, shard=self.identity.shard, version=version))]

    def _view_change(self, change: m.ViewChange, now: float) -> list[e.Action]:
        if change.view <= self.view.id or self.state == "empty" or not 1 <= change.quorum <= len(change.members):
            return []
        assert self.last is not None
        self._set_view(e.View(change.view, change.quorum, change.members))
        actions: list[e.Action] = [
            e.Log("info", f"view {change.view}: quorum {change.quorum} of {counted(len(change.members), 'member')}")
        ]
        actions += [*self._commit_again(replace(self.last, view=self.view)), *self._publish_first(now)]
        actions += [*self.contributions.accumulate(self.view), *self._close_if_complete()]
        self._progressed(now)
        return actions + self._tell_state(now)

    def _stop(self, version: int | None, now: float) -> list[e.Action]:
        if self.state == "empty" or self.failure or (version is not None and version < self.version):
            return []
        assert self.last is not None
        actions = self._commit_again(replace(self.last, stop=version)) if version != self.last.stop else []
        self.stop = version
        # If STOP opens the version again, its quorum may already be complete.
        return [*actions, *self._milestones(), *self._close_if_complete(), *self._tell_state(now)]

    def _commit_again(self, record: e.Record) -> list[e.Action]:
        """Commit ``record`` with the newest version: a restarted process needs its ``view`` and ``stop``."""
        self.last = record
        return [e.CommitAgain(record)]

    def _tell_state(self, now: float) -> list[e.Action]:
        """Publish the state of the shard, unless it is making a version: that publication will show the state."""
        return [self._heartbeat(now)] if self.making is None else []

    # time

    def _progressed(self, now: float) -> None:
        self.progress_at = self.need_at = self.notice_at = now
        self.need_wait_s = self.timing.need_s

    def _tick(self, now: float) -> list[e.Action]:
        if self.state == "empty":
            return []
        actions = self._publish_first(now)  # workers may have come back
        waiting = self.state == "open" and self.published
        if waiting and now - self.need_at >= self.need_wait_s:
            timing = self.timing
            self.need_at = now
            self.need_wait_s = max(timing.need_s, min(2 * self.need_wait_s, timing.need_most_s))
            self.heartbeat_at = now
            need = m.Need(**self._about(), view=self.view.id, held=self.contributions.ranks())
            actions.append(e.Publish(m.TOPIC_NEED, need))
        if now - self.heartbeat_at >= self.timing.heartbeat_s:
            actions.append(self._heartbeat(now))
        if self.state == "open" and now - self.notice_at >= self.timing.stall_notice_s:
            self.notice_at = now
            actions.append(e.Log("warning", self._stall(now)))
        return actions

    def _stall(self, now: float) -> str:
        held = self.contributions.held
        missing = [rank for rank in self.view.members if rank not in held]
        described = [self.roster.describe(rank, now) for rank in missing[:RANKS_NAMED]]
        return (
            f"version {self.version} has {len(held)} of {counted(self.view.quorum, 'contribution')}, none new for "
            f"{now - self.progress_at:.0f} s; missing: {_first(described, len(missing))}"
        )

    # messages about this shard

    def _about(self) -> ShardHeader:
        me = self.identity
        return {
            "run": me.run,
            "shard": me.shard,
            "incarnation": me.incarnation,
            "generation": self.generation,
            "version": self.version,
        }

    def published_header(self, record: e.Record) -> PublishedHeader:
        """The header of the weights of ``record.version``, the newest or the previous version."""
        return {
            **self._about(),
            "generation": record.generation,
            "version": record.version,
            "view": self.view.id,
            "quorum": self.view.quorum,
            "members": self.view.members,
            "ranks": record.ranks,
            "codec": self.identity.codec,
            "elapsed": record.elapsed,
        }

    def _heartbeat(self, now: float) -> e.Publish:
        self.heartbeat_at = now
        if self.state == "ended":
            return e.Publish(m.TOPIC_BYE, self._bye())
        held = self.contributions.ranks()
        message = m.Heartbeat(**self._about(), view=self.view.id, held=held, published=self.published)
        return e.Publish(m.TOPIC_HEARTBEAT, message)

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
        spans = self.roster.spans((rank for rank in present if rank not in self.contributions.held), now)
        del spans[m.MOST_SPANS :]
        return m.Stats(
            **self._about(),
            view=self.view.id,
            quorum=self.view.quorum,
            state=self.state,
            held=self.contributions.ranks(),
            present=tuple(present),
            silent_ms=tuple(self.roster.silent_ms(rank, now) for rank in present),
            tallies=tuple(m.RankTally(rank, *t) for rank, t in sorted(self.contributions.tallies.items())),
            unattributed=self.contributions.unattributed,
            captured=self.captured,
            totals=self._totals(self.version),
            captured_totals=() if self.captured is None else self.captured_totals,
            stop=self.stop,
            failure=self.failure,
            span_ranks=tuple(rank for rank, _, _ in spans),
            spans=tuple(span for _, span, _ in spans),
            span_ms=tuple(span_ms for _, _, span_ms in spans),
            made_at=0 if self.last is None else self.last.made_at,
        )

    def _totals(self, version: int) -> e.Totals:
        """The totals of the history up to ``version``, the newest or the previous one."""
        if self.last is None:
            return 0, 0, 0, 0
        return self.last.totals if version == self.version else e.added(self.last.totals, self.last.counts(), -1)

    def _check(self) -> None:
        """Check the invariants that hold after every event."""
        complete = len(self.contributions.held) >= self.view.quorum
        assert self.state != "open" or not complete, "the quorum is complete but the version is open"
        assert self.stop is None or self.state != "ended" or self.version == self.stop, "ended at the wrong version"
        assert self.last is None or self.last.version == self.version, "the record belongs to another version"


def _first(named: list[str], count: int) -> str:
    """The first names of a list with ``count`` names, in words."""
    return ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")
