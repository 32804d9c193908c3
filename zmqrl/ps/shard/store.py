"""Crash-safe state of one shard: a ring of memory-mapped slots in one file, each with one version.

A slot is written in four steps: clear the commit mark, write weights and optimizer state in place, write the header,
set the mark. The mapped memory is the kernel's page cache. The writes of a killed process therefore survive in order,
and a version with a mark is complete. A crash of the host or a damaged disk can reorder or lose writes, which checksums
detect. No write waits for the disk.

The file is little-endian. The first page has the magic number, the number of slots and a digest of the identity. Each
slot begins with 64 KiB for mark, header and record. Weights and optimizer state follow, each at a multiple of 64 bytes.
The slot is padded to a whole page.
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

from zmqrl.errors import ClusterError, FullDiskError, is_full
from zmqrl.json_lines import open_file
from zmqrl.ps.wire.codec import FloatVector

SLOTS = 5
MAX_RECORD_BYTES = 60 * 1024
PAGE = 4096
ALIGNMENT = 64
FILE_HEADER = struct.Struct("<8sQ32s")  # magic, slots, digest
FILE_MAGIC = b"zmqrlst1"
MARK_BYTES = 8
MARK = b"zmqrlok1"
# After the mark: crc32 of the rest, then record length, sequence, generation, version, payload crc32, data checksum
CRC = struct.Struct("<I")
SLOT_HEADER = struct.Struct("<IQQQII")
RECORD_OFFSET = MARK_BYTES + CRC.size + SLOT_HEADER.size
HEADER_BYTES = 64 * 1024


@dataclass(slots=True, eq=False, kw_only=True)
class Slot:
    """One version of a slice, as views of the mapping. The numbers change when the slot is reused.

    ``weights`` and each array of ``state``: float32 (count,), aligned to 64 bytes. ``crc32`` is the checksum of the
    published payload. ``sequence`` is the number of the commit, or 0 if the slot holds no version.
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
        """Whether a reader may still use the memory of this slot."""
        self.readers = [released for released in self.readers if not released()]
        return bool(self.readers)


class SlotStore:
    """The slots of one shard. ``newest`` is the slot of the last commit.

    ``previous`` is the slot of the version before ``newest``, or None if no slot holds that version.

    To make a version, call ``free_slot``, write the arrays of this slot, and call ``commit``.
    """

    def __init__(self, mapping: mmap.mmap, count: int, state_names: Sequence[str], slots: int) -> None:
        """Call :meth:`create` or :meth:`open` instead."""
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
        cls, path: Path, *, identity: bytes, count: int, state_names: Sequence[str], slots: int = SLOTS
    ) -> "SlotStore":
        """Create an empty store for a slice of ``count`` parameters, in place of any file at ``path``.

        ``identity`` names the owner of the state: run, layout, shard and codec. Raises ClusterError when the file
        cannot be created.
        """
        assert slots >= 3, "one being read, one being published, one being written"
        file_bytes = store_bytes(count, state_names, slots)
        unfinished = path.with_name(path.name + ".new")
        try:
            unfinished.unlink(missing_ok=True)
            fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Allocate the whole file now: if the disk filled up later, writing to the mapping would raise SIGBUS.
                os.posix_fallocate(fd, 0, file_bytes)
                os.pwrite(fd, FILE_HEADER.pack(FILE_MAGIC, slots, _digest(identity, count, state_names)), 0)
                mapping = mmap.mmap(fd, file_bytes)
            finally:
                os.close(fd)
            unfinished.rename(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise (FullDiskError if is_full(error) else ClusterError)(
                f"cannot create the state file {path} of {file_bytes} bytes ({error.strerror}): "
                "free some disk space, or choose another run directory."
            ) from error
        return cls(mapping, count, state_names, slots)

    @classmethod
    def open(cls, path: Path, *, identity: bytes, count: int, state_names: Sequence[str]) -> "SlotStore | None":
        """Map the store at ``path``. Returns None if the file is missing or has another identity, shape or format.

        Slots that are half-written or damaged count as empty.
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
            file_bytes = store_bytes(count, state_names, slots)
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
        """Take a slot for the next version. The file loses the old version of the slot."""
        slot = next(s for s in self._slots if s is not self.newest and s is not self.previous and not s.pinned())
        offset = self._offset(slot.index)
        self._mapping[offset : offset + MARK_BYTES] = bytes(MARK_BYTES)
        slot.sequence = 0
        return slot

    def commit(self, slot: Slot, *, generation: int, version: int, record: bytes, crc32: int) -> None:
        """Make the arrays in ``slot``, which :meth:`free_slot` returned, the newest version.

        ``record``, at most 60 KiB, is stored with the version. ``crc32`` is the checksum of the published payload.
        """
        assert slot is self._slots[slot.index], "the slot belongs to another store"
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
        """Whether one more slot can be pinned.

        Three slots must stay unpinned, so that one of them is neither the newest nor the previous and can be written.
        """
        return sum(not slot.pinned() for slot in self._slots) > 3

    def pin(self, slot: Slot, released: Callable[[], bool]) -> None:
        """Keep ``slot`` from being overwritten until ``released()`` is true.

        Call this only if :meth:`can_pin` is true or the slot is already pinned.
        """
        assert slot.sequence > 0, "the slot holds no version"
        assert slot.pinned() or self.can_pin()
        slot.readers.append(released)

    def close(self) -> None:
        """Close the file. Views of slots that are still in use stay valid and keep the mapping open."""
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
        # A crc32 of all bytes would not find more lost or misplaced pages, but would take ten times as long.
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
    """Whether no version was ever written to the store at ``path``. Raises OSError if the file cannot be read."""
    with open_file(path) as file:
        header = file.read(FILE_HEADER.size)
        if len(header) < FILE_HEADER.size or header[: len(FILE_MAGIC)] != FILE_MAGIC:
            return False
        file.seek(PAGE)
        while piece := file.read(1 << 20):
            if piece.count(0) < len(piece):
                return False
    return True


def store_bytes(count: int, state_names: Sequence[str], slots: int = SLOTS) -> int:
    """The size of the file of a store for a slice of ``count`` parameters."""
    return PAGE + slots * _sizes(count, state_names)[1]


def _sizes(count: int, state_names: Sequence[str]) -> tuple[int, int]:
    """The bytes of one array and of one slot, with padding."""
    array_bytes = -(-count * 4 // ALIGNMENT) * ALIGNMENT
    data_bytes = array_bytes * (1 + len(state_names))
    return array_bytes, HEADER_BYTES + -(-data_bytes // PAGE) * PAGE


def _digest(identity: bytes, count: int, state_names: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([identity.hex(), count, *state_names]).encode()).digest()
