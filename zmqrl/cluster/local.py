"""Child processes on this host: started with their job on standard input, watched, and ended without leftovers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Large tensors go back to the kernel at every free, and their pages fault in anew, unless glibc is told otherwise.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "2"}
# On a host that has other work too, OpenMP threads that spin while they wait cost a small network fifty times its time.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE"}
LOG_TAIL_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A process to run: ``python -m module`` with ``job`` on standard input, its log in ``log_path``.

    ``messages`` are told to it behind the job.
    """

    name: str
    module: str
    job: Mapping[str, Any]
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
    """The process ended; ``status`` as ``Popen.returncode``: negative for a signal."""

    name: str
    status: int
    log_tail: str
    lived_s: float

    def how(self) -> str:
        """The status in words."""
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


@dataclass(slots=True)
class _Child:
    task: Task
    process: "subprocess.Popen[bytes]"
    started_at: float
    log_start: int  # where in the log the words of this process begin
    output: bytearray = field(default_factory=bytearray)


class LocalLauncher:
    """Runs tasks on this host.

    Each is the leader of its own session, so that ending it ends what it started, and no terminal signal reaches it.
    """

    def __init__(self) -> None:
        self._children: dict[str, _Child] = {}

    def start(self, task: Task) -> int:
        """Start ``task`` and return its process id."""
        assert task.name not in self._children
        task.log_path.parent.mkdir(parents=True, exist_ok=True)
        threads = str(task.threads)
        environment = PATIENCE | os.environ | MALLOC | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with task.log_path.open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", task.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._children[task.name] = _Child(task, process, time.monotonic(), log_start)
        for message in (task.job, *task.messages):
            self.tell(task.name, message)
        return process.pid

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Say something on a process's standard input; one that died meanwhile is told of by ``poll``."""
        child = self._children.get(name)
        if child is not None and child.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.process.stdin.write(json.dumps(message).encode() + b"\n")
                child.process.stdin.flush()

    def poll(self) -> list[Said | Exited]:
        """What happened since the last call. Never waits."""
        events: list[Said | Exited] = []
        for name, child in list(self._children.items()):
            status = child.process.poll()
            events += [Said(name, facts) for facts in self._read(child)]
            if status is not None:
                events.append(Exited(name, status, self.logs(name), time.monotonic() - child.started_at))
                self._forget(name)
        return events

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and everything it started."""
        child = self._children.get(name)
        if child is not None and child.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)

    def stop(self, names: Collection[str], *, grace_s: float) -> None:
        """End processes: close their standard input, wait ``grace_s``, terminate, and after two more seconds kill."""
        for name in names:
            child = self._children.get(name)
            if child is not None and child.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    child.process.stdin.close()
        self.wait(names, within_s=grace_s)
        for number, wait_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            for name in names:
                self.signal(name, number)
            self.wait(names, within_s=wait_s)

    def wait(self, names: Collection[str], *, within_s: float) -> None:
        """Wait until the processes have ended, at most ``within_s``."""
        deadline = time.monotonic() + within_s
        while self.running(names) and time.monotonic() < deadline:
            time.sleep(0.02)

    def running(self, names: Collection[str]) -> list[str]:
        """Those of ``names`` that still run; the others are forgotten."""
        for name in names:
            child = self._children.get(name)
            if child is not None and child.process.poll() is not None:
                self._forget(name)
        return [name for name in names if name in self._children]

    def names(self) -> list[str]:
        """Every process that was started and not seen to end."""
        return list(self._children)

    def pid(self, name: str) -> int | None:
        """The process id, while it runs."""
        child = self._children.get(name)
        return child.process.pid if child else None

    def pids(self) -> dict[str, int]:
        """The process id of every process that was started and not seen to end, by name."""
        return {name: child.process.pid for name, child in self._children.items()}

    def logs(self, name: str) -> str:
        """The last lines that the process has written to its log."""
        child = self._children[name]
        lines = child.task.log_path.read_bytes()[child.log_start :][-8192:].decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _read(self, child: _Child) -> list[dict[str, Any]]:
        assert child.process.stdout is not None
        while True:
            try:
                piece = os.read(child.process.stdout.fileno(), 65536)
            except BlockingIOError:
                break
            if not piece:
                break
            child.output += piece
        *lines, rest = child.output.split(b"\n")
        child.output = bytearray(rest)
        facts = []
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                said = None
            if isinstance(said, dict):
                facts.append(said)
            else:  # printed by what the process runs: an environment, a model of the user's own
                with contextlib.suppress(OSError), child.task.log_path.open("ab") as log:
                    log.write(line + b"\n")
        return facts

    def _forget(self, name: str) -> None:
        child = self._children.pop(name)
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
