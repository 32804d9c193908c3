"""Reads a growing text file piece by piece."""

import os
from pathlib import Path
from typing import Any

from zmqrl.json_lines import open_regular

TAIL_BYTES = 1 << 16
MOST_BYTES = 1 << 18  # in one answer


def follow(path: Path, offset: int | None) -> dict[str, Any]:
    """The lines that were completed after ``offset``: ``{"from", "to", "lines"}``, with offsets in bytes.

    Without ``offset``, or if the file has become shorter, the answer has its last lines. Raises OSError.
    """
    file = open_regular(path, os.O_NOFOLLOW)
    try:
        size = os.fstat(file).st_size
        if offset is None or not 0 <= offset <= size:
            # Skip the first line, because its beginning may be cut off.
            offset = max(0, size - TAIL_BYTES)
            if offset:
                offset += os.pread(file, TAIL_BYTES, offset).find(b"\n") + 1
        piece = os.pread(file, MOST_BYTES, offset)
    finally:
        os.close(file)
    whole, newline, _ = piece.rpartition(b"\n")
    if not newline and len(piece) == MOST_BYTES:  # one endless line
        whole = piece
    end = offset + len(whole) + len(newline)
    return {"from": offset, "to": end, "lines": whole.decode(errors="replace").split("\n") if end > offset else []}
