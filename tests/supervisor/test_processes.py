"""Processes that die or fall silent: which death came first, when they restart, and when the run gives up on them."""

import itertools
from pathlib import Path

import pytest
from support.messages import stats_with

from zmqrl.errors import DISK_IS_FULL, USER_CODE_FAILED, ClusterError, UsageError
from zmqrl.hosts.events import Exited, HostLost, HostUp
from zmqrl.process_id import ProcessId, ProcessRole, worker_id
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e
from zmqrl.supervisor.ending import explained
from zmqrl.supervisor.processes import (
    FAILURES_IN_A_ROW,
    FIRST_DELAY_S,
    KILLS_IN_A_ROW,
    LONGEST_DELAY_S,
    SILENCE_S,
    SPACE_WITHIN_S,
    UNREACHABLE_TOLD_S,
    VERSION_TOLD_WITHIN_S,
    Processes,
)

LATE_S = VERSION_TOLD_WITHIN_S + 0.1
WORKER = ProcessId("worker", 0)


def died(name: str, status: int = 3, tail: str = "one\ntwo", why: str | None = None) -> Exited:
    return Exited(ProcessId.parse(name), status, tail, 1.0, why)


def test_a_shard_that_died_before_all_workers_is_the_first_death() -> None:
    processes = Processes()
    processes.made(7, 0.0)
    for turn in range(4):
        for name in ("shard-1", "worker-0", "worker-1"):
            processes.died(died(name, tail=str(turn)), 1.0 + turn)
        processes.made(7, 10.0 + turn)  # the other shard, which then waits, reports its version
    assert processes.first_death is not None
    assert (str(processes.first_death.process), processes.first_death.log_tail) == ("shard-1", "0")


def test_a_death_that_the_run_survived_is_not_the_first_death() -> None:
    processes = Processes()
    processes.died(died("worker-3"), 1.0)
    processes.made(5, 1.0 + LATE_S)
    assert processes.first_death is None
    processes.died(died("shard-0"), 20.0)
    assert processes.first_death == died("shard-0")


def test_versions_made_before_a_death_but_reported_later_do_not_show_progress() -> None:
    processes = Processes()
    processes.made(5, 0.0)
    processes.died(died("worker-0"), 1.0)
    processes.made(9, 1.2)
    processes.made(9, 1.0 + LATE_S)
    assert processes.first_death is not None
    processes.made(10, 2.0 + LATE_S)
    assert processes.first_death is None


def test_an_explained_death_replaces_an_unexplained_kill_as_the_first_death() -> None:
    processes = Processes()
    processes.died(died("worker-0", -9), 1.0)
    assert processes.first_death == died("worker-0", -9)
    lost = died("shard-0", -9, why="host h1 is lost: no message for 8 s")
    processes.died(lost, 1.5)
    processes.died(died("worker-1", 1), 2.0)
    assert processes.first_death == lost


@pytest.mark.parametrize(
    ("status", "begun", "kind"),
    [
        *((status, True, kind) for status, kind in ((1, ClusterError), (2, UsageError), (3, ClusterError))),
        (USER_CODE_FAILED, True, UsageError),
        *((status, False, kind) for status, kind in ((1, ClusterError), (2, UsageError), (3, UsageError))),
        (-9, False, ClusterError),
    ],
)
def test_the_first_failure_ends_the_message_and_decides_the_exit_status(
    status: int, begun: bool, kind: type[Exception]
) -> None:
    """A shard that exits with status 3 before the run has begun counts as bad usage."""
    log = Path("logs/shard-1.log")
    error = explained(ClusterError("worker-3 died."), died("shard-1", status), "h2", log, begun=begun)
    assert type(error) is kind
    first, last, *tail = str(error).splitlines()
    assert first == "worker-3 died."
    assert last.startswith("The first to fail was shard-1 on h2 (")
    assert last.endswith("); its log logs/shard-1.log ended with")
    assert tail == ["  | one", "  | two"]


