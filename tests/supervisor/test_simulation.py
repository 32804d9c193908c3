"""Complete runs with the state machines of shards, workers and the supervisor. ``test_hunt.py`` adds random faults."""

from collections.abc import Iterator

import pytest
from support.protocol_model import WorkerHost
from support.run_world import RunWorld, virtual_time


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[RunWorld]:
    """A run with three shards, three workers and a quorum of two. A test can change these settings."""
    settings = {"shards": 3, "workers": 3, "quorum": 2} | getattr(request, "param", {})
    world = RunWorld(**settings)
    with virtual_time(world):
        yield world


def test_a_run_without_faults_takes_checkpoints_and_never_rolls_back(world: RunWorld) -> None:
    for _ in range(200):
        world.round()
    assert world.supervisor.checkpoints >= 2
    assert world.supervisor.loads == 1
    progress = [world.journal.elapsed[at] for at in sorted(world.journal.elapsed)]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert 700_000 < progress[-1] < 900_000, "200 rounds of 0.25 s are 50 s of the minute"
    world.must_end()


@pytest.mark.parametrize("world", [{"shards": 1}, {}], indirect=True)
def test_lost_state_undoes_only_the_versions_after_the_last_checkpoint(world: RunWorld) -> None:
    for _ in range(150):
        world.round()
    checkpoint = world.supervisor.machine.shards.checkpoint
    assert min(checkpoint) > 0
    world.lose_state(world.shards[-1])
    world.must_get_on(versions=2)
    assert world.supervisor.loads == 2
    assert {generation for generation, _ in world.journal.loaded} == {1, 2}
    assert all(world.journal.loaded[2, shard][0] == version for shard, version in enumerate(checkpoint))
    world.must_end()


def test_a_run_that_only_loads_its_checkpoint_again_counts_as_stuck(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        world.round()
    world.lose_state(world.shards[0])
    monkeypatch.setattr(WorkerHost, "act", lambda _: None)
    with pytest.raises(AssertionError, match="stuck"):
        world.must_get_on(versions=1, within_s=20.0)
    assert world.supervisor.loads == 2


def test_a_supervisor_that_was_cut_off_just_before_a_rollback_greets_its_shards_first(world: RunWorld) -> None:
    for _ in range(20):
        world.round()
    world.lose_state(world.shards[0])
    while world.shards[0].machine is None:
        world.round()
    for path in world.paths:  # the shards no longer recognize the supervisor
        path.reconnect()
    world.must_get_on(versions=2, within_s=15.0)
    assert world.supervisor.loads == 2
    world.must_end()


def test_a_shard_that_hangs_while_the_run_ends_is_replaced(world: RunWorld) -> None:
    for _ in range(20):
        world.round()
    world.shards[1].paused = True
    world.supervisor.interrupt()
    while not world.supervisor.over:
        world.supervisor.turn()
        world.calm(0.25)
    assert not world.shards[1].paused, "this is another process"
    assert 30 < world.now < 60
    world.must_end()


@pytest.mark.parametrize("world", [{"updates": 5}], indirect=True)
def test_workers_that_learn_of_the_end_before_the_supervisor_does_not_fail_the_run(world: RunWorld) -> None:
    while world.shards[0].at()[1] < 3:
        world.round()
    world.paths[2].cut = True
    world.paths[2].reconnect()
    for _ in range(100):  # 25 s, in which each worker joins and leaves many times
        world.round()
    assert world.shards[2].at()[1] == 5
    assert not world.supervisor.over
    assert max(world.supervisor.machine.processes.starts.values()) > 5
    world.must_end()
    assert world.supervisor.checkpoint.version == 5
