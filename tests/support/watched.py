"""A launcher with one host daemon for tests: starts processes that do what a job says, and keeps all events."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from support.paths import ROOT, TESTS
from support.rig import WITHIN_S, eventually, is_alive

from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.events import Event, Exited, Inspected, Said, Task
from zmqrl.hosts.link import Link
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.stalls import Doing
from zmqrl.process_id import ProcessId

EXPORTED = {"A_TOKEN": "it's a $secret"}
MODULES = f"{ROOT}:{TESTS}"  # where the processes find their modules


class Place:
    """A place for processes: how to start a host daemon there, and how to check processes without the daemon."""

    host = LOCALHOST
    lease_s: float | None = None
    forked = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", "zmqrl.hostd.daemon"]

    def alive(self, pid: int) -> bool:
        return is_alive(pid)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def link(self, work: Path) -> Link:
        return Link(
            self.host,
            self.command(),
            work=str(work),
            lease_s=self.lease_s,
            environment={"PYTHONPATH": MODULES, **EXPORTED},
        )

    def launcher(self, work: Path) -> DaemonLauncher:
        # Set the environment explicitly for every host, because ssh does not pass it on.
        return DaemonLauncher({self.host: self.link(work)}, lambda name: self.host)


class Watched:
    """A launcher and all events that it has reported."""

    def __init__(self, place: Place, where: Path) -> None:
        self.place, self.where = place, where
        self.launcher = place.launcher(where / "work")
        self.told: list[Event] = []

    def start(self, process: ProcessId, *, module: str = "support.a_child", **job: Any) -> None:
        path = self.where / "logs" / f"{process}.log"
        forked = self.place.forked
        self.launcher.start(Task(process=process, module=module, job=job, log_path=path, threads=1, forked=forked))

    def log(self, process: ProcessId) -> str:
        return (self.where / "logs" / f"{process}.log").read_text(encoding="utf-8")

    def said(self, process: ProcessId) -> list[dict[str, Any]]:
        self.told += self.launcher.poll()
        return [event.facts for event in self.told if isinstance(event, Said) and event.process == process]

    def ends(self, process: ProcessId) -> list[Exited]:
        self.told += self.launcher.poll()
        return [event for event in self.told if isinstance(event, Exited) and event.process == process]

    def inspected(self, process: ProcessId) -> list[Doing]:
        self.told += self.launcher.poll()
        return [event.doing for event in self.told if isinstance(event, Inspected) and event.process == process]

    def inspect(self, process: ProcessId) -> Doing:
        """Inspect a process until the answer has a stack, or says that the process is stopped."""
        while True:
            self.told = [event for event in self.told if not isinstance(event, Inspected)]
            self.launcher.inspect(process)
            eventually(lambda: bool(self.inspected(process)), f"an answer about {process}", WITHIN_S)
            (seen,) = self.inspected(process)
            if seen.stack or seen.state == "stopped":
                return seen

    def up(self, *processes: ProcessId) -> list[dict[str, Any]]:
        """Wait for the processes to come up. Returns the first message of each."""
        eventually(lambda: all(map(self.said, processes)), f"{processes} are up", WITHIN_S)
        return [self.said(process)[0] for process in processes]

    def end(self, process: ProcessId, times: int = 1) -> Exited:
        eventually(lambda: len(self.ends(process)) == times, f"{process} ends", WITHIN_S)
        return self.ends(process)[-1]
