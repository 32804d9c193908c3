"""Who counts in a run, and which process is started again: decided from numbers handed in, without clock or sockets."""

from pathlib import Path

import pytest

from zmqrl.cluster.deployment import on_this_machine
from zmqrl.cluster.launcher import Exited
from zmqrl.cluster.membership import NOTICE_EVERY_S, SHRINK_AFTER_S, Membership
from zmqrl.cluster.plan import Plan
from zmqrl.cluster.restarts import (
    FAILURES_IN_A_ROW,
    FIRST_DELAY_S,
    KILLS_IN_A_ROW,
    LONGEST_DELAY_S,
    Restarts,
)
from zmqrl.config import Config
from zmqrl.ps.partition import Layout
from zmqrl.ps.shard_events import View
from zmqrl.rundir import RunDirectory


def test_a_run_begins_with_every_rank_a_member() -> None:
    assert Membership(4, 3, "wait").view == View(1, 3, (0, 1, 2, 3))


def test_a_quorum_of_workers_is_nothing_to_speak_of() -> None:
    membership = Membership(4, 3, "shrink")
    assert membership.observe({0, 1, 3}, False, 0.0) == (None, None)
    assert membership.observe({0, 1, 2, 3}, False, 100.0) == (None, None)


def test_the_missing_workers_are_named_at_intervals() -> None:
    membership = Membership(4, 3, "wait")
    assert membership.observe({1}, False, 0.0) == (None, None)
    assert membership.observe({1}, False, NOTICE_EVERY_S - 0.1) == (None, None)
    view, notice = membership.observe({1, 9}, False, NOTICE_EVERY_S)
    assert view is None
    assert notice == "waiting for workers 0, 2, 3: 1 of the 3 needed are here"
    assert membership.observe({1}, False, NOTICE_EVERY_S + 0.1) == (None, None)
    assert membership.observe({1}, False, 2 * NOTICE_EVERY_S)[1] is not None


def test_waiting_starts_anew_when_the_workers_were_here_in_between() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0}, False, 0.0)
    membership.observe({0, 1}, False, 4.9)
    assert membership.observe({0}, False, 5.0) == (None, None)
    assert membership.observe({0}, False, 5.0 + NOTICE_EVERY_S)[1] is not None


def test_a_run_that_waits_never_lowers_its_quorum() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0, 1}, False, 0.0)
    for now in range(1, 1000):
        assert membership.observe({0}, False, float(now))[0] is None


def test_a_run_that_shrinks_goes_on_with_the_living_after_a_while() -> None:
    membership = Membership(3, 3, "shrink")
    membership.observe({0, 1, 2}, False, 0.0)
    membership.observe({0, 2}, False, 1.0)
    assert membership.observe({0, 2}, False, 1.0 + SHRINK_AFTER_S - 0.1)[0] is None
    view, notice = membership.observe({0, 2}, False, 1.0 + SHRINK_AFTER_S)
    assert view == View(2, 2, (0, 1, 2))
    assert notice == "going on with 2 workers instead of 3"
    assert membership.observe({0, 2}, False, 500.0) == (None, None)


def test_a_shrunk_run_shrinks_further_but_not_below_one() -> None:
    membership = Membership(3, 3, "shrink")
    membership.observe({0, 1, 2}, False, 0.0)
    membership.observe({0, 2}, False, 1.0)
    membership.observe({0, 2}, False, 20.0)
    membership.observe({2}, False, 21.0)
    assert membership.observe({2}, False, 40.0)[0] == View(3, 1, (0, 1, 2))
    membership.observe(set(), False, 41.0)
    view, notice = membership.observe(set(), False, 99.0)
    assert view is None
    assert notice == "waiting for workers 0, 1, 2: 0 of the 1 needed are here"


