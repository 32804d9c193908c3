"""Complete runs with the state machines of shards, workers and the supervisor on an unreliable network."""

import random
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_world import RunWorld

ROUNDS = 40


def disturb(world: RunWorld, chance: random.Random) -> None:
    """Cause one fault: a process dies, a shard loses its state, or a connection breaks or comes back."""
    shard, worker = chance.choice(world.shards), chance.choice(world.workers)
    link = chance.choice(world.links) if world.links else None

    def kill_worker() -> None:
        if worker.alive:
            worker.die()

    def crash_soon() -> None:
        if shard.machine is not None:
            shard.crash_after = chance.randrange(7)

    def cut() -> None:
        if link is not None:
            link.disconnect(arrived=chance.random() < 0.5)
            link.cut = True

    def mend() -> None:
        if link is not None:
            link.cut = False
            link.connect()

    faults: list[Callable[[], None]] = [
        lambda: shard.crash(arrived=chance.random() < 0.5),
        *(kill_worker, crash_soon, cut, mend, mend),
    ]
    if chance.random() < 0.1:
        faults = [lambda: world.lose_state(shard)]
    chance.choice(faults)()


@given(
    seed=st.integers(0, 2**32),
    shards=st.integers(1, 3),
    workers=st.integers(1, 4),
    on_loss=st.sampled_from(["wait", "shrink"]),
)
def test_a_run_makes_progress_and_ends_whatever_breaks(
    seed: int, shards: int, workers: int, on_loss: Literal["wait", "shrink"]
) -> None:
    chance = random.Random(seed)
    world = RunWorld(shards=shards, workers=workers, quorum=chance.randint(1, workers), on_loss=on_loss)
    for _ in range(ROUNDS):
        world.round()
        if chance.random() < 0.3:
            disturb(world, chance)
        assert world.supervisor.failed == []
    world.must_get_on(versions=3)
    world.must_end()
    world.journal.check()
    assert world.supervisor.failed == []


def test_a_run_without_faults_takes_checkpoints_and_never_rolls_back() -> None:
    world = RunWorld(shards=3, workers=3, quorum=2)
    for _ in range(200):
        world.round()
    assert world.supervisor.checkpoints >= 2
    assert world.supervisor.loads == 1
    progress = [world.journal.elapsed[at] for at in sorted(world.journal.elapsed)]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert 700_000 < progress[-1] < 900_000, "200 rounds of 0.25 s are 50 s of the minute"
    world.must_end()
    world.journal.check()


@pytest.mark.parametrize("shards", [1, 3])
def test_lost_state_undoes_only_the_versions_after_the_last_checkpoint(shards: int) -> None:
    world = RunWorld(shards=shards, workers=2, quorum=2)
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
    world.journal.check()
