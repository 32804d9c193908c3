"""``zmqrl logs``: the logs of all processes of a run in one stream."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.commands.inspect.living import Living
from zmqrl.commands.inspect.merging import Merging, Timed, time_of
from zmqrl.commands.options import RunPath
from zmqrl.errors import UsageError, did_you_mean, require
from zmqrl.json_lines import BLOCK_BYTES, line_start, open_file
from zmqrl.observe.folding import Folded, Folding, by_number
from zmqrl.observe.records import hosts_of
from zmqrl.process import interruptible
from zmqrl.rundir import RunDirectory

LOOK_EVERY_S = 0.2
TIMED_BYTES = 1 << 16  # before the lines that are shown: the last time stamp must be there


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show the logs of a run's processes in chronological order. A line that several processes logged is shown once."""

    run: RunPath
    """The run directory."""
    process: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[PROCESS]")] = None
    """Name of a process, such as worker-3 or supervisor. None: all processes."""
    host: str | None = None
    """Show only the processes on this host. None: all hosts."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Follow the logs until the run ends."""
    tail: int = 20
    """Number of lines to show from the end of each log."""


@interruptible()
def run(options: Options) -> int:
    require(options.tail >= 0, f"--tail {options.tail}: must be 0 or more.")
    living = Living.read(options.run)
    logs = _logs(living.directory)
    if options.process is not None and options.process not in logs:
        known = did_you_mean(options.process, logs)
        raise UsageError(
            f"{options.run} has no log of {options.process}{known}; its logs: {', '.join(logs) or 'none'}."
        )
    hosts = _hosts(living)
    if options.host is not None and options.host not in hosts.values():
        names = sorted(set(hosts.values()), key=by_number)
        hint = did_you_mean(options.host, names)
        raise UsageError(f"--host {options.host}: no such host{hint}; hosts: {', '.join(names) or 'unknown'}.")
    readers: dict[str, Reader] = {}
    merging = Merging()
    while True:
        is_over = not living.is_alive()
        last = is_over or not options.follow
        for name, path in _logs(living.directory).items():
            if name not in readers and options.process in (None, name) and options.host in (None, hosts.get(name)):
                reader = readers[name] = Reader(path, options.tail)
                if reader.time_before is not None:
                    merging.begin((hosts.get(name, ""), name), reader.time_before)
        now = time.monotonic()
        for name, reader in readers.items():
            for line in reader.lines(is_over=is_over):
                merging.add((hosts.get(name, ""), name), line, now)
        for folded in _folded(merging.take_all() if last else merging.take(now)):
            sys.stdout.write(f"{folded}\n")
        sys.stdout.flush()
        if last:
            return 0
        time.sleep(LOOK_EVERY_S)
        hosts = hosts or _hosts(Living.read(options.run))


def _hosts(living: Living) -> dict[str, str]:
    """The host of each process: in a run of an older zmqrl, only ``cluster.json`` has it."""
    hosts = {str(name): host for name, host, _ in living.processes()}
    return hosts | {name: each["host"] for each in hosts_of(living.directory) for name in each["processes"]}


def _folded(parts: Iterable[Timed]) -> Iterator[Folded]:
    """The lines in ``parts``. Equal lines within a second become one."""
    folding = Folding(by_time=True)
    for part in parts:
        yield from folding.take(part.at)
        for line in part.lines:
            folding.add(part.source, line, part.at)
    yield from folding.take_all()


def _logs(directory: RunDirectory) -> dict[str, Path]:
    """The path of each existing log, by the name of its process."""
    logs = {path.stem: path for path in (directory.path / "logs").glob("*.log") if path.is_file()}
    return {name: logs[name] for name in sorted(logs, key=by_number)}


class Reader:
    """The lines of a growing file, from ``tail`` lines before its current end. The file may not exist yet.

    If a shorter file replaces it, the lines already in that file are skipped. ``time_before`` is the last timestamp
    before the ``tail`` lines, or None if it is not near. Reads only the end of a long file.
    """

    def __init__(self, path: Path, tail: int) -> None:
        self._path, self._at, self.time_before = path, 0, None
        if not path.exists():
            return
        with open_file(path) as file:
            at = line_start(file.fileno(), file.seek(0, os.SEEK_END))
            for _ in range(tail):
                at = line_start(file.fileno(), max(0, at - 1), BLOCK_BYTES)
            skipped = os.pread(file.fileno(), min(at, TIMED_BYTES), max(0, at - TIMED_BYTES))
        self._at = at
        times = (time_of(line.decode(errors="replace")) for line in reversed(skipped.split(b"\n")))
        self.time_before = next((at for at in times if at is not None), None)

    def lines(self, *, is_over: bool = False) -> list[str]:
        """The lines completed since the last call. If the file ``is_over``, its last line may have no end."""
        if not self._path.exists():
            return []
        with open_file(self._path) as file:
            self._at = min(self._at, file.seek(0, os.SEEK_END))
            file.seek(self._at)
            piece = file.read()
        whole = piece.removesuffix(b"\n") if is_over else piece.rpartition(b"\n")[0]
        if not whole:
            return []
        self._at += len(whole) + 1
        return whole.decode(errors="replace").split("\n")
