"""The events that a shard's state machine handles, and the actions that the machine returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from zmqrl.ps.wire import messages as m

if TYPE_CHECKING:
    from zmqrl.ps.shard.gradients import ReceivedSlice

Answer: TypeAlias = m.ToWorker | m.ToSupervisor
"""A message that a shard sends to one receiver."""

Totals: TypeAlias = tuple[int, int, int, int]
"""Contributions by outcome, in the order of ``SHARD_OUTCOMES``."""


def added(totals: Totals, counts: Totals, sign: int = 1) -> Totals:
    """The sum of ``totals`` and ``counts``, or the difference if ``sign`` is -1."""
    used, late, duplicate, rejected = (
        max(0, total + sign * count) for total, count in zip(totals, counts, strict=True)
    )
    return used, late, duplicate, rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The fields that identify this shard in messages, and the ``secret`` of the supervisor."""

    run: str
    layout: str
    shard: int
    incarnation: int
    codec: m.Codec
    payload_bytes: dict[m.Codec, int]
    secret: str = field(repr=False)
    code: str = ""
    """The zmqrl source code that workers must run. Not checked if this or the ``code`` of HELLO is empty."""


@dataclass(frozen=True, slots=True)
class View:
    """The ranks that may contribute, and the number of contributions that make an update."""

    id: int
    quorum: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a version was made. Committed with the version, so that a restarted shard knows what it has published.

    ``late``, ``duplicate`` and ``rejected`` count arrivals since the previous version. ``tallies`` has the totals of
    each rank, and ``totals`` those of the history so far, in the order of ``SHARD_OUTCOMES``. ``view`` is the newest
    view and ``stop`` is the last version to make, as known at the last commit. The update to this version used
    ``made_at``, the progress of the run in millionths. The shard publishes the progress ``elapsed`` for the next
    update. In asynchronous mode, ``staleness`` has the age in versions of each rank's contribution, in the order of
    ``ranks``. ``applied`` maps each rank to the version on which its newest used contribution was computed.
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
    made_at: int = 0
    elapsed: int = 0
    staleness: tuple[int, ...] = ()
    applied: dict[int, int] = field(default_factory=dict)

    def counts(self) -> Totals:
        """The counts that this version adds to the totals of the history."""
        return len(self.ranks), self.late, self.duplicate, self.rejected

    @classmethod
    def handed_over(
        cls, generation: int, version: int, view: View, totals: Totals = (0, 0, 0, 0), *, elapsed: int = 0
    ) -> "Record":
        """The record of a version that this shard has loaded, not made."""
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
            elapsed=elapsed,
        )


# Events


@dataclass(frozen=True, slots=True)
class GradientArrived:
    """A message on the PULL socket.

    ``is_finite`` reads every number, so call it only after all other checks have passed.
    """

    header: m.Gradient
    payload: "ReceivedSlice"
    payload_bytes: int
    is_finite: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class ControlArrived:
    """A message on the ROUTER socket from the connection ``peer``."""

    peer: bytes
    message: m.FromWorker | m.FromSupervisor
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """A subscription to a presence topic began (if ``here``) or ended.

    The subscription that ended may belong to an old connection.
    """

    rank: int
    incarnation: int
    here: bool


@dataclass(frozen=True, slots=True)
class MalformedArrived:
    """A message that is not valid on this socket, or that the sender must not send."""


@dataclass(frozen=True, slots=True)
class FalseHello:
    """A HELLO on the connection ``peer`` with the key of another rank or role."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class ForeignHello:
    """A HELLO on the connection ``peer`` in another version of the protocol."""

    peer: bytes
    protocol: str


@dataclass(frozen=True, slots=True)
class StateRestored:
    """Weights and optimizer state of ``record.version`` are ready.

    If ``recovered``, the shard found the state after a restart, so workers may already have these weights. Otherwise,
    the supervisor sent the state. ``previous`` is the version before ``record.version``, or None if the shard no longer
    holds it.
    """

    record: Record
    recovered: bool
    previous: int | None = None


@dataclass(frozen=True, slots=True)
class Updated:
    """The server has carried out ``Update``. If the numbers are not ``finite``, it has stored nothing."""

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


def gist(event: Event) -> object:
    """The part of ``event`` to show in errors: the message or the record, without the payload."""
    match event:
        case GradientArrived():
            return event.header
        case ControlArrived():
            return event.message
        case StateRestored() | Updated():
            return event.record
    return event


# Actions


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add ``payload`` to the sum of the open version. If ``first``, start a new sum."""

    payload: "ReceivedSlice"
    first: bool


@dataclass(frozen=True, slots=True)
class Update:
    """Take the mean, step the optimizer, commit ``record`` and append it to the history. Then report ``Updated``."""

    record: Record


@dataclass(frozen=True, slots=True)
class CommitAgain:
    """Commit the newest version again with ``record``, so that its new data survives a crash."""

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
    message: Answer


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send the weights of ``version``, the newest or the previous one, to the worker with ``rank``."""

    peer: bytes
    version: int
    rank: int


@dataclass(frozen=True, slots=True)
class Capture:
    """Keep a copy of weights and optimizer state of ``version``, the newest or the previous one, for FETCH."""

    version: int


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Answer a FETCH from the copy that ``Capture`` made."""

    peer: bytes
    request: m.Fetch


@dataclass(frozen=True, slots=True)
class TakeChunk:
    """Store a piece of the state to load. After the last piece, the server reports ``StateRestored``."""

    peer: bytes
    message: m.Load
    payload: bytes


@dataclass(frozen=True, slots=True)
class AcceptShare:
    """Read the gradients of a worker in its memory, if possible, and answer MEMORY_SHARED."""

    peer: bytes
    offer: m.ShareMemory


@dataclass(frozen=True, slots=True)
class ForgetMemory:
    """Soon unmap the memory of ``rank``: its process has left or was replaced."""

    rank: int


@dataclass(frozen=True, slots=True)
class Log:
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
    | AcceptShare
    | ForgetMemory
    | Log
)
