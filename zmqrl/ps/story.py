"""Keeps the last events of a state machine for the error message about a broken invariant."""

from collections import deque

EVENTS = 50
MOST_CHARACTERS = 400  # of the text of one event


class BrokenInvariant(AssertionError):
    """A state machine is in a state that it must never reach. The message lists the events that led there."""


class Story:
    """A ring buffer of the last events of a state machine. Events become text only if an invariant fails."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, type, object]] = deque(maxlen=EVENTS)

    def add(self, now: float, kind: type, gist: object) -> None:
        """Record the kind of an event, and its gist: what identifies the event, without a payload."""
        self._events.append((now, kind, gist))

    def broken(self, where: str, error: AssertionError, **ids: int | None) -> BrokenInvariant:
        """The error to raise for ``error``. It lists the events that match one of ``ids`` or carry no id."""
        what = f"{where}: {str(error) or 'an assertion failed'}. The last events:"
        events = [_line(*event) for event in self._events if _concerns(event[2], ids)]
        return BrokenInvariant("\n    ".join([what, *events]))


def _concerns(gist: object, ids: dict[str, int | None]) -> bool:
    named = [(getattr(gist, name, None), wanted) for name, wanted in ids.items() if wanted is not None]
    return any(found == wanted for found, wanted in named) or all(found is None for found, _ in named)


def _line(now: float, kind: type, gist: object) -> str:
    text = repr(gist) if isinstance(gist, kind) else f"{kind.__name__}: {gist!r}"
    return f"{now:.3f} s {text:.{MOST_CHARACTERS}}"
