"""A wall clock that a test can set. ``time.time`` and ``time.time_ns`` add the seconds in a file.

The variable CLOCK_FILE names this file. Python imports this module at its start if this directory is on PYTHONPATH.
"""

import contextlib
import os
import time

CLOCK_FILE = os.environ.get("CLOCK_FILE")

if CLOCK_FILE is not None:
    real, real_ns, place = time.time, time.time_ns, CLOCK_FILE

    def step() -> float:
        with contextlib.suppress(OSError, ValueError), open(place, encoding="utf-8") as file:  # noqa: PTH123
            return float(file.read())
        return 0.0

    time.time = lambda: real() + step()
    time.time_ns = lambda: real_ns() + int(1e9 * step())
