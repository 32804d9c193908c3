"""The state machine of a shard, one behaviour a test: events in, actions out, time handed in."""

from dataclasses import replace
from typing import Any, TypeVar

import pytest

from zmqrl.ps import messages as m
from zmqrl.ps.shard import Identity, Shard, Timing
from zmqrl.ps.shard_events import (
    Accumulate,
    Action,
    Capture,
    ControlArrived,
    GradientArrived,
    Log,
    MalformedArrived,
    PresenceChanged,
    Publish,
    PublishWeights,
    Record,
    Send,
    SendChunk,
    SendSnapshot,
    StateRestored,
    TakeChunk,
    Tick,
    Update,
    View,
)

T = TypeVar("T")

SUPERVISOR = b"supervisor"
IDENTITY = Identity(
    run="run",
    layout="layout",
    shard=1,
    incarnation=7,
    codec="f32",
    payload_bytes={"f32": 64, "bf16": 32},
    secret="secret",
)
HELLO = m.Hello(run="run", layout="layout", role="worker", rank=0, incarnation=10, host="h", pid=1, secret="")
GRADIENT = m.Gradient(
    run="run",
    layout="layout",
    generation=1,
    view=1,
    shard=1,
    version=0,
    rank=0,
    incarnation=10,
    attempt=0,
    codec="f32",
)
RECORD = Record(
    generation=1,
    version=0,
    view=View(1, 2, (0, 1, 2)),
    quorum=0,
    ranks=(),
    late=0,
    duplicate=0,
    rejected=0,
    tallies={},
    unattributed=0,
)


def of(kind: type[T], actions: list[Action]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> list[m.Message]:
    return [action.message for action in of(Send, actions)]


def published(actions: list[Action]) -> list[str]:
    """What subscribers hear, in order."""
    heard = [action for action in actions if isinstance(action, Publish | PublishWeights)]
    return ["weights" if isinstance(a, PublishWeights) else type(a.message).__name__.lower() for a in heard]


def control(shard: Shard, message: m.Message, peer: bytes = SUPERVISOR, now: float = 0.0) -> list[Action]:
    return shard.handle(ControlArrived(peer, message), now)


def arrive(shard: Shard, worker: int, now: float = 0.0, incarnation: int = 10) -> list[Action]:
    """A worker subscribes and says HELLO."""
    here = shard.handle(PresenceChanged(worker, incarnation, here=True), now)
    return here + control(shard, replace(HELLO, rank=worker, incarnation=incarnation), b"%d" % worker, now)


def push(machine: Shard, worker: int, now: float = 0.0, *, finite: bool = True, size: int = 64, **fields: Any) -> Any:
    """A contribution to the open version arrives, or one that differs from it in ``fields``."""
    header = replace(
        GRADIENT, rank=worker, generation=machine.generation, version=machine.version, view=machine.view.id
    )
    return machine.handle(GradientArrived(replace(header, **fields), f"payload {worker}", size, lambda: finite), now)


def make_version(shard: Shard, *workers: int, now: float = 0.0) -> list[Action]:
    return [action for worker in workers for action in push(shard, worker, now)]


def opened(*, consistent: bool = False, workers: tuple[int, ...] = (0, 1, 2), **record: Any) -> Shard:
    """A shard at version 0, two of ranks 0 to 2 make an update, whose workers are all there."""
    shard = Shard(IDENTITY, Timing(), consistent=consistent)
    control(shard, replace(HELLO, role="supervisor", secret="secret"))
    shard.handle(StateRestored(replace(RECORD, **record), recovered=False), 0.0)
    for worker in workers:
        arrive(shard, worker)
    return shard


def tallies(shard: Shard) -> dict[int, list[int]]:
    """Used, late, duplicate and rejected by rank."""
    return {rank: list(tally) for rank, tally in shard.tallies.items()}


def stop_at(version: int | None) -> m.Stop:
    return m.Stop(run="run", version=version)


# contributions


def test_the_contribution_that_completes_the_quorum_makes_the_next_version_and_publishes_it_after_the_commit() -> None:
    shard = opened()
    assert push(shard, 2) == [Accumulate("payload 2", "f32", first=True)]
    update = Update(replace(RECORD, version=1, quorum=2, ranks=(0, 2), tallies={0: (1, 0, 0, 0), 2: (1, 0, 0, 0)}))
    assert push(shard, 0) == [Accumulate("payload 0", "f32", first=False), update, PublishWeights()]
    assert (shard.version, shard.previous, shard.held) == (1, 0, {})


def test_the_sum_of_each_version_starts_anew() -> None:
    shard = opened()
    for _ in range(3):
        accumulated = of(Accumulate, make_version(shard, 1, 2))
        assert [a.first for a in accumulated] == [True, False]


def test_a_late_contribution_is_counted_but_not_used() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    assert of(Accumulate, push(shard, 2, version=0)) == []
    assert tallies(shard)[2] == [0, 1, 0, 0]
    assert shard.held == {}


def test_a_contribution_that_was_used_is_a_duplicate_also_after_the_version_closed() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    push(shard, 0, version=0)
    assert tallies(shard)[0] == [1, 0, 1, 0]


def test_a_second_contribution_of_a_rank_to_the_open_version_is_a_duplicate() -> None:
    shard = opened()
    assert not of(Update, make_version(shard, 0, 0))
    assert tallies(shard)[0] == [0, 0, 1, 0]


def test_a_restarted_worker_cannot_contribute_twice_to_one_version() -> None:
    shard = opened()
    push(shard, 0)
    arrive(shard, 0, incarnation=11)
    assert not of(Update, push(shard, 0, incarnation=11))
    assert tallies(shard)[0] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("wrong", "outcome"),
    [
        ({"run": "other"}, 3),
        ({"layout": "other"}, 3),
        ({"shard": 0}, 3),
        ({"size": 63}, 3),
        ({"codec": "bf16"}, 3),
        ({"generation": 2}, 3),
        ({"incarnation": 9}, 3),
        ({"incarnation": 11}, 3),
        ({"generation": 0}, 1),
        ({"version": 2}, 3),
        ({"version": 0}, 1),
        ({"view": 0}, 3),
        ({"finite": False}, 3),
    ],
)
def test_whatever_is_not_meant_for_the_open_version_is_not_used(wrong: dict[str, Any], outcome: int) -> None:
    shard = opened()
    make_version(shard, 1, 2)
    assert of(Accumulate, push(shard, 0, **wrong)) == []
    expected = [0, 0, 0, 0]
    expected[outcome] = 1
    assert tallies(shard)[0] == expected
    assert shard.held == {}


