"""Stand-ins for payloads, which the pure state machines pass on without reading them, and for a console."""

from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import zmq

    from zmqrl.observe.console import LiveFigures
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


class Notices:
    """A console that records its notices."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def starting(self, stage: str, line: str) -> None: ...

    def update(self, figures: "LiveFigures") -> None: ...

    def notice(self, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None: ...
