"""Helpers for tests that kill a process of a run at one of its system calls.

``python tests/support/killing.py`` imports torch once, and then forks supervisors, which therefore start at once.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from support.killed.sitecustomize import VARIABLE, Plan, install
from support.paths import ROOT, TESTS
from support.rig import Worker, ending, eventually, is_alive
from support.run_rig import RunFiles

from zmqrl.checkpoint import Checkpoint
from zmqrl.commands.inspect.check_history import check
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.ps.worker.connection import PulledWeights

UPDATES = 5
WITHIN_S = 90.0
# Two workers, because the sum of two contributions does not depend on their order.
OPTIONS = (
    *("--workers", "2", "--external-workers", "2", "--shards", "2", "--seed", "3", "--trackers"),
    *("--updates", str(UPDATES), "--checkpoint.every-minutes", "0.005"),
)
# Parts of the names of files that may differ after a kill. The run then has other checkpoints and more processes, and
# may undo a version that only one shard has made.
MAY_DIFFER = {"checkpoints", "profile", ".before-generation-2", ".before-generation-3"}
Role = Literal["supervisor", "shard"]


class Call(NamedTuple):
    """The ``nth`` call with this name. ``half``: the kill comes in the middle of the call."""

    name: str
    nth: int
    half: bool = False


def gradient(rank: int, weights: PulledWeights) -> FloatVector:
    """A gradient that depends on the weights, like a real one, so that one wrong bit spreads."""
    random = np.random.default_rng([rank, weights.version])
    numbers = random.standard_normal(weights.vector.size, np.float32)
    return numbers * np.float32(10.0 ** random.integers(-3, 2)) - weights.vector


@dataclass(frozen=True, slots=True)
class Outcome:
    """The part of a run's result that must not depend on kills."""

    checkpoint: Checkpoint
    made: tuple[tuple[Any, ...], ...]
    names: frozenset[str]

    @classmethod
    def of(cls, path: Path) -> "Outcome":
        files = RunFiles(path)
        made = [
            (shard, line["version"], tuple(sorted(line["ranks"])), line["crc32"])
            for shard in range(2)
            for line in files.history(shard)
        ]
        found = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
        names = [str(file) for file in found if not {file.parts[0], *file.suffixes} & MAY_DIFFER]
        return cls(files.newest(), tuple(made), frozenset(names))

    def assert_same(self, other: "Outcome") -> None:
        """Assert that both runs made the same versions, bit for bit."""
        assert self.made == other.made
        assert self.names == other.names
        assert self.checkpoint.version == other.checkpoint.version == UPDATES
        assert self.checkpoint.states == other.checkpoint.states


@dataclass(slots=True)
class Supervisors:
    """Runs ``zmqrl train`` in forks of ``process``."""

    process: "subprocess.Popen[str]"

    @contextlib.contextmanager
    def running(self, path: Path, plan: Plan | None, *options: str) -> Iterator["Running"]:
        """Start a run. Leaving the block kills it."""
        environment = {} if plan is None else {VARIABLE: plan.text()}
        arguments = ["train", "cartpole", "--run-dir", str(path), *OPTIONS, *options]
        said = path.with_name(f"{path.name}.said")
        said.write_bytes(b"")
        self._write({"arguments": arguments, "environment": environment, "said": str(said)})
        running = Running(self, int(self._read()), said)
        try:
            yield running
        finally:
            if running.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGKILL)
            running.wait()

    def _write(self, job: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process that starts supervisors has ended"
        return line


@dataclass(slots=True)
class Running:
    """A supervisor. ``status`` is its exit status once it is known, negative for a signal."""

    supervisors: Supervisors
    pid: int
    said: Path
    status: int | None = None

    def has_ended(self) -> bool:
        return not is_alive(self.pid)

    def wait(self) -> int:
        if self.status is None:
            self.status = int(self.supervisors._read())
        return self.status

    def told(self) -> str:
        return self.said.read_text(encoding="utf-8")


@contextlib.contextmanager
def supervisors() -> Iterator[Supervisors]:
    """A process that starts supervisors. Leaving the block ends this process."""
    searched = os.pathsep.join(map(str, (TESTS / "support" / "killed", TESTS, ROOT)))
    with ending(
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": searched},
        )
    ) as process:
        yield Supervisors(process)


