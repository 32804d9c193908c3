"""Crash-safe state of one shard: a ring of memory-mapped slots in one file, each holding one version.

A slot is written in this order: its commit mark is cleared, weights and optimizer state change in place, its header is
written, the mark is set. The memory is the kernel's page cache, so a process that is killed at any instant leaves
every store it made, in that order: the newest version whose mark is set is whole. The checksums are for what reorders
or loses writes: a host that goes down, a damaged disk. Nothing waits for the disk.

File, little-endian: a page with magic, number of slots and digest of the identity; then the slots. Slot: 64 KiB of
mark, header and record; then weights and optimizer state, each at a multiple of 64 bytes, up to a whole page.
"""

import contextlib
import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zmqrl.errors import ClusterError
from zmqrl.ps.codec import FloatVector

MAX_RECORD_BYTES = 60 * 1024
PAGE = 4096
ALIGNMENT = 64
FILE_HEADER = struct.Struct("<8sQ32s")  # magic, slots, digest
FILE_MAGIC = b"zmqrlst1"
MARK_BYTES = 8
MARK = b"zmqrlok1"
# After the mark: crc32 of what follows, record bytes, sequence, generation, version, payload's crc32, data checksum
CRC = struct.Struct("<I")
SLOT_HEADER = struct.Struct("<IQQQII")
RECORD_OFFSET = MARK_BYTES + CRC.size + SLOT_HEADER.size
HEADER_BYTES = 64 * 1024


@dataclass(slots=True, eq=False, kw_only=True)
class Slot:
    """One version of a slice, in views of the mapping that change when the slot is reused.

    ``weights`` and each array of ``state``: float32 (count,), aligned to 64 bytes. ``crc32`` is that of the published
    payload, ``sequence`` counts the commits of the store (0: the slot holds no version).
    """

    index: int
    weights: FloatVector
    state: dict[str, FloatVector]
    generation: int = 0
    version: int = 0
    record: bytes = b""
    crc32: int = 0
    sequence: int = 0
    readers: list[Callable[[], bool]] = field(default_factory=list)

    def pinned(self) -> bool:
        """Whether somebody may still read its memory."""
        self.readers = [released for released in self.readers if not released()]
        return bool(self.readers)


