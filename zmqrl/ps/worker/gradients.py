"""The memory for a worker's gradients: each is overwritten only when nothing reads it any more."""

import logging
from dataclasses import dataclass, field

import numpy as np
import zmq

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire.codec import CODECS, FloatVector, WireVector, payload_bytes
from zmqrl.ps.wire.memory import HAS_ORDERED_STORES, NO_MEMORY, SLOTS, SharedMemory
from zmqrl.ps.worker import events as e

MOST_KEPT = 3  # gradients: one to be sent again, one in ZeroMQ's queues, and one to spare


@dataclass(slots=True, eq=False)
class Outgoing:
    """A contribution with its encoded ``payload``. If it ``is_shared``, the payload is in the worker's memory.

    ``number`` is that of the newest payload in this memory. ``trackers`` show when ZeroMQ has finished reading the
    payload, and ``readers`` are the memories of the shards that read it in place. Once it is ``released``, it is not
    sent again. Then ``gradient``, if any, can be used again.
    """

    contributed: e.Contributed
    payload: WireVector
    gradient: FloatVector | None = None
    number: int = 0
    is_shared: bool = False
    trackers: list[zmq.MessageTracker] = field(default_factory=list)
    readers: list[SharedMemory] = field(default_factory=list)
    released: bool = False

    def is_read(self, rank: int) -> bool:
        """Whether nothing reads this contribution of ``rank`` any more."""
        return (
            self.released
            and all(tracker.done for tracker in self.trackers)
            and all(memory.has_read(rank, self.number) for memory in self.readers)
        )


class Gradients:
    """The vectors for the gradients of worker ``rank``.

    ``memory`` is shared with the shards of this host, or None. There, gradient n is payload n, encoded.
    """

    def __init__(self, cluster: Cluster, rank: int, log: logging.Logger) -> None:
        self.rank = rank
        self.memory: SharedMemory | None = None
        self._count, self._format = cluster.layout.count, CODECS[cluster.codec]
        self._buffer: FloatVector | None = None  # for the next gradient
        self._spare: FloatVector | None = None
        self._pushed: list[Outgoing] = []  # the newest gradients that are not in the memory
        self._number = 0  # of the newest gradient in the memory
        self._slots: list[Outgoing | None] = [None] * SLOTS
        if cluster.shares_memory and not HAS_ORDERED_STORES:
            log.info("%s", NO_MEMORY.format("this processor is not x86-64"))
        elif cluster.shares_memory:
            try:
                self.memory = SharedMemory.create(payload_bytes(cluster.codec, self._count))
            except OSError as error:
                log.warning("%s", NO_MEMORY.format(error.strerror))

    def buffer(self) -> FloatVector:
        """A float32 (count,) vector for the next gradient, the same until it is in a contribution."""
        if self._buffer is None:
            self._buffer = self._free_buffer()
        return self._buffer

    def outgoing(self, contributed: e.Contributed, gradient: FloatVector, payload: WireVector) -> Outgoing:
        """The contribution of ``gradient``, encoded as ``payload``. It is in the memory if a slot is free."""
        outgoing, memory = Outgoing(contributed, payload), self.memory
        is_in_buffer = self._buffer is not None and np.may_share_memory(self._buffer, gradient)
        is_in_slot = is_in_buffer and self._is_lent()
        if is_in_buffer:
            self._buffer = None
        if memory is not None and (is_in_slot or self._has_slot()):
            self._number += 1
            if not is_in_slot:
                slot = memory.begin(self._number)
                slot[:] = payload.view(np.uint8)
                outgoing.payload = slot.view(payload.dtype)
                self._spare = None if memory.contains(gradient) else gradient
            memory.end(self._number)
            outgoing.is_shared, self._slots[self._number % SLOTS] = True, outgoing
        else:
            outgoing.gradient = None if memory is not None and memory.contains(gradient) else gradient
            self._pushed = [*self._pushed[1 - MOST_KEPT :], outgoing]
        outgoing.number = self._number
        return outgoing

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()

    def _free_buffer(self) -> FloatVector:
        if self.memory is not None and self._format.keeps_float32 and self._has_slot():
            return self.memory.begin(self._number + 1).view(np.float32)
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        for each in self._pushed:
            if each.gradient is not None and each.is_read(self.rank):
                self._pushed.remove(each)
                return each.gradient
        return np.zeros(self._count, np.float32)

    def _has_slot(self) -> bool:
        """Whether the slot for the next gradient is free: neither being read nor lent as the buffer."""
        earlier = self._slots[(self._number + 1) % SLOTS]
        return not self._is_lent() and (earlier is None or earlier.is_read(self.rank))

    def _is_lent(self) -> bool:
        """Whether the buffer is the slot for the next gradient."""
        return self._buffer is not None and self.memory is not None and self.memory.contains(self._buffer)
