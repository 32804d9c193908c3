"""``zmqrl logs``: the logs of all processes of a run in one stream."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.commands.inspect.living import Living
from zmqrl.commands.options import RunPath, parse
from zmqrl.errors import UsageError, did_you_mean
from zmqrl.observe.folding import Folding, by_number
from zmqrl.process import interruptible
from zmqrl.rundir import RunDirectory

LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show the logs of a run's processes. A line that several processes logged is shown once."""

    run: RunPath
    """The run directory."""
    process: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PROCESS]")] = None
    """Name of a process, such as worker-3 or supervisor. None: all processes."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Follow the logs until the run ends."""
    tail: int = 20
    """Number of lines to show from the end of each log."""


def command(arguments: list[str]) -> int:
    """Run ``zmqrl logs``. Raises ZmqrlError."""
    return run(parse(Options, arguments, "zmqrl logs"))


@interruptible()
def run(options: Options) -> int:
    """Print logs. Raises UsageError."""
    living = Living.read(options.run)
    logs = _logs(living.directory)
    if options.process is not None and options.process not in logs:
        known = did_you_mean(options.process, logs)
        raise UsageError(
            f"{options.run} has no log of {options.process}{known}; its logs: {', '.join(logs) or 'none'}."
        )
    hosts: dict[str, str] = {}
    readers: dict[str, Reader] = {}
    folding = Folding()
    while True:
        last = not (options.follow and living.is_alive())
        for name, path in _logs(living.directory).items():
            if name not in readers and options.process in (None, name):
                readers[name] = Reader(path, options.tail)
        hosts = hosts or {str(name): host for name, host, _ in Living.read(options.run).processes()}
        now = time.monotonic()
        for name, reader in readers.items():
            for line in reader.lines():
                folding.add((hosts.get(name, ""), name), line, now)
        for folded in folding.take_all() if last else folding.take(now):
            sys.stdout.write(f"{folded}\n")
        sys.stdout.flush()
        if last:
            return 0
        time.sleep(LOOK_EVERY_S)


def _logs(directory: RunDirectory) -> dict[str, Path]:
    """Maps the name of each process whose log exists now to the path of that log."""
    logs = {path.stem: path for path in (directory.path / "logs").glob("*.log")}
    return {name: logs[name] for name in sorted(logs, key=by_number)}


class Reader:
    """The lines of a growing file, from ``tail`` lines before its current end."""

    def __init__(self, path: Path, tail: int) -> None:
        self._path = path
        *whole, _ = path.read_bytes().split(b"\n")
        self._at = sum(len(line) + 1 for line in whole[: max(0, len(whole) - tail)])

    def lines(self) -> list[str]:
        """The lines that were completed since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._at += len(whole) + 1
        return whole.decode(errors="replace").split("\n")
