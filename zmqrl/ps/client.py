"""What a worker decides about the wire: a state machine without sockets, clock or arithmetic.

Events go in, actions come out in the order in which they must be carried out. ``connection.py`` does the rest.
"""

from dataclasses import dataclass
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
    HandshakeFailed,
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
from zmqrl.ps.link import Link, Statement, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timers of a worker, in seconds."""

    hello_s: float = 1.0
    ping_s: float = 1.0
    snapshot_s: float = 2.0
    stall_notice_s: float = 10.0
    lease_s: float = 60.0


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
        asynchronous: bool = False,
        code: str = "",
    ) -> None:
        """``asynchronous``: shards go on with every contribution; the slices computed on may be of any versions."""
        self.run, self.layout, self.rank, self.incarnation = run, layout, rank, incarnation
        self.codec, self.host, self.pid, self.code = codec, host, pid, code
        self.timing = timing or Timing()
        self.tally = Tally()
        self.asynchronous = asynchronous
        self.links = [Link(shard, self.tally, asynchronous, heard_at=now) for shard in range(shards)]
        self.contribution: int | None = None  # its generation; the version is each link's `computed_on`
        self.pulling_above: int | None = None
        self.assembled_generation = -1
        self.ended = False
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
                actions = self._publication(self.links[event.shard], event.message, event.payload, now)
            case ControlArrived():
                actions = self._control(self.links[event.shard], event.message, event.payload, now)
            case Pulling():
                self.pulling_above, self.notice_at = event.above, now
                self.progress += 1
                actions = self._assemble(now)
            case Contributed():
                actions = self._contribute(event)
            case SendBlocked():
                self.links[event.shard].blocked()
                actions = []
            case Writable():
                actions = self._push(self.links[event.shard])
            case HandshakeFailed():
                actions = self._locked_out(self.links[event.shard], now)
            case Leaving():
                message = m.Leave(run=self.run, rank=self.rank, incarnation=self.incarnation)
                actions = [SendControl(link.shard, message) for link in self.links]
            case Tick():
                actions = self._tick(now)
        for link in self.links:
            link.check(self.contribution)
        return actions

    def pending(self, shard: int) -> bool:
        """Whether a push to ``shard`` waits for its socket to become writable."""
        return self.links[shard].can_push()

    def passed(self, version: int) -> bool:
        """Whether every shard is past ``version``, so that work on it is of no more use."""
        return all(link.version > version for link in self.links)

    def where(self, now: float) -> str:
        """Where each shard stands, in words."""
        return ", ".join(link.where(now) for link in self.links)

    # weights

    def _publication(
        self, link: Link, message: m.Weights | m.Heartbeat | m.Need | m.Bye, payload: Any, now: float
    ) -> list[Action]:
        actions = self._heard(link, message, now)
        if link.is_outdated(message):
            return actions
        if isinstance(message, m.Bye):
            link.final = message.version
            actions += [*self._reached(link, message.version), *self._end()]
            if self.asynchronous and not self.ended:  # the others go on, for which this shard's last slice is needed
                actions += self._request(link, None, now) if message.version not in link.payloads else []
                actions += self._assemble(now)
            return actions
        link.final, link.view = None, message.view
        match message:
            case m.Weights():
                actions += self._slice(link, message, payload)
            case m.Heartbeat():
                actions += self._catch_up(link, message, now)
            case m.Need():
                actions += self._reached(link, message.version)
                if message.version == link.version:
                    again = link.need(self.contribution, wanted=self.rank not in message.held)
                    actions += self._push(link) if again else []
        return actions + self._assemble(now)

    def _heard(self, link: Link, message: Statement, now: float) -> list[Action]:
        """Take note of who speaks: a shard that restarted is greeted anew, a rollback forgets what it undid."""
        link.heard_at = now
        actions: list[Action] = []
        if message.incarnation > link.incarnation:
            if link.incarnation:
                actions.append(Log("info", f"shard {link.shard} has restarted"))
            link.restart(message.incarnation)
            actions.append(self._hello(link, now))
        if message.incarnation == link.incarnation and message.generation > link.generation:
            if link.generation >= 0:
                actions.append(Log("info", f"shard {link.shard} was rolled back to generation {message.generation}"))
            link.roll_back(message.generation)
            actions += self._close(link)
        return actions

    def _catch_up(self, link: Link, message: m.Heartbeat | m.Welcome, now: float) -> list[Action]:
        """The shard says where it stands: ask for what it has published and this worker has missed."""
        actions = self._reached(link, message.version)
        missed = message.published and message.version not in link.payloads
        return actions + (self._request(link, None, now) if missed else [])

    def _slice(self, link: Link, message: m.Weights | m.Snapshot, payload: Any) -> list[Action]:
        """Keep a slice, and learn from its record what became of the slice that was sent for it."""
        link.payloads[message.version] = (message.codec, payload)
        actions: list[Action] = []
        if self.contribution == message.generation:
            outcome = link.learns(message.version, named=self.rank in message.ranks)
            actions = self._close(link, outcome) if outcome is not None else []
        return actions + self._reached(link, message.version)

    def _reached(self, link: Link, version: int) -> list[Action]:
        """The shard is at ``version``: older contributions are closed, older payloads dropped."""
        link.reach(version)
        slowest = min(other.version for other in self.links)
        for other in self.links:
            other.prune(slowest)
        return self._close(link) if link.is_past() else []

    def _close(self, link: Link, outcome: Literal["used", "unused", "unknown"] = "unknown") -> list[Action]:
        """The contribution is of no more use to this shard; when it is to none, it is released."""
        closed = link.close(outcome)
        return [Release()] if closed and not any(other.is_open() for other in self.links) else []

    def _assemble(self, now: float) -> list[Action]:
        """Give the waiting worker a version whose slices are all here, or ask for what is missing to help a shard."""
        if self.pulling_above is None or self.ended or not all(link.welcomed for link in self.links):
            return []
        generation = self.links[0].generation
        if any(link.generation != generation for link in self.links):
            return []
        if self.asynchronous:
            return self._assemble_newest(generation)
        low = min(link.version for link in self.links)
        # After a rollback the versions are lower, and all of them are new.
        if generation == self.assembled_generation and low <= self.pulling_above:
            return []
        lagging = [link for link in self.links if link.version == low]
        if len(lagging) < len(self.links) and not self._may_help(low, lagging):
            return []
        if any(link.final is not None and link.final <= low for link in self.links):
            return []  # nobody will take a contribution to the last version
        missing = [link for link in self.links if low not in link.payloads]
        if missing:
            # What a lagging shard has not published yet is not asked for: the start waits for a quorum of listeners.
            return [action for link in missing if link.version > low for action in self._request(link, low, now)]
        return self._hand_out(generation, [low] * len(self.links))

    def _assemble_newest(self, generation: int) -> list[Action]:
        """Give the newest slice of each shard, once none is one that a contribution was computed on already."""
        open_links = [link for link in self.links if link.final is None]
        if not open_links or any(link.version <= link.computed_on for link in open_links):
            return []
        if any(link.version not in link.payloads for link in self.links):
            return []  # what was lost is asked for at the shard's next heartbeat
        # From here on the gradient may be overwritten: what is still open of it can't be sent again.
        closed = [action for link in self.links for action in self._close(link)]
        return [*closed, *self._hand_out(generation, [link.version for link in self.links])]

    def _hand_out(self, generation: int, versions: list[int]) -> list[Action]:
        self.pulling_above, self.assembled_generation = None, generation
        slices = tuple(link.hand_out(version) for link, version in zip(self.links, versions, strict=True))
        return [Assembled(generation, min(versions), slices)]

    def _may_help(self, low: int, lagging: list[Link]) -> bool:
        """Whether this idle worker could complete version ``low`` where it is stuck: see docs/protocol.md, repair."""
        stuck = all(link.needs_heard >= 2 for link in lagging) and any(link.wanted for link in lagging)
        return stuck and all(link.version <= low + 1 for link in self.links)

    def _request(self, link: Link, version: int | None, now: float) -> list[Action]:
        if not link.may_request(now):
            return []
        link.requested(now, self.timing.snapshot_s)
        return [SendControl(link.shard, m.SnapshotRequest(run=self.run, version=version))]

    def _end(self) -> list[Action]:
        generations, finals = {link.generation for link in self.links}, {link.final for link in self.links}
        # In asynchronous mode each shard has a last version of its own.
        if self.ended or None in finals or len(generations) > 1 or (len(finals) > 1 and not self.asynchronous):
            return []
        self.ended = True
        return [Ended(min(link.version for link in self.links))]

    # contributions

    def _contribute(self, event: Contributed) -> list[Action]:
        self.contribution = event.generation
        self.pulling_above = None
        self.progress += 1
        for link in self.links:
            link.offer(event.generation)
        if not any(link.is_open() for link in self.links):
            return [Release()]
        return [action for link in self.links for action in self._push(link)]

    def _push(self, link: Link) -> list[Action]:
        if not link.can_push():
            return []
        assert self.contribution is not None
        header = m.Gradient(
            run=self.run,
            layout=self.layout,
            generation=self.contribution,
            view=link.view,
            shard=link.shard,
            version=link.computed_on,
            rank=self.rank,
            incarnation=self.incarnation,
            attempt=min(link.attempt, 0xFFFF),
            codec=self.codec,
        )
        link.pushed()
        return [SendGradient(link.shard, header)]

    # control

    def _control(self, link: Link, message: m.Message, payload: Any, now: float) -> list[Action]:
        link.heard_at = now
        match message:
            case m.Welcome():
                actions = self._heard(link, message, now)
                if link.is_outdated(message) or message.state == "empty":
                    return actions
                link.welcomed, link.view = True, message.view
                # Who welcomes us needs no greeting, even if this is the first we hear of a new process.
                actions = [a for a in actions if not (isinstance(a, SendControl) and isinstance(a.message, m.Hello))]
                return [*actions, *self._catch_up(link, message, now), *self._push(link), *self._assemble(now)]
            case m.Snapshot():
                actions = self._heard(link, message, now)
                link.snapshot_at = None
                if link.is_outdated(message):
                    return actions
                return [*actions, *self._slice(link, message, payload), *self._assemble(now)]
            case m.Refuse():
                return [Failed(f"shard {link.shard} refuses worker {self.rank}: {message.reason}")]
        return []

    def _hello(self, link: Link, now: float) -> SendControl:
        link.hello_at = now
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
        return SendControl(link.shard, hello)

    def _locked_out(self, link: Link, now: float) -> list[Action]:
        known = link.is_locked_out()
        link.handshake_failed_at = now
        return [] if known else [Log("warning", link.locked_out())]

    def _tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        ping = now - self.ping_at >= self.timing.ping_s
        for link in self.links:
            silent_s = now - link.heard_at
            if silent_s >= self.timing.lease_s:
                why = link.locked_out() + "." if link.is_locked_out() else "is it still running?"
                return [Failed(f"no word from shard {link.shard} for {silent_s:.0f} s: {why}")]
            if not link.welcomed and (link.hello_at is None or now - link.hello_at >= self.timing.hello_s):
                actions.append(self._hello(link, now))
            if ping and link.welcomed:
                actions.append(SendControl(link.shard, self._ping(link, now)))
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
