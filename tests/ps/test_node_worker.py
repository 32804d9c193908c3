"""tests/node_worker, a worker in another language written from docs/protocol.md alone, works as well as our own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.paths import TESTS
from support.rig import ending, eventually
from support.run_rig import WITHIN_S, RunFiles

from zmqrl.commands.inspect.check_history import check

pytestmark = pytest.mark.processes

NODE_WORKER = TESTS / "node_worker"
NODE_RANK = 1
CARTPOLE_ROLLOUT = 8 * 128  # agent steps: games × steps of the recipe


@pytest.fixture(scope="session")
def node_worker(install_packages: Callable[[Path], None]) -> Path:
    """Install the packages of the Node worker from its lock file. Returns the path of the worker."""
    install_packages(NODE_WORKER)
    return NODE_WORKER / "worker.mjs"


@contextmanager
def started(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` with its output in a file. The process always ends with the block."""
    with (
        output.open("wb") as file,
        ending(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)) as process,
    ):
        yield process


@contextmanager
def run_with_a_node_worker(
    worker: Path, run_dir: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A live run with one zmqrl worker and one Node worker. Yields the supervisor and the Node process."""
    train = [sys.executable, "-m", "zmqrl", "train", "cartpole", "--run-dir", str(run_dir)]
    with started(
        [*train, "--workers", "2", "--external-workers", "1", *options], run_dir.parent / "train.log"
    ) as supervisor:
        cluster = run_dir / "cluster.json"
        eventually(lambda: cluster.exists() or supervisor.poll() is not None, "cluster.json")
        node = ["node", str(worker), str(cluster), str(NODE_RANK)]
        with started(node, run_dir.parent / "node.log") as outsider:
            yield supervisor, outsider


def wait_for_both(processes: tuple[subprocess.Popen[bytes], ...], run_dir: Path) -> dict[str, int]:
    """Wait until both exit with status 0. Returns the facts that the Node worker prints about its work."""
    with suppress(subprocess.TimeoutExpired):
        for process in processes:
            process.wait(WITHIN_S)
    logs = [(run_dir.parent / name).read_text() for name in ("train.log", "node.log")]
    assert [process.poll() for process in processes] == [0, 0], "\n".join(log[-2000:] for log in logs)
    totals: dict[str, int] = json.loads(logs[1].splitlines()[-1])
    return totals


def assert_that_node_was_used_throughout(run_dir: Path, updates: int, totals: dict[str, int]) -> None:
    """Assert that both ranks contributed to every version on both shards, and that the summary is consistent."""
    assert check(run_dir)["violations"] == []
    for shard in range(2):
        rows = RunFiles(run_dir).history(shard)
        assert [row["version"] for row in rows] == list(range(1, updates + 1))
        assert all(row["ranks"] == [0, NODE_RANK] for row in rows)
    assert totals["rank"] == NODE_RANK
    assert totals["steps"] in (updates, updates + 1)  # the Node worker may step once more before it hears of the end
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["exit_reason"] == "updates"
    assert (summary["updates"], summary["workers"], summary["quorum"], summary["shards"]) == (updates, 2, 2, 2)
    assert summary["contributions"]["used"] == summary["quorum"] * summary["shards"] * updates
    # Our worker reports whole rollouts. The Node worker reports one action for each of its few steps.
    assert 0 < summary["agent_steps"] % CARTPOLE_ROLLOUT <= totals["steps"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wire",
    [
        ("--wire.transport", "ipc", "--wire.codec", "f32", "--optimizer.final-learning-rate", "1e-4"),
        ("--wire.transport", "tcp", "--wire.codec", "bf16"),
        ("--wire.transport", "tcp", "--wire.curve"),
    ],
)
def test_a_node_worker_contributes_to_every_version_until_the_run_ends(
    node_worker: Path, tmp_path: Path, wire: tuple[str, ...]
) -> None:
    run_dir = tmp_path / "run"
    options = ["--updates", "60", *wire]
    with run_with_a_node_worker(node_worker, run_dir, *options) as processes:
        totals = wait_for_both(processes, run_dir)
    assert_that_node_was_used_throughout(run_dir, 60, totals)


@pytest.mark.slow
def test_a_node_worker_continues_after_a_shard_was_killed(node_worker: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    history = RunFiles(run_dir).history
    with run_with_a_node_worker(node_worker, run_dir, "--updates", "150") as processes:
        eventually(lambda: len(history(1)) >= 20, "20 versions")
        killed = json.loads((run_dir / "cluster.json").read_text())["shards"][1]["pid"]
        os.kill(killed, signal.SIGKILL)
        totals = wait_for_both(processes, run_dir)
    assert_that_node_was_used_throughout(run_dir, 150, totals)
    assert {row["generation"] for row in history(1)} == {1}, "the run must not roll back"
