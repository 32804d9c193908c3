"""The state machine of a shard: contributions, views, NEED and the first publication. Each test covers one
behaviour.
"""

from dataclasses import replace
from typing import Any

import pytest
from support.shard_rig import (
    GRADIENT,
    HELLO,
    IDENTITY,
    RECORD,
    SUPERVISOR,
    arrive,
    control,
    handle,
    make_version,
    of,
    opened,
    published,
    push,
    sent,
    stop_at,
    tallies,
    ticks,
    to,
)
from support.stand_ins import received

from zmqrl.ps.shard.events import (
    Accumulate,
    GradientArrived,
    Log,
    MalformedArrived,
    PresenceChanged,
    Publish,
    PublishWeights,
    Send,
    StateRestored,
    Tick,
    Update,
    View,
)
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m

# contributions


def test_a_complete_quorum_makes_a_version_that_is_published_once_committed() -> None:
    shard = opened()
    assert push(shard, 2) == [Accumulate(received("payload 2"), first=True)]
    update = Update(replace(RECORD, version=1, quorum=2, ranks=(0, 2), tallies={0: (1, 0, 0, 0), 2: (1, 0, 0, 0)}))
    update = replace(update, record=replace(update.record, totals=(2, 0, 0, 0)))
    assert push(shard, 0) == [Accumulate(received("payload 0"), first=False), update, PublishWeights()]
    assert (shard.version, shard.previous, shard.contributions.held) == (1, 0, {})


def test_the_sum_starts_at_zero_for_each_version() -> None:
    shard = opened()
    for _ in range(3):
        accumulated = of(Accumulate, make_version(shard, 1, 2))
        assert [a.first for a in accumulated] == [True, False]


def test_a_late_contribution_is_counted_but_not_used() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    assert of(Accumulate, push(shard, 2, version=0)) == []
    assert tallies(shard)[2] == [0, 1, 0, 0]
    assert shard.contributions.held == {}


def test_a_used_contribution_that_arrives_again_is_a_duplicate_even_after_the_version_closed() -> None:
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
def test_a_contribution_not_meant_for_the_open_version_is_not_used(wrong: dict[str, Any], outcome: int) -> None:
    shard = opened()
    make_version(shard, 1, 2)
    assert of(Accumulate, push(shard, 0, **wrong)) == []
    expected = [0, 0, 0, 0]
    expected[outcome] = 1
    assert tallies(shard)[0] == expected
    assert shard.contributions.held == {}


def test_a_contribution_to_another_run_is_not_counted_for_a_rank() -> None:
    shard = opened()
    assert push(shard, 0, run="other") == []
    assert (tallies(shard), shard.contributions.unattributed) == ({}, 1)


def test_a_non_finite_update_makes_no_version_and_is_reported_to_the_supervisor() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    push(shard, 2)
    header = replace(GRADIENT, rank=1, version=1)
    actions = handle(shard, GradientArrived(header, received("payload 1"), 64, lambda: True), finite=False)
    (stats,) = sent(actions)
    assert isinstance(stats, m.Stats)
    assert (stats.version, stats.state, stats.totals) == (1, "ended", (2, 0, 0, 0))
    assert stats.failure == "version 2 has numbers that are not finite, from contributions of ranks 1, 2"
    assert published(actions) == ["bye"]
    for version in (None, 9):
        control(shard, stop_at(version))
        assert not of(Update, make_version(shard, 0, 1)), "the version is open again"
    shard.handle(StateRestored(replace(RECORD, generation=2), recovered=False), 0.0)
    assert of(Update, make_version(shard, 0, 1)), "a loaded checkpoint accepts contributions again"


def test_a_stall_names_only_the_first_missing_workers() -> None:
    ranks = tuple(range(1000))
    shard = opened(view=View(1, 999, ranks), workers=ranks)
    push(shard, 0)
    (log,) = of(Log, shard.handle(Tick(), 6.0))
    assert log.text.startswith("version 0 has 1 of 999 contributions, none new for 6 s; missing: worker 1 (here, ")
    assert log.text.endswith(" ago) and 979 more")
    assert log.text.count("worker") == 20


def test_a_failure_of_many_ranks_names_some_of_them_and_fits_into_a_message() -> None:
    ranks = tuple(range(1000))
    shard = opened(view=View(1, 1000, ranks), workers=ranks)
    for rank in ranks[:-1]:
        push(shard, rank)
    header = replace(GRADIENT, rank=999)
    (stats,) = sent(handle(shard, GradientArrived(header, received("payload"), 64, lambda: True), finite=False))
    assert isinstance(stats, m.Stats)
    assert stats.failure.endswith("18, 19 and 980 more")
    assert framing.decode(framing.encode(stats)) == stats


