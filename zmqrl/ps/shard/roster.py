"""What a shard knows about its workers and its supervisor, and its answers to processes that join or leave."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from zmqrl.ps.shard.events import Action, ForgetMemory, Identity, Log, PresenceChanged, Send
from zmqrl.ps.wire import messages as m

MOST_INCARNATIONS = 16
SILENT_S = 8.0  # a worker sends a PING every second
DOUBT_S = 2.5  # a shorter limit than SILENT_S, after a subscription to the worker's topic has ended


@dataclass(slots=True)
class Worker:
    """What a shard knows about a rank.

    ``incarnation`` identifies the process that has the rank, and ``peer`` is its connection. ``doubted_at`` has,
    for each incarnation that subscribed, the time when a subscription to its topic ended, or None. Such an end only
    raises doubt. A worker that reconnects may subscribe again before its old subscription ends, and ZeroMQ does not
    report which one ended.
    """

    incarnation: int | None = None
    peer: bytes | None = None
    doubted_at: dict[int, float | None] = field(default_factory=dict)
    left: bool = False
    waiting: tuple[int, float] | None = None  # a lower incarnation that asks for the rank, and since when
    heard_at: float | None = None
    computed: int = 0
    computed_at: float | None = None
    span: str = ""
    in_span_since: float = 0.0

    def is_alive(self, now: float) -> bool:
        """Whether the shard has heard the process recently and the process has not left."""
        if self.incarnation is None or self.left or self.heard_at is None:
            return False
        until, doubted_at = self.heard_at + SILENT_S, self.doubted_at.get(self.incarnation)
        if doubted_at is not None and doubted_at >= self.heard_at:
            until = min(until, doubted_at + DOUBT_S)
        return now < until

    def is_present(self, now: float) -> bool:
        """Whether the process is alive and has subscribed."""
        return self.incarnation in self.doubted_at and self.is_alive(now)


class Roster:
    """Records which process has each rank, which ranks are members, and which members are present.

    ``now`` is monotonic time in seconds. ``welcome`` has the current state of the shard.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.members: tuple[int, ...] | None = None  # None while the shard is empty
        self.member_set: frozenset[int] = frozenset()
        self.workers: dict[int, Worker] = {}
        self.supervisor: bytes | None = None

    def admit(self, members: tuple[int, ...]) -> None:
        self.members, self.member_set = members, frozenset(members)
        for rank in members:
            self.workers.setdefault(rank, Worker())

    # ranks and connections

    def is_newest(self, rank: int, incarnation: int) -> bool:
        """Whether the process with this incarnation has ``rank``."""
        return rank in self.workers and self.workers[rank].incarnation == incarnation

    def is_replaced(self, rank: int, incarnation: int, now: float) -> bool:
        """Whether a living process with a greater incarnation has the rank."""
        worker = self.workers.get(rank, Worker())
        return worker.incarnation is not None and incarnation < worker.incarnation and worker.is_alive(now)

    def rank_of(self, peer: bytes) -> int | None:
        """The rank of the worker on this connection, or None if it is not a worker's."""
        return next((rank for rank, worker in self.workers.items() if worker.peer == peer), None)

    def present(self, now: float) -> list[int]:
        """The present members, which receive publications."""
        return [rank for rank in self.members or () if self.workers[rank].is_present(now)]

    def has_present(self, quorum: int, now: float) -> bool:
        """Whether at least ``quorum`` members are present."""
        members = self.members or ()
        may_be_absent = len(members) - quorum
        for rank in reversed(members):  # workers often join in rank order, so absent ranks are found at once
            may_be_absent -= not self.workers[rank].is_present(now)
            if may_be_absent < 0:
                return False
        return may_be_absent >= 0

    def silent_ms(self, rank: int, now: float) -> int:
        """Milliseconds since a worker was last heard, or 0 if it was never heard."""
        heard_at = self.workers[rank].heard_at
        return 0 if heard_at is None else _ms(now - heard_at)

    def spans(self, ranks: Iterable[int], now: float) -> list[tuple[int, str, int]]:
        """Rank, span and milliseconds in it, for each of ``ranks`` whose last PING names a span. Longest first."""
        told = [(rank, self.workers[rank]) for rank in ranks if self.workers[rank].span]
        told.sort(key=lambda each: each[1].in_span_since)
        return [(rank, worker.span, _ms(now - worker.in_span_since)) for rank, worker in told]

    def describe(self, rank: int, now: float) -> str:
        worker = self.workers[rank]
        words = ["here" if worker.is_present(now) else "absent"]
        words += [f"in {worker.span!r} for {now - worker.in_span_since:.1f} s"] if worker.span else []
        for what, at in (("heard", worker.heard_at), ("computed", worker.computed_at)):
            words += [] if at is None else [f"last {what} {now - at:.1f} s ago"]
        return f"worker {rank} ({', '.join(words)})"

    def to_supervisor(self, message: m.ToSupervisor) -> list[Action]:
        """Send a message to the supervisor if it is connected."""
        return [] if self.supervisor is None else [Send(self.supervisor, message)]

    # joining and leaving

    def refusal(self, hello: m.Hello) -> m.Refuse | None:
        """The refusal to send for this HELLO, or None if the shard can accept it."""
        me = self.identity
        if hello.code and me.code and hello.code != me.code:
            return self._refuse(
                "code",
                f"worker {hello.rank} on {hello.host!r:.70} runs zmqrl {hello.code!r:.70}, but this run uses "
                f"{me.code!r}: install that version there, or join with --any-code if they are compatible.",
            )
        if hello.layout != me.layout:
            return self._refuse(
                "layout", f"your layout is {hello.layout}, but the run has {me.layout}: use the one in cluster.json."
            )
        if hello.role == "supervisor":
            wrong = not hmac.compare_digest(hello.secret.encode(), me.secret.encode())
            return self._refuse("secret", "this is not the secret of the run's supervisor.") if wrong else None
        if hello.rank >= m.MAX_WORKERS or (self.members is not None and hello.rank not in self.members):
            return self._no_member(hello.rank)
        return None

    def wrong_key(self) -> m.Refuse:
        return self._refuse("key", "you connected with the key of another rank or role.")

    def foreign(self, protocol: str) -> m.Refuse:
        return self._refuse(
            "protocol",
            f"a worker uses protocol {protocol!r:.40}, but this run uses {m.PROTOCOL!r}: "
            "use a worker with that protocol.",
        )

    def tell_refused(self, refuse: m.Refuse) -> list[Action]:
        """Tell the supervisor about the refusal of a worker with another zmqrl. Other refusals are not reported."""
        if refuse.code not in ("code", "protocol"):
            return []
        me = self.identity
        return self.to_supervisor(m.Refused(run=me.run, shard=me.shard, reason=refuse.reason))

    def hello(self, peer: bytes, hello: m.Hello, welcome: m.Welcome, now: float) -> list[Action]:
        """Accept a HELLO for which ``refusal`` returned None."""
        if hello.role == "supervisor":
            self.supervisor = peer
            return [Send(peer, welcome)]
        if self.is_replaced(hello.rank, hello.incarnation, now):
            return self._wait(peer, hello, now)
        return [*self._take_rank(peer, hello, now), *self._answer(hello.rank, welcome)]

    def _wait(self, peer: bytes, hello: m.Hello, now: float) -> list[Action]:
        """Keep a process with a lower incarnation waiting, and refuse it after ``SILENT_S``.

        The process that has the rank may have just died, and the waiting process may be its successor. A successor has
        a lower incarnation if the clock was set back.
        """
        worker = self.workers[hello.rank]
        if worker.waiting is None or worker.waiting[0] != hello.incarnation:
            worker.waiting = hello.incarnation, now
        return [Send(peer, self.replaced(hello.rank))] if now - worker.waiting[1] >= SILENT_S else []

    def _take_rank(self, peer: bytes, message: m.Hello | m.Ping, now: float) -> list[Action]:
        """Give the rank to the sender of ``message``. Tell a process with a lower incarnation that it was replaced.

        Among living processes, the greatest incarnation has the rank. A process that seems dead does not keep others
        out. If it was only silent and its incarnation is greater, its next PING takes the rank back.
        """
        worker = self.workers.setdefault(message.rank, Worker())
        older = worker.incarnation is not None and worker.incarnation < message.incarnation
        told: list[Action] = [Send(worker.peer, self.replaced(message.rank))] if older and worker.peer else []
        if worker.incarnation not in (None, message.incarnation):
            told.append(ForgetMemory(message.rank))
        worker.incarnation, worker.peer, worker.left, worker.waiting = message.incarnation, peer, False, None
        worker.heard_at = worker.computed_at = now
        worker.span = ""
        return told

    def answer_all(self, welcome: m.Welcome) -> list[Action]:
        """Answer every worker that sent HELLO: some still wait for an answer, and the others need the new state."""
        return [action for rank in sorted(self.workers) for action in self._answer(rank, welcome)]

    def presence(self, event: PresenceChanged, welcome: m.Welcome, now: float) -> list[Action]:
        """Record that a subscription began or ended. Answer a worker that sent HELLO before it subscribed."""
        worker = self.workers.get(event.rank)
        if worker is None:
            if event.rank >= m.MAX_WORKERS:
                return []
            worker = self.workers[event.rank] = Worker()
        if not event.here:
            if event.incarnation not in worker.doubted_at:
                return []
            before = worker.doubted_at[event.incarnation]
            if before is None or worker.heard_at is None or before < worker.heard_at:  # else already in doubt
                worker.doubted_at[event.incarnation] = now
            return [Log("info", f"a subscription of worker {event.rank} has ended")]
        worker.doubted_at[event.incarnation] = None
        # Normally a rank has one process, or two while one replaces the other.
        old = [incarnation for incarnation in worker.doubted_at if incarnation != worker.incarnation]
        for incarnation in old[:-MOST_INCARNATIONS]:
            del worker.doubted_at[incarnation]
        actions: list[Action] = [Log("info", f"worker {event.rank} is present")]
        if worker.incarnation == event.incarnation:
            worker.heard_at = now
            actions += self._answer(event.rank, welcome)
        return actions

    def heard(self, rank: int, now: float) -> None:
        self.workers[rank].heard_at = now

    def ping(self, peer: bytes, ping: m.Ping, welcome: m.Welcome, now: float) -> list[Action]:
        """Record a PING. The sender takes the rank back from a process with a lower incarnation."""
        worker, actions = self.workers.get(ping.rank, Worker()), list[Action]()
        if worker.incarnation is not None and worker.incarnation < ping.incarnation:
            # It shares its memory again when it hears WELCOME.
            actions = [*self._take_rank(peer, ping, now), *self._answer(ping.rank, welcome)]
        if worker.incarnation == ping.incarnation and not worker.left:
            # A worker that reconnects has a new peer id.
            worker.peer, worker.heard_at = peer, now
            if ping.computed != worker.computed:
                worker.computed, worker.computed_at = ping.computed, now
            worker.span, worker.in_span_since = ping.span, now - ping.span_ms / 1000
        return actions

    def leave(self, peer: bytes, leave: m.Leave) -> list[Action]:
        """Record that a worker leaves, if ``peer`` is its connection."""
        if not self.is_newest(leave.rank, leave.incarnation) or self.workers[leave.rank].peer != peer:
            return []
        worker = self.workers[leave.rank]
        worker.doubted_at.pop(leave.incarnation, None)
        worker.left, worker.peer = True, None
        left = m.Left(run=self.identity.run, shard=self.identity.shard)
        return [Send(peer, left), ForgetMemory(leave.rank), Log("info", f"worker {leave.rank} leaves")]

    def _answer(self, rank: int, welcome: m.Welcome) -> list[Action]:
        """Answer the HELLO of ``rank`` once the shard has state and the worker has subscribed."""
        worker = self.workers[rank]
        if self.members is None or worker.peer is None or worker.incarnation not in worker.doubted_at:
            return []
        return [Send(worker.peer, welcome if rank in self.members else self._no_member(rank))]

    def _no_member(self, rank: int) -> m.Refuse:
        return self._refuse("rank", f"rank {rank} is not a member of this run.")

    def replaced(self, rank: int) -> m.Refuse:
        return self._refuse("replaced", f"another process has taken rank {rank}.")

    def other_run(self, run: str) -> m.Refuse:
        me = self.identity
        return self._refuse("run", f"shard {me.shard} at this address serves run {me.run}, not run {run}.")

    def _refuse(self, code: m.Refusal, reason: str) -> m.Refuse:
        return m.Refuse(run=self.identity.run, code=code, reason=reason)


def _ms(seconds: float) -> int:
    """Whole milliseconds, within the range of a message: a PING can name any span, however long."""
    return min(max(0, int(1000 * seconds)), m.MAX_U53)
