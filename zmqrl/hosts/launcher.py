"""The contract of a launcher: it starts the processes of a run on some host, reports their events, and ends them."""

import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from zmqrl.process_id import ProcessId

LOG_TAIL_LINES = 8
LIBZMQ_ASSERTION = "Assertion failed: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A process to run: ``python -m module`` with ``job`` on standard input and its log in ``log_path`` on this host.

    Without a ``job``, the process waits for one. ``messages`` follow the job. ``threads`` is the number of threads that
    its numeric libraries may use.
    """

    process: ProcessId
    module: str
    job: Mapping[str, Any] | None = field(repr=False)  # it may hold keys
    log_path: Path
    threads: int
    messages: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """The process wrote a JSON object to its standard output. The first one means that it is up."""

    process: ProcessId
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended with ``status``, as ``Popen.returncode``: negative for a signal. ``why``: an outside cause."""

    process: ProcessId
    status: int
    log_tail: str
    lived_s: float
    why: str | None = None

    def how(self) -> str:
        """The status in words."""
        if self.why is not None:
            return self.why
        if self.status >= 0:
            return f"exit status {self.status}"
        if self.status == -signal.SIGABRT and LIBZMQ_ASSERTION in self.log_tail:
            return "libzmq failed an internal check and aborted the process"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What a process is doing, as its host reports it.

    ``state``, ``kernel``: see :class:`zmqrl.hostd.inspection.Sight`. ``stack``: the frames of its main thread,
    innermost first, empty if it has not answered.
    """

    process: ProcessId
    state: str
    kernel: str = ""
    stack: tuple[str, ...] = ()


Event: TypeAlias = Said | Exited | Inspected


class Launcher(Protocol):
    """Runs tasks on one host or on many."""

    def start(self, task: Task) -> None:
        """Start ``task``. If that fails, ``poll`` returns an Exited."""

    def tell(self, process: ProcessId, message: Mapping[str, Any]) -> None:
        """Write a message to the standard input of a process. Nothing happens if it has ended."""

    def receive(self) -> None:
        """Read the messages of the hosts: events for the next ``poll``, and files. Never waits."""

    def inspect(self, process: ProcessId) -> None:
        """Ask what a process is doing, and for its stack, which it also logs. ``poll`` returns an Inspected.

        There is no answer for a process that has ended or whose host is lost.
        """

    def poll(self) -> list[Event]:
        """Return the events since the last call. Never waits."""

    def signal(self, process: ProcessId, number: signal.Signals) -> None:
        """Send a signal to a process and everything it has started."""

    def stop(self, processes: Collection[ProcessId], *, grace_s: float) -> None:
        """End processes: close their standard input, wait ``grace_s``, send SIGTERM, and 2 s later SIGKILL.

        ``poll`` does not return an Exited for them.
        """

    def wait(self, processes: Collection[ProcessId], *, within_s: float) -> None:
        """Wait until the processes have ended, at most ``within_s``. ``poll`` does not return an Exited for them."""

    def running(self) -> list[ProcessId]:
        """The processes that were started and, as far as the launcher knows, have not ended."""

    def pids(self) -> dict[ProcessId, int]:
        """The process ids, each on its own host."""

    def host_of(self, process: ProcessId) -> str:
        """The host that runs a process."""

    def to_dict(self) -> list[dict[str, Any]]:
        """The hosts as plain data, for a command that must reach them when this process is gone."""

    def unreachable_s(self) -> float:
        """Seconds since the last moment at which a host was reachable. 0 while one is."""

    def close(self) -> None:
        """End everything that still runs, and the daemons."""
