"""What a worker decides about the wire: a state machine without sockets, clock or arithmetic.

Events go in, actions come out in the order in which they must be carried out. ``connection.py`` does the rest.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from zmqrl.ps import messages as m
from zmqrl.ps.client_events import (
    Action,
    Assembled,
    Contributed,
    ControlArrived,
    Ended,
    Event,
    Failed,
    Leaving,
    Log,
    PublicationArrived,
    Pulling,
    Release,
    SendBlocked,
    SendControl,
    SendGradient,
    Tick,
    Writable,
)

SNAPSHOT_MOST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timers of a worker, in seconds."""

    hello_s: float = 1.0
    ping_s: float = 1.0
    snapshot_s: float = 2.0
    stall_notice_s: float = 10.0
    lease_s: float = 60.0


@dataclass(slots=True)
class Link:
    """What the worker knows of one shard."""

    incarnation: int = 0
    generation: int = -1
    version: int = -1
    view: int = 0
    welcomed: bool = False
    final: int | None = None
    payloads: dict[int, tuple[m.Codec, Any]] = field(default_factory=dict)
    # The contribution, at this shard. "closed": the shard is past its version, or it was not sent as already late.
    push: Literal["none", "pending", "sent", "closed"] = "none"
    attempt: int = 0
    needs_heard: int = 0  # NEEDs in a row for `version`
    wanted: bool = False  # the last of them does not hold this rank
    heard_at: float = 0.0
    hello_at: float | None = None
    snapshot_at: float | None = None
    snapshot_wait_s: float = 0.0


@dataclass(slots=True)
class Tally:
    """Slices of this worker's contributions, by what became of them as far as it knows.

    ``sent`` slices were sent at least once and become ``used``, ``unused`` or ``unknown``; the ``skipped`` were never
    sent. ``resent`` counts sends after the first.
    """

    sent: int = 0
    resent: int = 0
    used: int = 0
    unused: int = 0
    unknown: int = 0
    skipped: int = 0

    def settle(self, outcome: Literal["used", "unused", "unknown", "skipped"]) -> None:
        """Count a slice of which nothing more will be heard."""
        setattr(self, outcome, getattr(self, outcome) + 1)