@pytest.mark.parametrize(
    "worse", [{"layout": "other"}, {"size": 1}, {"generation": 9}, {"incarnation": 9}, {"version": 5}, {"view": 9}]
)
def test_the_numbers_are_checked_only_if_everything_else_is_valid(worse: dict[str, Any]) -> None:
    def look() -> bool:
        raise AssertionError("looked at")

    shard = opened()
    size = worse.pop("size", 64)
    shard.handle(GradientArrived(replace(GRADIENT, **worse), received("payload"), size, look), 0.0)
    assert tallies(shard)[0] == [0, 0, 0, 1]


def test_a_contribution_in_the_other_codec_is_used() -> None:
    shard = opened()
    assert push(shard, 0, codec="bf16", size=32) == [Accumulate(received("payload 0"), first=True)]


def test_a_contribution_before_the_state_is_loaded_is_rejected() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    assert of(Accumulate, push(shard, 0)) == []
    assert shard.contributions.unattributed == 1


def test_messages_of_unknown_origin_are_counted_without_a_rank() -> None:
    shard = opened()
    push(shard, 9)
    shard.handle(MalformedArrived(), 0.0)
    assert shard.contributions.unattributed == 2
    assert tallies(shard) == {}


def test_a_record_counts_the_contributions_since_the_previous_version() -> None:
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
    assert shard.contributions.since_last == {"late": 0, "duplicate": 0, "rejected": 0}


def test_a_message_ahead_of_the_shard_is_reported_to_the_supervisor_as_lost_state() -> None:
    shard = opened()
    lost = m.Lost(run="run", shard=1, rank=0, version=3)
    assert Send(SUPERVISOR, lost) in push(shard, 0, version=3)
    ping = m.Ping(run="run", rank=0, incarnation=10, generation=1, version=3, computed=0, sent_us=0)
    assert lost in sent(control(shard, ping, b"0"))
    assert lost not in sent(control(shard, replace(ping, generation=0), b"0"))


# consistent mode


def test_in_consistent_mode_contributions_are_accumulated_in_the_order_of_ranks() -> None:
    shard = opened(consistent=True, view=View(1, 3, (0, 1, 2)))
    assert push(shard, 2) == []
    assert [a.payload for a in of(Accumulate, push(shard, 0))] == [received("payload 0")]
    accumulated = of(Accumulate, push(shard, 1))
    one, two = received("payload 1"), received("payload 2")
    assert [(a.payload, a.first) for a in accumulated] == [(one, False), (two, False)]


def test_in_consistent_mode_a_complete_quorum_is_accumulated_even_without_the_lowest_rank() -> None:
    shard = opened(consistent=True)
    push(shard, 2)
    accumulated = of(Accumulate, push(shard, 1))
    one, two = received("payload 1"), received("payload 2")
    assert [(a.payload, a.first) for a in accumulated] == [(one, True), (two, False)]


# progress


def test_a_version_is_made_for_the_greatest_progress_of_the_shard_and_the_contributions() -> None:
    shard = opened(elapsed=300)
    made = of(Update, [*push(shard, 0, elapsed=500), *push(shard, 1, elapsed=400)])
    made += of(Update, [*push(shard, 0), *push(shard, 1)])
    made += of(Update, [*push(shard, 0, elapsed=2**32 - 1), *push(shard, 1)])
    assert [update.record.made_at for update in made] == [500, 300, 1_000_000]


def test_progress_from_the_supervisor_is_published_from_the_next_version_on() -> None:
    shard = opened()
    assert control(shard, m.Elapsed(run="run", elapsed=700)) == []
    first, second = (of(Update, make_version(shard, 0, 1))[0].record for _ in range(2))
    assert (first.made_at, first.elapsed) == (0, 700)
    assert (second.made_at, second.elapsed) == (700, 700)
    control(shard, m.Elapsed(run="run", elapsed=2**32 - 1))
    assert of(Update, make_version(shard, 0, 1))[0].record.elapsed == 1_000_000
    (stats,) = [stats for _, stats in to(m.Stats, control(shard, m.StatsRequest(run="run")))]
    assert (stats.version, stats.made_at) == (3, 700)


def test_a_recovered_shard_keeps_its_published_progress_until_the_supervisor_sends_more() -> None:
    shard = opened(elapsed=800, made_at=700)
    records = [of(Update, make_version(shard, 0, 1))[0].record for _ in range(2)]
    assert [(record.made_at, record.elapsed) for record in records] == [(800, 800)] * 2


# views


def test_a_smaller_quorum_closes_the_open_version() -> None:
    shard = opened(view=View(1, 3, (0, 1, 2)))
    make_version(shard, 0, 2)
    actions = control(shard, m.ViewChange(run="run", view=2, quorum=1, members=(0, 1, 2)))
    (update,) = of(Update, actions)
    assert (update.record.ranks, update.record.quorum, update.record.view) == ((0, 2), 2, View(2, 1, (0, 1, 2)))
    assert published(actions) == ["weights"], "the weights replace the heartbeat"


