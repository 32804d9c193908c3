"""The history of a shard: one JSON line for each version made, written when it was committed and never rewritten."""

import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgpack

from zmqrl.errors import ClusterError
from zmqrl.ps.shard_events import Record, Totals, View, added

COUNTS = ("late", "duplicate", "rejected")
FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
PIECE_BYTES = 1 << 20

Line: TypeAlias = dict[str, Any]


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

    Only the newest part is read: it may have millions of lines. ``news`` are sentences about what is wrong there:
    versions that are missing, lines that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Raises ClusterError when it cannot be opened, or not be written."""
        self.path = path
        self.news: list[str] = []
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, FLAGS, 0o644)
            self._cut_torn_line()
            _, lines = self._newest()
        self.last = lines[-1][0] if lines else None

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
            "totals": list(record.totals),
        }
        if record.staleness:
            line["staleness"] = list(record.staleness)
        packed = json.dumps(line).encode() + b"\n"
        with self._writing():
            written = os.write(self.file, packed)
            if written < len(packed):
                os.ftruncate(self.file, os.fstat(self.file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.last = line

    def recover(self, record: Record, crc32: int) -> None:
        """Agree with ``record``, the newest that was committed: the process was killed at any instant.

        Adds the line that is missing, or ends the rewind that was begun. Raises LostState when the file tells of
        versions that were made after ``record``, and ClusterError.
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
        """Contributions by outcome over the lines up to ``version``. Raises ClusterError."""
        with self._writing():
            _, lines = self._newest(version)
            line = next((line for line, _ in reversed(lines) if line["version"] <= version), None)
            if line is None:
                return 0, 0, 0, 0
            if "totals" in line:
                used, late, duplicate, rejected = line["totals"]
                return used, late, duplicate, rejected
            total: Totals = (0, 0, 0, 0)  # written by an older zmqrl
            with self.path.open("rb") as file:
                for each in map(parse_line, file):
                    if each is not None and each["version"] <= version:
                        total = added(total, counts_of(each))
            return total

    def rewind(self, version: int, generation: int) -> None:
        """A rollback to ``version``: move the lines above it to ``<name>.before-generation-<n>.jsonl``.

        The history stays the lineage of the present weights, each version once. Raises ClusterError.
        """
        if self.last_version is None or self.last_version <= version:
            return
        with self._writing():
            offset, lines = self._newest(version)
            first = next(i for i, (line, _) in enumerate(lines) if line["version"] > version)
            undone = b"".join(raw for _, raw in lines[first:])
            with self.path.with_name(f"{self.path.stem}.before-generation-{generation}.jsonl").open("ab+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(undone)))
                if file.read() != undone:  # a process that was killed before the cut has written it
                    file.write(undone)
            os.ftruncate(self.file, offset + sum(len(raw) for _, raw in lines[:first]))
        self.last = lines[first - 1][0] if first else None

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise ClusterError(f"cannot write {self.path}: {why}.") from error

    def _cut_torn_line(self) -> None:
        size = end = os.fstat(self.file).st_size
        while end > 0:
            start = max(0, end - PIECE_BYTES)
            newline = os.pread(self.file, end - start, start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        if end < size:
            os.ftruncate(self.file, end)

    def _newest(self, version: int = sys.maxsize) -> tuple[int, list[tuple[Line, bytes]]]:
        """The newest lines, parsed and as they stand, and the byte that they begin at.

        They go back to one of ``version`` or below. If one cannot be read, the file is set aside and goes on without
        it.
        """
        lines: list[tuple[Line | None, bytes]] = []
        start, rest = os.fstat(self.file).st_size, b""
        while start > 0:
            size = min(start, PIECE_BYTES)
            start -= size
            piece = os.pread(self.file, size, start) + rest
            cut = piece.find(b"\n") + 1 if start else 0
            rest = piece[:cut]
            older = [(parse_line(raw), raw + b"\n") for raw in piece[cut:].split(b"\n")[:-1]]
            lines[:0] = older
            if any(line is not None and line["version"] <= version for line, _ in older):
                break
        offset = start + len(rest)
        readable = [(line, raw) for line, raw in lines if line is not None]
        if len(readable) < len(lines):
            self._set_aside(offset, lines)
        return offset, readable

    def _set_aside(self, offset: int, lines: list[tuple[Line | None, bytes]]) -> None:
        """Keep the file under another name, and go on with the part before ``offset`` and the readable ``lines``."""
        aside = self.path.with_name(f"{self.path.stem}.damaged-{time.time_ns()}.jsonl")
        shutil.copyfile(self.path, aside)
        mended, before = self.path.with_name(f"{self.path.name}.mended"), 0
        with self.path.open("rb") as damaged, mended.open("wb") as file:
            while piece := damaged.read(min(PIECE_BYTES, offset - damaged.tell())):
                before += piece.count(b"\n")
                file.write(piece)
            file.writelines(raw for line, raw in lines if line is not None)
        mended.replace(self.path)
        replaced, self.file = self.file, os.open(self.path, FLAGS)
        os.close(replaced)
        numbers = [number for number, (line, _) in enumerate(lines, start=before + 1) if line is None]
        what = f"line {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} lines from line {numbers[0]} on"
        self.news.append(f"{self.path}: {what} could not be read; the file as it was is kept as {aside.name}")


def parse_line(raw: bytes) -> Line | None:
    """A line of a history; None for what is none."""
    try:
        line = json.loads(raw)
        counts_of(line)
        totals = line.get("totals", [0, 0, 0, 0])
        whole = type(line["version"]) is int and len(totals) == 4 and all(type(total) is int for total in totals)
        return line if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
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
