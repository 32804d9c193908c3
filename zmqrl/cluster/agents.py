"""The launcher: tasks go to the agents of their hosts, and what agents say comes back as events and logs."""

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from zmqrl.cluster.launcher import LOG_TAIL_LINES, Exited, Said, Task
from zmqrl.cluster.link import RENEW_EVERY_S, Link, LinkLost
from zmqrl.cluster.mirror import Mirror

# Large tensors go back to the kernel at every free, and their pages fault in anew, unless glibc is told otherwise.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "2"}
# On a host that has other work too, OpenMP threads that spin while they wait cost a small network fifty times its time.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE"}
END_WITHIN_S = 8.0  # an agent kills what does not end by itself, and that takes it some seconds
LOST = -int(signal.SIGKILL)  # what became of a process on a host that is lost: as good as killed


@dataclass(slots=True)
class _Running:
    task: Task
    link: Link
    log: BinaryIO
    started_at: float
    pid: int | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))

    def write(self, line: str) -> None:
        self.tail.append(line)
        with contextlib.suppress(OSError):  # a full disk
            self.log.write(line.encode() + b"\n")


class Agents:
    """Runs tasks on the hosts of ``links``; ``place`` says on which one, by the name of the task.

    An agent that is lost takes its processes with it. It is sought again when the next of them is to be started.
    What an agent says about files goes to ``files``.
    """

    def __init__(self, links: Mapping[str, Link], place: Callable[[str], str], *, files: Mirror | None = None) -> None:
        self.links, self.place, self.files = links, place, files
        self._running: dict[str, _Running] = {}
        self._events: list[Said | Exited] = []
        self._reached_at = time.monotonic()
        self._closed = threading.Event()
        # Whatever keeps the run's own thread, such as a disk or a shard that does not answer: the leases go on.
        threading.Thread(target=self._renew, name="renew", daemon=True).start()

    def start(self, task: Task) -> None:
        """Start ``task``; that it could not be is told by ``poll``."""
        assert task.name not in self._running
        link = self.links[self.place(task.name)]
        task.log_path.parent.mkdir(parents=True, exist_ok=True)
        log = task.log_path.open("ab", buffering=0)
        self._running[task.name] = _Running(task, link, log, time.monotonic())
        if link.process is None:
            try:
                link.open()
            except LinkLost as lost:
                self._end(task.name, LOST, f"host {lost.host} is lost: {lost.why}")
                return
            if self.files is not None:
                self.files.reopened(link.host)
        threads = str(task.threads)
        link.send(
            {
                "do": "start",
                "name": task.name,
                "module": task.module,
                "before": PATIENCE,
                "environment": MALLOC | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | link.environment,
                "messages": [*([task.job] if task.job is not None else []), *task.messages],
            }
        )

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Say something on a process's standard input; one that died meanwhile is told of by ``poll``."""
        self._ask(name, {"do": "tell", "message": message})

    def poll(self) -> list[Said | Exited]:
        """What happened since the last call. Never waits."""
        self.take_in()
        events, self._events = self._events, []
        return events

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and everything it started."""
        self._ask(name, {"do": "signal", "number": int(number)})

    def stop(self, names: Collection[str], *, grace_s: float) -> None:
        """End processes: close their standard input, wait ``grace_s``, terminate, and after two more seconds kill.

        What was ended like this, or waited for, is not told by ``poll``.
        """
        for name in names:
            self._ask(name, {"do": "hang_up"})
        self.wait(names, within_s=grace_s)
        for number, wait_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            for name in names:
                self.signal(name, number)
            self.wait(names, within_s=wait_s)

    def wait(self, names: Collection[str], *, within_s: float) -> None:
        """Wait until the processes have ended, at most ``within_s``."""
        deadline = time.monotonic() + within_s
        self.take_in()
        while not self._running.keys().isdisjoint(names) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.take_in()
        self._events = [event for event in self._events if isinstance(event, Said) or event.name not in names]

    def names(self) -> list[str]:
        """Every process that was started and not seen to end."""
        return list(self._running)

    def pids(self) -> dict[str, int]:
        """The process ids, each on its own host, by name."""
        return {name: running.pid for name, running in self._running.items() if running.pid is not None}

    def to_dict(self) -> list[dict[str, Any]]:
        """The hosts, as somebody else needs to know them to look after them when we are gone: plain data."""
        return [link.to_dict() for link in self.links.values()]

    def alone_s(self) -> float:
        """Seconds since the agent of any host was there."""
        return time.monotonic() - self._reached_at

    def logs(self, name: str) -> str:
        """The last lines that a process, while it is known, has written to its log."""
        return "\n".join(self._running[name].tail)

    def close(self) -> None:
        """End everything that still runs, and the agents."""
        for link in self.links.values():
            link.hang_up()
        deadline = time.monotonic() + END_WITHIN_S
        while any(link.process is not None for link in self.links.values()) and time.monotonic() < deadline:
            self.take_in()
            time.sleep(0.01)
        self._closed.set()
        for link in self.links.values():
            link.cut()
        for name in list(self._running):
            self._running.pop(name).log.close()

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_EVERY_S):
            for link in self.links.values():
                link.renew()

    def _ask(self, name: str, request: dict[str, Any]) -> None:
        if name in self._running:
            self._running[name].link.send(request | {"name": name})

    def take_in(self) -> None:
        """Read what the agents say, for the next ``poll``."""
        for link in self.links.values():
            try:
                for event in link.poll():
                    if "name" in event:
                        self._take(link, event)
                    elif self.files is not None:
                        self.files.take(link.host, event)
                if link.up is not None:
                    self._reached_at = time.monotonic()
            except LinkLost as lost:
                if self.files is not None:
                    self.files.lost(link.host)
                for name in [name for name, running in self._running.items() if running.link is link]:
                    self._end(name, LOST, f"host {lost.host} is lost: {lost.why}")

    def _take(self, link: Link, event: dict[str, Any]) -> None:
        running = self._running.get(event["name"])
        if running is None or running.link is not link:  # nobody speaks for the processes of another host
            return
        match event["is"]:
            case "started":
                running.pid = event["pid"]
            case "said":
                self._events.append(Said(event["name"], event["facts"]))
            case "log":
                running.write(event["line"])
            case "exited":
                self._end(event["name"], event["status"], event["why"])

    def _end(self, name: str, status: int, why: str | None) -> None:
        running = self._running.pop(name)
        running.log.close()
        lived_s = time.monotonic() - running.started_at
        self._events.append(Exited(name, status, "\n".join(running.tail), lived_s, why))
