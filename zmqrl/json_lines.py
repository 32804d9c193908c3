"""Files of a run: JSON, and one JSON object per line, readable while they grow.

This module uses only the standard library.
"""

import contextlib
import errno
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TO_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND
PIECE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 12
DENSE_BYTES = 1 << 16  # the disk also reads what is between two lines if they are closer than this
UNDONE = ".before-generation-"  # in the name of a file with lines that a rollback has undone
SHALLOW = 100  # data with at most this many nested levels can always be printed


class JsonLines:
    """Appends to ``path``, one write per line, so that a reader never sees half a line. ``file`` is its descriptor."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, and remove a line that a killed process left unfinished. Raises OSError."""
        self.path, self._failing = path, False
        self.file = open_regular(path, TO_APPEND)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self.file).st_size
        end = line_start(self.file, size)
        if end < size:
            os.ftruncate(self.file, end)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``, with null for numbers that are not finite. Writes nothing if it raises OSError."""
        line = json.dumps(nulled(record), allow_nan=False).encode() + b"\n"
        written = os.write(self.file, line)
        if written < len(line):
            os.ftruncate(self.file, os.fstat(self.file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_or_tell(self, record: Mapping[str, Any], notice: Callable[[str], None]) -> None:
        """Append ``record``. If that fails, call ``notice``, but only for the first of several failures in a row."""
        try:
            self.write(record)
            self._failing = False
        except OSError as error:
            if not self._failing:
                notice(f"cannot append to {self.path}, so lines will be missing: {error.strerror}")
            self._failing = True

    def rewind(self, version: int, generation: int) -> None:
        """Keep the valid rows up to ``version``. Move all other rows to a separate file.

        A row cancels earlier rows of the same or a higher version. If the move fails, raises OSError and changes
        nothing.
        """
        kept: list[tuple[int, bytes]] = []
        undone: list[bytes] = []
        for raw in self.path.read_bytes().splitlines(keepends=True):
            at = _version_in(raw)
            while kept and at is not None and kept[-1][0] >= at:  # a later session started at a lower version
                undone.append(kept.pop()[1])
            if at is not None and at <= version:
                kept.append((at, raw))
            else:
                undone.append(raw)
        if not undone:
            return
        with undone_path(self.path, generation).open("ab") as file:
            file.writelines(undone)
        with replacing(self.path) as shorter:
            shorter.write_bytes(b"".join(raw for _, raw in kept))
        self.reopen()

    def reopen(self) -> None:
        """Continue with the file that has replaced the open one. Raises OSError."""
        replaced, self.file = self.file, open_regular(self.path, TO_APPEND)
        os.close(replaced)

    def close(self) -> None:
        os.close(self.file)


def unfinished_path(path: Path) -> Path:
    """The file that this process renames to ``path`` once it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.unfinished")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a file to write in the block, which then replaces ``path``. If the block fails, ``path`` stays."""
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def undone_path(path: Path, generation: int) -> Path:
    """The file for the lines of ``path`` that the rollback to ``generation`` undoes."""
    return path.with_name(f"{path.stem}{UNDONE}{generation}.jsonl")


def newest_rollback(path: Path) -> int:
    """The newest generation whose rollback has moved lines out of ``path``, or 0."""
    numbers = (undone.stem.rpartition("-")[2] for undone in path.parent.glob(f"{path.stem}{UNDONE}*.jsonl"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file that somebody else may have made, and return its descriptor. Never waits, not even for a pipe.

    ``flags`` are those of :func:`os.open`. Raises OSError, for example if ``path`` is not a regular file.
    """
    file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
    kind = os.fstat(file).st_mode
    if stat.S_ISREG(kind):
        return file
    os.close(file)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_file(path: Path) -> io.BufferedReader:
    """Like :func:`open_regular`, but returns a file object for reading."""
    return os.fdopen(open_regular(path), "rb")


def read_file(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Read a JSON file of any origin. Raises OSError, and ValueError if :func:`parse_json` refuses the content."""
    return parse_json(read_file(path).decode())


def line_start(file: int, end: int, piece_bytes: int = PIECE_BYTES) -> int:
    """The offset after the last newline before ``end`` in an open file, or 0. Reads the file backwards, in pieces."""
    while end > 0:
        start = max(0, end - piece_bytes)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    return end


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any origin. Raises ValueError if it is invalid, or nested too deeply to be parsed or printed."""
    try:
        data = json.loads(text)
        if _brackets(text) > SHALLOW:  # shallow data needs no check, which takes as long as parsing
            repr(data)  # an error about the data may have to print it
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML of any origin. Raises ValueError if it is invalid, or cannot be parsed or printed."""
    import tomllib  # few processes need it

    try:
        data = tomllib.loads(text)
        repr(data)  # an error about the data may have to print it
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python converts no number with 5,000 digits
        raise ValueError("it has a number with too many digits") from None
    return data


def _brackets(text: str | bytes) -> int:
    """An upper bound for the depth of the data in ``text``."""
    return text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")


def _version_in(raw: bytes) -> int | None:
    try:
        return int(parse_json(raw)["version"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def nulled(value: Any) -> Any:
    """``value`` with None in place of infinity and NaN, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nulled(item) for item in value]
    return value


def sample_lines(path: Path, most: int) -> list[bytes]:
    """About ``most`` complete lines of a growing file, in order, with the first and the last line.

    Reads the whole file if it has at most ``most`` blocks. Leaves out an incomplete last line. Empty if the file
    cannot be opened, is a symbolic link, or is not a regular file.
    """
    try:
        file = open_regular(path, os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        size = os.fstat(file).st_size
        if size <= most * BLOCK_BYTES:
            whole = os.pread(file, size, 0).rpartition(b"\n")[0]
            return whole.split(b"\n") if whole else []
        if size <= most * DENSE_BYTES:  # one large read is faster than many small ones
            os.posix_fadvise(file, 0, size, os.POSIX_FADV_WILLNEED)
        return list(_sampled(file, line_start(file, size, BLOCK_BYTES), most))
    finally:
        os.close(file)


def _sampled(file: int, end: int, most: int) -> Iterator[bytes]:
    """The line after each of ``most`` evenly spaced offsets, each line once, and the last line before ``end``."""
    begun = -1
    for i in range(most):
        start, line = _next_line(file, i * end // most, end)
        if begun < start < end:
            begun = start
            yield line
    last = line_start(file, end - 1, BLOCK_BYTES)
    if last > begun:
        yield os.pread(file, end - 1 - last, last)


def _next_line(file: int, offset: int, end: int) -> tuple[int, bytes]:
    """The offset and the text of the first line that begins after ``offset``, or at 0.

    Before ``end``, the file has only complete lines.
    """
    size = 2 * BLOCK_BYTES  # most lines need only one read
    while True:
        part = os.pread(file, min(size, end - offset), offset)
        start = part.find(b"\n") + 1 if offset else 0
        stop = part.find(b"\n", start)
        if (start or not offset) and stop >= 0:
            return offset + start, part[start:stop]
        if offset + size >= end:
            return end, b""
        size *= 2
