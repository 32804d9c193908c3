"""Messages of the protocol ``zmqrl/1``: typed headers and the limits of their fields.

``framing.py`` encodes the fields in the order declared here. ``docs/protocol.md`` is the specification.
"""

from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args

PROTOCOL = "zmqrl/1"
MAX_WORKERS = 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_CONTROL_BYTES = 1024 * 1024
MAX_SUBSCRIPTION_BYTES = 512
MAX_REPORT_BYTES = 16 * 1024
LONGEST_SPAN_NAME = 16
MOST_SPANS = 32  # in STATS, which must fit into a header
CHUNK_BYTES = 512 * 1024
TOPIC_WEIGHTS = b"W"
TOPIC_SHARED = b"M"
TOPIC_HEARTBEAT = b"H"
TOPIC_NEED = b"N"
TOPIC_BYE = b"X"
TOPICS = (TOPIC_WEIGHTS, TOPIC_HEARTBEAT, TOPIC_NEED, TOPIC_BYE)
"""The topics of a worker that shares no memory with the shard."""


@dataclass(frozen=True, slots=True)
class Uint:
    """An unsigned integer below ``2**bits``. ``bits`` is at most 53, the limit of exact integers in some languages."""

    bits: int


@dataclass(frozen=True, slots=True)
class Size:
    """The maximum length: characters of a string, bytes of a byte string, or items of a list."""

    most: int


MAX_U53 = 2**53 - 1
U16: TypeAlias = Annotated[int, Uint(16)]
U32: TypeAlias = Annotated[int, Uint(32)]
U53: TypeAlias = Annotated[int, Uint(53)]
Name: TypeAlias = Annotated[str, Size(64)]
SpanName: TypeAlias = Annotated[str, Size(LONGEST_SPAN_NAME)]
Sentence: TypeAlias = Annotated[str, Size(1000)]
Ranks: TypeAlias = Annotated[tuple[U16, ...], Size(MAX_WORKERS)]
Codec: TypeAlias = Literal["f32", "bf16"]
Totals: TypeAlias = Annotated[tuple[U53, ...], Size(4)]
Refusal: TypeAlias = Literal["run", "layout", "rank", "replaced", "secret", "key", "code", "protocol"]


class RankTally(NamedTuple):
    """The contributions of one rank by outcome: an array on the wire."""

    rank: U53
    used: U53
    late: U53
    duplicate: U53
    rejected: U53