def run(
    supervisors: Supervisors,
    path: Path,
    plan: Plan | None,
    *options: str,
    kill_when: Callable[[], bool] = lambda: False,
) -> Running:
    """Run until the supervisor ends or is killed, for example by ``kill_when``. Two workers push gradients."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(supervisors.running(path, plan, *options))
        cluster, workers = path / "cluster.json", list[Worker]()

        def is_open() -> bool:
            return "rank 1 is open" in running.told() and cluster.exists()

        eventually(lambda: running.has_ended() or is_open(), f"a run that is up: {running.told()}", WITHIN_S)
        if not running.has_ended():
            with contextlib.suppress(FileNotFoundError):  # killed meanwhile
                found = Cluster.read(cluster)
                for rank in range(2):
                    pause = 0.1 * rank
                    workers.append(Worker(found, rank, gradient=gradient, pause_s=lambda *_, pause=pause: pause))
                    workers[-1].thread.start()

        def is_over() -> bool:
            if kill_when():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGKILL)
            return running.has_ended()

        try:
            eventually(is_over, f"the end of the run: {running.told()}", WITHIN_S)
        finally:
            for worker in workers:
                worker.leaving.set()
                worker.connection.close()
        running.wait()
    return running


@dataclass(slots=True)
class Hunt:
    """Kills a process at its calls, in a run from the start or in one that is resumed from a copy of ``base``."""

    supervisors: Supervisors
    place: Path
    role: Role
    base: Path | None
    wanted: Outcome
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def calls(self) -> list[Call]:
        """The calls of a run that nothing disturbs."""
        path, plan = self._next()
        running = run(self.supervisors, path, plan, *self._options(path))
        assert running.wait() == 0, running.told()
        Outcome.of(path).assert_same(self.wanted)
        counts: Counter[str] = Counter(Path(plan.log).read_text().splitlines())
        shutil.rmtree(path)
        found = []
        for name, count in counts.items():
            for nth in range(1, count + 1):
                found.append(Call(name.removesuffix(" +"), nth))
                if name.endswith(" +"):
                    found.append(Call(name.removesuffix(" +"), nth, half=True))
        return found

    def kill_at(self, call: Call) -> bool:
        """Kill at a call, let the run continue, and compare the result. Returns whether the call was reached."""
        path, plan = self._next(call)
        running = run(self.supervisors, path, plan, *self._options(path))
        killed = Path(f"{plan.log}.killed").exists()
        if self.role == "supervisor" and killed:
            assert running.wait() == -signal.SIGKILL, running.told()
            self._resume(path)
        else:
            assert running.wait() == 0, running.told()
            # A killed shard has its newest version. Only the start of a session loads a checkpoint.
            assert "go back to" not in running.told(), running.told()
        if not killed:
            made = {line.removesuffix(" +") for line in Path(plan.log).read_text().splitlines()}
            assert call.name in made, f"no process makes this call, but these: {', '.join(sorted(made))}"
        assert check(path)["violations"] == []
        Outcome.of(path).assert_same(self.wanted)
        shutil.rmtree(path)
        return killed

    def _resume(self, path: Path) -> None:
        """Resume the run. A run that had already ended when it was killed may refuse to resume."""
        running = run(self.supervisors, path, None, *self._options(path))
        if f"has already reached {UPDATES}" not in running.told():
            assert running.wait() == 0, running.told()

    def _options(self, path: Path) -> tuple[str, ...]:
        return ("--resume",) if (path / "config.json").exists() else ()

    def _next(self, call: Call | None = None) -> tuple[Path, Plan]:
        path = self.place / f"{self.role}-{'new' if self.base is None else 'resumed'}-{next(self.numbers)}"
        if self.base is not None:
            shutil.copytree(self.base, path, ignore=shutil.ignore_patterns("sockets"))
        log = f"{path}.calls"
        plan = Plan(str(path), self.role, log) if call is None else Plan(str(path), self.role, log, *call)
        return path, plan


def _serve() -> None:
    import torch

    import zmqrl.commands.run.train
    import zmqrl.supervisor.run  # noqa: F401
    from zmqrl.learner.envs import try_env
    from zmqrl.recipes import cartpole
    from zmqrl.start.initial import initial_checkpoint

    torch.set_num_threads(1)  # threads do not survive a fork
    initial_checkpoint(cartpole(), try_env(cartpole().env, cartpole().envs))  # imports what every run imports
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(job)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def _become(job: dict[str, Any]) -> None:
    """Run a command line in this process, which then ends."""
    from zmqrl import cli

    status = 1
    try:
        said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= job["environment"]
        if VARIABLE in os.environ and (plan := Plan(**json.loads(os.environ[VARIABLE]))).role == "supervisor":
            install(plan)
        sys.argv = ["zmqrl", *job["arguments"]]
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
