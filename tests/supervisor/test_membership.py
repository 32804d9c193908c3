"""Decisions on the members of a run, without a clock or sockets."""

from pathlib import Path

import pytest

from zmqrl.config import Config
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.events import View
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.membership import NOTICE_EVERY_S, SHRINK_AFTER_S, Membership
from zmqrl.supervisor.tasks import RunTasks


def test_every_rank_is_a_member_at_the_start_of_a_run() -> None:
    assert Membership(4, 3, "wait").view == View(1, 3, (0, 1, 2, 3))


def test_a_complete_quorum_of_workers_causes_no_notice() -> None:
    membership = Membership(4, 3, "shrink")
    assert membership.observe({0, 1, 3}, False, 0.0) is None
    assert membership.observe({0, 1, 2, 3}, False, 100.0) is None


def test_missing_workers_are_named_at_intervals() -> None:
    membership = Membership(4, 3, "wait")
    assert membership.observe({1}, False, 0.0) is None
    assert membership.observe({1}, False, NOTICE_EVERY_S - 0.1) is None
    view = membership.view
    notice = membership.observe({1, 9}, False, NOTICE_EVERY_S)
    assert membership.view is view
    assert notice == "waiting for workers 0, 2-3: 1 of 3 required workers are present"
    assert membership.observe({1}, False, NOTICE_EVERY_S + 0.1) is None
    assert membership.observe({1}, False, 2 * NOTICE_EVERY_S) is not None


def test_waiting_starts_again_if_the_workers_were_present_in_between() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0}, False, 0.0)
    membership.observe({0, 1}, False, 4.9)
    assert membership.observe({0}, False, 5.0) is None
    assert membership.observe({0}, False, 5.0 + NOTICE_EVERY_S) is not None


def test_a_waiting_run_never_lowers_its_quorum() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0, 1}, False, 0.0)
    for now in range(1, 1000):
        membership.observe({0}, False, float(now))
        assert membership.view.id == 1


def test_a_shrinking_run_continues_with_the_live_workers_after_a_while() -> None:
    membership = Membership(3, 3, "shrink")
    membership.observe({0, 1, 2}, False, 0.0)
    membership.observe({0, 2}, False, 1.0)
    membership.observe({0, 2}, False, 1.0 + SHRINK_AFTER_S - 0.1)
    assert membership.view.id == 1
    notice = membership.observe({0, 2}, False, 1.0 + SHRINK_AFTER_S)
    assert membership.view == View(2, 2, (0, 1, 2))
    assert notice == "continuing with 2 of 3 workers"
    assert membership.observe({0, 2}, False, 500.0) is None


def test_a_shrunk_run_shrinks_further_but_not_below_one() -> None:
    membership = Membership(3, 3, "shrink")
    membership.observe({0, 1, 2}, False, 0.0)
    membership.observe({0, 2}, False, 1.0)
    membership.observe({0, 2}, False, 20.0)
    membership.observe({2}, False, 21.0)
    membership.observe({2}, False, 40.0)
    assert membership.view == View(3, 1, (0, 1, 2))
    membership.observe(set(), False, 41.0)
    view = membership.view
    notice = membership.observe(set(), False, 99.0)
    assert membership.view is view
    assert notice == "waiting for workers 0-2: 0 of 1 required workers are present"


def test_a_shrunk_run_grows_again_up_to_its_quorum_as_workers_come_back() -> None:
    membership = Membership(4, 3, "shrink")
    membership.observe({0, 1, 2, 3}, False, 0.0)
    membership.observe({0}, False, 1.0)
    membership.observe({0}, False, 20.0)
    assert membership.observe({0, 3}, False, 21.0) == "workers present again: 2"
    assert membership.view == View(3, 2, (0, 1, 2, 3))
    membership.observe({0, 1, 2, 3}, False, 22.0)
    assert membership.view == View(4, 3, (0, 1, 2, 3))
    assert membership.observe({0, 1, 2, 3}, False, 23.0) is None


def test_a_run_does_not_shrink_before_all_workers_were_present_once() -> None:
    membership = Membership(2, 2, "shrink")
    membership.observe({0}, False, 0.0)
    membership.observe({0}, False, 1000.0)
    assert membership.view.id == 1


def test_a_run_shrinks_before_all_workers_were_present_if_the_absent_workers_can_never_start() -> None:
    membership = Membership(3, 3, "shrink")
    membership.observe({0}, False, 0.0, {1})
    membership.observe({0}, False, SHRINK_AFTER_S, {1})
    assert membership.view.id == 1, "worker 2 may still be starting"
    membership.observe({0}, False, SHRINK_AFTER_S, {1, 2})
    assert membership.view == View(2, 1, (0, 1, 2))
    assert membership.complete_once


def test_a_waiting_run_does_not_shrink_even_if_the_absent_workers_can_never_start() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0}, False, 0.0, {1})
    membership.observe({0}, False, 1000.0, {1})
    assert membership.view.id == 1


def test_a_worker_that_came_and_went_between_two_checks_counts_as_seen() -> None:
    membership = Membership(2, 2, "shrink")
    membership.observe({0}, False, 0.0)
    membership.observe({0}, True, 1.0)
    assert membership.observe({0}, False, SHRINK_AFTER_S) == "continuing with 1 of 2 workers"


def test_strangers_do_not_count() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0, 7, 8}, False, 0.0)
    assert (
        membership.observe({0, 7, 8}, False, NOTICE_EVERY_S)
        == "waiting for worker 1: 1 of 2 required workers are present"
    )


def test_a_process_is_newer_than_its_predecessor_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    tasks = RunTasks(Config(), directory, Layout.of([("w", (1000,))], 2), on_this_machine(Config(), directory))
    found = []
    for now_ms in (5_000, 6_000, 2_000, 2_000):
        monkeypatch.setattr("time.time_ns", lambda now_ms=now_ms: now_ms * 1_000_000)
        found.append(tasks.worker_job(0, 0, {}).incarnation)
    assert found == [5_000, 6_000, 6_001, 6_002]
    job = tasks.shard_task(0, None).job
    assert job is not None
    assert job["incarnation"] == 2_000


def test_a_resumed_session_traces_its_own_first_versions(tmp_path: Path) -> None:
    config, directory = Config(profile=20), RunDirectory(tmp_path)
    tasks = RunTasks(config, directory, Layout.of([("w", (1000,))], 2), on_this_machine(config, directory), version=500)
    profiler = tasks.worker_job(0, 500, {}).profiler
    assert profiler is not None
    assert profiler.trace_below == 520
    job = tasks.shard_task(0, None).job
    assert job is not None
    assert job["profiler"]["trace_below"] == 520