Tallies: TypeAlias = Annotated[tuple[RankTally, ...], Size(MAX_WORKERS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfShard:
    """The first fields of messages that tell where a shard stands."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published(_OfShard):
    """The weights of ``version``, and the ranks that contributed to it.

    ``elapsed`` is the progress of the run in millionths, according to this shard, for the update from these weights.
    """

    view: U32
    quorum: U16
    members: Ranks
    ranks: Ranks
    codec: Codec
    crc32: U32
    elapsed: U32 = 0
    place: U53 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """PUSH to PULL, followed by the payload: one contribution.

    ``elapsed`` is the greatest ``elapsed`` of all slices of ``version``.
    """

    run: Name
    layout: Name
    generation: U32
    view: U32
    shard: U16
    version: U53
    rank: U16
    incarnation: U53
    attempt: U16
    codec: Codec
    elapsed: U32 = 0
    place: U53 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(_Published):
    """XPUB to SUB, topic ``W``, followed by the payload: the weights of ``version``, and the ranks that contributed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(_OfShard):
    """XPUB to SUB, topic ``H``: the shard is alive, in this state."""

    view: U32
    held: Ranks
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Need(_OfShard):
    """XPUB to SUB, topic ``N``: ``version`` is still open. Ranks that are not in ``held`` must resend."""

    view: U32
    held: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye(_OfShard):
    """XPUB to SUB, topic ``X``: ``version`` is the last version of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """DEALER to ROUTER: the sender introduces itself.

    ``secret`` proves that the sender is the supervisor. ``code`` identifies the zmqrl source code of a worker.
    """

    run: Name
    layout: Name
    role: Literal["worker", "supervisor"]
    rank: U16
    incarnation: U53
    host: Name
    pid: U32
    secret: Name = field(repr=False)
    code: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(_OfShard):
    """ROUTER to DEALER: the answer to HELLO. A worker gets WELCOME once it has subscribed to its presence topic."""

    view: U32
    quorum: U16
    members: Ranks
    codec: Codec
    state: Literal["empty", "open", "ended"]
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """ROUTER to DEALER: the worker must end. REFUSE is the same in every version of the protocol.

    ``code`` is one of ``Refusal``, or a code that a later zmqrl added. ``reason`` is a sentence for the user.
    """

    run: Name
    code: Name
    reason: Sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """DEALER to ROUTER: a request for the weights of ``version``, or for the newest weights if ``version`` is nil."""

    run: Name
    version: U53 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(_Published):
    """ROUTER to DEALER, followed by the payload: the same content as the publication of ``version``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """ROUTER to DEALER: the shard no longer holds ``version``, or does not have it yet."""

    run: Name
    shard: U16
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """DEALER to ROUTER, about once a second, from the thread that owns the sockets.

    ``computed`` grows whenever the computing thread pulls or pushes. ``version`` is the newest version that the sender
    has seen from this shard. The computing thread has been in ``span`` for ``span_ms``.
    """

    run: Name
    rank: U16
    incarnation: U53
    generation: U32
    version: U53
    computed: U53
    sent_us: U53
    span: SpanName = ""
    span_ms: U53 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """ROUTER to DEALER: the answer to PING.

    ``received_us`` and ``answered_us`` are on the monotonic clock of the shard, in microseconds.
    """

    run: Name
    shard: U16
    sent_us: U53
    received_us: U53
    answered_us: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """DEALER to ROUTER: this incarnation of ``rank`` leaves. The shard answers LEFT."""

    run: Name
    rank: U16
    incarnation: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """ROUTER to DEALER: the answer to LEAVE."""

    run: Name
    shard: U16


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """DEALER to ROUTER of one shard, for the supervisor: a worker's metrics, as a MessagePack map."""

    run: Name
    rank: U16
    incarnation: U53
    figures: Annotated[bytes, Size(MAX_REPORT_BYTES)] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareMemory:
    """DEALER to ROUTER: the worker's gradients are in ``memory``. A shard that can read it answers MEMORY_SHARED."""

    run: Name
    rank: U16
    incarnation: U53
    memory: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryShared:
    """ROUTER to DEALER: the answer to SHARE_MEMORY. This process of the shard publishes in ``memory``, too."""

    run: Name
    shard: U16
    incarnation: U53
    memory: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRequest:
    """Supervisor to shard: a request for STATS."""

    run: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(_OfShard):
    """Shard to supervisor: the state of the shard. A table in ``docs/protocol.md`` explains the fields."""

    view: U32
    quorum: U16
    state: Literal["empty", "open", "ended"]
    held: Ranks
    present: Ranks
    silent_ms: Annotated[tuple[U53, ...], Size(MAX_WORKERS)]
    tallies: Tallies
    unattributed: U53
    captured: U53 | None
    totals: Totals
    captured_totals: Totals
    stop: U53 | None
    failure: Sentence
    span_ranks: Annotated[tuple[U16, ...], Size(MOST_SPANS)] = ()
    spans: Annotated[tuple[SpanName, ...], Size(MOST_SPANS)] = ()
    span_ms: Annotated[tuple[U53, ...], Size(MOST_SPANS)] = ()
    made_at: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChange:
    """Supervisor to shard: from the open version on, an update needs ``quorum`` of ``members``."""

    run: Name
    view: U32
    quorum: U16
    members: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Supervisor to shard: end at ``version``. Nil cancels an earlier STOP."""

    run: Name
    version: U53 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Elapsed:
    """Supervisor to shard: the progress of the run in millionths, measured by training time and agent steps."""

    run: Name
    elapsed: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Supervisor to shard: once ``version`` is made, keep a copy of its weights and optimizer state for FETCH."""

    run: Name
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Supervisor to shard: a request for the copy of ``version``, from byte ``offset``."""

    run: Name
    version: U53
    offset: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Shard to supervisor, followed by the payload: a piece of the copy, from byte ``offset`` of ``total`` bytes."""

    run: Name
    shard: U16
    version: U53
    offset: U53
    total: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Supervisor to shard, followed by the payload: a piece of a state, from byte ``offset`` of ``total`` bytes.

    Pieces are sent in order. After the last one, the shard commits ``version`` under ``generation`` and accepts
    contributions to it. ``elapsed`` is as in ELAPSED.
    """

    run: Name
    generation: U32
    version: U53
    view: U32
    quorum: U16
    members: Ranks
    offset: U53
    total: U53
    elapsed: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Shard to supervisor: the first ``offset`` bytes of the state have arrived."""

    run: Name
    shard: U16
    generation: U32
    offset: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Shard to supervisor: worker ``rank`` has seen ``version``, which is newer than the shard's own."""

    run: Name
    shard: U16
    rank: U16
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Shard to supervisor: a worker with another version of zmqrl was refused. ``reason`` is for the user."""

    run: Name
    shard: U16
    reason: Sentence


# Every kind of message is in one or more of these unions, by receiver and sender. A new kind with a payload also goes
# into WITH_PAYLOAD, a publication into TOPICS and Publish (ps/shard/events.py), and what the supervisor decides by into
# ShardSaid (supervisor/events.py). The supervisor gets payloads only through ShardControl.fetch.

Publication: TypeAlias = Weights | Heartbeat | Need | Bye
FromWorker: TypeAlias = Hello | SnapshotRequest | Ping | Leave | Report | ShareMemory
ShardCommand: TypeAlias = StatsRequest | ViewChange | Stop | Elapsed | Checkpoint | Fetch | Load
FromSupervisor: TypeAlias = Hello | ShardCommand
ToWorker: TypeAlias = Welcome | Refuse | Snapshot | Missing | Pong | Left | MemoryShared
ToSupervisor: TypeAlias = Welcome | Refuse | Missing | Stats | Chunk | Loaded | Lost | Refused | Report
Message: TypeAlias = Gradient | Publication | FromWorker | FromSupervisor | ToWorker | ToSupervisor

WITH_PAYLOAD: frozenset[type[Message]] = frozenset({Gradient, Weights, Snapshot, Chunk, Load})
"""The kinds with a payload, which is the frame after the header."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Inbox(Generic[Kind]):
    """The kinds of message that ``receiver`` gets on its ``socket``. ``framing.decode_at`` refuses all others."""

    receiver: Literal["shard", "worker", "supervisor"]
    socket: Literal["PULL", "ROUTER", "SUB", "DEALER"]
    kinds: frozenset[type[Kind]]


GRADIENTS: Inbox[Gradient] = Inbox("shard", "PULL", frozenset({Gradient}))
REQUESTS: Inbox[FromWorker | FromSupervisor] = Inbox(
    "shard", "ROUTER", frozenset(get_args(FromWorker) + get_args(FromSupervisor))
)
PUBLICATIONS: Inbox[Publication] = Inbox("worker", "SUB", frozenset(get_args(Publication)))
ANSWERS: Inbox[ToWorker] = Inbox("worker", "DEALER", frozenset(get_args(ToWorker)))
TOLD: Inbox[ToSupervisor] = Inbox("supervisor", "DEALER", frozenset(get_args(ToSupervisor)))