class SlotStore:
    """The slots of one shard. ``newest`` is the last one committed; ``previous`` the version before it, if held.

    To make a version: take a ``free_slot``, write its arrays, ``commit`` it.
    """

    def __init__(self, mapping: mmap.mmap, count: int, state_names: Sequence[str], slots: int) -> None:
        """Lay views over a mapped file. Use :meth:`create` or :meth:`open`."""
        self._mapping = mapping
        self._array_bytes, self._slot_bytes = _sizes(count, state_names)
        self._slots: list[Slot] = []
        for index in range(slots):
            arrays = []
            for k in range(1 + len(state_names)):
                offset = self._offset(index) + HEADER_BYTES + k * self._array_bytes
                arrays.append(np.frombuffer(mapping, np.float32, count, offset))
            state = dict(zip(state_names, arrays[1:], strict=True))
            self._slots.append(Slot(index=index, weights=arrays[0], state=state))
        self.newest: Slot | None = None
        self.previous: Slot | None = None

    @classmethod
    def create(
        cls, path: Path, *, identity: bytes, count: int, state_names: Sequence[str], slots: int = 5
    ) -> "SlotStore":
        """Make an empty store of slices of ``count`` parameters, in place of any file at ``path``.

        ``identity`` says whose state it is (run, layout, shard). Raises ClusterError when the file cannot be made,
        for one because the disk has no room for all of it.
        """
        assert slots >= 3, "one being read, one being published, one being written"
        file_bytes = PAGE + slots * _sizes(count, state_names)[1]
        unfinished = path.with_name(path.name + ".new")
        try:
            unfinished.unlink(missing_ok=True)
            fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Room is taken now: a full disk under a mapping would be a SIGBUS in the middle of an update.
                os.posix_fallocate(fd, 0, file_bytes)
                os.pwrite(fd, FILE_HEADER.pack(FILE_MAGIC, slots, _digest(identity, count, state_names)), 0)
                mapping = mmap.mmap(fd, file_bytes)
            finally:
                os.close(fd)
            unfinished.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise ClusterError(
                f"cannot make the state file {path} of {file_bytes} bytes ({error.strerror}): "
                "make room, or choose another run directory."
            ) from error
        return cls(mapping, count, state_names, slots)

    @classmethod
    def open(cls, path: Path, *, identity: bytes, count: int, state_names: Sequence[str]) -> "SlotStore | None":
        """Map the store at ``path``, or None when there is none or it is of another identity, shape or format.

        Slots that are torn or damaged hold no version.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            header = os.pread(fd, FILE_HEADER.size, 0)
            if len(header) != FILE_HEADER.size:
                return None
            magic, slots, digest = FILE_HEADER.unpack(header)
            if magic != FILE_MAGIC or digest != _digest(identity, count, state_names) or slots < 3:
                return None
            file_bytes = PAGE + slots * _sizes(count, state_names)[1]
            if os.fstat(fd).st_size != file_bytes:
                return None
            mapping = mmap.mmap(fd, file_bytes)
        finally:
            os.close(fd)
        store = cls(mapping, count, state_names, slots)
        for slot in store._slots:
            store._read_header(slot)
        store._find_newest()
        return store

    def free_slot(self) -> Slot:
        """A slot to write the next version into. What it held before is gone, also for a reader after a crash."""
        slot = next(s for s in self._slots if s is not self.newest and s is not self.previous and not s.pinned())
        offset = self._offset(slot.index)
        self._mapping[offset : offset + MARK_BYTES] = bytes(MARK_BYTES)
        slot.sequence = 0
        return slot

    def commit(self, slot: Slot, *, generation: int, version: int, record: bytes, crc32: int) -> None:
        """Make the arrays in ``slot``, which came from :meth:`free_slot`, the newest version.

        ``record``: at most 60 KiB to keep with it. ``crc32``: that of the payload published for it.
        """
        assert slot is self._slots[slot.index], "the slot is of another store"
        assert slot.sequence == 0, "the slot did not come from free_slot"
        assert len(record) <= MAX_RECORD_BYTES, f"record of {len(record)} bytes"
        slot.sequence = 1 + (self.newest.sequence if self.newest else 0)
        slot.generation, slot.version, slot.record, slot.crc32 = generation, version, record, crc32
        checksum = self._data_checksum(slot)
        body = SLOT_HEADER.pack(len(record), slot.sequence, generation, version, crc32, checksum) + record
        header = CRC.pack(zlib.crc32(body)) + body
        offset = self._offset(slot.index)
        self._mapping[offset + MARK_BYTES : offset + MARK_BYTES + len(header)] = header
        self._mapping[offset : offset + MARK_BYTES] = MARK
        self._find_newest()

    def can_pin(self) -> bool:
        """Whether one more slot can be pinned with three left: the newest, the one before, and one to write."""
        return sum(not slot.pinned() for slot in self._slots) > 3

    def pin(self, slot: Slot, released: Callable[[], bool]) -> None:
        """Keep ``slot`` from being overwritten until ``released()`` is true.

        Only while :meth:`can_pin`, or when ``slot`` is pinned already.
        """
        assert slot.sequence > 0, "the slot holds no version"
        assert slot.pinned() or self.can_pin()
        slot.readers.append(released)

    def close(self) -> None:
        """Let go of the file. Views that others still hold stay valid, and keep the mapping until they are gone."""
        self._slots = []
        self.newest = self.previous = None
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def _offset(self, index: int) -> int:
        return PAGE + index * self._slot_bytes

    def _read_header(self, slot: Slot) -> None:
        header = self._mapping[self._offset(slot.index) : self._offset(slot.index) + HEADER_BYTES]
        length, sequence, generation, version, crc32, checksum = SLOT_HEADER.unpack_from(header, MARK_BYTES + CRC.size)
        end = RECORD_OFFSET + min(length, MAX_RECORD_BYTES)
        if (
            header[:MARK_BYTES] == MARK
            and CRC.unpack_from(header, MARK_BYTES)[0] == zlib.crc32(header[MARK_BYTES + CRC.size : end])
            and checksum == self._data_checksum(slot)
        ):
            slot.sequence, slot.generation, slot.version, slot.crc32 = sequence, generation, version, crc32
            slot.record = header[RECORD_OFFSET:end]

    def _data_checksum(self, slot: Slot) -> int:
        # Sums of pages in 64-bit words, then a crc32 of the sums: as sharp for a lost or misplaced page as a crc32 of
        # it all, at a tenth of the time.
        start = self._offset(slot.index) + HEADER_BYTES
        words = np.frombuffer(self._mapping, np.uint64, (self._slot_bytes - HEADER_BYTES) // 8, start)
        return zlib.crc32(words.reshape(-1, PAGE // 8).sum(axis=1))

    def _find_newest(self) -> None:
        held = sorted((slot for slot in self._slots if slot.sequence > 0), key=lambda slot: slot.sequence)
        self.newest = held[-1] if held else None
        self.previous = None
        for slot in held[:-1]:
            if (slot.generation, slot.version + 1) == (held[-1].generation, held[-1].version):
                self.previous = slot


def is_blank(path: Path) -> bool:
    """Whether a store is as it was made: no version was ever written into it. Raises OSError."""
    with path.open("rb") as file:
        header = file.read(FILE_HEADER.size)
        if len(header) < FILE_HEADER.size or header[: len(FILE_MAGIC)] != FILE_MAGIC:
            return False
        file.seek(PAGE)
        while piece := file.read(1 << 20):
            if piece.count(0) < len(piece):
                return False
    return True


def _sizes(count: int, state_names: Sequence[str]) -> tuple[int, int]:
    """Bytes of one array and of one slot, with their padding."""
    array_bytes = -(-count * 4 // ALIGNMENT) * ALIGNMENT
    data_bytes = array_bytes * (1 + len(state_names))
    return array_bytes, HEADER_BYTES + -(-data_bytes // PAGE) * PAGE


def _digest(identity: bytes, count: int, state_names: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([identity.hex(), count, *state_names]).encode()).digest()