def test_a_lost_host_is_reported_as_the_reason() -> None:
    lost = died("shard-0", -9, tail="", why="host h1 is lost: no message for 8 s")
    error = ClusterError("shard 0 did not come up within 60 s.")
    text = str(explained(error, lost, "h1", Path("logs/shard-0.log"), begun=True))
    assert text == (
        "shard 0 did not come up within 60 s.\n"
        "The first to fail was shard-0 on h1 (host h1 is lost: no message for 8 s); "
        "its log logs/shard-0.log was empty."
    )


# restarts


def exited(rank: int = 0, status: int = 1) -> Exited:
    return Exited(ProcessId("worker", rank), status, "Traceback\nRuntimeError: no display", 1.0)


def delay_s(processes: Processes, death: Exited) -> float:
    """The delay in seconds between the death of a process and its restart."""
    processes.died(death, 100.0)
    for step in range(1, 1000):
        if e.StartProcess(death.process) in processes.due(100.0 + 0.05 * step):
            return round(0.05 * step, 2)
    raise AssertionError("the process was not restarted")


def test_each_restart_waits_twice_as_long_as_the_one_before() -> None:
    processes = Processes()
    delays = [delay_s(processes, exited(status=-9)) for _ in range(8)]
    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays[-1] == LONGEST_DELAY_S


def test_a_process_that_worked_in_between_starts_with_a_clean_record() -> None:
    processes = Processes()
    for _ in range(3 * FAILURES_IN_A_ROW):
        assert delay_s(processes, exited()) == FIRST_DELAY_S
        processes.worked(WORKER)


def test_deaths_of_one_process_do_not_delay_another() -> None:
    processes = Processes()
    for rank in range(3 * FAILURES_IN_A_ROW):
        assert delay_s(processes, exited(rank)) == FIRST_DELAY_S


@pytest.mark.parametrize(("status", "in_a_row"), [(1, FAILURES_IN_A_ROW), (-9, KILLS_IN_A_ROW)])
def test_a_process_that_keeps_dying_is_hopeless_until_it_works_again(status: int, in_a_row: int) -> None:
    """A run tolerates more kills from outside than failures."""
    processes = Processes()
    for _ in range(in_a_row - 1):
        processes.died(exited(status=status), 1.0)
    assert not processes.hopeless
    processes.died(exited(status=status), 1.0)
    assert processes.hopeless == {WORKER}
    assert processes.deaths(WORKER) == in_a_row
    processes.worked(WORKER)
    assert not processes.hopeless


@pytest.mark.parametrize(("role", "deaths"), [("worker", 1), ("evaluator", 1), ("shard", FAILURES_IN_A_ROW)])
def test_a_process_that_ends_with_a_usage_error_is_hopeless_at_once_unless_it_is_a_shard(
    role: ProcessRole, deaths: int
) -> None:
    processes, process = Processes(), ProcessId(role, 0)
    for _ in range(deaths):
        assert not processes.hopeless
        processes.died(Exited(process, UsageError.exit_status, "", 1.0), 1.0)
    assert processes.hopeless == {process}


def test_a_process_that_the_run_gave_up_on_is_not_restarted() -> None:
    processes = Processes()
    processes.died(exited(), 1.0)
    processes.give_up(WORKER)
    assert processes.due(1000.0) == []


def test_a_death_for_another_reason_ends_the_wait_for_space() -> None:
    processes, shard = Processes(), ProcessId("shard", 0)
    processes.died(died("shard-0", DISK_IS_FULL), 0.0, is_full=True)
    assert processes.was_full(shard)
    processes.died(died("shard-0", 1), 100.0)
    assert not processes.was_full(shard)
    processes.died(died("shard-0", DISK_IS_FULL), 2 * SPACE_WITHIN_S, is_full=True)
    assert processes.was_full(shard)
    assert not processes.hopeless, "a new wait has begun"


def test_the_end_of_a_process_is_described_in_words() -> None:
    assert exited(status=3).how() == "exit status 3"
    assert exited(status=USER_CODE_FAILED).how() == "user code raised an exception"
    assert exited(status=-11).how() == "killed by SIGSEGV"
    assert exited(status=-63).how() == "killed by signal 63"
    assert exited(status=-6).how() == "killed by SIGABRT"
    aborted = Exited(ProcessId("worker", 1), -6, "Assertion failed: !_io_error (src/stream_engine_base.cpp:310)", 1.0)
    assert aborted.how() == "libzmq failed an internal check and aborted the process"


