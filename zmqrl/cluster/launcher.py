"""What a launcher is: it starts the processes of a run somewhere, says what becomes of them, and ends them."""

import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LOG_TAIL_LINES = 8
LIBZMQ_ASSERTION = "Assertion failed: "
EVALUATOR, RECORDER = "evaluator-0", "recorder-0"  # processes are known by role and number


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A process to run: ``python -m module`` with ``job`` on standard input, its log in ``log_path`` of this host.

    Without ``job``, it waits to be told. ``messages`` are told to it behind the job. ``threads`` is what its numeric
    libraries may use.
    """

    name: str
    module: str
    job: Mapping[str, Any] | None = field(repr=False)  # it may hold keys
    log_path: Path
    threads: int
    messages: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """The process said something on its standard output: at first, that it is up."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended; ``status`` as ``Popen.returncode``: negative for a signal. ``why`` if it was not its doing."""

    name: str
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
            return "libzmq found an error in itself and aborted the process"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


class Launcher(Protocol):
    """Runs tasks, on one host or on many. A task is known by its name while it runs."""

    def start(self, task: Task) -> None:
        """Start ``task``; that it could not be is told by ``poll``."""

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Say something on a process's standard input; one that died meanwhile is told of by ``poll``."""

    def poll(self) -> list[Said | Exited]:
        """What happened since the last call. Never waits."""

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and everything it started."""

    def stop(self, names: Collection[str], *, grace_s: float) -> None:
        """End processes: close their standard input, wait ``grace_s``, terminate, and after two more seconds kill.

        What was ended like this, or waited for, is not told by ``poll``.
        """

    def wait(self, names: Collection[str], *, within_s: float) -> None:
        """Wait until the processes have ended, at most ``within_s``."""

    def names(self) -> list[str]:
        """Every process that was started and not seen to end."""

    def pids(self) -> dict[str, int]:
        """The process ids, each on its own host, by name."""

    def to_dict(self) -> list[dict[str, Any]]:
        """The hosts, as somebody else needs to know them to look after them when we are gone: plain data."""

    def alone_s(self) -> float:
        """Seconds since anything was there that could run a task."""

    def logs(self, name: str) -> str:
        """The last lines that a process, while it is known, has written to its log."""

    def close(self) -> None:
        """End everything that still runs, and what watches over it."""
