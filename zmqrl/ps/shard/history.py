"""The history of a shard: one JSON line for each version, written when the version is committed."""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgpack

from zmqrl.errors import ClusterError, FullDiskError, is_full
from zmqrl.json_lines import PIECE_BYTES, JsonLines, line_start, newest_rollback, open_file, undone_path
from zmqrl.ps.shard.events import Record, Totals, View, added

COUNTS = ("late", "duplicate", "rejected")

JsonLine: TypeAlias = dict[str, Any]


def missing_lines(first: int, last: int) -> str:
    """Words for versions without a line: ``the lines of versions 2 to 3 are missing``."""
    if first == last:
        return f"the line of version {first} is missing"
    return f"the lines of versions {first} to {last} are missing"


def pack_record(record: Record) -> bytes:
    """Encode a record for the header of its slot."""
    view = record.view
    fields = {name: getattr(record, name) for name in Record.__slots__ if name != "view"}
    packed: bytes = msgpack.packb(fields | {"view": [view.id, view.quorum, view.members]})
    return packed


def unpack_record(packed: bytes) -> Record:
    """Inverse of :func:`pack_record`. The caller must verify the checksum of ``packed`` first."""
    fields = msgpack.unpackb(packed, strict_map_key=False, use_list=False)
    return Record(**fields | {"view": View(*fields["view"])})


class LostState(Exception):
    """The newest version in the store is older than the newest version of the history, or was undone."""


class UndoneState(LostState):
    """A rollback has undone the newest version in the store."""


