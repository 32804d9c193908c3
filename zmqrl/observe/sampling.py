"""Reads evenly spaced lines of a file, so that a long file costs no more than a short one."""

import os
from collections.abc import Iterator
from pathlib import Path

from zmqrl.json_lines import line_start, open_regular

BLOCK_BYTES = 1 << 12
DENSE_BYTES = 1 << 16  # the disk also reads what is between two lines if they are closer than this


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
