"""``zmqrl stop``: end a run from another terminal, as the first Ctrl-C does."""

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqrl.commands.inspect import follow
from zmqrl.commands.inspect.living import Living
from zmqrl.commands.options import RunPath
from zmqrl.errors import ClusterError, UsageError, require
from zmqrl.hostd.messages import Seen
from zmqrl.hosts.ways.login_node import Submitted
from zmqrl.hosts.ways.slurm import is_over
from zmqrl.process import interruptible


@dataclass(frozen=True, kw_only=True)
class Options:
    """End a run with a checkpoint, and wait until its processes have ended."""

    run: RunPath
    """The run directory."""
    within_s: float = 120.0
    """Maximum time to wait, in seconds."""


@interruptible()
def run(options: Options) -> int:
    require(0 < options.within_s < math.inf, f"--within-s {options.within_s}: must be above 0 and finite.")
    if job := Submitted.read(options.run):
        follow.stop(job)
        return 0
    living = Living.read(options.run)
    deadline = time.monotonic() + options.within_s
    if living.is_alive():
        while living.cluster is None and living.is_alive():  # until the shards are up
            if time.monotonic() > deadline:
                raise ClusterError(f"{options.run} did not come up within {options.within_s:g} s; see its logs.")
            time.sleep(0.1)
            living = Living.read(options.run)
        if living.cluster is not None and living.is_alive():
            _tell(options.run, living, living.cluster["supervisor"])
        while living.is_alive():
            if time.monotonic() > deadline:
                raise ClusterError(f"{options.run} did not end within {options.within_s:g} s; see its logs.")
            time.sleep(0.1)
        sys.stdout.write(f"{options.run} has ended\n")
        return 0
    if living.cluster is None:
        raise UsageError(f"{options.run} is not running.")
    if elsewhere := living.elsewhere():
        raise UsageError(f"{options.run} was launched on {elsewhere}: stop the run there.")
    while busy := [host for host, answer in living.hosts().items() if _may_have_processes(answer)]:
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of {options.run} may still run on {', '.join(busy)}; try again.")
        time.sleep(1.0)
    sys.stdout.write(f"no process of {options.run} is left on its hosts\n")
    return 0


def _tell(run: Path, living: Living, supervisor: Mapping[str, Any]) -> None:
    """Signal the supervisor to end the run. Raises UsageError if that is impossible from here."""
    if not living.is_here:
        space = ", in another PID namespace" if supervisor["host"] == socket.gethostname() else ""
        raise UsageError(f"the supervisor of {run} is on {supervisor['host']}{space}: stop the run there.")
    try:
        os.kill(supervisor["pid"], signal.SIGTERM)
        os.kill(supervisor["pid"], signal.SIGCONT)  # for a stopped supervisor
    except ProcessLookupError:
        pass  # the supervisor has just ended
    except PermissionError as error:
        raise UsageError(f"{run} belongs to another user: only that user can stop it.") from error


def _may_have_processes(answer: Seen | str) -> bool:
    """Whether a host may still have processes of the run. ``answer`` can also be a text that says why the host did not
    answer.
    """
    return not is_over(answer) if isinstance(answer, str) else answer.alive
