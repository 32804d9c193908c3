"""The supervisor's view of its shards and of their workers, from messages, without sockets."""

from typing import Any

import pytest
from support.messages import stats_with

from zmqrl.ps.shard.events import View
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e
from zmqrl.supervisor.shards import Shards

RUN = "0123456789abcdef"
VIEW = View(1, 1, (0,))


def stop(shard: int, version: int | None) -> e.TellShard:
    return e.TellShard(shard, m.Stop(run=RUN, version=version))


def welcome(shard: int, incarnation: int, state: Any, *, generation: int = 1, version: int = 0) -> m.Welcome:
    about = {"run": RUN, "shard": shard, "incarnation": incarnation, "generation": generation, "version": version}
    view = {"view": 1, "quorum": 1, "members": (0,)}
    return m.Welcome(**about, **view, codec="f32", state=state, published=True)  # type: ignore[arg-type]


def stats(shard: int, version: int, **figures: Any) -> m.Stats:
    seen: dict[str, Any] = {"present": (0,), "silent_ms": (0,), "totals": (version, 0, 0, 0)}
    about: dict[str, Any] = {"run": RUN, "shard": shard, "incarnation": 10, "version": version}
    return stats_with(**{**about, **seen, **figures})


def loaded(*versions: int, stop_at: int | None = None) -> Shards:
    """Two shards that have loaded a checkpoint."""
    shards = Shards(RUN, versions or (0, 0), 0, stop_at)
    for shard in (0, 1):
        shards.on_welcome(shard, welcome(shard, 10, "empty"), VIEW)
    assert shards.roll_back(VIEW, 0.0) == [e.LoadCheckpoint(1, VIEW)]
    shards.loaded()
    return shards


def is_ready(shards: Shards) -> bool:
    """``shards.ready``. A direct assertion would make mypy assume that the value never changes."""
    return shards.ready


def all_at_stop(shards: Shards) -> bool:
    """``shards.all_at_stop``, as a function for the same reason."""
    return shards.all_at_stop


@pytest.fixture
def shards() -> Shards:
    return loaded()


def test_each_shard_continues_from_its_own_version_in_asynchronous_mode() -> None:
    shards = loaded(711, 709)
    assert shards.seen == {0: 711, 1: 709}


def test_a_shard_already_past_the_end_of_the_run_ends_at_its_version() -> None:
    assert loaded(42, 38, stop_at=40).loaded() == [stop(0, 42), stop(1, 40)]


def test_an_empty_shard_is_loaded_even_after_a_late_message_from_its_old_process(shards: Shards) -> None:
    shards.on_exit(0)  # its host daemon is lost, but the old process can still be reached
    shards.on_welcome(0, welcome(0, 10, "open"), VIEW)
    assert is_ready(shards)
    shards.on_welcome(0, welcome(0, 11, "empty"), VIEW)
    assert not is_ready(shards)
    assert [action for action in shards.roll_back(VIEW, 1.0) if isinstance(action, e.LoadCheckpoint)] == [
        e.LoadCheckpoint(2, VIEW)
    ]


@pytest.mark.parametrize(("generation", "version"), [(0, 9), (1, 6)])
def test_a_shard_that_comes_back_with_older_state_is_rolled_back(generation: int, version: int) -> None:
    """A version of an older generation can have a higher number, but a rollback has undone this version."""
    shards = loaded(7, 7)
    shards.on_exit(0)
    assert shards.on_welcome(0, welcome(0, 11, "open", generation=generation, version=version), VIEW) == []
    assert shards.rollback == "shard 0 came back without the newest state"


def test_a_repeated_welcome_changes_nothing(shards: Shards) -> None:
    shards.on_welcome(0, welcome(0, 10, "open"), VIEW)
    shards.on_welcome(0, welcome(0, 10, "open"), VIEW)
    assert shards.ready


def test_an_outdated_answer_changes_nothing(shards: Shards) -> None:
    assert shards.on_stats(0, stats(0, 7))
    for old in (stats(0, 6), stats(0, 9, incarnation=9), stats(0, 9, generation=0)):
        assert not shards.on_stats(0, old)
    assert shards.stats[0].version == 7
    assert not shards.on_stats(0, stats(0, 5, incarnation=11)), "a restarted process can be behind"
    assert shards.stats[0].version == 5


@pytest.mark.parametrize("wanted", [8, None])
def test_the_stop_is_repeated_until_every_shard_confirms_it(shards: Shards, wanted: int | None) -> None:
    shards.stop_at = wanted
    said: list[e.Action] = []
    for known in (9, 9, wanted):
        shards.on_stats(0, stats(0, 3, stop=wanted))
        shards.on_stats(1, stats(1, 3, stop=known))
        said += shards.repeat(VIEW)
    assert said == [stop(1, wanted)] * 2


def test_a_shard_that_passed_the_end_before_the_stop_arrived_ends_at_its_version(shards: Shards) -> None:
    shards.stop_at = 3
    said: list[e.Action] = []
    for known in (None, 5):
        shards.on_stats(0, stats(0, 5, stop=known))
        said += shards.repeat(VIEW)
    assert said == [stop(0, 5)]


def test_the_view_is_repeated_until_every_shard_confirms_it(shards: Shards) -> None:
    said: list[e.Action] = []
    for view in (0, 1):
        shards.on_stats(0, stats(0, 3, view=view))
        said += shards.repeat(VIEW)
    assert said == [e.TellShard(0, m.ViewChange(run=RUN, view=1, quorum=1, members=(0,)))]


def test_a_run_can_reach_its_end_before_all_shards_confirm_the_stop(shards: Shards) -> None:
    shards.on_stats(0, stats(0, 8, state="ended", stop=8))
    shards.on_stats(1, stats(1, 8))
    assert not all_at_stop(shards)
    shards.stop_at = 8
    assert all_at_stop(shards)
    shards.on_stats(1, stats(1, 9))
    assert all_at_stop(shards)
    shards.stop_at = 9
    assert not all_at_stop(shards)


def test_an_error_says_why_a_shard_can_make_no_more_versions(shards: Shards) -> None:
    shards.on_stats(0, stats(0, 3))
    shards.on_stats(1, stats(1, 2))
    assert shards.failure() is None
    why = "version 3 has numbers that are not finite, from contributions of rank 0"
    shards.on_stats(1, stats(1, 2, state="ended", failure=why))
    assert (shards.failure() or "").startswith(f"shard 1 stays at version 2: {why}; lower the learning rate")
