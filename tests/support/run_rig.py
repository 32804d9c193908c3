"""Helpers for tests of complete runs: ``zmqrl train`` in a separate process, and the files that it writes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from support.lab import Lab
from support.rig import HISTORY_KEYS, ending, eventually, is_alive, nothing_left

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.commands.inspect.check_history import check
from zmqrl.errors import UsageError

# Deadlines allow for a busy machine and for the import of torch: a run of one second then takes five.
WITHIN_S = 150.0
STACKS_WITHIN_S = 10.0
# Short rollouts: every 16 updates, each worker plays a new one of 256 agent steps.
QUICKLY = ("--ppo.rollout-steps", "32")

SUMMARY_KEYS = {
    "exit_reason",
    "exit_status",
    "updates",
    "agent_steps",
    "abandoned_steps",
    "wall_s",
    "agent_steps_per_s",
    "episodes",
    "score_mean_50",
    "workers",
    "backups",
    "quorum",
    "shards",
    "contributions",
    "params_sha256",
    "recipe",
    "env",
    "seed",
    "flavour",
    "compute",
    "provenance",
    "hosts",
}
OUTCOMES = {"used", "late", "duplicate", "rejected", "skipped"}
ROW_KEYS = {
    "version",
    "wall_s",
    "agent_steps",
    "agent_steps_per_s",
    "score_mean_50",
    "policy_loss",
    "value_loss",
    "entropy",
    "grad_norm",
    "policy_lag",
    "contributions",
    "split_s",
}

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run directory, read as zmqrl's commands read them."""

    path: Path

    def summary(self) -> Line:
        return _json(self.path / "summary.json")

    def cluster(self) -> Line:
        return _json(self.path / "cluster.json")

    def metrics(self) -> list[Line]:
        return _lines(self.path / "metrics.jsonl")

    def history(self, shard: int) -> list[Line]:
        """The history of a shard. Empty while this machine has no history: a shard on another host keeps its history
        there at first.
        """
        path = self.path / "history" / f"shard-{shard}.jsonl"
        return _lines(path) if path.exists() else []

    def generation(self, shard: int) -> int:
        """The generation of the newest version of a shard, or 0 if it has made none."""
        return max((line["generation"] for line in self.history(shard)[-1:]), default=0)

    def log(self, name: str) -> str:
        """The log of a process. Empty if there is no log yet."""
        path = self.path / "logs" / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def newest(self) -> Checkpoint:
        return Checkpoint.read(checkpoints(self.path / "checkpoints")[-1])

    def has_last_checkpoint(self) -> bool:
        """Whether the checkpoint of version 0 is the one fetched from the shards, not the initial one."""
        with contextlib.suppress(UsageError, IndexError):
            return self.newest().generation == 1
        return False

    def version(self, shards: int = 2) -> int:
        """The newest version that all ``shards`` have made."""
        return min(len(self.history(shard)) for shard in range(shards))

    def assert_history_exact(self, updates: int, *, shards: int = 2, quorum: int = 2) -> None:
        """Assert that each shard lists each version from 1 to ``updates`` once, made by ``quorum`` distinct ranks."""
        for shard in range(shards):
            history = self.history(shard)
            assert [line["version"] for line in history] == list(range(1, updates + 1))
            for line in history:
                assert set(line) - {"made_at"} == HISTORY_KEYS
                assert len(line["ranks"]) == len(set(line["ranks"])) == line["quorum"] == quorum

    def assert_contributions_exact(self, *, shards: int = 2) -> None:
        """Assert that the summary, the last manifest and the last row match the histories, and that no count falls."""
        assert check(self.path)["violations"] == []
        lines = [line for shard in range(shards) for line in self.history(shard)]
        counted = {name: sum(line[name] for line in lines) for name in ("late", "duplicate", "rejected")}
        counted["used"] = sum(len(line["ranks"]) for line in lines)
        rows = self.metrics()
        for place in (self.summary(), self.newest().counters, rows[-1]):
            assert {outcome: n for outcome, n in place["contributions"].items() if outcome != "skipped"} == counted
        versions = [row["version"] for row in rows]
        assert versions == sorted(set(versions))
        for figure in ("agent_steps", "episodes", "wall_s"):
            assert [row[figure] for row in rows] == sorted(row[figure] for row in rows)

    def assert_summary_exact(self, reason: str, *, quorum: int = 2, shards: int = 2, failed: int = 3) -> Line:
        """Assert that the summary has every key, is consistent, and agrees with the last checkpoint.

        ``failed``: the exit status if the run failed.
        """
        summary, last = self.summary(), self.newest()
        assert set(summary) == SUMMARY_KEYS
        assert set(summary["contributions"]) == OUTCOMES
        assert summary["exit_reason"] == reason
        assert summary["exit_status"] == {"interrupted": 130, "failed": failed}.get(reason, 0)
        assert (summary["quorum"], summary["shards"]) == (quorum, shards)
        assert summary["updates"] == last.version
        assert summary["contributions"]["used"] == quorum * shards * summary["updates"]
        assert summary["params_sha256"] == last.params_sha256()
        return summary