def test_a_death_is_reported_with_the_last_lines_of_the_log() -> None:
    (told,) = Processes().died(exited(), 1.0)
    death = "died (exit status 1) and is being restarted; its log ends:"
    assert told == e.TellDeath(WORKER, (death, "  | Traceback", "  | RuntimeError: no display"))


def test_a_worker_that_dies_after_each_report_of_work_is_never_given_up() -> None:
    processes = Processes()
    for incarnation in range(1, 3 * FAILURES_IN_A_ROW):
        processes.reported(0, incarnation, 1)
        processes.died(exited(), 1.0)
    assert not processes.hopeless


def test_a_report_that_is_empty_old_or_repeated_shows_no_work() -> None:
    processes = Processes()
    processes.reported(0, 7, 5)
    for _ in range(FAILURES_IN_A_ROW):
        processes.died(exited(), 1.0)
        for incarnation, done in ((7, 5), (8, 0), (7, 6)):
            processes.reported(0, incarnation, done)
    assert processes.hopeless == {WORKER}
    processes.reported(0, 8, 1)
    assert not processes.hopeless


# silence


def test_a_silent_process_is_named_every_five_seconds_and_killed_after_thirty() -> None:
    processes = Processes()
    processes.heard(WORKER, 0.0)
    told = [(now, action) for now in range(40) for action in processes.watch_silence(float(now))[1]]
    assert told[:2] == [(5, e.TellSilence(WORKER, 5.0)), (10, e.TellSilence(WORKER, 10.0))]
    assert (30, e.KillProcess(WORKER, 30.0)) in told
    assert processes.silent_s(WORKER, 31.0) == 1.0, "the silence of the next process starts at zero"


def test_time_in_which_the_supervisor_was_stopped_does_not_count_as_silence() -> None:
    processes = Processes()
    processes.heard(WORKER, 0.0)
    processes.pardon(100.0, now=101.0)
    assert processes.watch_silence(101.0) == (set(), [])


def test_a_pardon_does_not_put_off_the_end_of_a_process_that_was_heard_in_that_time() -> None:
    processes = Processes()
    processes.heard(WORKER, 139.0)
    processes.pardon(40.0, now=140.0)
    assert processes.silent_s(WORKER, 140.0) == 0.0
    assert processes.watch_silence(169.5)[1] == [e.TellSilence(WORKER, 29.5)]
    assert processes.watch_silence(170.0)[1] == [e.KillProcess(WORKER, 30.0)]


def silent(rank: int, silent_s: float) -> m.Stats:
    """The statistics of a shard that sees only worker ``rank``, which it last heard ``silent_s`` ago."""
    return stats_with(version=1, present=(rank,), silent_ms=(int(1000 * silent_s),))


def test_the_silence_of_a_worker_counts_from_its_last_message_to_any_shard() -> None:
    processes = Processes()
    processes.start(WORKER, -1.0)
    told = []
    for tenths in range(400):
        now = tenths / 10
        # One of the two shards heard the worker a second earlier. After 8 s, the worker is absent for the other one.
        processes.hear_workers(silent(0, now) if now < 8.0 else silent(1, 0.0), now)
        processes.hear_workers(silent(0, now + 1.0), now)
        told += [(now, action) for action in processes.watch_silence(now)[1]]
    assert told[0] == (5.0, e.TellSilence(WORKER, 5.0))
    assert [each for each in told if isinstance(each[1], e.KillProcess)] == [(30.0, e.KillProcess(WORKER, 30.0))]