@pytest.mark.parametrize(
    "worse", [{"run": "other"}, {"size": 1}, {"generation": 9}, {"incarnation": 9}, {"version": 5}, {"view": 9}]
)
def test_the_numbers_are_looked_at_only_when_everything_else_is_right(worse: dict[str, Any]) -> None:
    def look() -> bool:
        raise AssertionError("looked at")

    shard = opened()
    size = worse.pop("size", 64)
    shard.handle(GradientArrived(replace(GRADIENT, **worse), "payload", size, look), 0.0)
    assert tallies(shard)[0] == [0, 0, 0, 1]


def test_a_contribution_in_the_other_codec_is_used() -> None:
    shard = opened()
    assert push(shard, 0, codec="bf16", size=32) == [Accumulate("payload 0", "bf16", first=True)]


def test_a_contribution_before_the_state_is_there_is_rejected() -> None:
    shard = Shard(IDENTITY, Timing())
    assert of(Accumulate, push(shard, 0)) == []
    assert shard.unattributed == 1


def test_what_no_member_can_be_blamed_for_is_counted_without_a_rank() -> None:
    shard = opened()
    push(shard, 9)
    shard.handle(MalformedArrived(), 0.0)
    assert shard.unattributed == 2
    assert tallies(shard) == {}


def test_a_record_counts_what_arrived_since_the_version_before() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    push(shard, 2, version=0)
    push(shard, 0, version=0)
    push(shard, 1)
    push(shard, 1)
    push(shard, 0, finite=False)
    shard.handle(MalformedArrived(), 0.0)
    (update,) = of(Update, push(shard, 2))
    assert (update.record.late, update.record.duplicate, update.record.rejected) == (1, 2, 2)
    assert update.record.tallies == {0: (1, 0, 1, 1), 1: (2, 0, 1, 0), 2: (1, 1, 0, 0)}
    assert update.record.unattributed == 1
    assert (shard.since_last["late"], shard.since_last["duplicate"], shard.since_last["rejected"]) == (0, 0, 0)


