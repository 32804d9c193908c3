"""Stand-ins for payloads, which the pure state machines pass on without reading them."""

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import zmq

    from zmqrl.ps.shard.gradients import ReceivedSlice

T = TypeVar("T")


def received(stand_in: object) -> "ReceivedSlice":
    """Wrap ``stand_in`` as the received slice of a gradient on a shard."""
    return cast("ReceivedSlice", stand_in)


def frame(stand_in: object) -> "zmq.Frame":
    """Wrap ``stand_in`` as the frame of a slice of weights on a worker."""
    return cast("zmq.Frame", stand_in)


def stood_in(kind: type[T], payload: object) -> T:
    """Unwrap the stand-in from ``payload``."""
    assert isinstance(payload, kind)
    return payload
