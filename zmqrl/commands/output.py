"""Reserves standard output for the result of a command. The output of other code goes to standard error."""

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


def show_line(line: str) -> None:
    """Show a line on a terminal, in place of the previous one. Without a terminal, print nothing."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Redirect to standard error what the user's code and C libraries print on standard output in the block."""
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
