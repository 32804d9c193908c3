"""Encodes and decodes header frames: one MessagePack array ``["zmqrl/1", KIND, field, ...]`` per message.

This module does not handle payloads, which are raw frames after the header.
"""

from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack

from zmqrl.ps.wire.messages import MAX_HEADER_BYTES, MAX_REPORT_BYTES, MAX_WORKERS, PROTOCOL, Message, Refuse, Uint
from zmqrl.words import counted


class MalformedMessage(Exception):
    """The received bytes are not a message of this protocol. The receiver drops them, so users never see this error."""


class OtherProtocol(MalformedMessage):
    """A message of ``kind`` in another version of the protocol."""

    def __init__(self, protocol: str, kind: str) -> None:
        super().__init__(f"{kind} in {protocol!r:.40}")
        self.protocol, self.kind = protocol, kind


def kind_of(cls: type) -> str:
    """The KIND of a message class on the wire: the class name in upper case, with words joined by ``_``."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(cls.__name__)).upper()


KINDS: dict[str, type[Message]] = {kind_of(cls): cls for cls in get_args(Message)}
_HINTS: dict[type, tuple[tuple[str, Any], ...]] = {
    cls: tuple((f.name, get_type_hints(cls, include_extras=True)[f.name]) for f in fields(cls))
    for cls in KINDS.values()
}
# Number of required fields of each kind. Optional fields follow. Empty ones at the end are left out.
_LEAST_FIELDS = {cls: sum(f.default is MISSING for f in fields(cls)) for cls in KINDS.values()}


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
        raise MalformedMessage(f"unknown kind {array[1]!r}")
    hints = _HINTS[cls]
    if not _LEAST_FIELDS[cls] <= len(array) - 2 <= len(hints):
        raise MalformedMessage(f"{array[1]} with {counted(len(array) - 2, 'field')} instead of {len(hints)}")
    for (name, hint), value in zip(hints, array[2:], strict=False):
        if not _fits(value, hint):
            # Without the value, because a deeply nested value cannot be printed.
            raise MalformedMessage(f"{array[1]}.{name} has a {type(value).__name__} that is not allowed")
    message: Message = cls(**dict(zip((name for name, _ in hints), array[2:], strict=False)))
    return message


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
        return bool(isinstance(value, hint))
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
