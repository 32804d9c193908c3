"""What a worker knows about one shard: its version and slices, and the state of the worker's contribution."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.events import WeightsSlice

SNAPSHOT_MOST_S = 30.0
LEASES_FOR_A_SLICE = 5  # on a slow network, a slice can take longer than a lease. Nothing else arrives meanwhile

# The messages in which a shard shows its state
Statement: TypeAlias = m.Weights | m.Heartbeat | m.Need | m.Bye | m.Welcome | m.Snapshot


@dataclass(slots=True)
class Tally:
    """Counts the gradient slices of a worker by outcome, as far as the worker knows.

    ``sent`` counts the slices that were sent at least once. Each sent slice ends as ``used``, ``unused`` or
    ``unknown``. ``skipped`` counts the slices that were never sent. ``resent`` counts the sends after the first.
    """

    sent: int = 0
    resent: int = 0
    used: int = 0
    unused: int = 0
    unknown: int = 0
    skipped: int = 0

    def settle(self, outcome: Literal["used", "unused", "unknown", "skipped"]) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)


class Kept(NamedTuple):
    """A published slice, and the progress of the run that was published with it, in millionths."""

    payload: WeightsSlice
    elapsed: int


@dataclass(slots=True)
class KnownShard:
    """One shard as the worker sees it. All shards share one ``tally``. Times are in seconds.

    If ``asynchronous``, the shard accepts contributions computed on any version.
    """

    number: int
    tally: Tally
    asynchronous: bool
    heard_at: float
    incarnation: int = 0
    generation: int = -1
    version: int = -1
    view: int = 0
    welcomed: bool = False
    final: int | None = None
    payloads: dict[int, Kept] = field(default_factory=dict)
    # State of the contribution at this shard. "closed": nothing more is sent.
    push: Literal["none", "pending", "sent", "closed"] = "none"
    computed_on: int = -1  # version of the slice that the contribution was computed on
    attempt: int = 0
    needs_heard: int = 0  # number of NEEDs received for `version`
    wanted: bool = False  # whether the last NEED asks for our contribution
    hello_at: float | None = None
    snapshot_at: float | None = None
    snapshot_wait_s: float = 0.0
    handshake_failed_at: float = float("-inf")
    published_at: float = 0.0  # when its newest publication arrived, or when it welcomed the worker
    blocked_at: float | None = None  # since when its PUSH socket has accepted no message

    # state of the shard

    def is_outdated(self, message: Statement) -> bool:
        """Whether the shard has restarted or was rolled back since it sent ``message``."""
        return message.generation < self.generation or message.incarnation < self.incarnation

    def restart(self, incarnation: int) -> None:
        """Record that a new process runs the shard. It needs a HELLO, and has not seen the worker's last request."""
        self.incarnation = incarnation
        self.welcomed, self.needs_heard, self.snapshot_at, self.final = False, 0, None, None
        self.blocked_at = None

    def welcome(self, view: int, now: float) -> None:
        if not self.welcomed:
            self.welcomed, self.published_at = True, now  # from now on, publications are expected
        self.view = view

    def roll_back(self, generation: int) -> None:
        """Forget the versions that a rollback undid."""
        self.generation, self.version, self.final = generation, -1, None
        self.computed_on = -1
        self.payloads.clear()
        self.needs_heard, self.snapshot_at = 0, None

    def reach(self, version: int) -> None:
        """Record that the shard has made ``version``, unless a newer one is known."""
        if version > self.version:
            self.version, self.needs_heard = version, 0

    def keep(self, version: int, payload: WeightsSlice, elapsed: int) -> None:
        self.payloads[version] = Kept(payload, elapsed)

    def prune(self, slowest: int) -> None:
        """Keep at most the two newest slices, and none older than version ``slowest``.

        The worker may need both slices to help the slowest shard.
        """
        oldest = max(slowest, self.version - 1)
        while self.payloads and min(self.payloads) < oldest:
            del self.payloads[min(self.payloads)]

    def may_request(self, now: float) -> bool:
        """Whether to ask for a snapshot now. Returns False while the answer to the last request may still arrive."""
        return self.welcomed and (self.snapshot_at is None or now - self.snapshot_at >= self.snapshot_wait_s)

    def requested(self, now: float, wait_s: float) -> None:
        """Record a request. The next one can follow after ``wait_s``.

        If this request repeats an unanswered one, the wait is twice the last wait, up to ``SNAPSHOT_MOST_S``.
        """
        again = self.snapshot_at is not None
        self.snapshot_wait_s = min(2 * self.snapshot_wait_s, SNAPSHOT_MOST_S) if again else wait_s
        self.snapshot_at = now

    def where(self, now: float) -> str:
        if self.is_locked_out():
            return self.locked_out()
        if not self.welcomed:
            return f"shard {self.number} has not answered our HELLO"
        return f"shard {self.number} at {self.version} (heard {now - self.heard_at:.1f} s ago)"

    def failure(self, now: float, lease_s: float) -> str | None:
        """Why the worker must give up: the shard has been silent for ``lease_s``, or one connection has carried nothing
        for ``LEASES_FOR_A_SLICE`` times as long.
        """
        silent_s, most_s = now - self.heard_at, LEASES_FOR_A_SLICE * lease_s
        if silent_s >= lease_s:
            why = self.locked_out() + "." if self.is_locked_out() else "is it still running?"
            return f"no word from shard {self.number} for {silent_s:.0f} s: {why}"
        if self.welcomed and now - self.published_at >= most_s:
            return (
                f"shard {self.number} answers, but its publications have not arrived for {now - self.published_at:.0f} "
                "s: check the connection to its port for weights, and its speed."
            )
        if self.blocked_at is not None and now - self.blocked_at >= most_s:
            return (
                f"shard {self.number} answers, but no gradient could be sent to it for {now - self.blocked_at:.0f} s: "
                "check the connection to its port for gradients, and its speed."
            )
        return None

    def is_locked_out(self) -> bool:
        """Whether a handshake failed after the shard was last heard."""
        return self.handshake_failed_at > self.heard_at

    def locked_out(self) -> str:
        return f"the handshake with shard {self.number} failed: the connection was cut, or the keys do not match"

    # the contribution at this shard

    def is_open(self) -> bool:
        """Whether this shard may still use the contribution."""
        return self.push in ("pending", "sent")

    def can_push(self) -> bool:
        """Whether a slice waits to be sent and the shard has sent WELCOME to this worker."""
        return self.push == "pending" and self.welcomed

    def offer(self, generation: int, version: int) -> None:
        """Begin a contribution that was computed on ``version``.

        Give up an open previous contribution, because its gradient will be overwritten.
        """
        self.close("unknown")
        self.attempt = 0
        is_current = self.generation == generation
        self.computed_on = version if is_current else -1
        late = not is_current or self.is_past()
        self.push = "closed" if late else "pending"
        self.tally.skipped += late

    def is_past(self) -> bool:
        """Whether it is too late for the contribution at this shard."""
        return self.final is not None if self.asynchronous else self.version > self.computed_on

    def learns(self, version: int, *, named: bool) -> Literal["used", "unused"] | None:
        """The outcome of this worker's slice that the record of ``version`` shows, or None if it shows none.

        ``named``: whether this rank is in the record. In asynchronous mode, the record may refer to an earlier
        contribution.
        """
        if self.asynchronous or version != self.computed_on + 1:
            return None
        return "used" if named else "unused"

    def pushed(self) -> None:
        """Record that the slice was sent, for the first time or again."""
        self.push = "sent"
        self.attempt += 1
        self._count_attempt(1)

    def blocked(self, now: float) -> None:
        """Undo ``pushed``, because the slice could not be sent."""
        if self.blocked_at is None:
            self.blocked_at = now
        if self.push == "sent":
            self.push = "pending"
            self._count_attempt(-1)
            self.attempt -= 1

    def need(self, generation: int | None, *, wanted: bool) -> bool:
        """Record a NEED, which asks for this worker's contribution if ``wanted``. Returns whether to resend."""
        self.needs_heard += 1
        self.wanted = wanted
        again = wanted and self.push == "sent" and generation == self.generation and not self.is_past()
        if again:
            self.push = "pending"
        return again

    def close(self, outcome: Literal["used", "unused", "unknown"]) -> bool:
        """Close the contribution at this shard. Returns whether the contribution was open."""
        if not self.is_open():
            return False
        self.tally.settle(outcome if self.attempt else "skipped")
        self.push = "closed"
        return True

    def check(self, generation: int | None) -> None:
        """Check the invariants that hold after every event."""
        assert max(self.payloads, default=-1) <= self.version, f"a slice of shard {self.number} is too new"
        assert len(self.payloads) <= 2, f"too many slices of shard {self.number}: {len(self.payloads)}"
        if self.is_open():
            assert self.generation == generation, f"a contribution to an old generation is open at shard {self.number}"
            assert not self.is_past(), f"a late contribution is open at shard {self.number}"

    def _count_attempt(self, count: int) -> None:
        if self.attempt == 1:
            self.tally.sent += count
        else:
            self.tally.resent += count
