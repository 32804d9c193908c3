"""The history of a shard: one JSON line for each version made, written when it was committed and never rewritten."""

import contextlib
import json
import os
from pathlib import Path

import msgpack

from zmqrl.errors import ClusterError
from zmqrl.ps.shard_events import Record, View


def pack_record(record: Record) -> bytes:
    """The bytes of a record in the header of its slot."""
    view = record.view
    fields = {name: getattr(record, name) for name in Record.__slots__ if name != "view"}
    packed: bytes = msgpack.packb(fields | {"view": [view.id, view.quorum, view.members]})
    return packed


def unpack_record(packed: bytes) -> Record:
    """Inverse of :func:`pack_record`, for bytes whose checksum was verified."""
    fields = msgpack.unpackb(packed, strict_map_key=False, use_list=False)
    return Record(**fields | {"view": View(*fields["view"])})


class History:
    """Appends to ``path``; what a kill left half-written is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        """Raises ClusterError when it cannot be opened."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ClusterError(f"cannot write {path}: {error.strerror}.") from error
        self.last_version = self._cut_torn_tail()

    def append(self, record: Record, crc32: int) -> None:
        """Write the line of one version, in one system call. Raises ClusterError, and leaves no part of it."""
        self.last_version = record.version
        line = {
            "version": record.version,
            "view": record.view.id,
            "quorum": record.quorum,
            "ranks": list(record.ranks),
            "late": record.late,
            "duplicate": record.duplicate,
            "rejected": record.rejected,
            "crc32": crc32,
            "generation": record.generation,
        }
        if record.staleness:
            line["staleness"] = list(record.staleness)
        packed = json.dumps(line).encode() + b"\n"
        try:
            written = os.write(self.file, packed)
        except OSError as error:
            raise ClusterError(f"cannot write {self.path}: {error.strerror}.") from error
        if written < len(packed):
            os.ftruncate(self.file, os.fstat(self.file).st_size - written)
            raise ClusterError(f"cannot write {self.path}: the disk is full.")

    def recover(self, record: Record, crc32: int) -> None:
        """Add the newest committed version if the process was killed between its commit and its line."""
        if record.ranks and (self.last_version is None or self.last_version < record.version):
            self.append(record, crc32)

    def rewind(self, version: int, generation: int) -> None:
        """A rollback to ``version``: move the lines above it to ``<name>.before-generation-<n>.jsonl``.

        The history stays the lineage of the present weights, each version once.
        """
        if self.last_version is None or self.last_version <= version:
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["version"] <= version]
        undone = self.path.with_name(f"{self.path.stem}.before-generation-{generation}.jsonl")
        with undone.open("ab") as file:  # there may have been two from the same checkpoint
            file.write(b"".join(lines[len(kept) :]))
        os.ftruncate(self.file, sum(map(len, kept)))
        self.last_version = json.loads(kept[-1])["version"] if kept else None

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    def _cut_torn_tail(self) -> int | None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self.file, whole)
        return _last_version(content[:whole])


def last_version(path: Path) -> int:
    """The version of the last whole line of a history, 0 if there is none; the file is not touched."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _last_version(path.read_bytes().rpartition(b"\n")[0]) or 0
    return 0


def _last_version(whole_lines: bytes) -> int | None:
    lines = whole_lines.splitlines()
    return json.loads(lines[-1])["version"] if lines else None
