"""The supervisor's decisions, event by event, without processes, sockets or a clock."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zmqrl.errors import DISK_IS_FULL, USER_CODE_FAILED, UsageError
from zmqrl.hosts.events import Exited, HostLost, HostUp, Inspected
from zmqrl.observe.stalls import Doing, Stall
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.shard.events import View
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e
from zmqrl.supervisor.machine import STOP_WITHIN_S, WANTED_AGAIN_S, Limits, ScheduleEnd, SupervisorMachine
from zmqrl.supervisor.membership import SHRINK_AFTER_S
from zmqrl.supervisor.processes import (
    FAILURES_IN_A_ROW,
    HUNG_S,
    KILLS_IN_A_ROW,
    LONGEST_DELAY_S,
    SILENCE_S,
    SPACE_WITHIN_S,
)
from zmqrl.supervisor.shards import LOAD_WITHIN_S, START

RUN = "0123456789abcdef"
TURN_S = 0.25
MISUSE = UsageError.exit_status


def died(process: ProcessId, status: int = 1) -> Exited:
    return Exited(process, status, "Traceback\nthe end", 1.0)


class Run:
    """A run of two shards and three workers. The shards in ``come_up`` answer like real ones."""

    def __init__(self, come_up: Sequence[int] = (0, 1), **options: Any) -> None:
        given: dict[str, Any] = {"on_loss": "wait", "limits": Limits(), "checkpoint": (0, 0), "quorum": 2}
        given |= options
        self.machine = SupervisorMachine(
            run=RUN, ranks=3, local_ranks=range(3), generation=0, checkpoint_every_s=60.0, **given
        )
        self.now = 100.0
        self.present = {0, 1, 2}
        self.held: set[int] = set()
        self.doing: dict[int, tuple[str, int]] = {}  # by rank: the span and the milliseconds in it
        self.stands: dict[int, dict[str, Any]] = {}  # by shard: the fields of its STATS
        self.silent_since: dict[int, float] = {}  # by rank
        self.busy_until = 0.0  # shards do not answer before
        self.incarnations = 0
        self.actions: list[e.Action] = []
        self.take(self.machine.begin(self.now))
        for shard in come_up:
            self.start_shard(shard)

    def feed(self, event: e.Event) -> None:
        self.take(self.machine.handle(event, self.now))

    def take(self, actions: list[e.Action]) -> None:
        self.actions += actions
        for action in actions:
            self.act(action)

    def act(self, action: e.Action) -> None:
        match action:
            case e.Connect():
                self.feed(e.Connected())
            case e.AskShard(shard, greet) if shard in self.stands and self.now >= self.busy_until:
                self.feed(e.ShardSaid(shard, self.welcome(shard) if greet else self.stats(shard)))
            case e.LoadCheckpoint(generation):
                for shard, stands in self.stands.items():
                    stands |= {"generation": generation, "version": self.machine.shards.checkpoint[shard]}
                    stands |= {"state": "open", "captured": None}
                self.feed(e.CheckpointLoaded() if len(self.stands) == 2 else e.CheckpointNotLoaded("a shard is gone"))
            case e.TellShard(shard, message) if shard in self.stands:
                self.obey(self.stands[shard], message)
            case e.TakeCheckpoint(version):
                self.feed(e.CheckpointWritten((version, version)))

    def obey(self, stands: dict[str, Any], message: m.ShardCommand) -> None:
        match message:
            case m.ViewChange():
                stands["view"] = message.view
            case m.Stop():
                stands["stop"] = message.version
            case m.Checkpoint() if stands["version"] <= message.version:
                stands["captured"] = message.version

    def start_shard(self, shard: int, **stands: Any) -> None:
        self.incarnations += 1
        fresh = {"incarnation": self.incarnations, "generation": 0, "version": 0, "state": "empty"}
        self.stands[shard] = fresh | {"view": 0, "stop": None, "captured": None} | stands
        self.feed(e.ShardBound(shard))

    def kill_shard(self, shard: int, status: int = -9) -> dict[str, Any]:
        """Kill the shard. Returns the state of the shard at that time."""
        stood = self.stands.pop(shard)
        self.feed(died(shard_id(shard), status))
        return stood

    def welcome(self, shard: int) -> m.Welcome:
        stands = {name: value for name, value in self.stands[shard].items() if name not in ("stop", "captured")}
        view: dict[str, Any] = {"quorum": 2, "members": (0, 1, 2), "codec": "f32", "published": True}
        return m.Welcome(run=RUN, shard=shard, **stands, **view)

    def stats(self, shard: int) -> m.Stats:
        present = tuple(sorted(self.present))
        silent_ms = tuple(round(1000 * (self.now - self.silent_since.get(rank, self.now))) for rank in present)
        seen: dict[str, Any] = {"present": present, "silent_ms": silent_ms, "tallies": ()}
        seen["held"] = tuple(sorted(self.held))
        doing = {rank: span for rank, span in self.doing.items() if rank in self.present - self.held}
        seen["span_ranks"] = tuple(doing)
        seen["spans"], seen["span_ms"] = (tuple(each[i] for each in doing.values()) for i in (0, 1))
        kept: dict[str, Any] = {"quorum": 2, "totals": (0, 0, 0, 0), "captured_totals": (), "unattributed": 0}
        return m.Stats(run=RUN, shard=shard, failure="", **self.stands[shard], **seen, **kept)

    def make_version(self) -> None:
        for stands in self.stands.values():
            stands["version"] += stands["state"] == "open"

    def ticks(self, seconds: float, *, versions: bool = False) -> list[e.Action]:
        """Let time pass. Returns the actions in that time."""
        before = len(self.actions)
        for _ in range(round(seconds / TURN_S)):
            self.now += TURN_S
            if versions:
                self.make_version()
            self.feed(e.Tick())
        return self.actions[before:]

    def told(self, kind: type[Any], since: int = 0) -> list[Any]:
        return [action for action in self.actions[since:] if isinstance(action, kind)]

    def sent(self, kind: type[Any], since: int = 0) -> list[Any]:
        """The actions that send a message of this ``kind`` to a shard."""
        return [action for action in self.told(e.TellShard, since) if isinstance(action.message, kind)]


@pytest.fixture
def run() -> Run:
    run = Run()
    run.ticks(1.0)
    return run


@pytest.fixture
def half_up() -> Run:
    """A run that has just begun. Its shard 1 does not come up."""
    return Run(come_up=[0])


def test_a_run_starts_all_processes_connects_loads_the_checkpoint_and_counts_its_time(run: Run) -> None:
    assert [str(action.process) for action in run.told(e.StartProcess)] == [
        *("shard-0", "shard-1"),
        *("worker-0", "worker-1", "worker-2"),
    ]
    kinds = [type(action) for action in run.actions if isinstance(action, e.Connect | e.LoadCheckpoint | e.BeginTime)]
    assert kinds == [e.Connect, e.LoadCheckpoint, e.BeginTime]
    assert run.told(e.LoadCheckpoint) == [e.LoadCheckpoint(1, View(1, 2, (0, 1, 2)))]
    assert run.machine.shards.ready


def test_progress_by_minutes_is_sent_repeatedly_and_ends_at_a_million() -> None:
    run = Run(schedule_end=ScheduleEnd(minutes=1.0, trained_s=15.0))
    run.ticks(1.0)
    assert [load.elapsed for load in run.told(e.LoadCheckpoint)] == [250_000]
    begun_at = run.machine.began_at
    assert begun_at is not None
    run.ticks(30.0, versions=True)
    told = [action.message.elapsed for action in run.sent(m.Elapsed) if action.shard == 1]
    assert told == sorted(told)
    assert told[-1] == run.machine.elapsed(run.now) == int(1e6 * (15 + run.now - begun_at) / 60)
    assert len(told) > 100
    before = len(run.actions)
    run.ticks(30.0, versions=True)
    assert [action.message.elapsed for action in run.sent(m.Elapsed, before)][-2:] == [1_000_000] * 2


def test_progress_is_the_greater_of_minutes_and_agent_steps_and_is_sent_again_in_a_rollback() -> None:
    run = Run(schedule_end=ScheduleEnd(minutes=10.0, agent_steps=1000))
    run.ticks(1.0)
    run.feed(e.RunFigures(400, float("-inf"), 1.0))
    run.ticks(1.0, versions=True)
    assert run.sent(m.Elapsed)[-1] == e.TellShard(1, m.Elapsed(run=RUN, elapsed=400_000))
    run.feed(e.RunFigures(300, float("-inf"), 1.0))
    run.kill_shard(0)
    run.start_shard(0)
    run.ticks(5.0)
    assert run.told(e.LoadCheckpoint)[-1] == e.LoadCheckpoint(2, View(1, 2, (0, 1, 2)), 300_000)


def test_no_progress_is_sent_if_no_schedule_ends_by_minutes_or_agent_steps(run: Run) -> None:
    run.ticks(10.0, versions=True)
    assert run.sent(m.Elapsed) == []


def test_a_shard_that_does_not_come_up_is_named_and_fails_the_run(half_up: Run) -> None:
    assert e.Fail("shard 1 did not come up within 60 s", see_logs=True) in half_up.ticks(61.0)


def test_a_shard_that_comes_back_with_its_state_gets_the_view_and_the_run_continues(run: Run) -> None:
    run.ticks(2.0, versions=True)
    stood = run.kill_shard(1)
    since = len(run.actions)
    assert e.StartProcess(shard_id(1)) in run.ticks(0.5)
    run.start_shard(1, **stood)
    run.stands[1]["incarnation"] = 77
    run.ticks(0.5)
    assert e.Notice(f"shard 1 is back at version {stood['version']}") in run.actions[since:]
    change = m.ViewChange(run=RUN, view=1, quorum=2, members=(0, 1, 2))
    assert run.sent(m.ViewChange, since)[0] == e.TellShard(1, change)
    assert run.told(e.LoadCheckpoint, since) == []


def test_a_shard_that_comes_back_empty_rolls_all_shards_back_to_the_checkpoint(run: Run) -> None:
    run.ticks(2.0, versions=True)
    run.kill_shard(1)
    run.ticks(0.5)
    run.start_shard(1)
    since = len(run.actions)
    run.ticks(0.5)
    assert [load.generation for load in run.told(e.LoadCheckpoint, since)] == [2]
    text = "shard 1 came back without the newest state: all shards go back to the checkpoint of version 0"
    assert e.Notice(text) in run.actions[since:]
    assert {stands["version"] for stands in run.stands.values()} == {0}
    assert run.machine.shards.ready


def test_a_rollback_that_waits_too_long_for_a_shard_ends_the_run(run: Run) -> None:
    run.kill_shard(0)
    run.start_shard(0)
    run.ticks(0.5)
    run.kill_shard(1)
    run.kill_shard(0)
    run.start_shard(0)
    fails = [action for action in run.ticks(LOAD_WITHIN_S + 2.0) if isinstance(action, e.Fail)]
    assert fails[0] == e.Fail("shard 1 did not come up within 60 s.")


def test_a_rollback_that_shards_do_not_carry_out_ends_the_run_with_the_last_reason() -> None:
    run, act = Run(), Run.act

    def never_loads(action: e.Action) -> None:
        if isinstance(action, e.LoadCheckpoint):
            run.feed(e.CheckpointNotLoaded("shard 1 did not answer LOAD within 5 s."))
        else:
            act(run, action)

    run.act = never_loads  # type: ignore[method-assign]
    run.ticks(LOAD_WITHIN_S + 2.0)
    assert run.told(e.Fail)[0] == e.Fail(
        "the shards did not load the checkpoint within 60 s: shard 1 did not answer LOAD within 5 s."
    )


def test_a_rollback_waits_for_a_lost_host_as_long_as_the_run_does(run: Run) -> None:
    run.kill_shard(0)
    run.start_shard(0)  # without its state
    run.stands.pop(1)
    run.feed(Exited(shard_id(1), -9, "", 0.0, "host h2 is lost: no route", with_host=True))
    run.feed(HostLost("h2", "no route", (shard_id(1),)))
    run.ticks(5 * LOAD_WITHIN_S)
    assert run.told(e.Fail) == []
    run.feed(HostUp("h2"))
    run.ticks(LOAD_WITHIN_S - 1.0)
    assert run.told(e.Fail) == []
    run.ticks(2.0)
    assert run.told(e.Fail)[0] == e.Fail("shard 1 did not come up within 60 s."), (
        "the host is back, but the shard is not"
    )


def test_a_quorum_of_workers_can_report_that_a_shard_has_lost_versions(run: Run) -> None:
    run.ticks(1.0)
    since = len(run.actions)
    for rank in (0, 1):
        assert run.told(e.LoadCheckpoint, since) == []
        run.feed(e.ShardSaid(0, m.Lost(run=RUN, shard=0, rank=rank, version=9)))
        run.ticks(0.5)
    assert len(run.told(e.LoadCheckpoint, since)) == 1


def test_one_worker_cannot_report_alone_that_a_shard_has_lost_versions(run: Run) -> None:
    run.ticks(1.0)
    since = len(run.actions)
    for _ in range(3):
        run.feed(e.ShardSaid(0, m.Lost(run=RUN, shard=0, rank=0, version=9)))
        run.ticks(0.5)
    assert run.told(e.LoadCheckpoint, since) == []


def test_a_report_of_lost_versions_does_not_count_once_the_shard_has_made_them(run: Run) -> None:
    run.ticks(1.0)
    since = len(run.actions)
    run.feed(e.ShardSaid(0, m.Lost(run=RUN, shard=0, rank=0, version=9)))
    run.ticks(10 * TURN_S, versions=True)
    assert run.machine.shards.stats[0].version >= 9
    newest = run.machine.shards.stats[0].version + 1
    run.feed(e.ShardSaid(0, m.Lost(run=RUN, shard=0, rank=1, version=newest)))
    run.ticks(0.5)
    assert run.told(e.LoadCheckpoint, since) == []


def test_a_checkpoint_is_captured_on_every_shard_then_fetched_and_due_again_a_period_later(run: Run) -> None:
    run.ticks(58.0, versions=True)
    assert run.sent(m.Checkpoint) == []
    since = len(run.actions)
    run.ticks(4.0, versions=True)
    asked = {action.message.version for action in run.sent(m.Checkpoint, since)}
    (taken,) = run.told(e.TakeCheckpoint, since)
    assert asked == {taken.version}
    assert run.machine.shards.checkpoint == (taken.version, taken.version)
    assert not any(isinstance(action, e.TakeCheckpoint) for action in run.ticks(50.0, versions=True))


def due(run: Run, *, versions: tuple[int, int] = (5, 5)) -> list[Any]:
    """Make the periodic checkpoint due. Returns the requests to the shards, which never arrive there."""
    for shard, version in enumerate(versions):
        run.stands[shard]["version"] = version
    run.act = lambda action: None  # type: ignore[method-assign]
    run.feed(e.RunFigures(0, 0.0, 10.0))
    run.now = max(run.now, 102.0) + 60.0
    return look(run)


def look(run: Run) -> list[Any]:
    """Let both shards report their state, and let the supervisor check this state. Returns the supervisor's checkpoint
    requests.
    """
    run.now += TURN_S
    since = len(run.actions)
    for shard in run.stands:
        run.feed(e.ShardSaid(shard, run.stats(shard)))
    run.feed(e.Tick())
    return run.sent(m.Checkpoint, since)


def test_no_checkpoint_is_requested_before_it_is_due(run: Run) -> None:
    run.ticks(58.0)
    assert run.sent(m.Checkpoint) == []


def test_all_shards_get_a_checkpoint_request_for_the_same_future_version(run: Run) -> None:
    first, second = due(run, versions=(5, 6))
    assert first.message.version == second.message.version > 6
    assert {first.shard, second.shard} == {0, 1}


def test_a_request_is_repeated_only_to_shards_that_have_not_captured_the_version(run: Run) -> None:
    wanted = due(run)[0].message.version
    run.stands[0] |= {"version": wanted, "captured": wanted}
    run.stands[1] |= {"version": wanted - 1}
    assert look(run) == [e.TellShard(1, m.Checkpoint(run=RUN, version=wanted))]


def test_a_version_that_a_shard_missed_is_replaced_by_a_later_one(run: Run) -> None:
    wanted = due(run)[0].message.version
    passed = wanted + 3
    run.stands[0] |= {"version": passed, "captured": wanted}
    run.stands[1] |= {"version": passed}
    asked = look(run)
    assert {each.message.version for each in asked} == {asked[0].message.version}
    assert asked[0].message.version > passed


def test_a_shard_that_is_down_or_ended_postpones_the_checkpoint(run: Run) -> None:
    run.stands[1]["state"] = "ended"
    assert due(run) == []
    run.stands[1]["state"] = "open"
    run.kill_shard(1)
    assert look(run) == []


def test_a_failed_checkpoint_is_due_again_a_period_later(run: Run) -> None:
    due(run)
    run.feed(e.CheckpointFailed(9, "shard 1 no longer has version 9"))
    run.now += 58.0
    assert look(run) == []
    run.now += 2.0
    assert len(look(run)) == 2


def test_a_failed_checkpoint_is_postponed_and_reported(run: Run) -> None:
    run.feed(e.CheckpointFailed(7, "no space"))
    assert run.actions[-1] == e.Notice("checkpoint of version 7 postponed: no space")


def test_a_follower_can_ask_for_a_checkpoint_before_it_is_due(run: Run) -> None:
    run.feed(e.CheckpointWanted())
    run.ticks(1.0)
    assert len(run.told(e.TakeCheckpoint)) == 1


def keep_asking(run: Run, seconds: float) -> list[e.TakeCheckpoint]:
    """A follower asks for a checkpoint at every turn. Returns the checkpoints that are fetched."""
    since = len(run.actions)
    for _ in range(round(seconds / TURN_S)):
        run.feed(e.CheckpointWanted())
        run.ticks(TURN_S, versions=True)
    return run.told(e.TakeCheckpoint, since)


def test_checkpoints_that_a_follower_asks_for_on_a_full_disk_are_rare_and_reported_once(run: Run) -> None:
    act = run.act

    def fill_disk(action: e.Action) -> None:
        if isinstance(action, e.TakeCheckpoint):
            run.feed(e.CheckpointFailed(action.version, "no space"))
        else:
            act(action)

    run.act = fill_disk  # type: ignore[method-assign]
    assert 1 <= len(keep_asking(run, WANTED_AGAIN_S)) <= 2
    assert len(keep_asking(run, 3 * WANTED_AGAIN_S)) in (2, 3)
    assert len(run.told(e.Notice)) == 1
    run.act = act  # type: ignore[method-assign]
    assert keep_asking(run, WANTED_AGAIN_S + 5.0), "there is space again"
    run.act = fill_disk  # type: ignore[method-assign]
    since = len(run.actions)
    assert keep_asking(run, 5.0), "a written checkpoint ends the delay"
    assert len(run.told(e.Notice, since)) == 1


def test_a_run_shrinks_to_the_live_workers_and_grows_again() -> None:
    run = Run(on_loss="shrink")
    run.ticks(2.0)
    run.present = {2}
    since = len(run.actions)
    run.ticks(SHRINK_AFTER_S + 1.0)
    assert {action.message.quorum for action in run.sent(m.ViewChange, since)} == {1}
    assert e.Notice("continuing with 1 of 2 workers") in run.actions[since:]
    run.present = {0, 2}
    run.ticks(1.0)
    assert run.machine.membership.view == View(3, 2, (0, 1, 2))


def test_a_shrinking_run_begins_without_a_worker_that_can_never_start() -> None:
    run = Run(on_loss="shrink", quorum=3)
    run.present = {0, 1}
    run.feed(died(worker_id(2), MISUSE))
    run.ticks(SHRINK_AFTER_S + 1.0)
    assert run.machine.membership.view.quorum == 2
    assert run.told(e.BeginTime)
    assert not run.told(e.Fail)


def test_a_shrunken_run_does_not_wait_for_workers_that_come_and_die_again_until_they_work() -> None:
    run = Run(on_loss="shrink")
    run.ticks(2.0)
    for rank in (1, 2):
        for _ in range(FAILURES_IN_A_ROW):
            run.feed(died(worker_id(rank)))
    assert run.present == {0, 1, 2}, "each of them has just connected again"
    run.ticks(SHRINK_AFTER_S + 1.0)
    assert run.machine.membership.view.quorum == 1
    run.feed(e.WorkerReported(2, incarnation=1, done=1))  # no shard needs to have used this gradient
    run.ticks(1.0)
    assert run.machine.membership.view.quorum == 2
    assert not run.told(e.Fail)


def test_a_shard_that_keeps_dying_fails_the_run_with_its_last_log_line(run: Run) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        run.kill_shard(0, status=1)
        run.start_shard(0)
    assert run.told(e.Fail) == [e.Fail(f"shard-0 died {FAILURES_IN_A_ROW} times in a row (exit status 1)\n  | the end")]


def fill_disk(run: Run, seconds: float) -> list[e.Action]:
    """The disk of shard 0 is full for some time. During this time, the shard dies at each start. Returns the
    actions.
    """
    before, until = len(run.actions), run.now + seconds
    run.kill_shard(0, DISK_IS_FULL)
    while run.now < until:
        if e.StartProcess(shard_id(0)) in run.ticks(TURN_S):
            run.start_shard(0)
            run.kill_shard(0, DISK_IS_FULL)
    return run.actions[before:]


def test_a_run_waits_for_space_on_the_disk_of_a_shard_and_then_goes_on(run: Run) -> None:
    run.ticks(1.0)
    stood = dict(run.stands[0])
    actions = fill_disk(run, SPACE_WITHIN_S - LONGEST_DELAY_S)
    told = [action.lines[0] for action in actions if isinstance(action, e.TellDeath)]
    assert told[0] == "has a full disk; the run waits 300 s for space"
    assert 5 <= len(told) <= 15, "the log names the wait, but is not flooded"
    assert not run.told(e.Fail)
    while e.StartProcess(shard_id(0)) not in run.ticks(TURN_S):
        pass
    run.start_shard(0, **stood | {"incarnation": 99})
    run.ticks(3.0, versions=True)
    assert run.machine.shards.ready
    assert run.machine.processes.first_death is None, "the run has recovered"
    assert not [action for action in fill_disk(run, SPACE_WITHIN_S - 1.0) if isinstance(action, e.Fail)]


def test_workers_that_give_up_waiting_for_a_full_disk_do_not_end_the_run(run: Run) -> None:
    run.ticks(1.0)
    run.kill_shard(0, DISK_IS_FULL)
    for _ in range(2 * FAILURES_IN_A_ROW):
        for rank in range(2):
            run.feed(died(worker_id(rank), 3))
        run.ticks(2.0)
    assert not run.told(e.Fail)
    first = run.machine.processes.first_death
    assert first is not None
    assert first.process == shard_id(0)


def test_workers_that_end_for_no_reason_end_the_run(run: Run) -> None:
    """They end as workers do that have waited too long for a shard, but all shards are up."""
    run.ticks(1.0)
    for _ in range(2 * FAILURES_IN_A_ROW):
        for rank in range(2):
            run.feed(died(worker_id(rank), 3))
        run.ticks(2.0)
    assert run.told(e.Fail)
    first = run.machine.processes.first_death
    assert first is not None
    assert first.process == worker_id(0)


def test_a_disk_that_stays_full_fails_the_run_and_the_error_names_the_remedy(run: Run) -> None:
    run.ticks(1.0)
    fails = [action for action in fill_disk(run, SPACE_WITHIN_S + 1.0) if isinstance(action, e.Fail)]
    assert fails[:1] == [e.Fail("the disk of shard-0 was full for 300 s: free some space, then use --resume.")]
    first = run.machine.processes.first_death
    assert first is not None
    assert first.how() == "its disk is full"


def test_an_interrupt_does_not_wait_for_space_but_the_limit_of_a_run_does() -> None:
    run = Run(limits=Limits(minutes=1.0))
    run.ticks(1.0)
    fill_disk(run, 100.0)
    assert run.machine.out_of_space == [shard_id(0)]
    assert not run.told(e.EndRun)
    run.feed(e.Interrupted())
    run.ticks(TURN_S)
    assert run.told(e.EndRun) == [e.EndRun("interrupted")]


def test_workers_do_not_count_as_silent_while_no_shard_is_up(run: Run) -> None:
    run.ticks(1.0)
    stood = dict(run.stands)
    for shard in (0, 1):
        run.kill_shard(shard, DISK_IS_FULL)
    run.ticks(2 * HUNG_S)
    for shard in (0, 1):
        run.start_shard(shard, **stood[shard] | {"incarnation": 99})
    run.ticks(1.0)
    assert not run.told(e.TellSilence)
    assert not run.told(e.KillProcess)


def test_a_status_of_a_worker_never_means_that_a_disk_is_full(run: Run) -> None:
    for rank in range(2):
        for _ in range(FAILURES_IN_A_ROW):
            run.feed(died(worker_id(rank), DISK_IS_FULL))
    assert run.told(e.Fail) == [e.Fail("worker-1 died 4 times in a row (exit status 28)\n  | the end")]


def test_a_rollback_waits_for_a_shard_whose_disk_is_full(run: Run) -> None:
    run.ticks(1.0)
    run.kill_shard(1)
    run.start_shard(1)  # without its state
    assert not [action for action in fill_disk(run, 2 * LOAD_WITHIN_S) if isinstance(action, e.Fail)]
    while e.StartProcess(shard_id(0)) not in run.ticks(TURN_S):
        pass
    run.start_shard(0)
    run.ticks(1.0)
    assert run.machine.shards.ready


def test_a_disk_that_is_full_at_the_start_ends_the_run_soon() -> None:
    machine = SupervisorMachine(
        run=RUN,
        checkpoint=(0, 0),
        generation=0,
        ranks=1,
        quorum=1,
        on_loss="wait",
        limits=Limits(),
        local_ranks=range(1),
        checkpoint_every_s=60.0,
    )
    machine.begin(0.0)
    actions = [machine.handle(died(shard_id(0), DISK_IS_FULL), 1.0) for _ in range(FAILURES_IN_A_ROW)]
    assert actions[-1][-1] == e.Fail("shard-0 died 4 times in a row (its disk is full)\n  | the end")


@pytest.mark.parametrize(("on_loss", "deaths"), [("wait", 2), ("shrink", 3)])
def test_workers_that_keep_dying_fail_the_run_once_too_few_are_left(on_loss: str, deaths: int) -> None:
    run = Run(on_loss=on_loss)
    run.ticks(1.0)
    for rank in range(3):
        assert bool(run.told(e.Fail)) == (rank >= deaths)
        for _ in range(FAILURES_IN_A_ROW):
            run.feed(died(worker_id(rank)))
    assert run.told(e.Fail)


@pytest.mark.parametrize(
    ("options", "deaths"), [({"quorum": 3}, 1), ({"quorum": 2}, 2), ({"quorum": 3, "on_loss": "shrink"}, 3)]
)
def test_usage_errors_of_workers_end_the_run_at_once_if_too_few_workers_are_left(
    options: dict[str, Any], deaths: int
) -> None:
    run = Run(**options)
    run.ticks(1.0)
    for rank in range(deaths):
        assert not run.told(e.Fail)
        run.feed(died(worker_id(rank), MISUSE))
    assert run.told(e.Fail) == [e.Fail("the end", misused=worker_id(deaths - 1))]
    assert [action.process for action in run.told(e.TellDeath)] == [worker_id(rank) for rank in range(deaths - 1)]


def test_a_worker_that_works_after_its_usage_error_is_no_longer_lost(run: Run) -> None:
    run.feed(died(worker_id(0), MISUSE))
    assert e.StartProcess(worker_id(0)) in run.ticks(1.0)
    run.feed(e.WorkerReported(0, incarnation=1, done=1))
    run.feed(died(worker_id(1), MISUSE))
    assert not run.told(e.Fail)


def test_a_run_that_ends_needs_no_worker(run: Run) -> None:
    run.kill_shard(1)  # so the run cannot end yet
    run.feed(e.Interrupted())
    run.ticks(1.0)
    assert run.machine.state == "stopping"
    for rank in range(3):
        run.feed(died(worker_id(rank), MISUSE))
    run.feed(e.Ending())
    since = len(run.actions)
    for rank in range(3):
        run.feed(died(worker_id(rank), MISUSE))
    assert not run.told(e.TellDeath, since)
    assert not run.told(e.Fail)


def test_the_reason_of_a_usage_error_is_the_last_error_in_the_log() -> None:
    run = Run(quorum=3)
    log = "2026-01-05 10:12:03,512 ERROR Maze-v0 returned a reward of nan from step 3.\nExiting \x1b[0m"
    run.feed(Exited(worker_id(0), MISUSE, log, 1.0))
    run.feed(Exited(worker_id(1), MISUSE, "", 1.0))
    assert run.told(e.Fail) == [
        e.Fail("Maze-v0 returned a reward of nan from step 3.", misused=worker_id(0)),
        e.Fail("worker-1 ended with exit status 2.", misused=worker_id(1)),
    ]


def test_a_run_that_needs_an_unreachable_host_ends_with_the_time_since_the_loss() -> None:
    run = Run(quorum=3)
    run.ticks(1.0)
    worker = worker_id(2)
    for _ in range(KILLS_IN_A_ROW):
        run.feed(Exited(worker, -9, "", 0.0, "host h2 is lost: no route", with_host=True))
        run.feed(HostLost("h2", "no route", (worker,)))
        run.now += 10.0
    (failed,) = run.told(e.Fail)
    seconds = 10 * (KILLS_IN_A_ROW - 1)
    assert failed.why == (
        f"worker-2 cannot run, because its host has been unreachable for {seconds} s (host h2 is lost: no route)."
    )
    assert run.told(e.TellDeath) == []


def test_a_follower_that_keeps_dying_is_given_up_and_the_run_continues(run: Run) -> None:
    evaluator = ProcessId("evaluator", 0)
    for _ in range(FAILURES_IN_A_ROW):
        run.feed(died(evaluator))
    assert run.told(e.GiveUp) == [e.GiveUp(evaluator, f"died {FAILURES_IN_A_ROW} times in a row")]
    assert run.told(e.Fail) == []
    assert run.machine.processes.first_death is None
    assert e.StartProcess(evaluator) not in run.ticks(60.0)


def test_a_follower_that_ends_with_a_usage_error_is_given_up_at_once(run: Run) -> None:
    evaluator = ProcessId("evaluator", 0)
    run.feed(died(evaluator, MISUSE))
    assert run.told(e.GiveUp) == [e.GiveUp(evaluator, "ended with exit status 2")]
    assert run.told(e.Fail) == []


def test_a_hung_shard_is_named_and_then_killed(run: Run) -> None:
    run.stands[0]["state"] = "open"
    hung = run.stands.pop(0)
    since = len(run.actions)
    run.ticks(HUNG_S + 2.0)
    (kill,) = run.told(e.KillProcess, since)
    assert kill.process == shard_id(0)
    assert [action.silent_s >= SILENCE_S for action in run.told(e.TellSilence, since)].count(True) >= 4
    assert e.AskShard(0, greet=True) in run.actions[since:], "at first, only its connection may be broken"
    assert hung


@pytest.mark.parametrize(("binds", "within_s"), [(True, HUNG_S), (False, START_WITHIN_S)])
def test_a_restarted_shard_that_hangs_before_its_first_answer_is_killed(run: Run, binds: bool, within_s: float) -> None:
    run.kill_shard(1)
    run.ticks(1.0)
    if binds:
        run.feed(e.ShardBound(1))
    assert [action for action in run.ticks(within_s - 2.0) if isinstance(action, e.KillProcess)] == []
    (kill,) = [action for action in run.ticks(4.0) if isinstance(action, e.KillProcess)]
    assert kill.process == shard_id(1)
    run.feed(died(shard_id(1), -9))
    assert e.StartProcess(shard_id(1)) in run.ticks(2.0)


def test_a_shard_does_not_count_as_silent_while_the_others_come_up() -> None:
    run = Run(come_up=[0])
    run.ticks(2 * SILENCE_S)
    run.start_shard(1)
    run.stands.clear()
    assert run.told(e.TellSilence) == []
    assert [each for each in run.ticks(SILENCE_S - 1.0) if isinstance(each, e.TellSilence | e.KillProcess)] == []
    kills = [each.process for each in run.ticks(HUNG_S) if isinstance(each, e.KillProcess)]
    assert kills == [shard_id(0), shard_id(1)], "both never answered"


def stalled(run: Run, seconds: float = 8.0, since: int = 0) -> Stall:
    """Let a run make versions, then none for a while. Returns the last stall that it shows."""
    run.ticks(2.0, versions=True)
    run.ticks(seconds)
    found: Stall = run.told(e.ShowStall, since)[-1].stall
    return found


def test_a_hung_worker_is_killed_in_time_even_if_the_shards_seldom_answer(run: Run) -> None:
    began = run.now
    run.silent_since[2] = began
    while not run.told(e.KillProcess):
        assert run.now - began <= HUNG_S + 2.0
        run.busy_until = run.now + 1.0
        run.ticks(1.0, versions=True)
    assert [kill.process for kill in run.told(e.KillProcess)] == [worker_id(2)]
    assert run.now - began >= HUNG_S


def test_a_stall_names_and_inspects_the_workers_that_have_not_contributed(run: Run) -> None:
    run.held, run.doing = {0, 2}, {0: ("wait", 100), 1: ("env_step", 4000)}
    run.machine.membership.view = View(1, 3, (0, 1, 2))
    stall = stalled(run)
    assert [(each.process, each.span, each.span_s) for each in stall.awaited] == [(worker_id(1), "env_step", 4.0)]
    assert run.told(e.InspectProcess) == [e.InspectProcess(worker_id(1))]
    run.feed(Inspected(worker_id(1), Doing(state="waiting", kernel="futex", stack=("a frame",))))
    run.ticks(1.0)
    shown = run.told(e.ShowStall)[-1].stall
    assert shown.awaited[0].doing == Doing(state="waiting", kernel="futex", stack=("a frame",))
    assert [action.tell for action in run.told(e.ShowStall)].count(True) == 1
    assert run.told(e.EndStall) == []
    run.ticks(1.0, versions=True)
    (end,) = run.told(e.EndStall)
    assert end.tell
    assert run.machine.stalls.waited_s(run.now) == 0.0


def test_external_workers_are_named_but_not_inspected() -> None:
    run = Run()
    run.machine.local_ranks = range(2)
    run.held, run.doing = {0, 1}, {2: ("gradient", 7000)}
    (awaited,) = stalled(run).awaited
    assert (awaited.process, awaited.is_external, awaited.span) == (worker_id(2), True, "gradient")
    assert run.told(e.InspectProcess) == []


def test_a_worker_that_is_not_connected_is_also_inspected(run: Run) -> None:
    run.present, run.held = {0, 2}, {0, 2}
    (awaited,) = stalled(run).awaited
    assert (awaited.process, awaited.span) == (worker_id(1), "")
    assert run.told(e.InspectProcess) == [e.InspectProcess(worker_id(1))]


def test_a_silent_shard_is_inspected_but_not_the_workers_that_wait_for_it(run: Run) -> None:
    run.ticks(2.0, versions=True)
    del run.stands[1]
    run.ticks(8.0)
    (awaited,) = run.told(e.ShowStall)[-1].stall.awaited
    assert awaited.process == shard_id(1)
    assert awaited.silent_s > SILENCE_S
    assert run.told(e.InspectProcess) == [e.InspectProcess(shard_id(1))]


def test_a_shard_that_does_not_come_up_is_inspected_before_the_run_fails(half_up: Run) -> None:
    half_up.ticks(30.0)
    assert half_up.told(e.InspectProcess) == [e.InspectProcess(shard_id(1))]
    assert [each.process for each in half_up.told(e.ShowStall)[-1].stall.awaited] == [shard_id(1)]


def test_facts_about_a_dead_worker_do_not_carry_over_to_the_next_one(run: Run) -> None:
    run.present, run.held = {0, 2}, {0, 2}
    stalled(run)
    run.feed(Inspected(worker_id(1), Doing(state="stopped")))
    run.ticks(1.0)
    assert run.told(e.ShowStall)[-1].stall.awaited[0].doing is not None
    run.feed(died(worker_id(1)))
    run.ticks(1.0)
    assert run.told(e.ShowStall)[-1].stall.awaited[0].doing is None


def test_a_run_that_ends_has_no_stall(run: Run) -> None:
    run.held = {0, 2}
    stalled(run)
    run.feed(e.Ending())
    assert len(run.told(e.EndStall)) == 1
    since = len(run.actions)
    run.ticks(60.0)
    assert run.told(e.ShowStall, since) == run.told(e.InspectProcess, since) == []


@pytest.mark.parametrize(
    ("limits", "figures", "reason"),
    [
        (Limits(agent_steps=1000), e.RunFigures(1000, float("-inf"), 1.0), "agent_steps"),
        (Limits(stop_score=30.0), e.RunFigures(10, 30.0, 1.0), "stop_score"),
        (Limits(minutes=0.5), e.RunFigures(10, 0.0, 1.0), "minutes"),
    ],
)
def test_a_limit_stops_the_run(limits: Limits, figures: e.RunFigures, reason: str) -> None:
    run = Run(limits=limits)
    run.ticks(1.0)
    assert run.told(e.EndRun) == []
    run.feed(figures)
    run.ticks(31.0)
    assert run.told(e.EndRun)[0] == e.EndRun(reason)  # type: ignore[arg-type]


def test_the_run_ends_when_all_shards_have_reached_the_last_version() -> None:
    run = Run(limits=Limits(updates=8))
    run.ticks(1.0)
    assert {(action.shard, action.message.version) for action in run.sent(m.Stop)} == {(0, 8), (1, 8)}
    run.ticks(1.5, versions=True)
    assert run.told(e.EndRun) == []
    run.ticks(1.0, versions=True)
    assert run.told(e.EndRun)[0] == e.EndRun("updates")


def test_a_stop_waits_only_a_limited_time_for_a_shard_that_is_down(run: Run) -> None:
    run.kill_shard(1)
    run.feed(e.Interrupted())
    assert e.EndRun("interrupted") not in run.ticks(STOP_WITHIN_S - 1.0)
    assert e.EndRun("interrupted") in run.ticks(2.0)


def test_a_shard_that_loses_its_state_while_the_run_ends_fails_the_run(run: Run) -> None:
    run.feed(e.Ending())
    run.kill_shard(1)
    run.start_shard(1)
    run.feed(e.ShardSaid(1, run.welcome(1)))
    assert e.Fail(
        "shard 1 came back without the newest state, so the run cannot write its last checkpoint: use --resume."
    ) in run.ticks(TURN_S)


def test_a_rollback_that_was_due_before_the_run_ends_fails_the_run(run: Run) -> None:
    run.ticks(2.0, versions=True)
    run.kill_shard(0)
    run.start_shard(0)
    run.kill_shard(1)
    run.ticks(0.5)
    run.feed(e.Ending())
    assert e.Fail(
        "shard 0 came back without the newest state, so the run cannot write its last checkpoint: use --resume."
    ) in run.ticks(TURN_S)


def test_a_run_that_ends_before_its_shards_have_loaded_the_checkpoint_says_so(run: Run) -> None:
    run.machine.shards.rollback = START
    run.feed(e.Ending())
    assert e.Fail(
        "the shards have not loaded the newest checkpoint, so the run cannot write its last checkpoint: use --resume."
    ) in run.ticks(TURN_S)


def test_reports_of_lost_versions_are_ignored_while_the_run_ends(run: Run) -> None:
    run.feed(e.Ending())
    for rank in range(3):
        run.feed(e.ShardSaid(0, m.Lost(run=RUN, shard=0, rank=rank, version=9)))
    assert run.machine.shards.rollback is None


def test_a_failed_load_does_not_hide_that_newer_versions_exist(run: Run) -> None:
    run.ticks(2.0, versions=True)
    newest = run.stands[0]["version"]
    run.kill_shard(1)
    run.start_shard(1)
    run.act = lambda action: None  # type: ignore[method-assign]
    run.feed(e.ShardSaid(1, run.welcome(1)))
    run.ticks(0.5)
    run.feed(e.CheckpointNotLoaded("shard 0 did not answer"))
    assert run.machine.shards.seen[0] == newest, "the state of the shards must be kept for --resume"


def test_workers_do_not_count_as_silent_while_a_rollback_waits_for_a_shard(run: Run) -> None:
    run.ticks(2.0, versions=True)
    run.kill_shard(1)
    run.ticks(0.5)
    run.machine.shards.rollback = "shard 0 lost versions"
    since = len(run.actions)
    run.ticks(HUNG_S + 2.0)
    assert run.told(e.TellSilence, since) == run.told(e.KillProcess, since) == []


@pytest.mark.parametrize("status", [0, USER_CODE_FAILED])
def test_a_worker_that_leaves_an_ending_run_is_not_restarted(run: Run, status: int) -> None:
    run.feed(e.Ending())
    run.feed(died(worker_id(0), status))
    assert run.told(e.TellDeath) == []
    before = len(run.told(e.StartProcess))
    run.ticks(LONGEST_DELAY_S + 1.0)
    assert len(run.told(e.StartProcess)) == before


@pytest.mark.parametrize("status", [0, USER_CODE_FAILED])
def test_a_worker_that_leaves_has_not_failed_while_the_run_may_be_over(status: int) -> None:
    run = Run(limits=Limits(updates=10_000))
    run.ticks(1.0)
    unheard, run.stands = run.stands, {}  # the shards may make many versions without the supervisor's knowledge
    for _ in range(2 * FAILURES_IN_A_ROW):
        run.feed(died(worker_id(0), status))
        run.ticks(0.5)
    assert run.machine.processes.first_death is None
    assert not run.machine.processes.hopeless
    run.stands = unheard
    for stands in run.stands.values():
        stands |= {"version": 10_000, "state": "ended"}
    assert e.EndRun("updates") in run.ticks(3.0)


@pytest.mark.parametrize("updates", [1, 10_000])
def test_a_worker_that_leaves_while_shards_make_versions_has_failed(updates: int) -> None:
    run = Run(limits=Limits(updates=updates), quorum=3)
    run.ticks(1.0)
    for _ in range(FAILURES_IN_A_ROW + 1):  # the first exit can have come just before the end
        run.feed(died(worker_id(0), status=0))
        run.ticks(0.5)
    assert run.machine.processes.first_death == died(worker_id(0), status=0)
    (failed,) = run.told(e.Fail)
    assert failed.why.startswith("worker-0 died 5 times in a row (exit status 0)")


def test_a_worker_that_leaves_a_run_without_a_last_version_has_failed() -> None:
    run = Run(limits=Limits(minutes=1.0), quorum=3)
    run.ticks(1.0)
    for _ in range(FAILURES_IN_A_ROW):
        run.feed(died(worker_id(0), status=0))
    (failed,) = run.told(e.Fail)
    assert failed.why.startswith("worker-0 died 4 times in a row (exit status 0)")


def test_a_failed_assertion_lists_the_last_events(run: Run) -> None:
    run.kill_shard(0)
    run.machine.shards.seen[1] = -1
    with pytest.raises(AssertionError, match=r"supervisor: seen goes back(?s:.*)Exited\(process=") as error:
        run.feed(e.Tick())
    assert "shard" in str(error.value)


class AnyRun(RuleBasedStateMachine):
    """Faults in any order: the decisions keep their invariants, and the run continues once the faults stop."""

    def __init__(self) -> None:
        super().__init__()
        self.run = Run(on_loss="shrink")

    shards = st.integers(0, 1)

    @rule(shard=shards, loses=st.booleans())
    def a_shard_dies_and_comes_back(self, shard: int, loses: bool) -> None:
        stood = self.run.kill_shard(shard)
        self.run.ticks(TURN_S)
        self.run.start_shard(shard)
        if not loses:
            self.run.stands[shard] |= stood | {"incarnation": self.run.incarnations}

    @rule(rank=st.integers(0, 2))
    def a_worker_comes_or_goes(self, rank: int) -> None:
        self.run.present ^= {rank}

    @rule(rank=st.integers(0, 2), status=st.sampled_from([0, -9]))
    def a_worker_dies(self, rank: int, status: int) -> None:
        if worker_id(rank) in self.run.machine.processes.running and not self.run.told(e.Fail):
            self.run.feed(died(worker_id(rank), status))
            self.run.machine.processes.worked(worker_id(rank))

    @rule(seconds=st.sampled_from([0.25, 1.0, 12.0, 70.0]), versions=st.booleans())
    def time_passes(self, seconds: float, versions: bool) -> None:
        self.run.ticks(seconds, versions=versions)

    @invariant()
    def the_run_gets_on(self) -> None:
        assert self.run.told(e.Fail) == []
        if len(self.run.stands) == 2:
            self.run.ticks(1.0)
            assert self.run.machine.shards.ready
            generations = {stands["generation"] for stands in self.run.stands.values()}
            assert generations == {self.run.machine.shards.generation}


TestAnyRun = AnyRun.TestCase
TestAnyRun.settings = settings(stateful_step_count=20)


def test_a_present_worker_that_a_version_lacks_is_awaited_and_stopped_if_its_host_says_so() -> None:
    run = Run()
    run.ticks(1.0, versions=True)
    worker = worker_id(2)
    assert run.machine.presence(worker, {}, run.now)[0] == "present"
    assert run.machine.presence(worker, {2: 1.9}, run.now)[0] == "present"
    assert run.machine.presence(worker, {2: 21.0}, run.now) == ("awaited", 21.0)
    assert run.machine.presence(shard_id(0), {0: 21.0}, run.now)[0] == "present"
    run.feed(Inspected(worker, Doing(state="stopped")))
    assert run.machine.presence(worker, {2: 21.0}, run.now)[0] == "stopped"
