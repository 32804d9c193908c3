"""The launcher of a run: sends tasks to the host daemons, and turns their messages into events and logs."""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from zmqrl.hostd import messages as h
from zmqrl.hosts.events import (
    LOG_TAIL_LINES,
    Event,
    Exited,
    HostLost,
    HostUp,
    Inspected,
    Paused,
    Said,
    Task,
)
from zmqrl.hosts.link import RENEW_EVERY_S, Link, LinkLost
from zmqrl.hosts.mirror import Mirror
from zmqrl.observe.stalls import Doing
from zmqrl.process import LOG_LEVEL, STARTED_IN
from zmqrl.process_id import ProcessId

# By default, glibc returns the memory of a freed large tensor to the kernel, so the next large tensor causes page
# faults.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "2"}
# OpenMP threads spin while they wait, which makes a small network fifty times slower on a busy host.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE"}
# A daemon needs some seconds to kill processes. The guard of a stopped daemon needs up to 15 s: it notices after 8 to
# 10 s, and then ends the processes.
END_WITHIN_S = 16.0
# For a host that is still coming up. Its command may wait for the connection without end.
END_COMING_UP_WITHIN_S = 3.0
LOST = -int(signal.SIGKILL)  # the status of a process on a lost host
PAUSE_S = 3.0  # a busy machine can cause shorter gaps between beats
BLAMED_FOR_S = 10.0  # a pause explains the loss of a host for this long


def environment_of(threads: int) -> dict[str, str]:
    """The variables that make torch fast with ``threads`` threads, for every process of a run."""
    return MALLOC | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@dataclass(slots=True)
class _Running:
    process: ProcessId
    link: Link
    log: BinaryIO
    started_at: float
    pid: int | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))

    def write(self, line: str) -> None:
        self.tail.append(line)
        with contextlib.suppress(OSError):  # a full disk
            self.log.write(line.encode() + b"\n")


