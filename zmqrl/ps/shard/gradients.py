"""Received gradient slices, and their sum for the open version."""

from functools import cached_property

import numpy as np
import zmq

from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector, is_finite, watched


class ReceivedSlice:
    """A received gradient slice, which is decoded at most once. A float32 slice is not copied."""

    def __init__(self, codec_name: m.Codec, frame: zmq.Frame) -> None:
        self.codec_name = codec_name
        self.frame = frame

    @cached_property
    def numbers(self) -> FloatVector:
        """The decoded numbers: float32 (count,), read-only."""
        return CODECS[self.codec_name].as_float32(self.frame.buffer)

    def is_finite(self) -> bool:
        return is_finite(self.numbers)


class GradientSum:
    """The sum of the contributions to the open version. A single contribution is not copied."""

    def __init__(self, count: int) -> None:
        self.buffer = np.zeros(count, np.float32)
        self.buffer.fill(0)  # np.zeros maps its pages lazily: touch them now
        self.value: FloatVector = self.buffer
        self._left_finite: list[str] = []

    def is_finite(self) -> bool:
        """Whether the sum is finite. Assumes that each contribution is."""
        return not self._left_finite or is_finite(self.value)

    def add(self, numbers: FloatVector, *, first: bool) -> None:
        """Add ``numbers`` to the sum. If ``first``, start a new sum with ``numbers``."""
        if first:
            self.value = numbers
            self._left_finite.clear()
        else:
            with watched(self._left_finite):
                np.add(self.value, numbers, out=self.buffer)
            self.value = self.buffer
