"""Long runs and floods of connections: memory, descriptors and threads of shards and workers stay bounded."""

import re
import resource
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from flood import KINDS, Kind, flooding
from support.rig import WITHIN_S, Use, Worker, eventually, random_pause_s, served, start_process, worker_process

pytestmark = pytest.mark.processes

MOST_KB_FOR_A_CONNECTION = 50
MOST_GROWTH_MB = 3
PARAMETERS = 16_384  # in a queue of unread publications, 100 versions of a slice would take 3 MB
CONNECTED_AGAIN = 3  # sockets of the subscriber, whose old connections may not have ended yet

# A worker that itself remembers nothing about past versions.
WORK = """
import json, sys
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.worker.connection import Connection
job = json.loads(sys.stdin.readline())
with Connection(Cluster.from_json(job["cluster"]), job["rank"]) as connection:
    version = -1
    while (weights := connection.pull(version)) is not None:
        version = weights.version
        gradient = connection.gradient_buffer()
        gradient.fill(1e-6)
        connection.push(weights, gradient)
"""


@pytest.mark.parametrize(
    ("transport", "stops", "versions"),
    [
        ("ipc", 2, 400),
        ("tcp", 2, 400),
        # After about 8 s, the kernel cuts the TCP connection of a subscriber that does not read, and its queue is gone.
        pytest.param("tcp", 100, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_memory_descriptors_and_threads_do_not_grow_while_a_worker_is_stopped_and_it_catches_up(
    tmp_path: Path, transport: str, stops: int, versions: int
) -> None:
    with (
        served(tmp_path, count=PARAMETERS, shards=2, workers=2, quorum=1, transport=transport) as running,
        start_process({"cluster": running.cluster.to_json(), "rank": 0}, "-c", WORK) as worker,
        worker_process(running.cluster, 1) as sleeper,
    ):
        pids = [*map(running.pid, running.all), worker.pid]

        def heard() -> list[int]:
            """By shard: how many contributions of the worker have arrived."""
            return [running.heard_of(1, shard) for shard in running.all]

        def contributes(more: int) -> None:
            before = heard()
            eventually(lambda: all(np.subtract(heard(), before) > more), "contributions of worker 1")

        def stopped() -> tuple[list[Use], list[Use]]:
            """Stop the worker for ``versions``, then let it continue. Returns what the other processes used when the
            queues were full, and at the end of the stop.
            """
            sleeper.send_signal(signal.SIGSTOP)
            running.wait_for(running.version() + 20)  # the queues fill up, and what the worker has sent arrives
            before, first = heard(), list(map(Use.of, pids))
            running.wait_for(running.version() + versions, within_s=300)
            last = list(map(Use.of, pids))
            assert all(np.subtract(heard(), before) <= 1)
            sleeper.send_signal(signal.SIGCONT)
            contributes(5)
            assert_bounded(first, last)
            return first, last

        running.wait_for(20)
        contributes(3)
        settled = max(1, stops // 4)
        *_, (before, most) = (stopped() for _ in range(settled))
        for _ in range(stops - settled):
            most = [Use.most(one, two) for one, two in zip(most, stopped()[1], strict=True)]
        running.stop_soon(100)
        assert sleeper.wait(WITHIN_S) == 0
        sys.stdout.write(f"{stops} stops of {versions} versions: {before} -> {most}\n")
        assert_bounded(before, most)


def assert_bounded(before: list[Use], after: list[Use]) -> None:
    for name, old, new in zip(("shard 0", "shard 1", "worker 0"), before, after, strict=True):
        assert new.threads == old.threads, name
        assert new.descriptors <= old.descriptors + CONNECTED_AGAIN, name
        assert new.memory_mb < old.memory_mb + MOST_GROWTH_MB, name


@pytest.mark.parametrize(
    ("kind", "connections"),
    [("wrong keys", 300), *(pytest.param(kind, 5000, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_a_flood_of_connections_neither_stops_a_run_nor_stays_in_memory(
    tmp_path: Path, kind: Kind, connections: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        served(tmp_path, shards=1, workers=1, transport="tcp", curve=kind != "silent") as running,
        ExitStack() as workers,
    ):
        workers.enter_context(Worker(running.shards.cluster_for(0), 0, pause_s=random_pause_s(0.01)))
        running.wait_for(10)
        before = Use.of(running.pid(0))
        with flooding(kind, connections, running.shards):
            running.wait_for(running.version() + 100)
            during, refused = Use.of(running.pid(0)), 0

            def has_come() -> bool:
                """Whether the shard has accepted, or refused, about as many connections as the flood opens."""
                nonlocal during, refused
                during = Use.most(during, Use.of(running.pid(0)))
                refused += sum(map(int, re.findall(r"(\d+) x handshake failed", capfd.readouterr().err)))
                held = during.descriptors - before.descriptors
                return (refused if kind == "wrong keys" else held) >= 0.9 * connections

            eventually(has_come, f"{connections} connections")
        eventually(lambda: Use.of(running.pid(0)).descriptors <= before.descriptors, "the end of the connections")
        after = Use.of(running.pid(0))
        sys.stdout.write(f"{connections} connections: {before} -> {during} -> {after}\n")
        assert during.threads == before.threads
        assert during.memory_mb < before.memory_mb + 10 + connections * MOST_KB_FOR_A_CONNECTION / 1024
        running.finish(workers)


@pytest.mark.parametrize("kind", ["silent", "half handshakes"])  # a shard refuses wrong keys at once
def test_a_flood_that_takes_every_descriptor_does_not_stop_a_run(
    tmp_path: Path, kind: Kind, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        served(tmp_path, shards=1, workers=1, transport="tcp", curve=kind != "silent") as running,
        ExitStack() as workers,
    ):
        workers.enter_context(Worker(running.shards.cluster_for(0), 0))
        running.wait_for(10)
        pid = running.pid(0)
        few = Use.of(pid).descriptors + 50
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, few))
        with flooding(kind, 200, running.shards):
            running.wait_for(running.version() + 100)
            eventually(lambda: "all descriptors of this process are in use" in capfd.readouterr().err, "a warning")
        running.finish(workers)
