"""A Ray cluster for tests: a head and two nodes with one CPU each, all on this machine."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.paths import ROOT, TESTS
from support.rig import ending

CPUS = ("0", "1", "1")
STARTS_WITHIN_S = 240.0
ENDS_WITHIN_S = 60.0
SHOWN = 4000  # characters of its output


class Addresses(NamedTuple):
    """The address of a cluster for the machines in it, and that of its Ray Client server for others."""

    inside: str
    client: str


@contextlib.contextmanager
def running_ray() -> Iterator[Addresses]:
    """Start a cluster."""
    # Ray puts Unix sockets into its directory, so the path must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        environment = {"RAY_TMPDIR": directory, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{ROOT}:{TESTS}"}
        log = Path(directory, "stderr")
        command = [sys.executable, str(Path(__file__).with_name("a_ray_cluster.py")), *CPUS]
        pipe = subprocess.PIPE
        with (
            log.open("wb") as stderr,
            ending(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=stderr, env=os.environ | environment, text=True
                )
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            has_said = select.select([process.stdout], [], [], STARTS_WITHIN_S)[0]
            addresses = process.stdout.readline().split() if has_said else []
            assert addresses, f"Ray did not start; it printed:\n{log.read_text(errors='replace')[-SHOWN:]}"
            yield Addresses(*addresses)
            process.stdin.close()
            process.wait(ENDS_WITHIN_S)