class Client:
    """One worker's side of every shard: which weights to compute on, what to send where and when.

    ``handle(event, now)`` returns the actions; ``now`` is monotonic, in seconds.
    """

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
        timing: Timing | None = None,
    ) -> None:
        self.run, self.layout, self.rank, self.incarnation = run, layout, rank, incarnation
        self.codec, self.host, self.pid = codec, host, pid
        self.timing = timing or Timing()
        self.links = [Link(heard_at=now) for _ in range(shards)]
        self.contribution: tuple[int, int] | None = None  # generation, version
        self.pulling_above: int | None = None
        self.assembled_generation = -1
        self.ended = False
        self.tally = Tally()
        self.progress = 0
        self.ping_at = now
        self.notice_at = now

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; return what is to be done, in order."""
        match event:
            # A shard that refuses us because it serves another run names its own.
            case PublicationArrived() | ControlArrived() if event.message.run != self.run and not isinstance(
                event.message, m.Refuse
            ):
                actions: list[Action] = [Log("debug", f"a message of another run from shard {event.shard}")]
            case PublicationArrived():
                actions = self._publication(event, now)
            case ControlArrived():
                actions = self._control(event, now)
            case Pulling():
                self.pulling_above, self.notice_at = event.above, now
                self.progress += 1
                actions = self._assemble(now)
            case Contributed():
                actions = self._contribute(event)
            case SendBlocked():
                link = self.links[event.shard]
                if link.push == "sent":
                    link.push = "pending"
                    self._sent(link, -1)
                actions = []
            case Writable():
                actions = self._push(event.shard)
            case Leaving():
                message = m.Leave(run=self.run, rank=self.rank, incarnation=self.incarnation)
                actions = [SendControl(shard, message) for shard in range(len(self.links))]
            case Tick():
                actions = self._tick(now)
        self._check()
        return actions

    def pending(self, shard: int) -> bool:
        """Whether a push to ``shard`` waits for its socket to become writable."""
        link = self.links[shard]
        return link.push == "pending" and link.welcomed

    def passed(self, version: int) -> bool:
        """Whether every shard is past ``version``, so that work on it is of no more use."""
        return all(link.version > version for link in self.links)

    def where(self, now: float) -> str:
        """Where each shard stands, in words."""
        return ", ".join(self._where(shard, link, now) for shard, link in enumerate(self.links))

    # weights

    def _publication(self, event: PublicationArrived, now: float) -> list[Action]:
        shard, message = event.shard, event.message
        link = self.links[shard]
        actions = self._heard(shard, message.incarnation, message.generation, now)
        if message.generation < link.generation or message.incarnation < link.incarnation:
            return actions
        if isinstance(message, m.Bye):
            actions += self._seen(shard, message.version)
            link.final = message.version
            return actions + self._end()
        link.final = None
        link.view = message.view
        match message:
            case m.Weights():
                link.payloads[message.version] = (message.codec, event.payload)
                actions += [*self._settle(link, message), *self._seen(shard, message.version)]
            case m.Heartbeat():
                actions += self._seen(shard, message.version)
                if message.published and message.version not in link.payloads:
                    actions += self._request(shard, None, now)
            case m.Need():
                actions += self._seen(shard, message.version)
                if message.version == link.version:
                    actions += self._needed(shard, wanted=self.rank not in message.held)
        return actions + self._assemble(now)

    def _heard(self, shard: int, incarnation: int, generation: int, now: float) -> list[Action]:
        """Take note of who speaks: a shard that restarted is greeted anew, a rollback forgets what it undid."""
        link = self.links[shard]
        link.heard_at = now
        actions: list[Action] = []
        if incarnation > link.incarnation:
            if link.incarnation:
                actions.append(Log("info", f"shard {shard} has restarted"))
            link.incarnation = incarnation
            link.welcomed, link.needs_heard, link.snapshot_at, link.final = False, 0, None, None
            actions.append(self._hello(shard, now))
        if incarnation == link.incarnation and generation > link.generation:
            if link.generation >= 0:
                actions.append(Log("info", f"shard {shard} was rolled back to generation {generation}"))
            link.generation, link.version, link.final = generation, -1, None
            link.payloads.clear()
            link.needs_heard, link.snapshot_at = 0, None
            actions += self._close(link)
        return actions

    def _seen(self, shard: int, version: int) -> list[Action]:
        """The shard is at ``version``: older contributions are closed, older payloads dropped."""
        link = self.links[shard]
        if version > link.version:
            link.version, link.needs_heard = version, 0
        # The slice before the newest is kept while some shard may still need help with that version.
        floor = min(other.version for other in self.links)
        for other in self.links:
            for old in [v for v in other.payloads if v < other.version and v < max(floor, other.version - 1)]:
                del other.payloads[old]
        if self.contribution is None or link.version <= self.contribution[1]:
            return []
        return self._close(link)

    def _settle(self, link: Link, message: m.Weights | m.Snapshot) -> list[Action]:
        """Learn from the record of a version what became of the slice sent for it."""
        if self.contribution != (message.generation, message.version - 1):
            return []
        return self._close(link, "used" if self.rank in message.ranks else "unused")

    def _close(self, link: Link, outcome: Literal["used", "unused", "unknown"] = "unknown") -> list[Action]:
        """The contribution is of no more use to this shard; when it is to none, it is released."""
        if link.push not in ("pending", "sent"):
            return []
        self.tally.settle(outcome if link.attempt else "skipped")
        link.push = "closed"
        return [] if any(other.push in ("pending", "sent") for other in self.links) else [Release()]

    def _assemble(self, now: float) -> list[Action]:
        """Give the waiting worker a version whose slices are all here, or ask for what is missing to help a shard."""
        if self.pulling_above is None or self.ended or not all(link.welcomed for link in self.links):
            return []
        generation = self.links[0].generation
        if any(link.generation != generation for link in self.links):
            return []
        low = min(link.version for link in self.links)
        # After a rollback the versions are lower, and all of them are new.
        if generation == self.assembled_generation and low <= self.pulling_above:
            return []
        lagging = [link for link in self.links if link.version == low]
        if len(lagging) < len(self.links) and not self._may_help(low, lagging):
            return []
        if any(link.final is not None and link.final <= low for link in self.links):
            return []  # nobody will take a contribution to the last version
        missing = [shard for shard, link in enumerate(self.links) if low not in link.payloads]
        if missing:
            # What a lagging shard has not published yet is not asked for: the start waits for a quorum of listeners.
            helping = [shard for shard in missing if self.links[shard].version > low]
            return [action for shard in helping for action in self._request(shard, low, now)]
        self.pulling_above, self.assembled_generation = None, generation
        return [Assembled(generation, low, tuple(link.payloads[low] for link in self.links))]

    def _may_help(self, low: int, lagging: list[Link]) -> bool:
        """Whether this idle worker could complete version ``low`` where it is stuck: see docs/protocol.md, repair."""
        stuck = all(link.needs_heard >= 2 for link in lagging) and any(link.wanted for link in lagging)
        return stuck and all(link.version <= low + 1 for link in self.links)

    def _request(self, shard: int, version: int | None, now: float) -> list[Action]:
        link = self.links[shard]
        if not link.welcomed or (link.snapshot_at is not None and now - link.snapshot_at < link.snapshot_wait_s):
            return []
        # On a slow link the answer to the last request may still be on its way.
        again = link.snapshot_at is not None
        link.snapshot_wait_s = min(2 * link.snapshot_wait_s, SNAPSHOT_MOST_S) if again else self.timing.snapshot_s
        link.snapshot_at = now
        return [SendControl(shard, m.SnapshotRequest(run=self.run, version=version))]

    def _end(self) -> list[Action]:
        ends = {(link.generation, link.final) for link in self.links}
        if self.ended or len(ends) > 1 or self.links[0].final is None:
            return []
        self.ended = True
        return [Ended(self.links[0].version)]

    # contributions

    def _contribute(self, event: Contributed) -> list[Action]:
        self.contribution = (event.generation, event.version)
        self.pulling_above = None
        self.progress += 1
        actions: list[Action] = []
        for link in self.links:
            self._close(link)  # what was still open of the contribution before: its gradient is gone
            link.attempt = 0
            late = link.generation != event.generation or link.version > event.version
            link.push = "closed" if late else "pending"
            self.tally.skipped += late
        if all(link.push == "closed" for link in self.links):
            return [Release()]
        for shard in range(len(self.links)):
            actions += self._push(shard)
        return actions

    def _push(self, shard: int) -> list[Action]:
        if not self.pending(shard):
            return []
        assert self.contribution is not None
        link = self.links[shard]
        generation, version = self.contribution
        header = m.Gradient(
            run=self.run,
            layout=self.layout,
            generation=generation,
            view=link.view,
            shard=shard,
            version=version,
            rank=self.rank,
            incarnation=self.incarnation,
            attempt=min(link.attempt, 0xFFFF),
            codec=self.codec,
        )
        link.push = "sent"
        self._sent(link, 1)
        return [SendGradient(shard, header)]

    def _sent(self, link: Link, count: int) -> None:
        """Count one more attempt to send, or take it back."""
        if max(link.attempt, link.attempt + count) == 1:
            self.tally.sent += count
        else:
            self.tally.resent += count
        link.attempt += count

    def _needed(self, shard: int, *, wanted: bool) -> list[Action]:
        """The shard asks for contributions to its open version; ``wanted``: it does not hold ours."""
        link = self.links[shard]
        link.needs_heard += 1
        link.wanted = wanted
        if wanted and link.push == "sent" and self.contribution == (link.generation, link.version):
            link.push = "pending"
            return self._push(shard)
        return []

    # control

    def _control(self, event: ControlArrived, now: float) -> list[Action]:
        shard, message = event.shard, event.message
        link = self.links[shard]
        link.heard_at = now
        match message:
            case m.Welcome():
                actions = self._heard(shard, message.incarnation, message.generation, now)
                if message.generation < link.generation or message.incarnation < link.incarnation:
                    return actions
                if message.state == "empty":
                    return actions
                link.welcomed, link.view = True, message.view
                actions = [a for a in actions if not (isinstance(a, SendControl) and isinstance(a.message, m.Hello))]
                actions += self._seen(shard, message.version)
                if message.published and message.version not in link.payloads:
                    actions += self._request(shard, None, now)
                return [*actions, *self._push(shard), *self._assemble(now)]
            case m.Snapshot():
                actions = self._heard(shard, message.incarnation, message.generation, now)
                link.snapshot_at = None
                if message.generation < link.generation or message.incarnation < link.incarnation:
                    return actions
                link.payloads[message.version] = (message.codec, event.payload)
                actions += [*self._settle(link, message), *self._seen(shard, message.version)]
                return [*actions, *self._assemble(now)]
            case m.Refuse():
                return [Failed(f"shard {shard} refuses worker {self.rank}: {message.reason}")]
        return []

    def _hello(self, shard: int, now: float) -> SendControl:
        self.links[shard].hello_at = now
        hello = m.Hello(
            run=self.run,
            layout=self.layout,
            role="worker",
            rank=self.rank,
            incarnation=self.incarnation,
            host=self.host,
            pid=self.pid,
            secret="",
        )
        return SendControl(shard, hello)

    def _tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        ping = now - self.ping_at >= self.timing.ping_s
        for shard, link in enumerate(self.links):
            if now - link.heard_at >= self.timing.lease_s:
                return [Failed(f"no word from shard {shard} for {now - link.heard_at:.0f} s: is it still running?")]
            if not link.welcomed and (link.hello_at is None or now - link.hello_at >= self.timing.hello_s):
                actions.append(self._hello(shard, now))
            if ping and link.welcomed:
                actions.append(SendControl(shard, self._ping(link, now)))
        if ping:
            self.ping_at = now
        if self.pulling_above is not None and now - self.notice_at >= self.timing.stall_notice_s:
            self.notice_at = now
            actions.append(Log("info", f"waiting for a version above {self.pulling_above}: {self.where(now)}"))
        return actions + self._assemble(now)

    def _ping(self, link: Link, now: float) -> m.Ping:
        return m.Ping(
            run=self.run,
            rank=self.rank,
            incarnation=self.incarnation,
            generation=max(link.generation, 0),
            version=max(link.version, 0),
            progress=self.progress,
            sent_us=int(now * 1e6),
        )

    def _where(self, shard: int, link: Link, now: float) -> str:
        if not link.welcomed:
            return f"shard {shard} has not welcomed us"
        return f"shard {shard} at {link.version} (heard {now - link.heard_at:.1f} s ago)"

    def _check(self) -> None:
        """Invariants, after every event."""
        for link in self.links:
            assert all(version <= link.version for version in link.payloads), "a slice from the future"
            assert len(link.payloads) <= 2, "slices pile up"
            assert link.push in ("none", "closed") or self.contribution is not None
            if link.push in ("pending", "sent") and self.contribution is not None:
                assert link.generation == self.contribution[0]
                assert link.version <= self.contribution[1]
