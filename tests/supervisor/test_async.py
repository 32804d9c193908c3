"""Asynchronous mode: every contribution makes a version, whatever version it was computed on."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.rig import HISTORY_KEYS, Worker, random_pause_s, served, toy_gradient, toy_workers
from support.run_rig import Run, RunFiles, training
from support.shard_rig import RECORD, make_version, opened, push, tallies
from support.stand_ins import frame
from support.worker_rig import (
    bye,
    contribute,
    heartbeat,
    need,
    of,
    pull,
    pushed,
    snapshot,
    snapshots,
    weights,
    welcomed,
)

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.shard.events import Record, StateRestored, Update, View
from zmqrl.ps.shard.history import pack_record, unpack_record
from zmqrl.ps.shard.machine import ShardMachine
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.ps.worker.events import Assembled, Ended, Release, SendBlocked, Writable
from zmqrl.ps.worker.machine import WorkerMachine

ONE = View(1, 1, (0, 1, 2))


# the shard


def shard() -> ShardMachine:
    return opened(asynchronous=True, view=ONE)


def test_an_old_contribution_makes_a_version_and_its_staleness_is_recorded() -> None:
    machine = shard()
    make_version(machine, 0, 0, 0)
    (update,) = of(Update, push(machine, 1, version=0))
    assert (update.record.version, update.record.ranks, update.record.staleness) == (4, (1,), (3,))
    assert tallies(machine) == {0: [3, 0, 0, 0], 1: [1, 0, 0, 0]}


def test_a_contribution_that_arrives_twice_is_used_once() -> None:
    machine = shard()
    make_version(machine, 0, 1, 1)
    assert of(Update, push(machine, 0, version=0)) == []
    assert of(Update, push(machine, 1, version=1)) == []
    assert tallies(machine) == {0: [1, 0, 1, 0], 1: [2, 0, 1, 0]}


def test_a_restarted_shard_still_knows_which_contributions_it_has_used() -> None:
    machine = shard()
    make_version(machine, 0)
    (update,) = of(Update, push(machine, 1, version=0))
    after = opened(asynchronous=True, view=ONE)
    record = unpack_record(pack_record(update.record))
    after.handle(StateRestored(record, recovered=True), 1.0)
    for rank in (0, 1):
        assert of(Update, push(after, rank, version=0)) == []
    assert of(Update, push(after, 2, version=0)) != []


def test_contributions_can_name_an_old_version_again_after_a_rollback() -> None:
    machine = shard()
    make_version(machine, 0, 0)
    loaded: Record = replace(RECORD, generation=2, view=ONE)
    machine.handle(StateRestored(loaded, recovered=False), 1.0)
    assert len(of(Update, push(machine, 0, version=0))) == 1


# the worker


def computing(*versions: int) -> WorkerMachine:
    """A worker that computes on slices of the given versions."""
    worker = welcomed(len(versions), asynchronous=True)
    pull(worker, -1)
    actions = [action for shard, version in enumerate(versions) for action in weights(worker, shard, version)]
    (assembled,) = of(Assembled, actions)
    assert assembled.version == min(versions)
    slices = [frame(f"slice {shard} of {version}") for shard, version in enumerate(versions)]
    assert [payload for _, payload in assembled.payloads] == slices
    return worker


def test_a_worker_computes_on_slices_of_different_versions_and_names_the_version_of_each() -> None:
    worker = computing(4, 7)
    assert pushed(contribute(worker, 4, 7)) == [(0, 4, 0), (1, 7, 0)]


def test_a_gradient_names_the_versions_it_was_computed_on_even_if_newer_weights_were_assembled() -> None:
    worker = computing(4, 7)
    weights(worker, 0, 6)
    assert [a.versions for a in of(Assembled, pull(worker, 4))] == [(6, 7)]
    assert pushed(contribute(worker, 4, 7)) == [(0, 4, 0), (1, 7, 0)]


def test_a_worker_continues_once_every_shard_has_a_newer_version() -> None:
    worker = computing(4, 7)
    contribute(worker, 4, 7)
    assert of(Assembled, pull(worker, 4)) == []
    assert of(Assembled, weights(worker, 0, 6, ranks=(1,))) == []
    actions = weights(worker, 1, 8, ranks=(3,))
    assert [(a.version, len(a.payloads)) for a in of(Assembled, actions)] == [(6, 2)]
    assert of(Release, actions), "the worker can overwrite the gradient now"
    assert pushed(need(worker, 0, 6)) == []


def test_a_worker_that_has_not_contributed_gets_the_newest_weights_at_once() -> None:
    worker = computing(4, 7)
    weights(worker, 0, 9)
    assert [a.version for a in of(Assembled, pull(worker, 4))] == [7]


def test_a_worker_resends_its_contribution_to_a_shard_that_sends_a_need_message() -> None:
    worker = computing(4, 7)
    contribute(worker, 4, 7)
    pull(worker, 4)
    assert pushed(need(worker, 0, 4)) == [(0, 4, 1)]
    weights(worker, 0, 5, ranks=(3,))
    weights(worker, 1, 8, ranks=(1,))
    assert pushed(need(worker, 0, 5)) == [], "the gradient can be overwritten"


def test_a_lost_publication_is_requested() -> None:
    worker = computing(4, 7)
    contribute(worker, 4, 7)
    pull(worker, 4)
    weights(worker, 1, 8, ranks=(3,))
    assert snapshots(heartbeat(worker, 0, 5)) == [(0, None)]
    assert [a.version for a in of(Assembled, snapshot(worker, 0, 5, ranks=(3,)))] == [5]


def test_a_worker_continues_for_the_shards_that_have_not_ended() -> None:
    worker = computing(9, 7)
    contribute(worker, 9, 7)
    weights(worker, 0, 10, ranks=(1,))
    bye(worker, 0, 10)
    pull(worker, 7)
    assert [a.version for a in of(Assembled, weights(worker, 1, 8, ranks=(3,)))] == [8]
    assert pushed(contribute(worker, 10, 8)) == [(1, 8, 0)]
    pull(worker, 8)
    weights(worker, 1, 10, ranks=(3,))
    assert of(Ended, bye(worker, 1, 10)) == [Ended(10)]


def test_the_last_slice_of_an_ended_shard_is_requested() -> None:
    worker = computing(9, 7)
    contribute(worker, 9, 7)
    pull(worker, 7)
    assert snapshots(bye(worker, 0, 10)) == [(0, None)]
    weights(worker, 1, 8, ranks=(3,))
    assert [a.version for a in of(Assembled, snapshot(worker, 0, 10, ranks=(1,)))] == [8]


def test_shards_can_end_at_different_versions() -> None:
    worker = computing(9, 7)
    assert of(Ended, bye(worker, 0, 10)) == []
    assert of(Ended, bye(worker, 1, 8)) == [Ended(8)]


def test_a_waiting_contribution_is_not_mistaken_for_the_previous_one() -> None:
    worker = computing(5, 5)
    contribute(worker, 5)
    pull(worker, 5)
    for number in range(2):
        weights(worker, number, 6, ranks=(1,))
    contribute(worker, 6)
    worker.handle(SendBlocked(0), 0.0)
    weights(worker, 0, 7, ranks=(3,))
    assert pushed(worker.handle(Writable(0), 0.0)) == [(0, 6, 0)]


# real processes


def constant_gradient(rank: int, version: int, count: int) -> FloatVector:
    return toy_gradient(rank, 0, count)


@pytest.mark.processes
@pytest.mark.parametrize("kill", [False, True])
def test_every_contribution_is_applied_once_and_the_history_records_its_staleness(tmp_path: Path, kill: bool) -> None:
    with served(tmp_path, workers=3, asynchronous=True) as running:
        with contextlib.ExitStack() as stack:
            for rank in range(3):
                stack.enter_context(
                    Worker(
                        running.cluster,
                        rank,
                        gradient=lambda rank, weights: toy_gradient(rank, 0, weights.vector.size),
                        pause_s=random_pause_s(0.01 * (1 + 3 * rank)),
                    )
                )
            running.wait_for(30)
            if kill:
                running.kill(1)
                running.restart(1)
                running.wait_for(60)
            running.finish(stack, gradient=constant_gradient)
        for shard_number in running.all:
            lines = running.history(shard_number)
            assert {rank for line in lines for rank in line["ranks"]} == {0, 1, 2}
            assert all(len(line["ranks"]) == 1 for line in lines)
            assert max(line["staleness"][0] for line in lines) >= 1
            computed_on = [(line["ranks"][0], line["version"] - 1 - line["staleness"][0]) for line in lines]
            assert len(set(computed_on)) == len(computed_on), "a contribution was used twice"


@pytest.mark.slow
def test_an_asynchronous_run_does_not_wait_for_a_slow_worker(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--mode", "async", "--straggle", "1:1.0") as run:
        run.wait_for(10)
        run.eventually(
            lambda: all(
                any(line["ranks"] == [1] and line["staleness"][0] > 5 for line in run.files.history(shard))
                for shard in range(2)
            ),
            "a stale contribution of the slow worker",
        )
        run.interrupt()
        summary = run.files.assert_summary_exact("interrupted", quorum=1)
        for number in range(2):
            lines = run.files.history(number)
            assert [line["version"] for line in lines] == list(range(1, summary["updates"] + 1))
            assert all(set(line) == HISTORY_KEYS | {"staleness"} for line in lines)
            slow = [line["staleness"][0] for line in lines if line["ranks"] == [1]]
            assert max(slow) > 5


@contextlib.contextmanager
def run_left_apart(path: Path) -> Iterator[Run]:
    """A run whose external workers are gone and whose shard 1 is at least two versions behind shard 0."""
    with training(path, "--mode", "async", "--workers", "3", "--external-workers", "3") as run:
        run.wait_to_say("rank 2 is open")
        cluster = Cluster.read(path / "cluster.json")
        with toy_workers([cluster] * 3) as workers:
            run.wait_for(20)
            pid = run.living_pid("shard", 1)

            def drift_apart() -> bool:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.1)
                os.kill(pid, signal.SIGSTOP)  # each worker may still contribute once to shard 0
                time.sleep(0.5)
                return len(run.files.history(0)) >= len(run.files.history(1)) + 2

            run.eventually(drift_apart, "shard 0 ahead by two versions")
            for worker in workers:
                worker.leaving.set()
        os.kill(pid, signal.SIGKILL)  # the contributions sent to the stopped shard are lost
        run.wait_to_say("shard 1 is back at version")
        yield run


def assert_ended_apart(files: RunFiles) -> tuple[int, int]:
    """Assert that the newest checkpoint has each shard at the end of its history."""
    ahead, behind = (len(files.history(shard)) for shard in range(2))
    assert ahead >= behind + 2
    newest = files.newest()
    assert (newest.version, newest.versions) == (behind, (ahead, behind))
    assert [[line["version"] for line in files.history(shard)] for shard in range(2)] == [
        list(range(1, ahead + 1)),
        list(range(1, behind + 1)),
    ]
    return ahead, behind


@pytest.mark.slow
def test_a_run_without_workers_ends_with_each_shard_at_its_own_version(tmp_path: Path) -> None:
    with run_left_apart(tmp_path / "run") as run:
        run.interrupt(signal.SIGTERM)
        ahead, behind = assert_ended_apart(run.files)
        summary = run.files.summary()
        assert (summary["updates"], summary["contributions"]["used"]) == (behind, ahead + behind)
    with training(tmp_path / "run", "--resume", "--external-workers", "0", "--updates", str(ahead + 20)) as run:
        assert run.wait() == 0, run.said()
    files = run.files
    assert [len(files.history(shard)) for shard in range(2)] == [ahead + 20] * 2
    assert [line["version"] for line in files.history(1)] == list(range(1, ahead + 21))
    files.assert_summary_exact("updates", quorum=1)
