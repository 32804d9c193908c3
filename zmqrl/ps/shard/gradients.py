"""Received gradient slices, and their sum for the open version."""

from functools import cached_property

import numpy as np

from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector, is_finite, watched


class ReceivedSlice:
    """A received gradient slice, which is decoded at most once. A float32 slice is not copied.

    ``buffer`` is a view of the frame. If the slice ``is_shared``, it is a view of the worker's memory, which the worker
    writes again once the shard has handled the message.
    """

    def __init__(self, codec_name: m.Codec, buffer: memoryview, *, is_shared: bool = False) -> None:
        self.codec_name = codec_name
        self.buffer = buffer
        self.is_shared = is_shared and CODECS[codec_name].keeps_float32

    @cached_property
    def numbers(self) -> FloatVector:
        """The decoded numbers: float32 (count,), read-only."""
        return CODECS[self.codec_name].as_float32(self.buffer)

    def is_finite(self) -> bool:
        return is_finite(self.numbers)

    def keep(self) -> None:
        """Copy the numbers, if the worker can write to them."""
        if self.is_shared:
            self.numbers, self.is_shared = self.numbers.copy(), False


class GradientSum:
    """The sum of the contributions to the open version. A single contribution is not copied."""

    def __init__(self, count: int) -> None:
        self.buffer = np.zeros(count, np.float32)
        self.buffer.fill(0)  # np.zeros maps its pages lazily: touch them now
        self.value: FloatVector = self.buffer
        self._left_finite: list[str] = []
        self._has_shared = False  # whether a contribution was in the memory of its worker

    def is_finite(self) -> bool:
        """Whether the sum is finite. Assumes that each contribution is, unless its worker can still write to it."""
        return not (self._left_finite or self._has_shared) or is_finite(self.value)

    def add(self, slice_: ReceivedSlice, *, first: bool) -> None:
        """Add the numbers of a slice to the sum. If ``first``, start a new sum with them."""
        numbers = slice_.numbers
        self._has_shared = slice_.is_shared or (self._has_shared and not first)
        if first:
            self._left_finite.clear()
            if slice_.is_shared:
                np.copyto(self.buffer, numbers)
            self.value = self.buffer if slice_.is_shared else numbers
        else:
            with watched(self._left_finite):
                np.add(self.value, numbers, out=self.buffer)
            self.value = self.buffer