class History:
    """Appends lines to ``path``. Opening the file removes a line that a killed process left half-written.

    Only the end of the file is read, because the file may have millions of lines. ``news`` has a sentence for each
    problem in the file, such as missing versions or unreadable lines.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises ClusterError when the file cannot be opened."""
        self.path = path
        self.news: list[str] = []
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(path)
            _, lines = self._newest()
        self.last = lines[-1][0] if lines else None

    @property
    def last_version(self) -> int | None:
        """The version of the newest line, or None if the file is empty."""
        return None if self.last is None else int(self.last["version"])

    def append(self, record: Record, crc32: int) -> None:
        """Write the line of one version.

        Raises ClusterError when the line cannot be written, and leaves no part of it in the file.
        """
        line = line_of(record, crc32)
        with self._writing():
            self._lines.write(line)
        self.last = line

    def recover(self, record: Record, crc32: int) -> None:
        """Make the file agree with ``record``, the newest commit.

        The previous process may have been killed at any point, so the last line may be missing or a rewind unfinished.
        Raises LostState when the file has versions made after ``record``, UndoneState when a rollback has undone
        ``record``, and ClusterError when the file cannot be written.
        """
        if self.last is not None and self.last["version"] > record.version:
            version, generation = self.last["version"], self.last.get("generation", 0)
            if generation >= record.generation:
                raise LostState(
                    f"the history has version {version} of generation {generation}, but the newest version in the "
                    f"state file is {record.version} of generation {record.generation}"
                )
            self.rewind(record.version, record.generation)
        version = self.last_version or 0
        if version < record.version:
            if (undone := newest_rollback(self.path)) > record.generation:
                raise UndoneState(
                    f"the newest version in the state file is {record.version} of generation {record.generation}, "
                    f"which the rollback to generation {undone} has undone"
                )
            if version + 1 < record.version or not record.ranks:
                last_missing = record.version - bool(record.ranks)
                self.news.append(f"{self.path}: {missing_lines(version + 1, last_missing)}")
            if record.ranks:
                self.append(record, crc32)

    def totals(self, version: int) -> Totals:
        """The number of contributions up to ``version``, by outcome. Raises ClusterError if the file is unreadable."""
        with self._writing():
            _, lines = self._newest(version)
            line = next((line for line, _ in reversed(lines) if line["version"] <= version), None)
            if line is None:
                return 0, 0, 0, 0
            if "totals" in line:
                used, late, duplicate, rejected = line["totals"]
                return used, late, duplicate, rejected
            total: Totals = (0, 0, 0, 0)  # an older zmqrl wrote no totals, so count the lines
            with self.path.open("rb") as file:
                for each in map(parse_line, file):
                    if each is not None and each["version"] <= version:
                        total = added(total, counts_of(each))
            return total

    def rewind(self, version: int, generation: int) -> None:
        """Roll back to ``version``: move the lines of later versions to ``<name>.before-generation-<n>.jsonl``.

        The history then has exactly one line for each version that led to the current weights. Raises ClusterError when
        a file cannot be written.
        """
        if self.last_version is None or self.last_version <= version:
            return
        with self._writing():
            offset, lines = self._newest(version)
            first = next(i for i, (line, _) in enumerate(lines) if line["version"] > version)
            undone = b"".join(raw for _, raw in lines[first:])
            with undone_path(self.path, generation).open("ab+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(undone)))
                if file.read() != undone:  # equal if an earlier process was killed after this write
                    file.write(undone)
            os.ftruncate(self._lines.file, offset + sum(len(raw) for _, raw in lines[:first]))
        self.last = lines[first - 1][0] if first else None

    def close(self) -> None:
        self._lines.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise FullDiskError(f"cannot write {self.path}: the disk is full.") from error
            raise ClusterError(f"cannot write {self.path}: {error.strerror}.") from error

    def _newest(self, version: int = sys.maxsize) -> tuple[int, list[tuple[JsonLine, bytes]]]:
        """The offset in the file where the newest lines begin, and these lines, parsed and raw.

        They go back at least to the line of ``version``, or to an earlier version if there is no such line.

        If a line cannot be read, the file is kept under another name and replaced by a file without that line.
        """
        lines: list[tuple[JsonLine | None, bytes]] = []
        start, rest = os.fstat(self._lines.file).st_size, b""
        while start > 0:
            size = min(start, PIECE_BYTES)
            start -= size
            piece = os.pread(self._lines.file, size, start) + rest
            cut = piece.find(b"\n") + 1 if start else 0
            rest = piece[:cut]
            older = [(parse_line(raw), raw + b"\n") for raw in piece[cut:].split(b"\n")[:-1]]
            lines[:0] = older
            if any(line is not None and line["version"] <= version for line, _ in older):
                break
        offset = start + len(rest)
        readable = [(line, raw) for line, raw in lines if line is not None]
        if len(readable) < len(lines):
            self._keep_damaged(offset, lines)
        return offset, readable

    def _keep_damaged(self, offset: int, lines: list[tuple[JsonLine | None, bytes]]) -> None:
        """Keep the file under another name. Continue with a copy that lacks the unreadable ``lines``."""
        original = self.path.with_name(f"{self.path.stem}.damaged-{time.time_ns()}.jsonl")
        shutil.copyfile(self.path, original)
        mended, before = self.path.with_name(f"{self.path.name}.mended"), 0
        with self.path.open("rb") as damaged, mended.open("wb") as file:
            while piece := damaged.read(min(PIECE_BYTES, offset - damaged.tell())):
                before += piece.count(b"\n")
                file.write(piece)
            file.writelines(raw for line, raw in lines if line is not None)
        mended.replace(self.path)
        self._lines.reopen()
        numbers = [number for number, (line, _) in enumerate(lines, start=before + 1) if line is None]
        what = f"line {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} lines from line {numbers[0]} on"
        self.news.append(f"{self.path}: {what} could not be read; the original file is kept as {original.name}")


def damaged_originals(history: Path) -> set[Path]:
    """The original files that were kept when damaged lines were removed from a history."""
    return set(history.parent.glob(f"{history.stem}.damaged-*.jsonl"))


def removed_lines(original: Path) -> str:
    """The sentence about the lines for which ``original`` was kept."""
    return f"lines that could not be read were removed; the original file is kept as {original.name}"


def line_of(record: Record, crc32: int) -> JsonLine:
    """The line of a version. ``crc32`` is the checksum of the published weights."""
    line = {
        "version": record.version,
        "view": record.view.id,
        "quorum": record.view.quorum,
        "ranks": list(record.ranks),
        "late": record.late,
        "duplicate": record.duplicate,
        "rejected": record.rejected,
        "crc32": crc32,
        "generation": record.generation,
        "totals": list(record.totals),
    }
    if record.made_at:
        line["made_at"] = record.made_at
    if record.staleness:
        line["staleness"] = list(record.staleness)
    return line


def parse_line(raw: bytes) -> JsonLine | None:
    """Parse a line of a history. Returns None if it is not valid."""
    try:
        line = json.loads(raw)
        counts_of(line)
        totals = line.get("totals", [0, 0, 0, 0])
        whole = type(line["version"]) is int and len(totals) == 4 and all(type(total) is int for total in totals)
        return line if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def read_lines(path: Path) -> Iterator[JsonLine]:
    """The readable lines of a history, one by one, because there may be millions. Empty if the file does not exist."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open_file(path) as file:
        for raw in file:
            if raw.endswith(b"\n") and (line := parse_line(raw)) is not None:
                yield line


def counts_of(line: JsonLine) -> Totals:
    """The number of contributions in a line, by outcome."""
    late, duplicate, rejected = (int(line.get(name, 0)) for name in COUNTS)
    return len(line.get("ranks", ())), late, duplicate, rejected


def last_version(path: Path) -> int:
    """The version of the last readable line of a history, or 0."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open_file(path) as file:
        end = line_start(file.fileno(), os.fstat(file.fileno()).st_size)
        while end > 0:
            start = line_start(file.fileno(), end - 1)
            line = parse_line(os.pread(file.fileno(), end - start, start))
            if line is not None:
                return int(line["version"])
            end = start
    return 0
