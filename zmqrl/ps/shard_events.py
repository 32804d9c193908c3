"""What can happen to a shard, and what it can ask to be done: the vocabulary of its state machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from zmqrl.ps import messages as m

Outcome: TypeAlias = Literal["used", "late", "duplicate", "rejected"]
OUTCOMES: tuple[Outcome, ...] = ("used", "late", "duplicate", "rejected")

Totals: TypeAlias = tuple[int, int, int, int]
"""Contributions by outcome, in the order of ``OUTCOMES``."""


def added(totals: Totals, counts: Totals, sign: int = 1) -> Totals:
    """``totals`` with ``counts`` added, or taken away where ``sign`` is -1."""
    used, late, duplicate, rejected = (
        max(0, total + sign * count) for total, count in zip(totals, counts, strict=True)
    )
    return used, late, duplicate, rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a message must name to be meant for this shard of this run, and what only its supervisor knows."""

    run: str
    layout: str
    shard: int
    incarnation: int
    codec: m.Codec
    payload_bytes: dict[m.Codec, int]
    secret: str = field(repr=False)
    code: str = ""
    """The zmqrl that workers must run if they say which they run; empty: any."""


@dataclass(frozen=True, slots=True)
class View:
    """Who may contribute, and how many contributions make an update."""

    id: int
    quorum: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a version came to be. Committed with it, so that a restarted shard knows what it had published.

    ``late``, ``duplicate`` and ``rejected`` count arrivals since the version before; ``tallies`` are totals by rank,
    ``(used, late, duplicate, rejected)``, and ``totals`` those of the lines of the history up to this version. ``view``
    is the newest view, ``stop`` the last version to make, as far as they were known at the last commit. Asynchronous
    mode only: ``staleness`` of each of ``ranks`` in versions, and ``applied``, the newest version that each rank has
    computed on and whose contribution was used.
    """

    generation: int
    version: int
    view: View
    quorum: int
    ranks: tuple[int, ...]
    late: int
    duplicate: int
    rejected: int
    tallies: dict[int, tuple[int, int, int, int]]
    unattributed: int
    totals: Totals = (0, 0, 0, 0)
    stop: int | None = None
    staleness: tuple[int, ...] = ()
    applied: dict[int, int] = field(default_factory=dict)

    def counts(self) -> Totals:
        """What this version adds to the totals of the history."""
        return len(self.ranks), self.late, self.duplicate, self.rejected

    @classmethod
    def handed_over(cls, generation: int, version: int, view: View, totals: Totals = (0, 0, 0, 0)) -> "Record":
        """Of a version that was not made here."""
        return cls(
            generation=generation,
            version=version,
            view=view,
            quorum=0,
            ranks=(),
            late=0,
            duplicate=0,
            rejected=0,
            tallies={},
            unattributed=0,
            totals=totals,
        )


# Events


@dataclass(frozen=True, slots=True)
class GradientArrived:
    """``payload`` is opaque here; ``is_finite`` looks at its numbers only when everything else is right."""

    header: m.Gradient
    payload: Any
    payload_bytes: int
    is_finite: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class ControlArrived:
    """A message on the ROUTER socket from the connection ``peer``."""

    peer: bytes
    message: m.Message
    payload: Any = None


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """A worker's presence topic was subscribed (``here``), or a subscription to it has ended: perhaps another's."""

    rank: int
    incarnation: int
    here: bool


@dataclass(frozen=True, slots=True)
class MalformedArrived:
    """Something arrived that is no message for the socket it came to, or not for its sender to say."""


@dataclass(frozen=True, slots=True)
class FalseHello:
    """A HELLO came over the connection ``peer`` with a key that is not for the rank or the role which it names."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class ForeignHello:
    """A HELLO in another version of the protocol came over the connection ``peer``."""

    peer: bytes
    protocol: str


@dataclass(frozen=True, slots=True)
class StateRestored:
    """Weights and optimizer state of ``record.version`` are in place: found after a restart, or loaded.

    ``recovered``: this shard had made (and perhaps published) them before, so workers may hold them. ``previous`` is
    the version before, if it is still held.
    """

    record: Record
    recovered: bool
    previous: int | None = None


@dataclass(frozen=True, slots=True)
class Updated:
    """``Update`` is done: the version is committed. Not if its numbers were not ``finite``: then nothing is stored."""

    record: Record
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    GradientArrived
    | ControlArrived
    | PresenceChanged
    | MalformedArrived
    | FalseHello
    | ForeignHello
    | StateRestored
    | Updated
    | Tick
)


# Actions


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add ``payload`` to the sum of the open version; ``first`` starts the sum."""

    payload: Any
    codec: m.Codec
    first: bool


@dataclass(frozen=True, slots=True)
class Update:
    """Take the mean, step the optimizer, commit ``record``, append it to the history; then feed ``Updated`` back."""

    record: Record


@dataclass(frozen=True, slots=True)
class CommitAgain:
    """Commit the newest version once more, with this record: more has become known that must outlive the process."""

    record: Record


@dataclass(frozen=True, slots=True)
class PublishWeights:
    """Publish the newest committed weights on topic ``W``."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a message without payload."""

    topic: bytes
    message: m.Heartbeat | m.Need | m.Bye


@dataclass(frozen=True, slots=True)
class Send:
    """Send a control message to a connection."""

    peer: bytes
    message: m.Message


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send the weights of ``version``, the newest or the one before, to a connection; ``rank`` if it is a worker's."""

    peer: bytes
    version: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """Copy weights and optimizer state of ``version``, the newest or the one before, aside for FETCH."""

    version: int


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Answer a FETCH from the copy set aside."""

    peer: bytes
    request: m.Fetch


@dataclass(frozen=True, slots=True)
class TakeChunk:
    """Take over a piece of state; after the last one the server feeds ``StateRestored`` back."""

    peer: bytes
    message: m.Load
    payload: Any


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the shard's log."""

    level: Literal["debug", "info", "warning"]
    text: str


Action: TypeAlias = (
    Accumulate
    | Update
    | CommitAgain
    | PublishWeights
    | Publish
    | Send
    | SendSnapshot
    | Capture
    | SendChunk
    | TakeChunk
    | Log
)