def test_the_closing_rank_is_that_of_the_contribution_that_closed_the_version() -> None:
    shard = opened(view=View(1, 3, (0, 1, 2)))
    make_version(shard, 0, 2, 1)
    closed_by = [shard.closing_rank]
    make_version(shard, 0, 2)
    control(shard, m.ViewChange(run="run", view=2, quorum=2, members=(0, 1, 2)))
    closed_by.append(shard.closing_rank)
    assert (shard.version, closed_by) == (2, [1, None]), "a view change closed version 2"


def test_a_larger_quorum_applies_to_the_open_version() -> None:
    shard = opened()
    push(shard, 0)
    control(shard, m.ViewChange(run="run", view=2, quorum=3, members=(0, 1, 2)))
    assert not of(Update, push(shard, 1))
    assert of(Update, push(shard, 2))


def test_a_view_change_is_published_at_once_so_that_workers_do_not_use_the_old_view() -> None:
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


def test_a_new_member_can_join_and_a_former_one_no_longer_counts() -> None:
    shard = opened()
    control(shard, m.ViewChange(run="run", view=2, quorum=2, members=(1, 2, 3)))
    assert [type(message) for message in sent(arrive(shard, 3))] == [m.Welcome]
    push(shard, 0)
    assert shard.contributions.unattributed == 1
    assert of(Update, make_version(shard, 3, 1))


# NEED and heartbeats


def test_need_messages_back_off_while_no_contribution_arrives() -> None:
    assert [at for at, what in ticks(opened(), 32.0) if what == "need"] == [1.0, 3.0, 7.0, 15.0, 23.0, 31.0]


def test_need_messages_never_come_more_often_than_the_user_has_set() -> None:
    shard = opened()
    shard.timing = replace(shard.timing, need_s=30.0)
    shard._progressed(0.0)
    assert [at for at, what in ticks(shard, 100.0) if what == "need"] == [30.0, 60.0, 90.0]


def test_a_contribution_postpones_the_need_message_and_resets_its_backoff() -> None:
    shard = opened()
    ticks(shard, 8.0)
    push(shard, 0, now=8.0)
    assert published(shard.handle(Tick(), 8.9)) == ["heartbeat"]
    assert published(shard.handle(Tick(), 9.0)) == ["need"]


def test_a_need_message_names_the_version_and_the_ranks_held() -> None:
    shard = opened()
    push(shard, 2)
    (need,) = of(Publish, shard.handle(Tick(), 1.0))
    assert need.topic == m.TOPIC_NEED
    assert need.message == m.Need(run="run", shard=1, incarnation=7, generation=1, version=0, view=1, held=(2,))


def test_a_heartbeat_is_published_if_nothing_else_was_published() -> None:
    assert ticks(opened(), 1.0) == [(0.25, "heartbeat"), (0.5, "heartbeat"), (0.75, "heartbeat"), (1.0, "need")]


def test_a_shard_without_state_publishes_nothing() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    control(shard, replace(HELLO, role="supervisor", secret="secret"))
    assert shard.handle(Tick(), 100.0) == []
    assert published(control(shard, stop_at(3))) == []


def test_a_stall_names_the_missing_workers() -> None:
    shard = opened(workers=(0, 1))
    push(shard, 0)
    (log,) = of(Log, shard.handle(Tick(), 6.0))
    assert log.level == "warning"
    assert "version 0 has 1 of 2 contributions, none new for 6 s" in log.text
    assert "worker 1 (here" in log.text
    assert "worker 2 (absent" in log.text


def test_a_stall_distinguishes_a_hung_worker_from_one_that_computes() -> None:
    shard = opened()
    push(shard, 0)
    for rank, computed in ((1, 0), (2, 7)):
        ping = m.Ping(run="run", rank=rank, incarnation=10, generation=1, version=0, computed=computed, sent_us=0)
        if rank == 1:
            ping = replace(ping, span="env_step", span_ms=5000)
        control(shard, ping, b"%d" % rank, now=5.5)
    (log,) = of(Log, shard.handle(Tick(), 6.0))
    assert "worker 1 (here, in 'env_step' for 5.5 s, last heard 0.5 s ago, last computed 6.0 s ago)" in log.text
    assert "worker 2 (here, last heard 0.5 s ago, last computed 0.5 s ago)" in log.text


# the first publication


def test_nothing_is_published_before_a_quorum_has_subscribed() -> None:
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


def test_a_heartbeat_says_whether_the_weights_were_published() -> None:
    shard = opened(workers=(0,))
    (before,) = of(Publish, shard.handle(Tick(), 0.5))
    arrive(shard, 1)
    (after,) = of(Publish, shard.handle(Tick(), 0.9))
    assert isinstance(before.message, m.Heartbeat)
    assert isinstance(after.message, m.Heartbeat)
    assert (before.message.published, after.message.published) == (False, True)


def test_a_version_is_published_even_if_its_quorum_never_subscribed_at_the_same_time() -> None:
    shard = opened(workers=())
    arrive(shard, 0)
    push(shard, 0)
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    arrive(shard, 1)
    assert published(push(shard, 1)) == ["weights"]
    assert shard.published
