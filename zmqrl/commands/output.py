"""Print only the result of a command on standard output, and nothing that other code prints."""

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


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Redirect standard output to standard error in the block, for the user's code and for C libraries."""
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
