"""What a worker knows of one shard: where it stands, its slices, and what became of the contribution there."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from zmqrl.ps import messages as m

SNAPSHOT_MOST_S = 30.0

# What a shard says of itself
Statement: TypeAlias = m.Weights | m.Heartbeat | m.Need | m.Bye | m.Welcome | m.Snapshot


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


@dataclass(slots=True)
class Link:
    """One shard as the worker knows it. Slices of the contribution are counted in ``tally``; times are in seconds.

    ``asynchronous``: the shard takes a contribution whatever version it was computed on.
    """

    shard: int
    tally: Tally
    asynchronous: bool
    heard_at: float
    incarnation: int = 0
    generation: int = -1
    version: int = -1
    view: int = 0
    welcomed: bool = False
    final: int | None = None
    payloads: dict[int, tuple[m.Codec, Any]] = field(default_factory=dict)
    # The contribution, at this shard. "closed": the shard is past its version, or it was not sent as already late.
    push: Literal["none", "pending", "sent", "closed"] = "none"
    handed_out: int = -1  # version of the slice that the worker computes on
    computed_on: int = -1  # version of the slice that the contribution was computed on
    attempt: int = 0
    needs_heard: int = 0  # NEEDs in a row for `version`
    wanted: bool = False  # the last of them does not hold this rank
    hello_at: float | None = None
    snapshot_at: float | None = None
    snapshot_wait_s: float = 0.0
    handshake_failed_at: float = float("-inf")

    # where the shard stands

    def is_outdated(self, message: Statement) -> bool:
        """Whether the shard has restarted or was rolled back since it said this."""
        return message.generation < self.generation or message.incarnation < self.incarnation

    def restart(self, incarnation: int) -> None:
        """Another process is the shard now: it has to be greeted, and knows of no request and of no end."""
        self.incarnation = incarnation
        self.welcomed, self.needs_heard, self.snapshot_at, self.final = False, 0, None, None

    def roll_back(self, generation: int) -> None:
        """Forget the versions that a rollback undid."""
        self.generation, self.version, self.final = generation, -1, None
        self.handed_out = self.computed_on = -1
        self.payloads.clear()
        self.needs_heard, self.snapshot_at = 0, None

    def reach(self, version: int) -> None:
        """Take note that the shard has made ``version``; news may come late."""
        if version > self.version:
            self.version, self.needs_heard = version, 0

    def prune(self, slowest: int) -> None:
        """Keep slices from version ``slowest`` on, where the slowest shard may need help, and never more than two."""
        for old in [version for version in self.payloads if version < max(slowest, self.version - 1)]:
            del self.payloads[old]

    def hand_out(self, version: int) -> tuple[m.Codec, Any]:
        """Give the slice of ``version`` to the worker."""
        self.handed_out = version
        return self.payloads[version]

    def may_request(self, now: float) -> bool:
        """Whether to ask for a snapshot: on a slow link the answer to the last request may still be on its way."""
        return self.welcomed and (self.snapshot_at is None or now - self.snapshot_at >= self.snapshot_wait_s)

    def requested(self, now: float, wait_s: float) -> None:
        """A snapshot was asked for; the next request waits ``wait_s``, or twice as long as the last without answer."""
        again = self.snapshot_at is not None
        self.snapshot_wait_s = min(2 * self.snapshot_wait_s, SNAPSHOT_MOST_S) if again else wait_s
        self.snapshot_at = now

    def where(self, now: float) -> str:
        """Where the shard stands, in words."""
        if self.is_locked_out():
            return self.locked_out()
        if not self.welcomed:
            return f"shard {self.shard} has not welcomed us"
        return f"shard {self.shard} at {self.version} (heard {now - self.heard_at:.1f} s ago)"

    def is_locked_out(self) -> bool:
        """Whether the newest sign of the shard is a failed handshake."""
        return self.handshake_failed_at > self.heard_at

    def locked_out(self) -> str:
        """What is wrong then, in words."""
        return f"the handshake with shard {self.shard} failed: it was cut off, or one of us expects other keys"

    # the contribution at this shard

    def is_open(self) -> bool:
        """Whether the contribution may still be of use here."""
        return self.push in ("pending", "sent")

    def can_push(self) -> bool:
        """Whether a slice waits for the socket to become writable."""
        return self.push == "pending" and self.welcomed

    def offer(self, generation: int) -> None:
        """Begin a contribution; what is still open of the one before is given up, as its gradient is gone."""
        self.close("unknown")
        self.attempt = 0
        self.computed_on = self.handed_out
        late = self.generation != generation or self.is_past()
        self.push = "closed" if late else "pending"
        self.tally.skipped += late

    def is_past(self) -> bool:
        """Whether the shard takes no contribution that was computed on this slice any more."""
        return self.final is not None if self.asynchronous else self.version > self.computed_on

    def learns(self, version: int, *, named: bool) -> Literal["used", "unused"] | None:
        """What the record of ``version`` tells of the slice that was sent, ``named`` if this rank is in it.

        In asynchronous mode nothing: it may be the contribution before that was used.
        """
        if self.asynchronous or version != self.computed_on + 1:
            return None
        return "used" if named else "unused"

    def pushed(self) -> None:
        """The slice goes out, for the first time or again."""
        self.push = "sent"
        self.attempt += 1
        self._count_attempt(1)

    def blocked(self) -> None:
        """It could not go out after all."""
        if self.push == "sent":
            self.push = "pending"
            self._count_attempt(-1)
            self.attempt -= 1

    def need(self, generation: int | None, *, wanted: bool) -> bool:
        """The shard lacks contributions to its open version, ours if ``wanted``; whether to send that again."""
        self.needs_heard += 1
        self.wanted = wanted
        again = wanted and self.push == "sent" and generation == self.generation and not self.is_past()
        if again:
            self.push = "pending"
        return again

    def close(self, outcome: Literal["used", "unused", "unknown"]) -> bool:
        """The contribution is of no more use here; whether it was until now."""
        if not self.is_open():
            return False
        self.tally.settle(outcome if self.attempt else "skipped")
        self.push = "closed"
        return True

    def check(self, generation: int | None) -> None:
        """Invariants, after every event."""
        assert all(version <= self.version for version in self.payloads), "a slice from the future"
        assert len(self.payloads) <= 2, "slices pile up"
        if self.is_open():
            assert self.generation == generation
            assert not self.is_past()

    def _count_attempt(self, count: int) -> None:
        if self.attempt == 1:
            self.tally.sent += count
        else:
            self.tally.resent += count
