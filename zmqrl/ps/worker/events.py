"""The events that a worker's state machine handles, and the actions that the machine returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from zmqrl.ps.wire import messages as m

if TYPE_CHECKING:
    import zmq

    from zmqrl.ps.wire.memory import SharedPayload

Payload: TypeAlias = "zmq.Frame | SharedPayload"
WeightsSlice: TypeAlias = "tuple[m.Codec, Payload]"
"""One shard's slice of the weights, as it arrived."""

# Events


@dataclass(frozen=True, slots=True)
class PublicationArrived:
    """A message on the subscription to ``shard``."""

    shard: int
    message: m.Publication
    payload: "Payload | None" = None


@dataclass(frozen=True, slots=True)
class ControlArrived:
    """A message on the DEALER socket of ``shard``."""

    shard: int
    message: m.ToWorker
    payload: "Payload | None" = None


@dataclass(frozen=True, slots=True)
class Pulling:
    """The computing thread waits for a version above ``above``, or for any version of another generation.

    ``generation`` is that of the last weights that the thread has. ``number`` counts the pulls.
    """

    above: int
    generation: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Overwritten:
    """``shard`` has overwritten its slice of ``version`` in its memory, before the computing thread had read it."""

    shard: int
    version: int


@dataclass(frozen=True, slots=True)
class Contributed:
    """A gradient is ready. It was computed on the weights with these fields, and stays readable until ``Release``."""

    generation: int
    versions: tuple[int, ...]
    elapsed: int = 0


@dataclass(frozen=True, slots=True)
class SendBlocked:
    """``SendGradient`` to ``shard`` was not possible yet: the socket is not connected, or its queue is full."""

    shard: int


@dataclass(frozen=True, slots=True)
class Writable:
    """The PUSH socket of ``shard`` can accept a message."""

    shard: int


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The handshake of a connection to ``shard`` failed: the connection was cut, or the keys do not match."""

    shard: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker is about to leave."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. The computing thread has been in ``span`` for ``span_ms``."""

    span: str = ""
    span_ms: int = 0


Event: TypeAlias = (
    PublicationArrived
    | ControlArrived
    | Pulling
    | Overwritten
    | Contributed
    | SendBlocked
    | Writable
    | HandshakeFailed
    | Leaving
    | Tick
)


def gist(event: Event) -> object:
    """The part of ``event`` to show in errors: the message without the payload, or the whole event."""
    match event:
        case PublicationArrived() | ControlArrived():
            return event.message
    return event


# Actions


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send a message on the DEALER socket of ``shard``."""

    shard: int
    message: m.FromWorker


@dataclass(frozen=True, slots=True)
class SendGradient:
    """Push the contribution's slice to ``shard``, without blocking."""

    shard: int
    header: m.Gradient


@dataclass(frozen=True, slots=True)
class Assembled:
    """A slice of every shard has arrived. ``versions`` and ``payloads`` are in the order of the shards.

    The versions differ only in asynchronous mode. ``elapsed`` is the progress of the run for the update from these
    weights, in millionths. ``pull`` is the number of the ``Pulling`` that this answers.
    """

    generation: int
    versions: tuple[int, ...]
    payloads: tuple[WeightsSlice, ...]
    elapsed: int = 0
    pull: int = 0

    @property
    def version(self) -> int:
        """The version of the oldest slice."""
        return min(self.versions)


@dataclass(frozen=True, slots=True)
class Release:
    """No shard needs the contribution any more, so the gradient can be overwritten."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended. Every shard has reached ``version``."""

    version: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot continue. ``reason`` is a sentence for the user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning"]
    text: str


Action: TypeAlias = SendControl | SendGradient | Assembled | Release | Ended | Failed | Log
