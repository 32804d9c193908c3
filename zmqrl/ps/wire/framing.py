"""Encodes and decodes header frames: one MessagePack array ``["zmqrl/1", KIND, field, ...]`` per message.

This module does not handle payloads, which are raw frames after the header.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import msgpack

from zmqrl.ps.wire.messages import (
    MAX_HEADER_BYTES,
    MAX_REPORT_BYTES,
    MAX_WORKERS,
    PROTOCOL,
    WITH_PAYLOAD,
    Inbox,
    Kind,
    Message,
    Refuse,
    Uint,
)
from zmqrl.words import counted

MOST_REASONS = 20
TELL_EVERY_S = 5.0


class MalformedMessage(Exception):
    """The received bytes are not a message of this protocol. The receiver drops them, so users never see this error."""


class OtherProtocol(MalformedMessage):
    """A message of ``kind`` in another version of the protocol."""

    def __init__(self, protocol: str, kind: str) -> None:
        super().__init__(f"{kind!r:.40} in {protocol!r:.40}")
        self.protocol, self.kind = protocol, kind


class UnexpectedKind(MalformedMessage):
    """The kind of the message is unknown, is not sent to this socket, or does not have this number of frames."""


def kind_of(cls: type) -> str:
    """The KIND of a message class on the wire: the class name in upper case, with words joined by ``_``."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(cls.__name__)).upper()


KINDS: dict[str, type[Any]] = {kind_of(cls): cls for cls in get_args(Message)}


def _named_item(hint: Any) -> Any:
    """The named tuple that ``hint`` is a list of, or None. A named tuple in any other position is not possible."""
    named = [part for part in _parts(hint) if hasattr(part, "_fields")]
    if not named:
        return None
    items = hint.__origin__ if get_origin(hint) is Annotated else hint
    is_list = get_origin(items) is tuple and get_args(items) == (named[0], ...)
    assert is_list, f"{hint} is not a list of named tuples"
    return named[0]


def _parts(hint: Any) -> Iterator[Any]:
    """``hint`` and all types in it."""
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


_HINTS: dict[type, tuple[tuple[str, Any], ...]] = {
    cls: tuple((f.name, get_type_hints(cls, include_extras=True)[f.name]) for f in fields(cls))
    for cls in KINDS.values()
}
# Number of required fields of each kind. Optional fields follow. Empty ones at the end are left out.
_LEAST_FIELDS = {cls: sum(f.default is MISSING for f in fields(cls)) for cls in KINDS.values()}
assert not any(any(f.default for f in fields(cls)[_LEAST_FIELDS[cls] :]) for cls in KINDS.values()), (
    "an optional field has a default that is not empty, or a required field follows it"
)
# Fields that are lists of named tuples, which are arrays on the wire.
_NAMED: dict[type, tuple[tuple[str, Any], ...]] = {
    cls: tuple((name, item) for name, hint in hints if (item := _named_item(hint)) is not None)
    for cls, hints in _HINTS.items()
}
_ITEM_HINTS: dict[Any, tuple[Any, ...]] = {
    item: tuple(get_type_hints(item, include_extras=True).values()) for named in _NAMED.values() for _, item in named
}


def encode(message: Message) -> bytes:
    """The header frame of a message."""
    cls = type(message)
    values = [getattr(message, name) for name, _ in _HINTS[cls]]
    while len(values) > _LEAST_FIELDS[cls] and not values[-1]:
        values.pop()
    packed: bytes = msgpack.packb([PROTOCOL, kind_of(cls), *values])
    return packed