def test_a_message_ahead_of_the_shard_is_told_to_the_supervisor_as_a_sign_of_lost_state() -> None:
    shard = opened()
    lost = m.Lost(run="run", shard=1, rank=0, version=3)
    assert Send(SUPERVISOR, lost) in push(shard, 0, version=3)
    ping = m.Ping(run="run", rank=0, incarnation=10, generation=1, version=3, progress=0, sent_us=0)
    assert lost in sent(control(shard, ping, b"0"))
    assert lost not in sent(control(shard, replace(ping, generation=0), b"0"))


# consistent mode


def test_in_consistent_mode_contributions_are_accumulated_in_the_order_of_ranks() -> None:
    shard = opened(consistent=True, view=View(1, 3, (0, 1, 2)))
    assert push(shard, 2) == []
    assert [a.payload for a in of(Accumulate, push(shard, 0))] == ["payload 0"]
    accumulated = of(Accumulate, push(shard, 1))
    assert [(a.payload, a.first) for a in accumulated] == [("payload 1", False), ("payload 2", False)]


def test_in_consistent_mode_a_quorum_without_a_low_rank_is_accumulated_when_it_closes() -> None:
    shard = opened(consistent=True)
    push(shard, 2)
    accumulated = of(Accumulate, push(shard, 1))
    assert [(a.payload, a.first) for a in accumulated] == [("payload 1", True), ("payload 2", False)]


# views


def test_a_smaller_quorum_closes_the_open_version() -> None:
    shard = opened(view=View(1, 3, (0, 1, 2)))
    make_version(shard, 0, 2)
    actions = control(shard, m.ViewChange(run="run", view=2, quorum=1, members=(0, 1, 2)))
    (update,) = of(Update, actions)
    assert (update.record.ranks, update.record.quorum, update.record.view) == ((0, 2), 2, View(2, 1, (0, 1, 2)))
    assert published(actions) == ["weights", "heartbeat"]


def test_a_larger_quorum_counts_for_the_open_version() -> None:
    shard = opened()
    push(shard, 0)
    control(shard, m.ViewChange(run="run", view=2, quorum=3, members=(0, 1, 2)))
    assert not of(Update, push(shard, 1))
    assert of(Update, push(shard, 2))


def test_a_view_change_is_told_at_once_so_that_no_contribution_names_the_old_one() -> None:
    shard = opened()
    (publish,) = of(Publish, control(shard, m.ViewChange(run="run", view=2, quorum=2, members=(0, 1, 2))))
    assert isinstance(publish.message, m.Heartbeat)
    assert publish.message.view == 2


@pytest.mark.parametrize("change", [{"view": 1}, {"view": 0}, {"quorum": 0}, {"quorum": 4}, {"members": ()}])
def test_an_old_or_impossible_view_is_answered_and_ignored(change: dict[str, Any]) -> None:
    shard = opened()
    wanted = replace(m.ViewChange(run="run", view=2, quorum=1, members=(0, 1, 2)), **change)
    (stats,) = sent(control(shard, wanted))
    assert isinstance(stats, m.Stats)
    assert shard.view == View(1, 2, (0, 1, 2))


def test_a_new_member_may_come_and_a_former_one_no_longer_counts() -> None:
    shard = opened()
    control(shard, m.ViewChange(run="run", view=2, quorum=2, members=(1, 2, 3)))
    assert [type(message) for message in sent(arrive(shard, 3))] == [m.Welcome]
    push(shard, 0)
    assert shard.unattributed == 1
    assert of(Update, make_version(shard, 3, 1))


# NEED and heartbeats


def ticks(shard: Shard, until_s: float, step_s: float = 0.05) -> list[tuple[float, str]]:
    """What is published while nothing arrives."""
    heard = []
    for i in range(1, round(until_s / step_s) + 1):
        heard += [(round(i * step_s, 3), what) for what in published(shard.handle(Tick(), i * step_s))]
    return heard


def test_need_backs_off_while_nothing_comes() -> None:
    assert [at for at, what in ticks(opened(), 32.0) if what == "need"] == [1.0, 3.0, 7.0, 15.0, 23.0, 31.0]


def test_a_contribution_puts_need_off_and_its_backoff_back() -> None:
    shard = opened()
    ticks(shard, 8.0)
    push(shard, 0, now=8.0)
    assert published(shard.handle(Tick(), 8.9)) == ["heartbeat"]
    assert published(shard.handle(Tick(), 9.0)) == ["need"]


