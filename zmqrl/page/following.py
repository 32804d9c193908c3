"""Reads a growing text file piece by piece."""

import os
from pathlib import Path
from typing import Any

from zmqrl.json_lines import open_regular

TAIL_BYTES = 1 << 16
MOST_BYTES = 1 << 18  # in one answer
MOST_BEHIND = 1 << 20  # a reader that is further behind the end of the file continues near its end


def follow(path: Path, offset: int | None) -> dict[str, Any]:
    """The lines that were completed after ``offset``: ``{"from", "to", "lines", "rest"}``, with offsets in bytes.

    ``rest`` is the incomplete line at the end of the file. The answer has the last lines of the file if ``offset`` is
    None or far from the end, or if the file has become shorter. Raises OSError.
    """
    file = open_regular(path, os.O_NOFOLLOW)
    try:
        size = os.fstat(file).st_size
        if offset is None or not max(0, size - MOST_BEHIND) <= offset <= size:
            # Skip the first line, because its beginning may be cut off.
            offset = max(0, size - TAIL_BYTES)
            if offset:
                offset += os.pread(file, TAIL_BYTES, offset).find(b"\n") + 1
        piece = os.pread(file, MOST_BYTES, offset)
    finally:
        os.close(file)
    whole, newline, rest = piece.rpartition(b"\n")
    if len(piece) == MOST_BYTES:
        if not newline:  # one endless line
            whole = piece
        rest = b""  # the file continues
    end = offset + len(whole) + len(newline)
    lines = whole.decode(errors="replace").split("\n") if end > offset else []
    return {"from": offset, "to": end, "lines": lines, "rest": rest.decode(errors="replace")}
