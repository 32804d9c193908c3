"""The state machine of a shard: HELLO, control messages and the end. Each test covers one behaviour."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from support.shard_rig import (
    HELLO,
    IDENTITY,
    RECORD,
    SUPERVISOR,
    arrive,
    control,
    make_version,
    of,
    opened,
    published,
    push,
    sent,
    stop_at,
    tallies,
    to,
)

from zmqrl.ps.shard.events import (
    Accumulate,
    FalseHello,
    ForeignHello,
    ForgetMemory,
    PresenceChanged,
    Send,
    SendSnapshot,
    StateRestored,
    Tick,
    Update,
)
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.shard.roster import DOUBT_S, SILENT_S
from zmqrl.ps.wire import messages as m

PING = m.Ping(run="run", rank=0, incarnation=10, generation=1, version=0, computed=0, sent_us=0)

# HELLO


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"run": "other"}, "run"),
        ({"layout": "other"}, "layout"),
        ({"rank": 3}, "rank"),
        ({"rank": m.MAX_WORKERS}, "rank"),
        ({"role": "supervisor"}, "secret"),
        ({"role": "supervisor", "secret": "guess"}, "secret"),
    ],
)
def test_a_hello_from_a_stranger_is_refused_and_counted(wrong: dict[str, Any], code: str) -> None:
    shard = opened()
    (refuse,) = sent(control(shard, replace(HELLO, **wrong), b"stranger"))
    assert isinstance(refuse, m.Refuse)
    assert refuse.code == code
    assert refuse.run == "run"
    assert shard.contributions.unattributed == 1


def test_a_hello_with_the_key_of_another_rank_is_refused_and_counted() -> None:
    shard = opened()
    (refuse,) = sent(shard.handle(FalseHello(b"stranger"), 0.0))
    assert refuse == m.Refuse(run="run", code="key", reason="you connected with the key of another rank or role.")
    assert shard.contributions.unattributed == 1


def test_a_worker_with_different_code_is_refused_and_the_supervisor_learns_both_codes() -> None:
    shard = opened(identity=replace(IDENTITY, code="0.1.0+aaaa"))
    refuse, told = sent(control(shard, replace(HELLO, code="0.1.0+bbbb"), b"stranger"))
    assert isinstance(refuse, m.Refuse)
    assert refuse.code == "code"
    assert "'0.1.0+aaaa'" in refuse.reason
    assert "'0.1.0+bbbb'" in refuse.reason
    assert told == m.Refused(run="run", shard=1, reason=refuse.reason)
    for code in ("0.1.0+aaaa", ""):  # the same code, or none, as from a third-party worker
        assert [type(message) for message in sent(control(shard, replace(HELLO, code=code), b"0"))] == [m.Welcome]


def test_a_worker_with_another_protocol_is_refused_and_the_supervisor_is_notified() -> None:
    shard = opened()
    refuse, told = sent(shard.handle(ForeignHello(b"stranger", "zmqrl/2"), 0.0))
    assert isinstance(refuse, m.Refuse)
    assert (refuse.run, refuse.code) == ("run", "protocol")
    assert "'zmqrl/2'" in refuse.reason
    assert told == m.Refused(run="run", shard=1, reason=refuse.reason)
    assert shard.contributions.unattributed == 1


def test_a_worker_is_welcomed_once_both_hello_and_subscription_have_arrived() -> None:
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


def test_a_hello_to_a_shard_without_state_is_answered_once_the_state_is_loaded() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    for rank in (0, 1, 7):
        assert sent(arrive(shard, rank)) == []
    actions = shard.handle(StateRestored(RECORD, recovered=False), 0.0)
    answers = {action.peer: type(action.message) for action in of(Send, actions)}
    assert answers == {b"0": m.Welcome, b"1": m.Welcome, b"7": m.Refuse}
    assert published(actions) == ["weights", "heartbeat"]


def test_a_newer_process_of_a_rank_takes_over_and_the_older_one_is_refused() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 11, here=True), 0.0)
    actions = control(shard, replace(HELLO, incarnation=11), b"new")
    refusal, welcome = of(Send, actions)
    assert refusal.peer == b"0"
    assert isinstance(refusal.message, m.Refuse)
    assert refusal.message.code == "replaced"
    assert (welcome.peer, type(welcome.message)) == (b"new", m.Welcome)


def test_a_supervisor_that_knows_the_secret_is_welcomed_by_a_shard_without_state() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    (welcome,) = sent(control(shard, replace(HELLO, role="supervisor", secret="secret")))
    assert isinstance(welcome, m.Welcome)
    assert welcome.state == "empty"


def test_the_bookkeeping_of_a_rank_stays_bounded_however_often_it_subscribes() -> None:
    shard = opened()
    for incarnation in range(1000):
        shard.handle(PresenceChanged(0, incarnation, here=True), 0.0)
    shard.handle(PresenceChanged(60_000, 1, here=True), 0.0)
    assert len(shard.roster.workers[0].doubted_at) <= 17
    assert shard.roster.present(0.0) == [0, 1, 2]
    assert 60_000 not in shard.roster.workers
    assert m.Welcome in map(type, sent(arrive(shard, 0, incarnation=2000))), "a new process must be able to join"


# control


def test_a_ping_is_answered_with_the_clock_and_shows_that_the_worker_is_alive() -> None:
    shard = opened()
    ping = m.Ping(run="run", rank=0, incarnation=10, generation=1, version=0, computed=5, sent_us=77)
    (pong,) = sent(control(shard, ping, b"0", now=3.0))
    assert pong == m.Pong(run="run", shard=1, sent_us=77, received_us=3_000_000, answered_us=3_000_000)
    assert (shard.roster.workers[0].heard_at, shard.roster.workers[0].computed) == (3.0, 5)


def test_a_ping_identifies_a_worker_again_after_its_connection_was_cut() -> None:
    shard = opened()
    control(shard, PING, b"again")
    assert control(shard, m.SnapshotRequest(run="run", version=None), b"again") == [SendSnapshot(b"again", 0, 0)]


def test_the_ping_of_a_replaced_process_is_refused_and_changes_nothing() -> None:
    shard = opened()
    actions = control(shard, replace(PING, incarnation=9), b"old")
    assert [(peer, refusal.code) for peer, refusal in to(m.Refuse, actions)] == [(b"old", "replaced")]
    assert shard.roster.workers[0].peer == b"0"


def test_snapshots_of_the_newest_version_and_the_one_before_are_served() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    make_version(shard, 0, 1)
    for version, served in ((None, 2), (2, 2), (1, 1)):
        assert control(shard, m.SnapshotRequest(run="run", version=version), b"0") == [SendSnapshot(b"0", served, 0)]
    for version in (0, 3):
        missing = m.Missing(run="run", shard=1, version=version)
        assert sent(control(shard, m.SnapshotRequest(run="run", version=version), b"0")) == [missing]


@pytest.mark.parametrize("peer", [b"stranger", SUPERVISOR])
def test_only_a_worker_gets_a_snapshot(peer: bytes) -> None:
    shard = opened()
    assert control(shard, m.SnapshotRequest(run="run", version=None), peer) == []
    assert shard.contributions.unattributed == 1


def test_a_worker_whose_subscription_ends_is_absent_unless_a_ping_follows() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 10, here=False), 1.0)
    assert shard.roster.present(1.0) == [0, 1, 2], "this may be the end of an older connection"
    assert shard.roster.present(1.0 + DOUBT_S) == [1, 2]
    control(shard, PING, b"0", now=3.0)
    assert shard.roster.present(3.0 + DOUBT_S) == [0, 1, 2]


def test_a_silent_worker_is_absent_until_its_next_message() -> None:
    shard = opened()
    for now in (3.0, 6.0):
        control(shard, PING, b"0", now=now)
    assert shard.roster.present(SILENT_S) == [0]
    control(shard, replace(PING, rank=2), b"2", now=SILENT_S)
    assert shard.roster.present(SILENT_S) == [0, 2]


def test_a_process_that_is_gone_cannot_block_its_rank_whatever_the_clocks_say() -> None:
    shard = opened()
    arrive(shard, 0, incarnation=2**53 - 1)
    assert sent(arrive(shard, 0, now=1.0, incarnation=20)) == [], "the older process may still be alive"
    assert [type(message) for message in sent(arrive(shard, 0, now=SILENT_S, incarnation=20))] == [m.Welcome]
    assert of(Accumulate, push(shard, 0, incarnation=20))


def test_an_older_process_is_refused_a_rank_once_the_newer_one_is_known_to_be_alive() -> None:
    shard = opened()
    older = replace(HELLO, incarnation=9)
    for now in (1.0, 4.0, 7.0):
        control(shard, PING, b"0", now=now)
        assert sent(control(shard, older, b"older", now=now)) == []
    control(shard, PING, b"0", now=9.0)
    (refusal,) = sent(control(shard, older, b"older", now=9.0))
    assert isinstance(refusal, m.Refuse)
    assert (refusal.code, refusal.reason) == ("replaced", "another process has taken rank 0.")


def test_a_process_that_has_left_is_gone_even_if_its_last_ping_arrives_later() -> None:
    shard = opened()
    control(shard, m.Leave(run="run", rank=0, incarnation=10), b"0")
    control(shard, PING, b"0")
    assert shard.roster.present(0.0) == [1, 2]
    assert [type(message) for message in sent(arrive(shard, 0, incarnation=9))] == [m.Welcome]


def test_a_silent_worker_becomes_absent_however_often_its_subscription_ends() -> None:
    shard = opened()
    for tenth in range(0, 100):
        shard.handle(PresenceChanged(0, 10, here=False), tenth / 10)
    assert shard.roster.present(DOUBT_S - 0.1) == [0, 1, 2]
    assert 0 not in shard.roster.present(DOUBT_S)
    assert 0 not in shard.roster.present(9.9)


def test_a_worker_whose_contributions_are_all_late_is_present() -> None:
    shard = opened()
    make_version(shard, 1, 2)
    push(shard, 0, version=0, now=7.0)
    assert shard.roster.present(SILENT_S) == [0]


def test_an_absent_worker_counts_for_the_first_publication_after_its_next_message() -> None:
    shard = opened(workers=())
    arrive(shard, 0)
    assert published(arrive(shard, 1, now=9.0)) == [], "rank 0 is absent"
    control(shard, PING, b"0", now=9.5)
    assert "weights" in published(shard.handle(Tick(), 9.6))


def test_a_process_that_was_silent_can_take_its_rank_back() -> None:
    shard = opened()
    arrive(shard, 0, now=SILENT_S, incarnation=9)
    actions = control(shard, PING, b"again", now=SILENT_S + 1)
    assert [(peer, refusal.code) for peer, refusal in to(m.Refuse, actions)] == [(b"0", "replaced")]
    assert [peer for peer, _ in to(m.Welcome, actions)] == [b"again"]
    assert to(m.Welcome, control(shard, PING, b"again", now=SILENT_S + 2)) == [], "once is enough"
    assert of(Accumulate, push(shard, 0, incarnation=10))


def test_every_message_from_a_worker_of_another_run_is_refused() -> None:
    shard = opened()
    leave = m.Leave(run="run", rank=0, incarnation=10)
    for message in (PING, HELLO, leave, m.SnapshotRequest(run="run", version=None)):
        (refusal,) = sent(control(shard, replace(message, run="earlier"), b"old"))
        assert isinstance(refusal, m.Refuse)
        assert (refusal.run, refusal.code) == ("run", "run")
    assert shard.roster.present(0.0) == [0, 1, 2]


def test_a_worker_that_subscribes_without_a_hello_is_not_present() -> None:
    shard = opened(workers=(1,))
    shard.handle(PresenceChanged(0, 10, here=True), 0.0)
    assert shard.roster.present(0.0) == [1]
    assert not shard.published


def test_a_worker_that_leaves_gets_an_answer_and_is_absent() -> None:
    shard = opened()
    leave = m.Leave(run="run", rank=0, incarnation=10)
    assert sent(control(shard, leave, b"0")) == [m.Left(run="run", shard=1)]
    assert shard.roster.present(0.0) == [1, 2]


def test_a_late_leave_of_a_replaced_process_does_not_remove_its_successor() -> None:
    shard = opened()
    arrive(shard, 0, incarnation=11)
    control(shard, m.Leave(run="run", rank=0, incarnation=10), b"0")
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert shard.roster.present(DOUBT_S) == [0, 1, 2]


def test_a_shard_forwards_a_report_only_from_the_rank_it_names() -> None:
    shard = opened()
    report = m.Report(run="run", rank=0, incarnation=10, figures=b"x")
    assert control(shard, report, b"0") == [Send(SUPERVISOR, report)]
    assert control(shard, report, b"1") == []


SUPERVISORS_OWN: list[m.Message] = [
    m.StatsRequest(run="run"),
    m.ViewChange(run="run", view=2, quorum=1, members=(0,)),
    stop_at(5),
    m.Checkpoint(run="run", version=1),
    m.Elapsed(run="run", elapsed=5),
    m.Fetch(run="run", version=1, offset=0),
    m.Load(run="run", generation=2, version=0, view=1, quorum=1, members=(0,), offset=0, total=1),
]


@pytest.mark.parametrize("message", SUPERVISORS_OWN, ids=lambda message: type(message).__name__)
def test_only_the_supervisor_can_give_commands(message: m.Message) -> None:
    shard = opened()
    assert control(shard, message, b"0") == []
    assert shard.contributions.unattributed == 1
    assert shard.told == 0
    answers = control(shard, message)
    assert shard.told == 5 if isinstance(message, m.Elapsed) else answers != []


def test_every_command_of_the_supervisor_is_tested() -> None:
    assert {type(message) for message in SUPERVISORS_OWN} == set(get_args(m.ShardCommand))


@pytest.mark.parametrize(
    "message",
    [
        m.Leave(run="run", rank=0, incarnation=10),
        m.ShareMemory(run="run", rank=0, incarnation=10, memory="1/2/0123456789abcdef"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_only_a_rank_itself_can_leave_or_share_its_memory(message: m.Message) -> None:
    shard = opened()
    assert control(shard, message, b"1") == []
    assert shard.contributions.unattributed == 1
    assert shard.roster.present(0.0) == [0, 1, 2]
    assert control(shard, message, b"0") != []


def test_the_memory_of_a_process_is_forgotten_when_another_takes_its_rank() -> None:
    shard = opened()
    assert of(ForgetMemory, arrive(shard, 0, incarnation=11)) == [ForgetMemory(0)]
    assert of(ForgetMemory, control(shard, m.Leave(run="run", rank=0, incarnation=11), b"0")) == [ForgetMemory(0)]


def test_a_message_from_another_run_or_not_meant_for_shards_is_rejected() -> None:
    shard = opened()
    assert [type(message) for message in sent(control(shard, m.StatsRequest(run="other")))] == [m.Refuse]
    assert control(shard, m.Left(run="run", shard=1)) == []
    assert shard.contributions.unattributed == 2


def test_stats_describe_the_state_of_the_shard() -> None:
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
        tallies=(m.RankTally(0, 1, 0, 0, 0), m.RankTally(2, 1, 0, 0, 0)),
        unattributed=0,
        captured=None,
        totals=(2, 0, 0, 0),
        captured_totals=(),
        stop=None,
        failure="",
    )


def spans(shard: ShardMachine, now: float) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    (stats,) = sent(control(shard, m.StatsRequest(run="run"), now=now))
    assert isinstance(stats, m.Stats)
    return stats.span_ranks, stats.spans, stats.span_ms


def test_stats_include_the_current_span_of_missing_workers_and_its_duration() -> None:
    shard = opened(workers=(0, 1, 2))
    push(shard, 0)
    for rank, span, span_ms in ((0, "wait", 900), (1, "gradient", 200), (2, "env_step", 4000)):
        ping = replace(PING, rank=rank, span=span, span_ms=span_ms)
        control(shard, ping, b"%d" % rank, now=2.0)
    assert spans(shard, 2.5) == ((2, 1), ("env_step", "gradient"), (4500, 700))
    control(shard, replace(PING, rank=2), b"2", now=3.0)
    assert spans(shard, 3.0) == ((1,), ("gradient",), (1200,)), "a ping without a span removes the old one"


def test_the_longest_possible_span_does_not_spoil_the_stats() -> None:
    shard = opened()
    for span_ms in (2**53 - 1, 2**53 - 2, 2**53 - 1000):
        control(shard, replace(PING, span="env_step", span_ms=span_ms), b"0", now=1.0)
        assert spans(shard, 2.0) == ((0,), ("env_step",), (2**53 - 1,))


def test_the_span_of_a_replaced_process_is_not_attributed_to_its_successor() -> None:
    shard = opened()
    control(shard, replace(PING, span="env_step", span_ms=9000), b"0", now=1.0)
    arrive(shard, 0, incarnation=2000)
    assert spans(shard, 1.0) == ((), (), ())


def test_the_totals_of_a_captured_version_count_up_to_that_version() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    push(shard, 2, version=0)
    make_version(shard, 0, 1)
    control(shard, stop_at(5))
    for version, expected in ((1, (2, 0, 0, 0)), (2, (4, 1, 0, 0))):
        (stats,) = sent(control(shard, m.Checkpoint(run="run", version=version)))
        assert isinstance(stats, m.Stats)
        assert (stats.totals, stats.captured_totals, stats.stop) == ((4, 1, 0, 0), expected, 5)


# the end


def test_the_run_ends_with_bye_after_the_weights_of_the_last_version() -> None:
    shard = opened()
    control(shard, stop_at(1))
    assert published(make_version(shard, 0, 1)) == ["weights", "bye"]
    assert shard.state == "ended"
    assert published(shard.handle(Tick(), 1.0)) == ["bye"]


def test_a_stop_at_the_open_version_ends_the_shard_at_once() -> None:
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
def test_an_ended_shard_opens_again_if_the_stop_is_raised_or_cancelled(later: int | None) -> None:
    shard = opened()
    push(shard, 0)
    control(shard, stop_at(0))
    assert published(control(shard, stop_at(later))) == ["heartbeat"]
    assert of(Update, push(shard, 1))
    assert shard.state == ("ended" if later == 1 else "open")


def test_an_ended_shard_closes_its_version_on_reopening_if_the_quorum_has_shrunk() -> None:
    shard = opened()
    push(shard, 0)
    control(shard, stop_at(0))
    assert not of(Update, control(shard, m.ViewChange(run="run", view=2, quorum=1, members=(0, 1, 2))))
    assert of(Update, control(shard, stop_at(1)))
    assert (shard.state, shard.version) == ("ended", 1)
