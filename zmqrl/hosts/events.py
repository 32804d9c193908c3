"""What a launcher starts and reports: tasks and events."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from zmqrl.errors import DISK_IS_FULL, USER_CODE_FAILED, UsageError
from zmqrl.observe.stalls import Doing
from zmqrl.process_id import ProcessId
from zmqrl.words import ended_how

LOG_TAIL_LINES = 8
LIBZMQ_ASSERTION = "Assertion failed: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A process to run: ``python -m module`` with ``job``, then ``messages``, on standard input.

    Without a ``job``, the process waits for one. Its log is ``log_path`` on this machine. ``threads`` limits its
    numeric libraries. If ``forked``, the process may begin as a fork of a process that has imported ``module``, or a
    module with the same slow imports.
    """

    process: ProcessId
    module: str
    job: Mapping[str, Any] | None = field(repr=False)  # a job can contain secret keys
    log_path: Path
    threads: int
    messages: Sequence[Mapping[str, Any]] = ()
    forked: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """The process wrote a JSON object to its standard output. The first one means that it is up."""

    process: ProcessId
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended with ``status``, as in ``Popen.returncode``: negative for a signal.

    ``why`` is a cause outside the process. If ``with_host``, the host was lost or could not be reached, and
    ``HostLost`` follows.
    """

    process: ProcessId
    status: int
    log_tail: str
    lived_s: float
    why: str | None = None
    with_host: bool = False

    @property
    def is_full(self) -> bool:
        """Whether a shard ended because its disk is full. Other processes have no such status."""
        return self.process.role == "shard" and self.status == DISK_IS_FULL

    @property
    def is_misuse(self) -> bool:
        """Whether the process ended with a UsageError, so that a restart does not help. Shards never do."""
        return self.process.role != "shard" and self.status == UsageError.exit_status

    def complaint(self) -> str:
        """The last error in the log without its time, or else the last line, or else nothing."""
        lines = self.log_tail.splitlines()
        errors = [text for _, level, text in (line.partition(" ERROR ") for line in lines) if level]
        return (errors or lines or [""])[-1]

    def how(self) -> str:
        """The status in words."""
        if self.why is not None:
            return self.why
        if self.is_full:
            return "its disk is full"
        if self.status == USER_CODE_FAILED:
            return "user code raised an exception"
        if self.status == -signal.SIGABRT and LIBZMQ_ASSERTION in self.log_tail:
            return "libzmq failed an internal check and aborted the process"
        return ended_how(self.status)


@dataclass(frozen=True, slots=True)
class Inspected:
    """A host's report on what a process is doing. Its stack is empty if the process has not answered."""

    process: ProcessId
    doing: Doing


@dataclass(frozen=True, slots=True)
class HostLost:
    """A host was lost with its ``processes``, or still cannot be reached."""

    host: str
    why: str
    processes: tuple[ProcessId, ...]


@dataclass(frozen=True, slots=True)
class HostUp:
    """A host can be reached, for the first time or after it was lost."""

    host: str


@dataclass(frozen=True, slots=True)
class Paused:
    """This process did not run for ``seconds``, because it was stopped or its machine was ``asleep``."""

    seconds: float
    asleep: bool = False

    def sentence(self) -> str:
        """The pause in words."""
        return f"this {'machine was asleep' if self.asleep else 'launcher was stopped'} for {self.seconds:.0f} s"


Event: TypeAlias = Said | Exited | Inspected | HostLost | HostUp | Paused
