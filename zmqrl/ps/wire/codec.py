"""Payloads on the wire: little-endian float32 (``f32``), or bfloat16 (``bf16``) with half the bytes."""

import sys
from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from zmqrl.errors import UsageError
from zmqrl.ps.wire.messages import Codec

assert sys.byteorder == "little", "payloads are views of memory, so the machine must be little-endian"

FloatVector: TypeAlias = npt.NDArray[np.float32]
WireVector: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint16]
EncodedVector: TypeAlias = bytes | bytearray | memoryview | WireVector

BLOCK = 32 * 1024  # elements: a block and its scratch space fit in the L2 cache
QUIET_NAN = 0x7FC0
INFINITE = 0x7F80  # in bfloat16. The magnitude of every NaN is greater


class NumberFormat(Protocol):
    """How the float32 numbers of a slice are written in a payload.

    Every number takes ``element_bytes``, torch has the format, and an encoded vector is float32 or uint16.
    """

    element_bytes: int
    keeps_float32: bool
    """Whether ``encode`` returns its argument, so that a payload can be sent from the memory of the weights."""
    torch_dtype: str
    """The same format as a dtype of torch, for the comparison in ``zmqrl bench wire``."""

    def encode(self, vector: FloatVector) -> WireVector:
        """Encode ``vector``, float32 (n,), for sending."""

    def is_finite(self, payload: WireVector) -> bool:
        """Whether every number of an encoded vector is finite."""

    def decode_into(self, payload: EncodedVector, out: FloatVector) -> None:
        """Decode ``payload`` into ``out``: float32 (n,)."""

    def as_float32(self, payload: EncodedVector) -> FloatVector:
        """Decode ``payload`` to float32 (n,), without a copy if possible. Do not write to the result."""


class _Float32:
    """IEEE float32, as in memory."""

    element_bytes = 4
    keeps_float32 = True
    torch_dtype = "float32"

    def encode(self, vector: FloatVector) -> WireVector:
        """Return ``vector`` itself."""
        return vector

    def is_finite(self, payload: WireVector) -> bool:
        return is_finite(payload.view(np.float32))

    def decode_into(self, payload: EncodedVector, out: FloatVector) -> None:
        numbers = np.frombuffer(payload, np.float32)
        assert numbers.shape == out.shape
        out[:] = numbers

    def as_float32(self, payload: EncodedVector) -> FloatVector:
        """Return a read-only view of ``payload``."""
        view = np.frombuffer(payload, np.float32)
        view.flags.writeable = False
        return view


class _Bfloat16:
    """The upper 16 bits of a float32."""

    element_bytes = 2
    keeps_float32 = False
    torch_dtype = "bfloat16"

    def encode(self, vector: FloatVector) -> WireVector:
        """Round to nearest, ties to even, like ``Tensor.to(torch.bfloat16)``. Returns uint16 (n,).

        Overflow becomes inf. Every NaN becomes the same quiet NaN.
        """
        out = np.empty(vector.shape, np.uint16)
        bits = vector.view(np.uint32)
        scratch = np.empty(min(BLOCK, vector.size), np.uint32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, vector.size, BLOCK):
                block = bits[start : start + BLOCK]
                rounded = scratch[: block.size]
                np.right_shift(block, 16, out=rounded)
                np.bitwise_and(rounded, 1, out=rounded)
                np.add(rounded, 0x7FFF, out=rounded)
                np.add(rounded, block, out=rounded)
                np.right_shift(rounded, 16, out=rounded)
                out[start : start + BLOCK] = rounded
                floats = vector[start : start + BLOCK]
                if np.isnan(np.add.reduce(floats)):  # rounding can turn a NaN into inf or zero. A NaN makes the sum NaN
                    out[start : start + BLOCK][np.isnan(floats)] = QUIET_NAN
        return out

    def is_finite(self, payload: WireVector) -> bool:
        magnitudes = payload.view(np.uint16) & 0x7FFF
        return bool(magnitudes.max(initial=0) < INFINITE)

    def decode_into(self, payload: EncodedVector, out: FloatVector) -> None:
        wire = np.frombuffer(payload, np.uint16)
        assert wire.shape == out.shape
        bits = out.view(np.uint32)
        for start in range(0, out.size, BLOCK):
            block = bits[start : start + BLOCK]
            block[:] = wire[start : start + BLOCK]
            np.left_shift(block, 16, out=block)

    def as_float32(self, payload: EncodedVector) -> FloatVector:
        """Return a new array."""
        decoded = np.empty(np.frombuffer(payload, np.uint16).size, np.float32)
        self.decode_into(payload, decoded)
        return decoded


CODECS: Mapping[Codec, NumberFormat] = {"f32": _Float32(), "bf16": _Bfloat16()}


def codec_named(name: object, where: object) -> Codec:
    """Check a codec that ``where`` names. Raises UsageError if this zmqrl does not have it."""
    for known in CODECS:
        if name == known:
            return known
    raise UsageError(
        f"{where} names the codec {name!r:.40}, but this zmqrl only has {' and '.join(CODECS)}: "
        "use the version of zmqrl that made the run."
    )


def payload_bytes(codec: Codec, count: int) -> int:
    return count * CODECS[codec].element_bytes


def watched(left_finite: list[str]) -> np.errstate:
    """A context that appends a word to ``left_finite`` when numpy computes inf or NaN from finite numbers.

    It uses the processor's floating-point flags, which cost nothing. A test of every number would take half as long as
    the update.
    """

    def note(what: str, _: int) -> None:
        left_finite.append(what)

    return np.errstate(over="call", divide="call", invalid="call", under="ignore", call=note)


def is_finite(vector: FloatVector) -> bool:
    """Whether every number of ``vector``, float32 (n,), is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum proves that every number is finite. Any other sum may be an overflow, so test each number.
        return bool(np.isfinite(np.add.reduce(vector)) or np.isfinite(vector).all())
