"""Processes are killed and stopped, and connections are cut and held: the run continues, and its history is exact."""

import json
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.network import Listener, Wire, proxied
from support.rig import (
    QUICK_WORKER,
    WITHIN_S,
    Served,
    Worker,
    anonymous_mb,
    damage_newest_slot,
    eventually,
    is_alive,
    random_pause_s,
    served,
    start_process,
    toy_gradient,
    toy_workers,
    worker_process,
)

from zmqrl.errors import ClusterError
from zmqrl.ps import standalone
from zmqrl.ps.control import ShardControl
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.connection import Connection

pytestmark = pytest.mark.processes


def used_by(running: Served, rank: int, shard: int) -> int:
    return sum(row[1] for row in running.stats()[shard].tallies if row[0] == rank)


def recovered(capfd: pytest.CaptureFixture[str]) -> int:
    """The version that the newest shard process found on disk, from its log. Its WELCOME can name a later version."""
    return int(re.findall(r"recovered version (\d+), generation 1$", capfd.readouterr().err, re.MULTILINE)[-1])


def test_workers_recognize_a_restarted_shard_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path) as running, ExitStack() as workers:
        workers.enter_context(toy_workers([running.cluster] * 2))
        running.wait_for(5)
        first = running.stats()[1].incarnation
        running.kill(1)
        monkeypatch.setattr("time.time_ns", lambda: 1_000_000)
        assert running.restart(1).incarnation == first + 1
        running.finish(workers)


@pytest.mark.slow
def test_a_shard_killed_ten_times_comes_back_at_its_last_published_version(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(5)
    with served(tmp_path, shards=2, workers=3) as running, Listener(running.cluster) as listener, ExitStack() as stack:
        stack.enter_context(toy_workers([running.cluster] * 3, pause_s=random_pause_s(0.004)))
        for kill in range(10):
            running.wait_for(running.version() + 3)
            time.sleep(moments.uniform(0, 0.2))
            shard = kill % 2
            running.kill(shard)
            time.sleep(0.1)  # the listener may still have messages to read
            published = listener.newest(shard)
            welcome = running.restart(shard)
            assert (welcome.state, welcome.generation) == ("open", 1)
            # The recovered version is one higher if the shard died between the commit and the publication.
            assert published <= recovered(capfd) <= published + 1
        running.wait_for(running.version() + 3)
        version = running.finish(stack)
        for shard in running.all:
            assert listener.contradictions == []
            lines = running.history(shard)
            assert len(lines) == version
            assert all(
                (lines[v - 1]["crc32"], tuple(lines[v - 1]["ranks"])) == (crc32, message.ranks)
                for (_, v), (message, crc32) in listener.weights[shard].items()
                if v
            )


def test_a_history_torn_by_a_kill_is_repaired(tmp_path: Path) -> None:
    with served(tmp_path, shards=1, workers=1) as running:
        for stop, lost_bytes in ((5, 20), (10, None)):
            running.stop_at(stop)
            with Worker(running.cluster, 0):
                pass
            running.kill(0)
            path = running.shards.jobs[0].history_path
            lines = path.read_bytes().splitlines(keepends=True)
            # The file looks as if a kill came in the middle of the last line, or just before that line.
            path.write_bytes(b"".join(lines[:-1]) + (lines[-1][:-lost_bytes] if lost_bytes else b""))
            assert running.restart(0).version == stop
            assert path.read_bytes() == b"".join(lines)
        np.testing.assert_array_equal(running.end_with(10), running.replay())


@pytest.mark.slow
def test_a_worker_killed_ten_times_is_replaced_each_time_and_the_run_continues(tmp_path: Path) -> None:
    moments = random.Random(6)
    with served(tmp_path, shards=2, workers=2) as running, ExitStack() as stack:
        stack.enter_context(Worker(running.cluster, 0, pause_s=random_pause_s(0.004)))
        for _ in range(10):
            version = running.version()
            with worker_process(running.cluster, 1):
                running.wait_for(version + 3)
                time.sleep(moments.uniform(0, 0.1))
        stack.enter_context(Worker(running.cluster, 1))
        running.wait_for(running.version() + 3)
        running.finish(stack)


def test_a_shard_without_state_is_empty_until_all_shards_load_a_checkpoint(tmp_path: Path) -> None:
    with served(tmp_path, shards=2, workers=2) as running, ExitStack() as stack:
        control, layout = running.shards.control, running.cluster.layout
        first, second = stack.enter_context(toy_workers([running.cluster] * 2, pause_s=random_pause_s(0.005)))
        kept = running.version() + 20
        control.ask(
            running.all,
            lambda _: m.Checkpoint(run=running.cluster.run, version=kept),
            lambda answer: answer if isinstance(answer, m.Stats) and answer.captured == kept else None,
            within_s=WITHIN_S,
            what="the checkpoint",
        )
        states = [control.fetch(shard, kept) for shard in running.all]
        running.wait_for(kept + 10)
        running.kill(0)
        running.shards.jobs[0].state_path.unlink()
        assert running.restart(0).state == "empty"
        stopped_at = first.version
        for shard, state in enumerate(states):
            control.load(shard, 2, kept, 2, 2, (0, 1), state)
        running.wait_for(kept + 15)
        running.finish(stack)
        for worker in (first, second):
            generations = [generation for generation, _ in worker.pulled]
            assert generations == sorted(generations)
            assert next(pull for pull in worker.pulled if pull[0] == 2) == (2, kept)
        for shard in running.all:
            made = {line["version"]: line["generation"] for line in running.history(shard)}
            assert {made[version] for version in range(1, kept + 1)} == {1}
            assert {made[version] for version in range(kept + 1, max(made) + 1)} == {2}
            undone = running.shards.jobs[shard].history_path.with_name(f"shard-{shard}.before-generation-2.jsonl")
            lost = [json.loads(line)["version"] for line in undone.read_text().splitlines()]
            assert lost == list(range(kept + 1, lost[-1] + 1))
            assert lost[-1] >= stopped_at
        assert layout.shards == 2


def test_a_shard_with_a_damaged_newest_slot_starts_empty_even_without_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path, shards=2, workers=1) as running:
        with Worker(running.cluster, 0) as worker:
            running.wait_for(10)
            worker.leaving.set()
        running.kill(0)
        lost = damage_newest_slot(running.shards.jobs[0].state_path)
        history = running.history(0)
        assert running.restart(0).state == "empty"
        assert (
            f"state is lost: the history has version {lost} of generation 1, "
            f"but the newest version in the state file is {lost - 1}"
        ) in capfd.readouterr().err
        assert running.history(0) == history