def test_the_messages_of_a_dead_worker_do_not_make_its_successor_silent() -> None:
    processes = Processes()
    processes.start(WORKER, 0.0)
    processes.hear_workers(silent(0, 0.0), 9.0)
    processes.died(died("worker-0"), 10.0)
    processes.start(WORKER, 10.5)
    processes.hear_workers(silent(0, 2.0), 11.0)
    assert processes.watch_silence(100.0) == (set(), []), "the start of a worker has no limit"
    processes.hear_workers(silent(0, 0.5), 100.0)
    assert processes.silent_s(WORKER, 100.0) == 0.5


# hosts

OTHER = ProcessId("worker", 1)


def lose(processes: Processes, now: float, why: str = "no route") -> list[str]:
    """The notices after both workers are lost with their host h2, or after an attempt to reach the host."""
    actions: list[e.Action] = []
    for process in (WORKER, OTHER):
        actions += processes.died(Exited(process, -9, "", 0.0, "host h2 is lost", with_host=True), now)
    actions += processes.host_changed(HostLost("h2", why, (WORKER, OTHER)), now)
    assert all(isinstance(action, e.Notice) for action in actions), "no process is reported as dead"
    return [action.text for action in actions if isinstance(action, e.Notice)]


def test_a_host_that_cannot_be_reached_is_reported_now_and_then_until_it_is_back() -> None:
    processes, now = Processes(), 100.0
    told: list[tuple[float, str]] = []
    assert lose(processes, now, "nothing was heard for 8 s") == [
        "host h2 is lost, with worker-0,worker-1: nothing was heard for 8 s"
    ]
    while now < 160.0:  # each try fails at once
        now += 0.25
        if processes.due(now):
            told += [(now, text) for text in lose(processes, now)]
    assert [text for _, text in told] == [
        "host h2 has been unreachable for 16 s, next try in 16 s: no route",
        "host h2 has been unreachable for 32 s, next try in 30 s: no route",
    ]
    assert all(after - before >= UNREACHABLE_TOLD_S for (before, _), (after, _) in itertools.pairwise(told))
    assert processes.host_changed(HostUp("h2"), now + 2.0) == [e.Notice(f"host h2 is back after {now - 98.0:.0f} s")]
    assert processes.host_changed(HostUp("h2"), now + 3.0) == []
    assert lose(processes, now + 9.0) == ["host h2 is lost, with worker-0,worker-1: no route"]


def test_what_waits_for_a_process_on_a_lost_host_names_the_host() -> None:
    processes = Processes()
    processes.start(WORKER, 90.0)
    lose(processes, 100.0)
    processes.due(101.0)  # the next try
    awaited = processes.awaited(WORKER, 122.0)
    assert (awaited.is_running, awaited.unreachable_s) == (True, 22.0)
    assert awaited.what() == "its host has been unreachable for 22 s"
    processes.host_changed(HostUp("h2"), 123.0)
    assert processes.awaited(WORKER, 124.0).unreachable_s is None


def test_the_presence_of_a_process_says_since_when_it_is_in_its_state() -> None:
    processes = Processes()
    assert processes.presence(WORKER, 100.0) == ("lost", 0.0)
    processes.start(WORKER, 100.0)
    assert processes.presence(WORKER, 103.0) == ("starting", 3.0)
    processes.heard(WORKER, 104.0)
    assert processes.presence(WORKER, 106.0) == ("present", 6.0)
    assert processes.presence(WORKER, 104.0 + SILENCE_S) == ("silent", SILENCE_S)
    processes.died(Exited(WORKER, 1, "", 1.0), 110.0)
    assert processes.presence(WORKER, 110.25) == ("lost", 0.25)
    lose(processes, 120.0)
    assert processes.presence(WORKER, 142.0) == ("unreachable", 22.0)


def test_the_presence_of_an_external_worker_follows_what_the_shards_see() -> None:
    processes, outside = Processes(), worker_id(7)
    assert processes.presence(outside, 100.0, outside=True) == ("open", 0.0)
    processes.see_outside([outside], 101.0)
    processes.see_outside([outside], 102.0)
    assert processes.presence(outside, 103.0, outside=True) == ("present", 2.0)
    processes.see_outside([], 104.0)
    processes.see_outside([], 105.0)
    assert processes.presence(outside, 106.0, outside=True) == ("lost", 2.0)