def decode(frame: bytes | memoryview) -> Message:
    """Decode a header frame. If ``frame`` is not exactly one message, raises MalformedMessage and no other error."""
    if len(frame) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"header of {len(frame)} bytes")
    try:
        array = msgpack.unpackb(
            frame,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=4 * 1000,  # the longest Sentence, in bytes of UTF-8
            max_bin_len=MAX_REPORT_BYTES,
            max_array_len=MAX_WORKERS,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen kinds of errors for hostile bytes
        raise MalformedMessage(f"not MessagePack: {type(error).__name__}") from error
    if not isinstance(array, tuple) or len(array) < 2 or not all(isinstance(word, str) for word in array[:2]):
        raise MalformedMessage(f"not a {PROTOCOL} header")
    if array[0] != PROTOCOL and array[1] != kind_of(Refuse):
        raise OtherProtocol(*array[:2])
    cls = KINDS.get(array[1])
    if cls is None:
        raise UnexpectedKind(f"unknown kind {array[1]!r:.40}")
    hints = _HINTS[cls]
    if not _LEAST_FIELDS[cls] <= len(array) - 2 <= len(hints):
        raise MalformedMessage(f"{array[1]} with {counted(len(array) - 2, 'field')} instead of {len(hints)}")
    for (name, hint), value in zip(hints, array[2:], strict=False):
        if not _fits(value, hint):
            # Without the value, because a deeply nested value cannot be printed.
            raise MalformedMessage(f"{array[1]}.{name} has a {type(value).__name__} that is not allowed")
    values: dict[str, Any] = dict(zip((name for name, _ in hints), array[2:], strict=False))
    for name, item in _NAMED[cls]:
        if name in values:  # an optional field can be left out
            values[name] = tuple(item(*each) for each in values[name])
    message: Message = cls(**values)
    return message


def decode_at(inbox: Inbox[Kind], header: bytes | memoryview, payloads: int) -> Kind:
    """Decode a header that ``payloads`` other frames follow. Raises UnexpectedKind if it is not for ``inbox``."""
    message = decode(header)
    cls = type(message)
    if cls not in inbox.kinds:
        raise UnexpectedKind(f"{kind_of(cls)} on {inbox.socket} of a {inbox.receiver}")
    if payloads != (cls in WITH_PAYLOAD):
        raise UnexpectedKind(f"{kind_of(cls)} with {payloads} frames after the header")
    return cast("Kind", message)


class Ignored:
    """Counts ignored messages by reason. Its summaries are rare, so a hostile peer cannot flood the log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._told_at = float("-inf")

    def add(self, reason: object) -> None:
        text = str(reason)
        is_known = text in self._counts or len(self._counts) < MOST_REASONS
        self._counts[text if is_known else "others"] += 1

    def take(self, now: float) -> str:
        """The counts since the last summary, in words. Empty if nothing was ignored, or soon after a summary."""
        if not self._counts or now - self._told_at < TELL_EVERY_S:
            return ""
        self._told_at = now
        return self.take_all()

    def take_all(self) -> str:
        """The counts since the last summary, in words, however old that summary is. Empty if nothing was ignored."""
        if not self._counts:
            return ""
        text = ", ".join(f"{count} x {reason}" for reason, count in sorted(self._counts.items()))
        self._counts.clear()
        return f"ignored messages: {text}"


def _fits(value: object, hint: Any) -> bool:
    """Whether a decoded MessagePack value satisfies the annotation of its field."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, limit = hint.__origin__, hint.__metadata__[0]
        if isinstance(limit, Uint):
            return type(value) is int and bool(0 <= value < 2**limit.bits)
        if not _fits(value, base):
            return False
        assert isinstance(value, str | bytes | tuple)
        return bool(len(value) <= limit.most)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        item = get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(v, item) for v in value)
    if origin is None:
        hints = _ITEM_HINTS.get(hint)
        if hints is None:
            return bool(isinstance(value, hint))
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
    return any(_fits(value, option) for option in get_args(hint))


def presence_topic(rank: int, incarnation: int) -> bytes:
    """The presence topic ``P/<rank>/<incarnation>``. A worker subscribes to this topic to become present."""
    return b"P/%d/%d" % (rank, incarnation)


def parse_presence(topic: bytes) -> tuple[int, int] | None:
    """Rank and incarnation of a presence topic, or None for any other topic."""
    parts = topic.split(b"/")
    if len(parts) != 3 or parts[0] != b"P":
        return None
    if not all(p.isdigit() and len(p) <= 16 and p == b"%d" % int(p) for p in parts[1:]):
        return None
    rank, incarnation = int(parts[1]), int(parts[2])
    return (rank, incarnation) if rank < 2**16 and incarnation < 2**53 else None