def test_need_names_the_version_and_the_ranks_held() -> None:
    shard = opened()
    push(shard, 2)
    (need,) = of(Publish, shard.handle(Tick(), 1.0))
    assert need.topic == m.TOPIC_NEED
    assert need.message == m.Need(run="run", shard=1, incarnation=7, generation=1, version=0, view=1, held=(2,))


def test_a_heartbeat_is_published_when_nothing_else_was() -> None:
    assert ticks(opened(), 1.0) == [(0.25, "heartbeat"), (0.5, "heartbeat"), (0.75, "heartbeat"), (1.0, "need")]


def test_a_shard_without_state_says_nothing() -> None:
    shard = Shard(IDENTITY, Timing())
    control(shard, replace(HELLO, role="supervisor", secret="secret"))
    assert shard.handle(Tick(), 100.0) == []
    assert published(control(shard, stop_at(3))) == []


def test_a_stall_names_who_is_missing() -> None:
    shard = opened(workers=(0, 1))
    push(shard, 0)
    (log,) = of(Log, shard.handle(Tick(), 6.0))
    assert log.level == "warning"
    assert "version 0 waits for 6 s with 1 of 2" in log.text
    assert "worker 1 (here" in log.text
    assert "worker 2 (absent" in log.text


# the first publication


def test_nothing_is_published_before_a_quorum_is_there_to_hear_it() -> None:
    shard = opened(workers=())
    assert published(arrive(shard, 2)) == []
    assert [what for _, what in ticks(shard, 5.0) if what != "heartbeat"] == []
    assert published(arrive(shard, 0)) == ["weights"]
    assert published(arrive(shard, 1)) == []


def test_strangers_and_second_processes_do_not_count_for_the_quorum_of_listeners() -> None:
    shard = opened(workers=())
    arrive(shard, 0)
    assert published(arrive(shard, 0, incarnation=11)) == []
    assert published(shard.handle(PresenceChanged(9, 1, here=True), 0.0)) == []


def test_a_heartbeat_tells_whether_the_weights_were_published() -> None:
    shard = opened(workers=(0,))
    (before,) = of(Publish, shard.handle(Tick(), 0.5))
    arrive(shard, 1)
    (after,) = of(Publish, shard.handle(Tick(), 0.9))
    assert isinstance(before.message, m.Heartbeat)
    assert isinstance(after.message, m.Heartbeat)
    assert (before.message.published, after.message.published) == (False, True)


def test_a_version_made_before_a_quorum_ever_listened_at_once_is_published() -> None:
    shard = opened(workers=())
    arrive(shard, 0)
    push(shard, 0)
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    arrive(shard, 1)
    assert published(push(shard, 1)) == ["weights"]
    assert shard.published


# HELLO


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"run": "other"}, "run"),
        ({"layout": "other"}, "layout"),
        ({"rank": 3}, "rank"),
        ({"rank": m.MAX_WORKERS}, "rank"),
        ({"incarnation": 9}, "replaced"),
        ({"role": "supervisor"}, "secret"),
        ({"role": "supervisor", "secret": "guess"}, "secret"),
    ],
)
def test_a_hello_of_a_stranger_is_refused_and_counted(wrong: dict[str, Any], code: str) -> None:
    shard = opened()
    (refuse,) = sent(control(shard, replace(HELLO, **wrong), b"stranger"))
    assert isinstance(refuse, m.Refuse)
    assert refuse.code == code
    assert refuse.run == "run"
    assert shard.unattributed == 1


def test_a_worker_is_welcomed_when_its_subscription_is_there_whichever_comes_first() -> None:
    shard = opened(workers=())
    assert sent(control(shard, HELLO, b"0")) == []
    (welcome,) = sent(shard.handle(PresenceChanged(0, 10, here=True), 0.0))
    assert welcome == m.Welcome(
        run="run",
        shard=1,
        incarnation=7,
        generation=1,
        version=0,
        view=1,
        quorum=2,
        members=(0, 1, 2),
        codec="f32",
        state="open",
        published=False,
    )
    assert [type(message) for message in sent(arrive(shard, 1))] == [m.Welcome]


def test_the_subscription_of_another_incarnation_is_not_enough() -> None:
    shard = opened(workers=())
    shard.handle(PresenceChanged(0, 9, here=True), 0.0)
    assert sent(control(shard, HELLO, b"0")) == []


