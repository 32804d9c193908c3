"""What commands print. A command can reserve standard output for its result."""

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from zmqrl.json_lines import nulled


def print_json(found: Any, indent: int | None = None) -> None:
    """Print one JSON value, with null for numbers that are not finite."""
    sys.stdout.write(json.dumps(nulled(found), allow_nan=False, indent=indent) + "\n")


def print_line(text: str) -> None:
    """Print a line at once, even if standard output is not a terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_line(line: str) -> None:
    """Show a line on a terminal, in place of the previous one. Without a terminal, print nothing."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Redirect standard output to standard error in the block, even for C libraries and the user's code."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
