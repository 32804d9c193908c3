"""Stand-ins for payloads, which the pure state machines pass on without reading them."""

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import zmq

    from zmqrl.ps.shard.gradients import ReceivedSlice

T = TypeVar("T")


def received(stand_in: object) -> "ReceivedSlice":
    """``stand_in`` itself, where a shard has the slice of a gradient."""
    return cast("ReceivedSlice", stand_in)


def frame(stand_in: object) -> "zmq.Frame":
    """``stand_in`` itself, where a worker has a slice of the weights."""
    return cast("zmq.Frame", stand_in)


def stood_in(kind: type[T], payload: object) -> T:
    """The stand-in that ``payload`` wraps."""
    assert isinstance(payload, kind)
    return payload