def test_who_comes_before_the_state_is_answered_when_it_is_there() -> None:
    shard = Shard(IDENTITY, Timing())
    for rank in (0, 1, 7):
        assert sent(arrive(shard, rank)) == []
    actions = shard.handle(StateRestored(RECORD, recovered=False), 0.0)
    answers = {action.peer: type(action.message) for action in of(Send, actions)}
    assert answers == {b"0": m.Welcome, b"1": m.Welcome, b"7": m.Refuse}
    assert published(actions) == ["weights", "heartbeat"]


def test_a_newer_process_of_a_rank_takes_over_and_the_older_is_told() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 11, here=True), 0.0)
    actions = control(shard, replace(HELLO, incarnation=11), b"new")
    refusal, welcome = of(Send, actions)
    assert refusal.peer == b"0"
    assert isinstance(refusal.message, m.Refuse)
    assert refusal.message.code == "replaced"
    assert (welcome.peer, type(welcome.message)) == (b"new", m.Welcome)


def test_a_supervisor_that_knows_the_secret_is_welcomed_by_a_shard_without_state() -> None:
    shard = Shard(IDENTITY, Timing())
    (welcome,) = sent(control(shard, replace(HELLO, role="supervisor", secret="secret")))
    assert isinstance(welcome, m.Welcome)
    assert welcome.state == "empty"


def test_the_bookkeeping_of_a_rank_stays_bounded_however_often_it_subscribes() -> None:
    shard = opened()
    for incarnation in range(1000):
        shard.handle(PresenceChanged(0, incarnation, here=True), 0.0)
    shard.handle(PresenceChanged(60_000, 1, here=True), 0.0)
    assert len(shard.workers[0].here) <= 16
    assert 60_000 not in shard.workers


# control


def test_a_ping_is_answered_with_the_clock_and_proves_life() -> None:
    shard = opened()
    ping = m.Ping(run="run", rank=0, incarnation=10, generation=1, version=0, progress=5, sent_us=77)
    (pong,) = sent(control(shard, ping, b"0", now=3.0))
    assert pong == m.Pong(run="run", shard=1, sent_us=77, received_us=3_000_000, answered_us=3_000_000)
    assert (shard.workers[0].heard_at, shard.workers[0].progress) == (3.0, 5)


def test_a_worker_whose_connection_was_cut_is_known_again_by_its_ping() -> None:
    shard = opened()
    control(shard, m.Ping(run="run", rank=0, incarnation=10, generation=1, version=0, progress=0, sent_us=0), b"again")
    assert control(shard, m.SnapshotRequest(run="run", version=None), b"again") == [SendSnapshot(b"again", 0)]


def test_the_ping_of_a_replaced_process_changes_nothing() -> None:
    shard = opened()
    control(shard, m.Ping(run="run", rank=0, incarnation=9, generation=1, version=0, progress=0, sent_us=0), b"old")
    assert shard.workers[0].peer == b"0"


def test_snapshots_of_the_newest_version_and_the_one_before_are_served() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    make_version(shard, 0, 1)
    for version, served in ((None, 2), (2, 2), (1, 1)):
        assert control(shard, m.SnapshotRequest(run="run", version=version), b"0") == [SendSnapshot(b"0", served)]
    for version in (0, 3):
        missing = m.Missing(run="run", shard=1, version=version)
        assert sent(control(shard, m.SnapshotRequest(run="run", version=version), b"0")) == [missing]


def test_a_stranger_gets_no_snapshot() -> None:
    shard = opened()
    assert control(shard, m.SnapshotRequest(run="run", version=None), b"stranger") == []
    assert shard.unattributed == 1


def test_a_new_connection_counts_when_the_end_of_the_one_before_is_noticed_later() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 10, here=True), 0.0)
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert shard.workers[0].present()
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert not shard.workers[0].present()


def test_who_leaves_is_told_so_and_no_longer_there() -> None:
    shard = opened()
    leave = m.Leave(run="run", rank=0, incarnation=10)
    assert sent(control(shard, leave, b"0")) == [m.Left(run="run", shard=1)]
    assert not shard.workers[0].present()


def test_a_late_leave_of_a_replaced_process_does_not_remove_its_successor() -> None:
    shard = opened()
    arrive(shard, 0, incarnation=11)
    control(shard, m.Leave(run="run", rank=0, incarnation=10), b"0")
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert shard.workers[0].present()


