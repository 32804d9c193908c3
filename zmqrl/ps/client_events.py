"""What can happen to a worker's side of the wire, and what it can ask to be done: its state machine's vocabulary."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zmqrl.ps import messages as m

# Events


@dataclass(frozen=True, slots=True)
class PublicationArrived:
    """A message on the subscription to ``shard``."""

    shard: int
    message: m.Weights | m.Heartbeat | m.Need | m.Bye
    payload: Any = None


@dataclass(frozen=True, slots=True)
class ControlArrived:
    """A message on the DEALER socket of ``shard``."""

    shard: int
    message: m.Message
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Pulling:
    """The computing thread waits for a version above ``above``."""

    above: int


@dataclass(frozen=True, slots=True)
class Contributed:
    """The gradient for ``version`` is ready and stays readable until ``Release``."""

    generation: int
    version: int


@dataclass(frozen=True, slots=True)
class SendBlocked:
    """``SendGradient`` to ``shard`` could not be done now: not connected, or the queue is full."""

    shard: int


@dataclass(frozen=True, slots=True)
class Writable:
    """The PUSH socket of ``shard`` would take a message now."""

    shard: int


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """A connection to ``shard`` did not come about: it was cut off meanwhile, or one side expects other keys."""

    shard: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker wants to go."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    PublicationArrived
    | ControlArrived
    | Pulling
    | Contributed
    | SendBlocked
    | Writable
    | HandshakeFailed
    | Leaving
    | Tick
)

# Actions


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send a message on the DEALER socket of ``shard``."""

    shard: int
    message: m.Message


@dataclass(frozen=True, slots=True)
class SendGradient:
    """Push the slice of ``shard`` of the contribution, without blocking."""

    shard: int
    header: m.Gradient


@dataclass(frozen=True, slots=True)
class Assembled:
    """Every slice of ``version`` is here: ``payloads`` by shard, with the codec of each.

    In asynchronous mode they are of this version or newer.
    """

    generation: int
    version: int
    payloads: tuple[tuple[m.Codec, Any], ...]


@dataclass(frozen=True, slots=True)
class Release:
    """No shard will ask for the contribution again."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ended with ``version`` on every shard."""

    version: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on; ``reason`` is a sentence for the user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the worker's log."""

    level: Literal["debug", "info", "warning"]
    text: str


Action: TypeAlias = SendControl | SendGradient | Assembled | Release | Ended | Failed | Log
