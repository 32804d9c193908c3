"""Memory that processes of one host share, so that a message can have the place of its payload instead of the bytes.

Each process writes to its own memory, and reads that of others. The memory has no file: it ends with the last process
that uses it.
"""

import errno
import fcntl
import mmap
import os
import platform
import re
import secrets
import weakref
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from zmqrl.ps.wire.messages import MAX_WORKERS

SLOTS: Final = 3
NO_MEMORY: Final = "no memory to share ({}): payloads travel in messages"
NAME: Final = re.compile(r"([1-9][0-9]{0,9})/([0-9]{1,9})/([0-9a-f]{16})")  # process, descriptor, token
# Numbers of Linux. Python has names for them only if it was built with a new C library.
F_ADD_SEALS, F_GET_SEALS, MFD_NOEXEC_SEAL = 1033, 1034, 0x8
SEALS: Final = 0x1 | 0x2 | 0x4  # against other seals, a smaller and a greater size
COUNTERS: Final = MAX_WORKERS + SLOTS
HAS_ORDERED_STORES: Final = platform.machine() == "x86_64"
"""Whether other processes see a payload before the counter that was written after it. Python cannot enforce this."""


class SharedMemory:
    """Memory for the newest payloads of its owner, of ``payload_bytes`` each. Payload n is in slot n modulo ``SLOTS``.

    ``handled`` and ``written`` are counters, uint64. A shard writes into ``handled``, by rank, the greatest number of a
    gradient that it has handled. ``written`` has, by slot, the number of the payload, or 0 while it changes.
    """

    def __init__(self, name: str, mapping: mmap.mmap, payload_bytes: int, descriptor: int | None = None) -> None:
        """Call :meth:`create` or :meth:`open` instead."""
        self.name = name
        self.payload_bytes = payload_bytes
        self._mapping = mapping
        self._close = None if descriptor is None else weakref.finalize(self, os.close, descriptor)
        self.is_gone = False  # whether the owner has ended
        counters = np.frombuffer(mapping, np.uint64, COUNTERS)
        self.handled, self.written = counters[:MAX_WORKERS], counters[MAX_WORKERS:]

    @classmethod
    def create(cls, payload_bytes: int) -> Self:
        """Make memory that belongs to this process. Raises OSError if the system refuses."""
        token = secrets.token_hex(8)
        descriptor = _new_memfd(f"zmqrl-{token}")
        try:
            size = _offset(payload_bytes, SLOTS)
            os.posix_fallocate(descriptor, 0, size)  # without this, writing raises SIGBUS if no memory is left
            fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)  # without these, others could cause SIGBUS
            mapping = mmap.mmap(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        return cls(f"{os.getpid()}/{descriptor}/{token}", mapping, payload_bytes, descriptor)

    @classmethod
    def open(cls, name: str, payload_bytes: int) -> Self | None:
        """Map the memory ``name`` of another process, read-only. Returns None if this process cannot reach it."""
        found = NAME.fullmatch(name)
        if found is None:
            return None
        process, number, token = found.groups()
        path, size = Path(f"/proc/{process}/fd/{number}"), _offset(payload_bytes, SLOTS)
        try:
            if str(path.readlink()) != f"/memfd:zmqrl-{token} (deleted)":
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != size or fcntl.fcntl(descriptor, F_GET_SEALS) & SEALS != SEALS:
                    return None
                mapping = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        return cls(name, mapping, payload_bytes)

    def slot(self, number: int) -> npt.NDArray[np.uint8]:
        """The slot of payload ``number``: a view, uint8 (payload_bytes,)."""
        start = _offset(self.payload_bytes, number % SLOTS)
        return np.frombuffer(self._mapping, np.uint8, self.payload_bytes, start)

    def contains(self, vector: npt.NDArray[np.generic]) -> bool:
        """Whether ``vector`` is in this memory."""
        return np.may_share_memory(np.frombuffer(self._mapping, np.uint8), vector)

    def begin(self, number: int) -> npt.NDArray[np.uint8]:
        """The slot of payload ``number``, to write it there. Any other payload is lost. Then call :meth:`end`."""
        self.written[number % SLOTS] = 0
        return self.slot(number)

    def end(self, number: int) -> None:
        self.written[number % SLOTS] = number

    def write(self, payload: npt.NDArray[np.generic]) -> int:
        """Copy ``payload`` to the slot of the next number. Returns this number."""
        number = 1 + int(self.written.max())
        self.begin(number)[:] = payload.view(np.uint8)
        self.end(number)
        return number

    def holds(self, number: int) -> bool:
        """Whether the slot of payload ``number`` has this payload, unchanged since it was written."""
        return int(self.written[number % SLOTS]) == number

    def has_read(self, rank: int, number: int) -> bool:
        """Whether the owner has finished reading gradient ``number`` of ``rank``, or has ended."""
        return self.is_gone or int(self.handled[rank]) >= number

    def close(self) -> None:
        """Close the descriptor that is in the name, so that no other process finds the memory. Views stay valid."""
        if self._close is not None:
            self._close()  # does nothing the second time


class SharedPayload:
    """Payload ``number`` in the memory of another process, which overwrites it after ``SLOTS`` more."""

    def __init__(self, memory: SharedMemory, number: int) -> None:
        self.memory, self.number = memory, number

    def __len__(self) -> int:
        return self.memory.payload_bytes

    @property
    def buffer(self) -> memoryview:
        """The bytes of the payload. They are the right ones if the payload ``is_whole`` after they were read."""
        return self.memory.slot(self.number).data

    def is_whole(self) -> bool:
        return self.memory.holds(self.number)


def _new_memfd(name: str) -> int:
    """Memory that nothing can execute, since some systems allow no other. Raises OSError if the system refuses."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "this Python has no os.memfd_create")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)  # before Linux 6.3


def _offset(payload_bytes: int, slot: int) -> int:
    """Where ``slot`` begins: on a page, after the counters and the slots before it."""
    return sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in (8 * COUNTERS, *[payload_bytes] * slot))