def test_a_shrunk_run_grows_as_workers_come_back_and_not_above_its_quorum() -> None:
    membership = Membership(4, 3, "shrink")
    membership.observe({0, 1, 2, 3}, False, 0.0)
    membership.observe({0}, False, 1.0)
    membership.observe({0}, False, 20.0)
    assert membership.observe({0, 3}, False, 21.0) == (View(3, 2, (0, 1, 2, 3)), "2 workers are here again")
    assert membership.observe({0, 1, 2, 3}, False, 22.0)[0] == View(4, 3, (0, 1, 2, 3))
    assert membership.observe({0, 1, 2, 3}, False, 23.0) == (None, None)


def test_a_run_does_not_shrink_before_it_was_whole_once() -> None:
    membership = Membership(2, 2, "shrink")
    membership.observe({0}, False, 0.0)
    assert membership.observe({0}, False, 1000.0)[0] is None


def test_a_worker_that_came_made_versions_and_went_between_two_looks_has_been_here() -> None:
    membership = Membership(2, 2, "shrink")
    membership.observe({0}, False, 0.0)
    membership.observe({0}, True, 1.0)
    assert membership.observe({0}, False, SHRINK_AFTER_S)[1] == "going on with 1 workers instead of 2"


def test_strangers_do_not_count() -> None:
    membership = Membership(2, 2, "wait")
    membership.observe({0, 7, 8}, False, 0.0)
    assert (
        membership.observe({0, 7, 8}, False, NOTICE_EVERY_S)[1] == "waiting for workers 1: 1 of the 2 needed are here"
    )


def exited(name: str = "worker-0", status: int = 1) -> Exited:
    return Exited(name, status, "Traceback\nRuntimeError: no display", 1.0)


def test_each_restart_waits_twice_as_long_as_the_one_before() -> None:
    restarts = Restarts()
    delays = [restarts.delay_s(exited(status=-9)) for _ in range(8)]
    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays[-1] == LONGEST_DELAY_S


def test_a_process_that_worked_in_between_starts_with_a_clean_record() -> None:
    restarts = Restarts()
    for _ in range(3 * FAILURES_IN_A_ROW):
        assert restarts.delay_s(exited()) == FIRST_DELAY_S
        restarts.worked("worker-0")


def test_one_process_does_not_pay_for_another() -> None:
    restarts = Restarts()
    for number in range(3 * FAILURES_IN_A_ROW):
        assert restarts.delay_s(exited(f"worker-{number}")) == FIRST_DELAY_S


@pytest.mark.parametrize(("status", "in_a_row"), [(1, FAILURES_IN_A_ROW), (-9, KILLS_IN_A_ROW)])
def test_a_process_that_keeps_dying_is_hopeless_until_it_works_again(status: int, in_a_row: int) -> None:
    """Being killed by others is forgiven longer."""
    restarts = Restarts()
    for _ in range(in_a_row - 1):
        restarts.delay_s(exited(status=status))
    assert not restarts.hopeless
    restarts.delay_s(exited(status=status))
    assert restarts.hopeless == {"worker-0"}
    assert restarts.deaths("worker-0") == in_a_row
    restarts.worked("worker-0")
    assert not restarts.hopeless


def test_the_way_a_process_ended_is_told_in_words() -> None:
    assert exited(status=3).how() == "exit status 3"
    assert exited(status=-11).how() == "killed by SIGSEGV"
    assert exited(status=-63).how() == "killed by signal 63"
    assert exited(status=-6).how() == "killed by SIGABRT"
    aborted = Exited("worker-1", -6, "Assertion failed: !_io_error (src/stream_engine_base.cpp:310)", 1.0)
    assert aborted.how() == "libzmq found an error in itself and aborted the process"


def test_a_process_is_newer_than_the_one_before_it_even_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    plan = Plan(Config(), directory, Layout.of([("w", (1000,))], 2), on_this_machine(Config(), directory))
    found = []
    for now_ms in (5_000, 6_000, 2_000, 2_000):
        monkeypatch.setattr("time.time_ns", lambda now_ms=now_ms: now_ms * 1_000_000)
        found.append(plan.worker_job(0, 0, {})["incarnation"])
    assert found == [5_000, 6_000, 6_001, 6_002]
    assert plan.shard_task(0, None).job["incarnation"] == 2_000
