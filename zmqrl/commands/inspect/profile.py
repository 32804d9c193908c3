"""``zmqrl profile``: where the time of a run goes."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from zmqrl.commands.options import RunPaths, parse
from zmqrl.errors import UsageError
from zmqrl.process import interruptible
from zmqrl.profile.recording import Recording
from zmqrl.profile.report import Profile, print_report
from zmqrl.profile.trace import write_trace
from zmqrl.rundir import RunDirectory

WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show where the time of a run goes, and which worker, shard and span its updates waited for."""

    runs: RunPaths
    """The run directory."""
    json: bool = False
    """Print one JSON object."""
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a trace for https://ui.perfetto.dev."""


def command(arguments: list[str]) -> int:
    """Run ``zmqrl profile``. Raises ZmqrlError."""
    return run(parse(Options, arguments, "zmqrl profile"))


@interruptible()
def run(options: Options) -> int:
    """Print the profile of a run. Raises UsageError."""
    recording = read(options.runs[0])
    if options.trace is not None:
        write_trace(recording, options.trace)
    found = Profile.of(recording).to_json()
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        print_report(found, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0


def read(path: Path) -> Recording:
    """The recording of a run. Raises UsageError when there is none."""
    directory = RunDirectory(path)
    if not directory.config.exists():
        raise UsageError(f"{path} is not a run directory: it has no config.json.")
    recording = Recording.read(directory.profile)
    if not recording.processes:
        raise UsageError(
            f"{path} has no profile/: an older zmqrl made it, or ZMQRL_PROFILE was off. "
            "zmqrl plot and zmqrl compare show its mean time per span."
        )
    return recording