class Run:
    """A supervisor process. ``files`` are the files of the run directory. Its output goes to files beside the
    directory.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process, self.files = process, RunFiles(path)

    def wait(self, within_s: float = WITHIN_S) -> int:
        """Wait for the exit status. Fails with the run's output and its stacks if the run does not end."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # the process writes its stacks to standard error
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACKS_WITHIN_S)
            pytest.fail(f"the run did not end within {within_s:g} s; it printed:\n{self.said()}")

    def interrupt(self, number: signal.Signals = signal.SIGINT, within_s: float = WITHIN_S) -> None:
        """Stop the run with a signal, and wait for its end with exit status 130."""
        self.signal(number)
        status = self.wait(within_s)
        assert status == 130, self.said()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def said(self) -> str:
        """The output of both streams so far."""
        return "".join(path.read_text(encoding="utf-8") for path in self._streams() if path.exists())

    def complaint(self) -> str:
        return self._streams()[1].read_text(encoding="utf-8")

    def wait_for(self, version: int) -> None:
        """Wait until every shard has made ``version``."""
        self.eventually(lambda: self.files.version() >= version, f"version {version}")

    def wait_to_say(self, words: str) -> None:
        self.eventually(lambda: words in self.said(), f"to print {words!r}")

    def eventually(self, condition: Any, what: str) -> None:
        met = False

        def is_over() -> bool:
            nonlocal met
            met = bool(condition())
            return met or self.process.poll() is not None

        eventually(is_over, what, WITHIN_S)
        assert met or condition(), f"ended without {what}; it printed:\n{self.said()}"

    def pids(self) -> list[int]:
        """The process ids of the shards and workers that the supervisor has started."""
        cluster = self.files.cluster()
        return [entry["pid"] for entry in (*cluster["shards"], *cluster["workers"]) if entry["pid"] is not None]

    def pid(self, role: str, number: int) -> int | None:
        """The process id of a shard or worker, or None while it restarts."""
        key = {"shard": "shard", "worker": "rank"}[role]
        (found,) = [entry["pid"] for entry in self.files.cluster()[f"{role}s"] if entry[key] == number]
        return found if found is not None and is_alive(found) else None

    def living_pid(self, role: str, number: int) -> int:
        """The process id of a shard or worker, once it is up."""
        self.eventually(lambda: self.pid(role, number), f"{role} {number}")
        pid = self.pid(role, number)
        assert pid is not None
        return pid

    def kill(self, role: str, number: int) -> None:
        """Send ``kill -9`` to a shard or worker that is up."""
        os.kill(self.living_pid(role, number), signal.SIGKILL)

    def assert_nothing_left(self, pids: list[int], within_s: float) -> None:
        eventually(lambda: not any(map(is_alive, pids)), f"the end of processes {pids}", within_s)

    def _streams(self) -> tuple[Path, Path]:
        beside = self.files.path.parent
        return beside / f"{self.files.path.name}.stdout", beside / f"{self.files.path.name}.stderr"


def training(
    path: Path,
    *options: str,
    quickly: Sequence[str] = QUICKLY,
    program: Sequence[str] = ("-m", "zmqrl"),
    environment: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[Run]:
    """Run ``zmqrl train cartpole --run-dir PATH OPTIONS``. Leaving the block ends the run."""
    command = [sys.executable, *program, "train", "cartpole", "--run-dir", str(path), *quickly, *options]
    return started(command, path, environment or {})


def launching(
    lab: Lab | None, path: Path, *options: str, hosts: str | None = None
) -> contextlib.AbstractContextManager[Run]:
    """Run ``zmqrl launch cartpole`` on ``hosts`` of ``lab``, by default on all. Leaving the block kills the launcher.
    Without a lab, each host is this machine under another name, with its own directory.
    """
    here = ("--via", "env SLURMD_NODENAME={host}", "--iface", "lo")
    by = here if lab is None else ("--ssh-config", str(lab.ssh_config))
    where = ("-H", hosts or ",".join(lab.hosts if lab else ("h1", "h2")), *by)
    command = [sys.executable, "-m", "zmqrl", "launch", *where, "cartpole", "--run-dir", str(path), *QUICKLY, *options]
    return started(command, path, {})


@contextlib.contextmanager
def started(command: Sequence[str], path: Path, environment: Mapping[str, str]) -> Iterator[Run]:
    """Run ``command``, with output to files beside ``path``. Leaving the block kills the process.

    The block then asserts that all descendants of the process on this machine end.
    """
    with (
        nothing_left() as mark,
        (path.parent / f"{path.name}.stdout").open("wb") as stdout,
        (path.parent / f"{path.name}.stderr").open("wb") as stderr,
        ending(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment, **mark},
            )
        ) as process,
    ):
        yield Run(process, path)


@contextlib.contextmanager
def outside_worker(
    run: Run, *options: str, code: Path | None = None, stderr: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``zmqrl worker`` with the cluster file of ``run``. Leaving the block kills the worker if it has not ended.

    ``code`` is a directory with a different zmqrl. The worker writes its log to ``stderr``.
    """
    command = [sys.executable, "-m", "zmqrl", "worker", str(run.files.path / "cluster.json"), *options]
    with ending(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=code)) as process:
        yield process


def trained(path: Path, *options: str) -> RunFiles:
    """Train until the run ends by itself, with exit status 0."""
    with training(path, *options) as run:
        status = run.wait()
        assert status == 0, run.said()
        return run.files


def copied(files: RunFiles, path: Path) -> Path:
    """A copy of a run directory, to continue with."""
    return shutil.copytree(files.path, path)


def _json(path: Path) -> Line:
    found: Line = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> list[Line]:
    """The complete lines of a file that may be growing."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