def test_a_report_goes_to_the_supervisor_when_it_is_the_senders_own() -> None:
    shard = opened()
    report = m.Report(run="run", rank=0, incarnation=10, figures=b"x")
    assert control(shard, report, b"0") == [Send(SUPERVISOR, report)]
    assert control(shard, report, b"1") == []


SUPERVISORS_OWN: list[m.Message] = [
    m.StatsRequest(run="run"),
    m.ViewChange(run="run", view=2, quorum=1, members=(0,)),
    stop_at(5),
    m.Checkpoint(run="run", version=1),
    m.Fetch(run="run", version=1, offset=0),
    m.Load(run="run", generation=2, version=0, view=1, quorum=1, members=(0,), offset=0, total=1),
]


@pytest.mark.parametrize("message", SUPERVISORS_OWN, ids=lambda message: type(message).__name__)
def test_only_the_supervisor_commands(message: m.Message) -> None:
    shard = opened()
    assert control(shard, message, b"0") == []
    assert shard.unattributed == 1
    assert control(shard, message) != []


def test_a_message_of_another_run_or_not_for_a_shard_is_rejected() -> None:
    shard = opened()
    assert control(shard, m.StatsRequest(run="other")) == []
    assert control(shard, m.Left(run="run", shard=1)) == []
    assert shard.unattributed == 2


def test_stats_tell_where_the_shard_stands() -> None:
    shard = opened(workers=(0, 2))
    make_version(shard, 0, 2)
    push(shard, 2)
    (stats,) = sent(control(shard, m.StatsRequest(run="run"), now=2.5))
    assert stats == m.Stats(
        run="run",
        shard=1,
        incarnation=7,
        generation=1,
        version=1,
        view=1,
        quorum=2,
        state="open",
        held=(2,),
        present=(0, 2),
        silent_ms=(2500, 2500),
        tallies=((0, 1, 0, 0, 0), (2, 1, 0, 0, 0)),
        unattributed=0,
        captured=None,
    )


# the end


def test_at_the_last_version_the_run_ends_with_bye_after_the_weights() -> None:
    shard = opened()
    control(shard, stop_at(1))
    assert published(make_version(shard, 0, 1)) == ["weights", "bye"]
    assert shard.state == "ended"
    assert published(shard.handle(Tick(), 1.0)) == ["bye"]


def test_a_stop_at_the_open_version_ends_at_once() -> None:
    shard = opened()
    push(shard, 0)
    assert "bye" in published(control(shard, stop_at(0)))
    assert shard.state == "ended"


def test_after_the_end_contributions_are_late() -> None:
    shard = opened()
    control(shard, stop_at(0))
    assert not of(Update, make_version(shard, 0, 1))
    assert tallies(shard) == {0: [0, 1, 0, 0], 1: [0, 1, 0, 0]}


def test_a_stop_below_the_open_version_is_answered_and_ignored() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    (stats,) = sent(control(shard, stop_at(0)))
    assert isinstance(stats, m.Stats)
    assert (stats.state, stats.version) == ("open", 1)


@pytest.mark.parametrize("later", [1, None])
def test_an_ended_shard_opens_again_when_the_stop_is_raised_or_taken_back(later: int | None) -> None:
    shard = opened()
    push(shard, 0)
    control(shard, stop_at(0))
    assert published(control(shard, stop_at(later))) == ["heartbeat"]
    assert of(Update, push(shard, 1))
    assert shard.state == ("ended" if later == 1 else "open")


def test_a_version_whose_quorum_shrank_while_it_was_ended_closes_when_it_opens_again() -> None:
    shard = opened()
    push(shard, 0)
    control(shard, stop_at(0))
    assert not of(Update, control(shard, m.ViewChange(run="run", view=2, quorum=1, members=(0, 1, 2))))
    assert of(Update, control(shard, stop_at(1)))
    assert (shard.state, shard.version) == ("ended", 1)


# checkpoints and state


def test_a_checkpoint_is_captured_when_its_version_is_made() -> None:
    shard = opened()
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=2))) == []
    assert of(Capture, make_version(shard, 0, 1)) == []
    assert of(Capture, make_version(shard, 0, 1)) == [Capture(2)]
    assert of(Capture, make_version(shard, 0, 1)) == []
    assert shard.captured == 2


def test_a_checkpoint_of_a_version_still_held_is_captured_once_at_once() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=0))) == [Capture(0)]
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=0))) == []
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=1))) == [Capture(1)]


