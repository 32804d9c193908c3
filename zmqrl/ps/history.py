"""The history of a shard: one JSON line for each version made, written when it was committed and never rewritten."""

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

from zmqrl.errors import ClusterError
from zmqrl.ps.shard_events import Record, Totals, View, added

COUNTS = ("late", "duplicate", "rejected")


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


class LostState(Exception):
    """The history goes on after the newest version that the store still has."""


class History:
    """Appends to ``path``; what a kill left half-written is cut off when it is opened.

    ``news`` are sentences about what is wrong with the file: versions that are missing, lines that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Raises ClusterError when it cannot be opened."""
        self.path = path
        self.news: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            os.ftruncate(self.file, whole)
        except OSError as error:
            raise ClusterError(f"cannot write {path}: {error.strerror}.") from error
        newest = content[:whole].rpartition(b"\n")[0].rpartition(b"\n")[2]
        self.last = parse_line(newest)
        if newest and self.last is None:
            self._set_last(self.read())

    @property
    def last_version(self) -> int | None:
        """The version of the newest line; None where there is none."""
        return None if self.last is None else int(self.last["version"])

    def append(self, record: Record, crc32: int) -> None:
        """Write the line of one version, in one system call. Raises ClusterError, and leaves no part of it."""
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
        self.last = line

    def recover(self, record: Record, crc32: int) -> None:
        """Agree with ``record``, the newest that was committed: the process was killed at any instant.

        Adds the line that is missing, or ends the rewind that was begun. Raises LostState when the file tells of
        versions that were made after ``record``.
        """
        version, generation = (0, 0) if self.last is None else (self.last["version"], self.last.get("generation", 0))
        if version > record.version:
            if generation >= record.generation:
                raise LostState(
                    f"version {version} of generation {generation} was made, but the newest that is still here is "
                    f"{record.version} of generation {record.generation}"
                )
            self.rewind(record.version, record.generation)
        elif version < record.version:
            if version + 1 < record.version or not record.ranks:
                last_missing = record.version - bool(record.ranks)
                self.news.append(f"{self.path}: the lines of versions {version + 1} to {last_missing} are missing")
            if record.ranks:
                self.append(record, crc32)

    def totals(self, version: int) -> Totals:
        """Contributions by outcome over the lines up to ``version``."""
        total: Totals = (0, 0, 0, 0)
        for line, _ in self.read():
            if line["version"] <= version:
                total = added(total, counts_of(line))
        return total

    def rewind(self, version: int, generation: int) -> None:
        """A rollback to ``version``: move the lines above it to ``<name>.before-generation-<n>.jsonl``.

        The history stays the lineage of the present weights, each version once.
        """
        if self.last_version is None or self.last_version <= version:
            return
        lines = self.read()
        kept = [each for each in lines if each[0]["version"] <= version]
        undone = self.path.with_name(f"{self.path.stem}.before-generation-{generation}.jsonl")
        with undone.open("ab") as file:  # there may have been two from the same checkpoint
            file.write(b"".join(raw for _, raw in lines[len(kept) :]))
        os.ftruncate(self.file, sum(len(raw) for _, raw in kept))
        self._set_last(kept)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    def _set_last(self, lines: list[tuple[dict[str, Any], bytes]]) -> None:
        self.last = lines[-1][0] if lines else None

    def read(self) -> list[tuple[dict[str, Any], bytes]]:
        """Each line, parsed and as it stands. If one cannot be read, the file is set aside and goes on without it."""
        raw_lines = self.path.read_bytes().splitlines(keepends=True)
        parsed = [(parse_line(raw), raw) for raw in raw_lines]
        readable = [(line, raw) for line, raw in parsed if line is not None]
        if len(readable) < len(raw_lines):
            aside = self.path.with_name(f"{self.path.stem}.damaged-{time.time_ns()}.jsonl")
            aside.write_bytes(b"".join(raw_lines))
            os.ftruncate(self.file, 0)
            os.write(self.file, b"".join(raw for _, raw in readable))
            numbers = [number for number, (line, _) in enumerate(parsed, start=1) if line is None]
            what = f"line {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} lines from line {numbers[0]} on"
            self.news.append(f"{self.path}: {what} could not be read; the file as it was is kept as {aside.name}")
        return readable


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """A line of a history; None for what is none."""
    try:
        line = json.loads(raw)
        counts_of(line)
        return line if type(line["version"]) is int else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a history that can be read, in their order; none if there is no file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        whole: Iterable[bytes] = path.read_bytes().rpartition(b"\n")[0].splitlines()
        return [line for line in map(parse_line, whole) if line is not None]
    return []


def counts_of(line: dict[str, Any]) -> Totals:
    """Contributions by outcome that a line tells of."""
    late, duplicate, rejected = (int(line.get(name, 0)) for name in COUNTS)
    return len(line.get("ranks", ())), late, duplicate, rejected


def last_version(path: Path) -> int:
    """The version of the last line of a history that can be read; 0 if there is none."""
    lines = read_lines(path)
    return int(lines[-1]["version"]) if lines else 0
