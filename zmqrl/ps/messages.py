"""Messages of the protocol ``zmqrl/1``: typed headers and the limits of their fields.

``framing.py`` turns them into bytes, fields in the order declared here. ``docs/protocol.md`` is the specification.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

PROTOCOL = "zmqrl/1"
MAX_WORKERS = 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_CONTROL_BYTES = 1024 * 1024
MAX_SUBSCRIPTION_BYTES = 512
MAX_REPORT_BYTES = 16 * 1024
CHUNK_BYTES = 512 * 1024
TOPIC_WEIGHTS = b"W"
TOPIC_HEARTBEAT = b"H"
TOPIC_NEED = b"N"
TOPIC_BYE = b"X"
TOPICS = (TOPIC_WEIGHTS, TOPIC_HEARTBEAT, TOPIC_NEED, TOPIC_BYE)


@dataclass(frozen=True, slots=True)
class Uint:
    """An unsigned integer below ``2**bits``; at most 53 bits, so that every language reads it exactly."""

    bits: int


@dataclass(frozen=True, slots=True)
class Size:
    """Greatest length of a text (characters), of bytes, or of a list."""

    most: int


U16: TypeAlias = Annotated[int, Uint(16)]
U32: TypeAlias = Annotated[int, Uint(32)]
U53: TypeAlias = Annotated[int, Uint(53)]
Name: TypeAlias = Annotated[str, Size(64)]
Sentence: TypeAlias = Annotated[str, Size(1000)]
Ranks: TypeAlias = Annotated[tuple[U16, ...], Size(MAX_WORKERS)]
Tallies: TypeAlias = Annotated[tuple[tuple[U53, ...], ...], Size(MAX_WORKERS)]
Codec: TypeAlias = Literal["f32", "bf16"]
Totals: TypeAlias = Annotated[tuple[U53, ...], Size(4)]
Refusal: TypeAlias = Literal["run", "layout", "rank", "replaced", "secret", "key", "code", "protocol"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """PUSH to PULL, followed by the payload: one contribution."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """XPUB to SUB, topic ``W``, followed by the payload: the weights of ``version`` and the ranks that made them."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
    view: U32
    quorum: U16
    members: Ranks
    ranks: Ranks
    codec: Codec
    crc32: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """XPUB to SUB, topic ``H``: the shard lives, and where it stands."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
    view: U32
    held: Ranks
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """XPUB to SUB, topic ``N``: ``version`` is still open and only ``held`` have contributed; send yours again."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
    view: U32
    held: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """XPUB to SUB, topic ``X``: ``version`` is the last one of the run."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """DEALER to ROUTER: who I am. A supervisor proves itself with ``secret``. ``code``: which zmqrl a worker runs."""

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
class Welcome:
    """ROUTER to DEALER: the answer to HELLO, sent once the subscription of that rank and incarnation has arrived."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
    view: U32
    quorum: U16
    members: Ranks
    codec: Codec
    state: Literal["empty", "open", "ended"]
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """ROUTER to DEALER, the same in every version of the protocol: a worker that gets it ends.

    ``code`` is one of ``Refusal``, or one that a later version has added. ``reason`` is a sentence for the user.
    """

    run: Name
    code: Name
    reason: Sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """DEALER to ROUTER: send me the weights of ``version``, or the newest when it is nil."""

    run: Name
    version: U53 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """ROUTER to DEALER, followed by the payload: what the publication of ``version`` carried."""

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
    view: U32
    quorum: U16
    members: Ranks
    ranks: Ranks
    codec: Codec
    crc32: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """ROUTER to DEALER: the shard no longer holds ``version``, or does not hold it yet."""

    run: Name
    shard: U16
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """DEALER to ROUTER, about once a second, from the thread that owns the sockets.

    ``progress`` grows whenever the computing thread gets on; ``version`` is the newest this shard has shown the sender.
    """

    run: Name
    rank: U16
    incarnation: U53
    generation: U32
    version: U53
    progress: U53
    sent_us: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """ROUTER to DEALER: the answer to PING with the shard's monotonic clock when it came and went, microseconds."""

    run: Name
    shard: U16
    sent_us: U53
    received_us: U53
    answered_us: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """DEALER to ROUTER: this incarnation of ``rank`` goes. Answered with LEFT."""

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
    """DEALER to ROUTER of shard 0, which hands it to the supervisor: a worker's own figures, a MessagePack map."""

    run: Name
    rank: U16
    incarnation: U53
    figures: Annotated[bytes, Size(MAX_REPORT_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRequest:
    """Supervisor to shard: answer with STATS."""

    run: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Shard to supervisor: where it stands.

    ``tallies`` is one ``[rank, used, late, duplicate, rejected]`` a rank; what no member can be blamed for stands
    under ``unattributed``. ``present`` are the members that are there, ``silent_ms`` how long ago each of them was
    last heard, in the same order. ``totals`` are ``(used, late, duplicate, rejected)`` over the lines of the history
    up to ``version``, ``captured_totals`` up to the version set aside (empty if none is). ``stop`` is the version to
    end at. ``failure`` says why no version can be made any more; empty while one can.
    """

    run: Name
    shard: U16
    incarnation: U53
    generation: U32
    version: U53
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChange:
    """Supervisor to shard: from now on, for the open version too, ``quorum`` of ``members`` make an update."""

    run: Name
    view: U32
    quorum: U16
    members: Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Supervisor to shard: make updates up to ``version`` and no further; nil takes an earlier STOP back."""

    run: Name
    version: U53 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Supervisor to shard: when ``version`` is made, set a copy of weights and optimizer state aside for FETCH."""

    run: Name
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Supervisor to shard: send the copy of ``version`` from byte ``offset`` on."""

    run: Name
    version: U53
    offset: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Shard to supervisor, followed by the payload: bytes ``offset`` and on of ``total`` of the copy of ``version``."""

    run: Name
    shard: U16
    version: U53
    offset: U53
    total: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Supervisor to shard, followed by the payload: state to take over, in order, from byte ``offset`` of ``total``.

    With the last byte the shard commits ``version`` under ``generation`` and opens it.
    """

    run: Name
    generation: U32
    version: U53
    view: U32
    quorum: U16
    members: Ranks
    offset: U53
    total: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Shard to supervisor: ``offset`` bytes of the state have arrived."""

    run: Name
    shard: U16
    generation: U32
    offset: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Shard to supervisor: worker ``rank`` has seen ``version`` of me, which is above mine: I may have lost state."""

    run: Name
    shard: U16
    rank: U16
    version: U53


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Shard to supervisor: a worker of another zmqrl was refused. ``reason`` is a sentence for the user."""

    run: Name
    shard: U16
    reason: Sentence


Message: TypeAlias = (
    Gradient
    | Weights
    | Heartbeat
    | Need
    | Bye
    | Hello
    | Welcome
    | Refuse
    | SnapshotRequest
    | Snapshot
    | Missing
    | Ping
    | Pong
    | Leave
    | Left
    | Report
    | StatsRequest
    | Stats
    | ViewChange
    | Stop
    | Checkpoint
    | Fetch
    | Chunk
    | Load
    | Loaded
    | Lost
    | Refused
)