KILLED_AT_THE_REWIND = """
import os
from zmqrl.ps.shard.history import History
from zmqrl.ps.shard.server import main
History.rewind = lambda *_: os._exit(9)
main()
"""


@pytest.mark.slow
def test_a_shard_killed_between_a_load_and_its_rewind_finishes_the_rewind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, shards=1, workers=1) as running:
        running.stop_at(10)
        with Worker(running.cluster, 0):
            pass
        running.kill(0)
        with monkeypatch.context() as patched:
            patched.setattr(standalone, "SERVER", ["-c", KILLED_AT_THE_REWIND])
            running.restart(0)
        with pytest.raises(ClusterError, match="shard 0 did not answer LOAD"):
            running.shards.control.load(0, 2, 5, 2, 1, (0,), bytes(8000))
        assert running.shards.processes[0].wait(WITHIN_S) == 9
        welcome = running.restart(0)
        assert (welcome.generation, welcome.version, welcome.state) == (2, 5, "open")
        assert [line["version"] for line in running.history(0)] == [1, 2, 3, 4, 5]
        assert running.stats()[0].totals == (5, 0, 0, 0)


@pytest.mark.parametrize("also_the_history", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_shard_restarted_with_old_state_is_detected_by_its_history_or_its_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], also_the_history: bool
) -> None:
    with served(tmp_path, shards=2, workers=2) as running, ExitStack() as stack:
        workers = stack.enter_context(toy_workers([running.cluster] * 2, pause_s=random_pause_s(0.005)))
        state_path = running.shards.jobs[0].state_path
        running.wait_for(5)
        running.kill(0)
        history_path = running.shards.jobs[0].history_path
        shutil.copy(state_path, tmp_path / "old")
        shutil.copy(history_path, tmp_path / "old history")
        running.restart(0)
        old = recovered(capfd)
        running.wait_for(old + 10)
        running.kill(0)
        shutil.copy(tmp_path / "old", state_path)
        if not also_the_history:
            assert running.restart(0).state == "empty"
            for worker in workers:
                worker.leaving.set()
            return
        shutil.copy(tmp_path / "old history", history_path)
        control, lost = running.shards.control, list[m.Lost]()

        def hear(_: int, message: m.Message) -> None:
            if isinstance(message, m.Lost):
                lost.append(message)

        control.other = hear
        running.restart(0)
        assert recovered(capfd) == old

        def told() -> bool:
            for shard, message in control.arrivals(0.1):
                hear(shard, message)
            return bool(lost)

        eventually(told, "LOST")
        assert lost[0].shard == 0
        assert lost[0].version >= old + 10
        for worker in workers:
            worker.leaving.set()