def test_a_checkpoint_of_a_version_no_longer_held_captures_nothing() -> None:
    shard = opened()
    for _ in range(3):
        make_version(shard, 0, 1)
    actions = control(shard, m.Checkpoint(run="run", version=1))
    assert of(Capture, actions) == []
    assert [type(message) for message in sent(actions)] == [m.Stats]


def test_a_fetch_is_answered_from_the_copy() -> None:
    fetch = m.Fetch(run="run", version=0, offset=512)
    assert control(opened(), fetch) == [SendChunk(SUPERVISOR, fetch)]


def test_state_is_taken_over_only_when_empty_or_under_a_newer_generation() -> None:
    load = m.Load(run="run", generation=1, version=0, view=1, quorum=2, members=(0, 1, 2), offset=0, total=1)
    shard = opened()
    assert control(shard, load) == []
    newer = replace(load, generation=2)
    assert control(shard, newer) == [TakeChunk(SUPERVISOR, newer, None)]


def test_a_rollback_opens_the_loaded_version_and_forgets_what_was_held() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    control(shard, m.Checkpoint(run="run", version=1))
    push(shard, 0)
    actions = shard.handle(StateRestored(replace(RECORD, generation=2), recovered=False), 0.0)
    assert published(actions) == ["weights", "heartbeat"]
    assert (shard.generation, shard.version, shard.previous, shard.held, shard.captured) == (2, 0, None, {}, None)
    assert tallies(shard)[0] == [1, 1, 0, 0]


def test_contributions_of_a_generation_that_was_rolled_back_are_late() -> None:
    shard = opened()
    shard.handle(StateRestored(replace(RECORD, generation=2, version=5), recovered=False), 0.0)
    push(shard, 0, generation=1, version=5)
    assert tallies(shard)[0] == [0, 1, 0, 0]


def test_a_rolled_back_shard_that_had_ended_is_open_again() -> None:
    shard = opened()
    control(shard, stop_at(0))
    shard.handle(StateRestored(replace(RECORD, generation=2), recovered=False), 0.0)
    assert of(Update, make_version(shard, 0, 1))


def test_a_recovered_shard_goes_on_with_its_tallies_and_serves_both_versions() -> None:
    shard = Shard(IDENTITY, Timing())
    record = replace(RECORD, version=4, ranks=(0, 1), quorum=2, tallies={0: (4, 1, 0, 0)}, unattributed=3)
    actions = shard.handle(StateRestored(record, recovered=True, previous=3), 0.0)
    assert published(actions) == ["heartbeat"]
    for worker in (0, 1, 2):
        arrive(shard, worker)
    assert control(shard, m.SnapshotRequest(run="run", version=3), b"0") == [SendSnapshot(b"0", 3)]
    push(shard, 0, version=3)
    push(shard, 2, version=3)
    assert tallies(shard) == {0: [4, 1, 1, 0], 2: [0, 1, 0, 0]}
    assert shard.unattributed == 3
    assert of(Update, make_version(shard, 0, 1))


def test_a_shard_that_had_ended_has_ended_when_it_is_back() -> None:
    shard = opened()
    control(shard, stop_at(1))
    (update,) = of(Update, make_version(shard, 0, 1))
    again = Shard(IDENTITY, Timing())
    assert published(again.handle(StateRestored(update.record, recovered=True), 0.0)) == ["bye", "bye"]
    assert again.state == "ended"


def test_a_recovered_shard_uses_no_contribution_before_it_knows_the_workers_incarnation() -> None:
    shard = Shard(IDENTITY, Timing())
    shard.handle(StateRestored(RECORD, recovered=True), 0.0)
    assert of(Accumulate, push(shard, 0)) == []
    arrive(shard, 0)
    assert of(Accumulate, push(shard, 0))


def test_a_recovered_shard_asks_for_what_it_had_not_committed() -> None:
    shard = Shard(IDENTITY, Timing())
    shard.handle(StateRestored(RECORD, recovered=True), 0.0)
    assert [what for _, what in ticks(shard, 1.0)][-1] == "need"


def test_a_worker_that_is_gone_is_absent_until_it_subscribes_again() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert not shard.workers[0].present()
    assert [type(message) for message in sent(shard.handle(PresenceChanged(0, 10, here=True), 0.0))] == [m.Welcome]
