"""Reads lines of a file at even distances, so that a long file costs no more than a short one."""

import os
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1 << 12


def sample_lines(path: Path, most: int) -> list[bytes]:
    """About ``most`` complete lines of a growing file, in order, with the first and the last line.

    A file of at most ``most`` blocks is read whole. An incomplete last line is left out. Returns an empty list if the
    file does not exist.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        size = os.fstat(file).st_size
        if size <= most * BLOCK_BYTES:
            whole = os.pread(file, size, 0).rpartition(b"\n")[0]
            return whole.split(b"\n") if whole else []
        end = size - len(_last_part(file, size))
        return list(_sampled(file, end, most))
    finally:
        os.close(file)


def _last_part(file: int, size: int) -> bytes:
    """What follows the last newline."""
    part = b""
    while len(part) < size:
        start = max(0, size - len(part) - BLOCK_BYTES)
        part = os.pread(file, size - len(part) - start, start) + part
        if b"\n" in part:
            return part.rpartition(b"\n")[2]
    return part


def _sampled(file: int, end: int, most: int) -> Iterator[bytes]:
    """The line after each of ``most`` even offsets, each line once, and the last line before ``end``."""
    begun = -1
    for i in range(most):
        # The line after the newline at or before this offset: the first line for the first offset.
        start = _after_newline(file, i * end // most, end) if i else 0
        if begun < start < end:
            begun = start
            yield _line(file, start, end)
    last = end - 1 - len(_last_part(file, end - 1))
    if last > begun:
        yield _line(file, last, end)


def _after_newline(file: int, offset: int, end: int) -> int:
    """The offset of the first line that begins after ``offset``."""
    while offset < end:
        at = os.pread(file, min(BLOCK_BYTES, end - offset), offset).find(b"\n")
        if at >= 0:
            return offset + at + 1
        offset += BLOCK_BYTES
    return end


def _line(file: int, start: int, end: int) -> bytes:
    """The line that begins at ``start``, without its newline."""
    return os.pread(file, _after_newline(file, start, end) - start - 1, start)
