"""The state machine of a shard: checkpoints, rollback and recovery. Each test covers one behaviour."""

from dataclasses import replace

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
    ticks,
)

from zmqrl.ps.shard.events import (
    Accumulate,
    Capture,
    CommitAgain,
    PresenceChanged,
    Publish,
    SendChunk,
    SendSnapshot,
    StateRestored,
    TakeChunk,
    Update,
    View,
)
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.wire import messages as m

# checkpoints and state


def test_a_checkpoint_is_captured_when_its_version_is_made() -> None:
    shard = opened()
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=2))) == []
    assert of(Capture, make_version(shard, 0, 1)) == []
    assert of(Capture, make_version(shard, 0, 1)) == [Capture(2)]
    assert of(Capture, make_version(shard, 0, 1)) == []
    assert shard.captured == 2


def test_a_version_that_is_still_held_is_captured_once_and_immediately() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=0))) == [Capture(0)]
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=0))) == []
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=1))) == [Capture(1)]


def test_a_version_that_is_no_longer_held_is_not_captured() -> None:
    shard = opened()
    for _ in range(3):
        make_version(shard, 0, 1)
    actions = control(shard, m.Checkpoint(run="run", version=1))
    assert of(Capture, actions) == []
    assert [type(message) for message in sent(actions)] == [m.Stats]


def test_a_fetch_is_answered_from_the_copy() -> None:
    fetch = m.Fetch(run="run", version=0, offset=512)
    assert control(opened(), fetch) == [SendChunk(SUPERVISOR, fetch)]


def test_a_shard_loads_state_only_if_empty_or_under_a_newer_generation() -> None:
    load = m.Load(run="run", generation=1, version=0, view=1, quorum=2, members=(0, 1, 2), offset=0, total=1)
    shard = opened()
    assert control(shard, load) == []
    newer = replace(load, generation=2)
    assert control(shard, newer) == [TakeChunk(SUPERVISOR, newer, b"state")]


def test_a_rollback_opens_the_loaded_version_and_drops_held_contributions() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    control(shard, m.Checkpoint(run="run", version=1))
    push(shard, 0)
    actions = shard.handle(StateRestored(replace(RECORD, generation=2), recovered=False), 0.0)
    assert published(actions) == ["weights", "heartbeat"]
    assert (shard.generation, shard.version, shard.previous, shard.captured) == (2, 0, None, None)
    assert shard.contributions.held == {}
    assert tallies(shard)[0] == [1, 1, 0, 0]


def test_contributions_from_a_rolled_back_generation_are_late() -> None:
    shard = opened()
    shard.handle(StateRestored(replace(RECORD, generation=2, version=5), recovered=False), 0.0)
    push(shard, 0, generation=1, version=5)
    assert tallies(shard)[0] == [0, 1, 0, 0]


def test_a_rolled_back_shard_that_had_ended_is_open_again() -> None:
    shard = opened()
    control(shard, stop_at(0))
    shard.handle(StateRestored(replace(RECORD, generation=2), recovered=False), 0.0)
    assert of(Update, make_version(shard, 0, 1))


def test_a_recovered_shard_continues_its_tallies_and_serves_both_versions() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    record = replace(RECORD, version=4, ranks=(0, 1), quorum=2, tallies={0: (4, 1, 0, 0)}, unattributed=3)
    actions = shard.handle(StateRestored(record, recovered=True, previous=3), 0.0)
    assert published(actions) == ["heartbeat"]
    for worker in (0, 1, 2):
        arrive(shard, worker)
    assert control(shard, m.SnapshotRequest(run="run", version=3), b"0") == [SendSnapshot(b"0", 3, 0)]
    push(shard, 0, version=3)
    push(shard, 2, version=3)
    assert tallies(shard) == {0: [4, 1, 1, 0], 2: [0, 1, 0, 0]}
    assert shard.contributions.unattributed == 3
    assert of(Update, make_version(shard, 0, 1))


def test_a_shard_that_had_ended_is_still_ended_after_a_restart() -> None:
    shard = opened()
    control(shard, stop_at(1))
    (update,) = of(Update, make_version(shard, 0, 1))
    again = ShardMachine(IDENTITY, ShardTiming())
    assert published(again.handle(StateRestored(update.record, recovered=True), 0.0)) == ["bye", "bye"]
    assert again.state == "ended"


def test_a_recovered_shard_uses_contributions_only_from_known_incarnations() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    shard.handle(StateRestored(RECORD, recovered=True), 0.0)
    assert of(Accumulate, push(shard, 0)) == []
    arrive(shard, 0)
    assert of(Accumulate, push(shard, 0))


def test_a_recovered_shard_asks_for_uncommitted_contributions() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming())
    shard.handle(StateRestored(RECORD, recovered=True), 0.0)
    assert [what for _, what in ticks(shard, 1.0)][-1] == "need"


def test_a_worker_that_subscribes_again_is_welcomed_again() -> None:
    shard = opened()
    shard.handle(PresenceChanged(0, 10, here=False), 0.0)
    assert [type(message) for message in sent(shard.handle(PresenceChanged(0, 10, here=True), 0.0))] == [m.Welcome]


def test_a_view_outlives_the_process() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    actions = control(shard, m.ViewChange(run="run", view=2, quorum=3, members=(0, 1, 2)))
    (again,) = of(CommitAgain, actions)
    assert (again.record.version, again.record.ranks, again.record.view) == (1, (0, 1), View(2, 3, (0, 1, 2)))
    assert actions.index(again) < actions.index(of(Publish, actions)[0]), "stored before it is published"
    restarted = ShardMachine(IDENTITY, ShardTiming())
    restarted.handle(StateRestored(again.record, recovered=True), 1.0)
    for worker in (0, 1, 2):
        arrive(restarted, worker)
    assert not of(Update, make_version(restarted, 0, 1)), "the version closed with a smaller quorum"
    assert of(Update, make_version(restarted, 2))


def test_a_frozen_shard_serves_its_state_and_makes_no_version() -> None:
    shard = ShardMachine(IDENTITY, ShardTiming(), frozen=True)
    control(shard, replace(HELLO, role="supervisor", secret="secret"))
    shard.handle(StateRestored(replace(RECORD, version=4, ranks=(0, 1)), recovered=True, previous=3), 0.0)
    for worker in (0, 1, 2):
        arrive(shard, worker)
    assert not of(Update, make_version(shard, 0, 1))
    assert of(Capture, control(shard, m.Checkpoint(run="run", version=3))) == [Capture(3)]
    (stats,) = sent(control(shard, m.StatsRequest(run="run")))
    assert isinstance(stats, m.Stats)
    assert (stats.version, stats.state, stats.captured) == (4, "ended", 3)


def test_a_stop_at_the_current_version_outlives_the_process() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    actions = control(shard, stop_at(1))
    (again,) = of(CommitAgain, actions)
    assert (again.record.version, again.record.ranks, again.record.stop) == (1, (0, 1), 1)
    assert actions.index(again) < actions.index(of(Publish, actions)[0]), "stored before it is published"
    assert of(CommitAgain, control(shard, stop_at(1))) == []
    restarted = opened()
    restarted.handle(StateRestored(again.record, recovered=True), 1.0)
    assert restarted.state == "ended"
