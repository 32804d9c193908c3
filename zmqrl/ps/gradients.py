"""The arithmetic of contributions: what a received payload says, and the sum of the open version."""

from functools import cached_property

import numpy as np
import zmq

from zmqrl.ps import codec
from zmqrl.ps import messages as m
from zmqrl.ps.codec import FloatVector


class Payload:
    """The numbers of a received payload, decoded at most once; for float32 a view into the received frame."""

    def __init__(self, codec_name: m.Codec, frame: zmq.Frame) -> None:
        self.codec_name = codec_name
        self.frame = frame

    @cached_property
    def numbers(self) -> FloatVector:
        """float32 (count,), read-only."""
        return codec.as_float32(self.codec_name, self.frame.buffer)

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return codec.is_finite(self.numbers)


class GradientSum:
    """The sum of the open version's contributions. One contribution is not copied, only more are summed."""

    def __init__(self, count: int) -> None:
        self.buffer = np.zeros(count, np.float32)  # zeros are touched once, here
        self.buffer.fill(0)
        self.value: FloatVector = self.buffer
        self._left_finite: list[str] = []

    def is_finite(self) -> bool:
        """Whether the sum of contributions, which are all finite, is so too."""
        return not self._left_finite or codec.is_finite(self.value)

    def add(self, numbers: FloatVector, *, first: bool) -> None:
        """Start the sum with ``numbers`` or add them to it."""
        if first:
            self.value = numbers
            self._left_finite.clear()
        else:
            with codec.watched(self._left_finite):
                np.add(self.value, numbers, out=self.buffer)
            self.value = self.buffer