def test_unread_snapshots_cost_the_shard_at_most_two_slices(tmp_path: Path) -> None:
    slice_mb = 4
    with served(tmp_path, count=slice_mb << 18, shards=1, workers=2, quorum=1) as running, ExitStack() as stack:
        request = framing.encode(m.SnapshotRequest(run=running.cluster.run, version=None))
        before_mb = anonymous_mb(running.pid(0))
        for incarnation in range(1, 7):
            wire = stack.enter_context(Wire(running.cluster.endpoints[0], receive_most=1))
            assert isinstance(wire.join(running.cluster, 0, incarnation), m.Welcome)
            for _ in range(64):
                wire.control.send(request)
            wire.control.send(framing.encode(m.StatsRequest(run=running.cluster.run)))  # counted, but not answered
            eventually(lambda made=incarnation: running.stats()[0].unattributed == made, "all requests")  # type: ignore[misc]
        assert anonymous_mb(running.pid(0)) < before_mb + 5 * slice_mb


def test_a_worker_cut_off_from_one_shard_delays_no_other_worker_and_returns_after_the_cut(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2, workers=3, quorum=2, transport="tcp") as running,
        proxied(running.cluster, {0}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        workers.enter_context(toy_workers([running.cluster, running.cluster, cluster], pause_s=random_pause_s(0.01)))
        eventually(lambda: used_by(running, 2, 0) > 3, "contributions of worker 2")
        for proxy in proxies.values():
            proxy.cut()
        eventually(lambda: running.stats()[0].present == (0, 1), "worker 2 gone from shard 0")
        assert running.stats()[1].present == (0, 1, 2)
        counted = running.heard_of(2, 0), running.heard_of(2, 1)
        running.wait_for(running.version() + 20)
        assert (running.heard_of(2, 0), running.heard_of(2, 1)) == counted, "it lacks a slice of every version"
        for proxy in proxies.values():
            proxy.heal()
        used = used_by(running, 2, 0)
        eventually(lambda: used_by(running, 2, 0) > used + 3, "contributions of worker 2 after the cut")
        assert running.stats()[0].present == (0, 1, 2)
        running.finish(workers)


def test_a_contributor_that_died_after_reaching_one_shard_does_not_block_the_run(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2, workers=3, quorum=2, transport="tcp") as running,
        proxied(running.cluster, {0, 1}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        connections = [Connection(cluster if rank else running.cluster, rank, timing=QUICK_WORKER) for rank in (0, 1)]
        for version in range(4):
            for rank, connection in enumerate(connections):
                weights = connection.pull(version - 1, timeout_s=10)
                assert weights is not None
                assert weights.version == version
                if (rank, version) == (1, 3):
                    proxies[0, "grad"].flowing.clear()
                connection.push(weights, toy_gradient(rank, version, 1000))
        eventually(lambda: [stats.version for stats in running.stats()] == [3, 4], "shard 1 ahead of shard 0")
        for proxy in proxies.values():
            proxy.cut()
        connections[1].close(timeout_s=0)
        # This worker never had version 3 complete: it must ask shard 1 for the previous version.
        helper = workers.enter_context(Worker(running.cluster, 2))
        running.wait_for(4)
        assert helper.pulled[0] == (1, 3)
        connections[0].close()
        workers.enter_context(Worker(running.cluster, 0))
        running.wait_for(10)
        running.finish(workers)
        assert running.history(0)[3]["ranks"] == [0, 2]
        assert running.history(1)[3]["ranks"] == [0, 1]


def test_the_supervisor_is_recognized_after_its_connection_was_cut(tmp_path: Path) -> None:
    with served(tmp_path, transport="tcp") as running, proxied(running.cluster, {0, 1}) as (cluster, proxies):
        secret = running.shards.jobs[0].secret
        places = [endpoints["control"] for endpoints in cluster.endpoints]
        control = ShardControl(cluster.run, cluster.layout.hash, secret, places)
        try:
            control.greet(running.all, within_s=10)
            proxies[0, "control"].cut(heal=True)
            assert set(control.stats(running.all, within_s=10, what="statistics")) == {0, 1}
        finally:
            control.close()


def test_a_contribution_that_arrives_twice_counts_once(tmp_path: Path) -> None:
    go_on = threading.Event()
    with (
        served(tmp_path, shards=2, workers=3, transport="tcp") as running,
        proxied(running.cluster, {0}) as (cluster, proxies),
        ExitStack() as workers,
    ):

        def pause_s(rank: int, version: int) -> float:
            if (rank, version) == (1, 1):
                proxies[0, "grad"].flowing.clear()
            if (rank, version) == (2, 1):
                go_on.wait(20)
            return 0.0

        workers.enter_context(Worker(running.cluster, 0))
        held_up = workers.enter_context(Worker(cluster, 1, pause_s=pause_s))
        workers.enter_context(Worker(running.cluster, 2, pause_s=pause_s))
        eventually(lambda: held_up.connection.tally().resent > 0, "a NEED and a second copy")
        before = running.heard_of(1, 0)
        proxies[0, "grad"].heal()
        eventually(lambda: running.heard_of(1, 0) > before, "the second copy")
        assert running.stats()[0].held == (0, 1)
        go_on.set()
        running.finish(workers)
        assert running.history(0)[1]["duplicate"] >= 1


def test_a_connection_cut_within_a_gradient_leaves_no_torn_contribution(tmp_path: Path) -> None:
    with (
        served(tmp_path, count=300_000, shards=2, workers=2, transport="tcp") as running,
        proxied(running.cluster, {0}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        workers.enter_context(toy_workers([running.cluster, cluster]))
        for cut in range(5):
            running.wait_for(running.version() + 2)
            proxies[0, "grad"].cut_after_bytes = 200_000 + 100_000 * cut
            eventually(lambda cut=cut: proxies[0, "grad"].cuts == cut + 1, "a cut")  # type: ignore[misc]
        running.wait_for(running.version() + 2)
        running.finish(workers)


def test_each_connection_of_a_worker_can_be_reset(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2, workers=2, transport="tcp") as running,
        proxied(running.cluster, {0, 1}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        workers.enter_context(toy_workers([running.cluster, cluster], pause_s=random_pause_s(0.004)))
        for proxy in proxies.values():
            running.wait_for(running.version() + 2)
            proxy.cut(heal=True)
        running.wait_for(running.version() + 2)
        running.finish(workers)


def test_a_slow_path_makes_a_worker_late_and_has_no_other_effect(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2, workers=3, quorum=2, transport="tcp") as running,
        proxied(running.cluster, {0, 1}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        for proxy in proxies.values():
            proxy.delay_s = 0.03
        workers.enter_context(toy_workers([running.cluster, running.cluster, cluster], pause_s=random_pause_s(0.004)))
        eventually(lambda: running.heard_of(2, 0) > 5, "contributions over the slow path")

        def tally() -> tuple[int, ...]:
            return next(row for row in running.stats()[0].tallies if row[0] == 2)

        eventually(lambda: tally()[2] > 0, "a late contribution")
        assert tally()[4] == 0, "none is rejected"
        running.finish(workers)


def test_a_slow_path_to_one_shard_slows_a_run_without_backups(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2, workers=2, transport="tcp") as running,
        proxied(running.cluster, {0}) as (cluster, proxies),
        ExitStack() as workers,
    ):
        for proxy in proxies.values():
            proxy.delay_s = 0.03
        workers.enter_context(toy_workers([running.cluster, cluster]))
        running.wait_for(5)
        began, version = time.monotonic(), running.version()  # shard 0 may already have made the next version
        running.wait_for(version + 20)
        assert time.monotonic() - began > 18 * 2 * 0.03, "weights and a gradient of each version take the slow path"
        running.finish(workers)


def shard_pids_and_places(process: "subprocess.Popen[bytes]") -> tuple[list[int], list[Path]]:
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    places = [Path(at.removeprefix("ipc://")) for shard in facts["endpoints"] for at in shard.values()]
    return facts["pids"], places


def test_nothing_is_left_when_the_block_ends(tmp_path: Path) -> None:
    with served(tmp_path, shards=3) as running:
        pids = [running.pid(shard) for shard in running.all]
        places = [Path(at.removeprefix("ipc://")) for shard in running.cluster.endpoints for at in shard.values()]
        assert all(place.is_socket() for place in places)
        assert {place.parent.stat().st_mode & 0o777 for place in places} == {0o700}
    assert not any(map(is_alive, pids))
    assert not any(place.exists() for place in places)
    assert not places[0].parent.exists()


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    with start_process({"directory": str(tmp_path), "shards": 3}) as process:
        pids, places = shard_pids_and_places(process)
        assert all(map(is_alive, pids))
        process.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(is_alive, pids)), "every shard gone", 5)
        places[0].parent.rmdir()  # fails if a socket file is left