class DaemonLauncher:
    """Runs tasks on the hosts of ``links``. ``host_of`` returns the host that runs a process.

    If a host is lost, its processes count as killed. The next start of a process there contacts the host again.
    Messages about files go to ``files``.
    """

    def __init__(
        self, links: Mapping[str, Link], host_of: Callable[[ProcessId], str], *, files: Mirror | None = None
    ) -> None:
        self.links, self.host_of, self.files = links, host_of, files
        self._running: dict[str, _Running] = {}  # by name
        self._events: list[Event] = []
        self._pulse = Pulse()
        self._reached_at = time.monotonic()
        self._closed = threading.Event()
        # Leases are renewed even while the supervisor's thread waits for a disk or a shard.
        threading.Thread(target=self._renew, name="renew", daemon=True).start()

    def start(self, task: Task) -> None:
        """Start ``task``. If the start fails, ``poll`` returns an Exited."""
        name = str(task.process)
        assert name not in self._running
        link = self.links[self.host_of(task.process)]
        task.log_path.parent.mkdir(parents=True, exist_ok=True)
        log = task.log_path.open("ab", buffering=0)
        self._running[name] = _Running(task.process, link, log, time.monotonic())
        try:
            self._open(link)
        except LinkLost as lost:
            self._lose(link, lost.why)
            return
        messages = [*([] if task.job is None else [task.job]), *task.messages]
        link.send(
            h.Start(
                name=name,
                module=task.module,
                before=PATIENCE,
                environment=_environment(link, task.threads),
                messages=messages,
                forked=task.forked,
            )
        )

    def prepare(self, process: ProcessId, module: str, threads: int) -> None:
        """Announce ``forked`` tasks with this ``module`` to the host of ``process``."""
        link = self.links[self.host_of(process)]
        with contextlib.suppress(LinkLost):  # start tries again, and reports a failure
            self._open(link)
            link.send(h.Prepare(module, PATIENCE, _environment(link, threads)))

    def _open(self, link: Link) -> None:
        """Open ``link`` if necessary. Raises LinkLost."""
        if link.process is None:
            link.open()
            if self.files is not None:
                self.files.reopened(link.host)

    def tell(self, process: ProcessId, message: Mapping[str, Any]) -> None:
        """Write a message to the standard input of a process, unless it has ended."""
        self._send(process, h.Tell(str(process), message))

    def inspect(self, process: ProcessId) -> None:
        """Ask a host what a process is doing. ``poll`` returns an Inspected, and the process logs its stack.

        No answer comes if the process has ended or its host is lost.
        """
        self._send(process, h.Inspect(str(process)))

    def poll(self) -> list[Event]:
        """Return the events since the last call. Never waits."""
        self.receive()
        events, self._events = self._events, []
        return events

    def signal(self, process: ProcessId, number: signal.Signals) -> None:
        """Send a signal to a process and all that it has started."""
        self._send(process, h.Signal(str(process), int(number)))

    def stop(self, processes: Collection[ProcessId], *, grace_s: float) -> None:
        """End processes: close their standard input, wait ``grace_s``, send SIGTERM, and 2 s later SIGKILL.

        ``poll`` does not return an Exited for them.
        """
        for process in processes:
            self._send(process, h.HangUp(str(process)))
        self.wait(processes, within_s=grace_s)
        for number, wait_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            for process in processes:
                self.signal(process, number)
            self.wait(processes, within_s=wait_s)

    def wait(self, processes: Collection[ProcessId], *, within_s: float) -> None:
        """Wait at most ``within_s`` until the processes have ended. ``poll`` does not return an Exited for them."""
        deadline = time.monotonic() + within_s
        self.receive()
        while not set(processes).isdisjoint(self.running()) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.receive()
        self._events = [
            event for event in self._events if not isinstance(event, Exited) or event.process not in processes
        ]

    def running(self) -> list[ProcessId]:
        """The started processes that have not ended, as far as the launcher knows."""
        return [running.process for running in self._running.values()]

    def pids(self) -> dict[ProcessId, int]:
        """The process id of each process, on its own host."""
        return {running.process: running.pid for running in self._running.values() if running.pid is not None}

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data with which a command can reach the hosts after this process has ended."""
        return [link.to_dict() for link in self.links.values()]

    def unreachable_s(self) -> float:
        """Seconds for which no host has been reachable. 0 while one is."""
        return time.monotonic() - self._reached_at

    def close(self) -> None:
        """End all processes, and the daemons."""
        for link in self.links.values():
            link.hang_up()
        began_at = time.monotonic()
        try:
            while open_links := [link for link in self.links.values() if link.process is not None]:
                waited_s = time.monotonic() - began_at
                if waited_s >= END_WITHIN_S:
                    break
                for link in open_links:
                    if waited_s >= END_COMING_UP_WITHIN_S and not link.is_ready:
                        link.cut()
                self.receive()
                time.sleep(0.01)
        finally:
            self._closed.set()
            for link in self.links.values():
                link.cut()
            for name in list(self._running):
                self._running.pop(name).log.close()

    def receive(self) -> None:
        """Read the messages of the hosts: events for the next ``poll``, and files. Never waits."""
        self._pulse.beat()
        self._events += self._pulse.take_news()
        for link in self.links.values():
            try:
                for event in link.poll():
                    self._take(link, event)
                if link.up is not None:
                    self._reached_at = time.monotonic()
            except LinkLost as lost:
                if self.files is not None:
                    self.files.lost(link.host)
                self._lose(link, lost.why)

    def _lose(self, link: Link, why: str) -> None:
        """Report a host as lost, and count its processes as killed."""
        why = self._pulse.blamed(link.lease_s) or why
        running = {name: each.process for name, each in self._running.items() if each.link is link}
        for name in running:
            self._end(name, LOST, f"host {link.host} is lost: {why}", with_host=True)
        self._events.append(HostLost(link.host, why, tuple(running.values())))

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_EVERY_S):
            self._pulse.beat()
            for link in self.links.values():
                link.renew()

    def _send(self, process: ProcessId, request: h.Request) -> None:
        if running := self._running.get(str(process)):
            running.link.send(request)

    def _take(self, link: Link, event: h.Event) -> None:
        match event:
            case h.Up():
                self._events.append(HostUp(link.host))
            case h.Listing() | h.Piece() | h.Written() if self.files is not None:
                self.files.take(link.host, event)
            case h.Started() | h.Output() | h.LogLine() | h.ExitReport() | h.InspectionReport():
                running = self._running.get(event.name)
                if running is None or running.link is not link:  # a host cannot report on processes of other hosts
                    return
                match event:
                    case h.Started():
                        running.pid = event.pid
                    case h.Output():
                        self._events.append(Said(running.process, event.facts))
                    case h.LogLine():
                        running.write(event.line)
                    case h.InspectionReport():
                        doing = Doing(state=event.state, kernel=event.kernel, stack=tuple(event.stack))
                        self._events.append(Inspected(running.process, doing))
                    case h.ExitReport():
                        self._end(event.name, event.status, event.why)

    def _end(self, name: str, status: int, why: str | None, *, with_host: bool = False) -> None:
        running = self._running.pop(name)
        running.log.close()
        lived_s = time.monotonic() - running.started_at
        self._events.append(Exited(running.process, status, "\n".join(running.tail), lived_s, why, with_host))


def _environment(link: Link, threads: int) -> dict[str, str]:
    ours = environment_of(threads) | {name: os.environ[name] for name in (STARTED_IN, LOG_LEVEL) if name in os.environ}
    return ours | link.environment


def _clocks() -> tuple[float, float]:
    """Seconds on a clock that stops while the machine sleeps, and on one that does not."""
    return time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)


class Pulse:
    """Finds pauses, in which this process did not run at all. Two threads call ``beat`` at least once a second."""

    def __init__(self, clocks: Callable[[], tuple[float, float]] = _clocks) -> None:
        self._clocks, self._beating = clocks, threading.Lock()
        self._beat_at = clocks()
        self._last: tuple[float, Paused] | None = None  # the end of the last pause, and this pause
        self._news: list[Paused] = []

    def beat(self) -> None:
        """Note that this process runs now."""
        with self._beating:
            before, self._beat_at = self._beat_at, self._clocks()
            awake_s, passed_s = (now - then for now, then in zip(self._beat_at, before, strict=True))
            if passed_s >= PAUSE_S:
                pause = Paused(passed_s, asleep=awake_s < passed_s / 2)
                self._last = self._beat_at[1], pause
                self._news.append(pause)

    def take_news(self) -> list[Paused]:
        """The pauses since the last call."""
        with self._beating:
            news, self._news = self._news, []
        return news

    def blamed(self, lease_s: float | None) -> str | None:
        """The sentence about the last pause, if it explains why a host was lost just now: the pause was recent, and
        outlasted the lease.
        """
        if self._last is None or lease_s is None:
            return None
        ended_at, pause = self._last
        is_recent = self._clocks()[1] - ended_at <= BLAMED_FOR_S
        return pause.sentence() if is_recent and pause.seconds > lease_s - RENEW_EVERY_S else None
