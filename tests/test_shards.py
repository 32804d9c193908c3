"""What the supervisor knows of its shards, and of the work that they see: from messages, without sockets."""

from typing import Any

import numpy as np
import pytest

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.keeper import Keeper
from zmqrl.cluster.launcher import Exited
from zmqrl.cluster.membership import Membership
from zmqrl.cluster.restarts import FAILURES_IN_A_ROW
from zmqrl.cluster.shards import Shards
from zmqrl.errors import ClusterError
from zmqrl.ps import messages as m
from zmqrl.ps.partition import Layout

RUN = "0123456789abcdef"


class Control:
    """Remembers what was loaded and what was said."""

    run = RUN

    def __init__(self) -> None:
        self.loaded: list[tuple[int, int]] = []
        self.versions: list[int] = []
        self.sent: list[tuple[int, m.Message]] = []

    def send(self, shard: int, message: m.Message) -> bool:
        self.sent.append((shard, message))
        return True

    def load(self, shard: int, generation: int, version: int, *_: Any) -> None:
        self.loaded.append((shard, generation))
        self.versions.append(version)


def welcome(shard: int, incarnation: int, state: Any, *, generation: int = 1, version: int = 0) -> m.Welcome:
    about = {"run": RUN, "shard": shard, "incarnation": incarnation, "generation": generation, "version": version}
    view = {"view": 1, "quorum": 1, "members": (0,)}
    return m.Welcome(**about, **view, codec="f32", state=state, published=True)  # type: ignore[arg-type]


def stats(shard: int, version: int, **figures: Any) -> m.Stats:
    about = {"run": RUN, "shard": shard, "incarnation": 10, "generation": 1, "version": version, "state": "open"}
    view: dict[str, Any] = {"view": 1, "quorum": 1, "held": (), "present": (0,), "silent_ms": (0,), "tallies": ()}
    kept: dict[str, Any] = {"captured": None, "totals": (version, 0, 0, 0), "captured_totals": (), "stop": None}
    return m.Stats(**{"unattributed": 0, "failure": "", **about, **view, **kept, **figures})


def loaded(version: int = 0, versions: tuple[int, ...] = (), stop_at: int | None = None) -> Shards:
    """Two shards that have taken over a checkpoint."""
    layout = Layout.of([("w", (64,))], 2)
    states = tuple(np.zeros(cut.count, "<f4").tobytes() for cut in layout.slices)
    first = Checkpoint(
        layout=layout,
        generation=0,
        version=version,
        versions=versions,
        optimizer="sgd",
        state_names=(),
        states=states,
        counters={},
    )
    made = Shards(first, Membership(1, 1, "wait"), stop_at, lambda text: None)
    made.control = Control()  # type: ignore[assignment]
    for shard in (0, 1):
        made.on_welcome(shard, welcome(shard, 10, "empty"))
    assert made.roll_back(0.0)
    return made


@pytest.fixture
def shards() -> Shards:
    return loaded()


def test_each_shard_goes_on_from_its_own_version_in_asynchronous_mode() -> None:
    shards = loaded(709, (711, 709))
    assert shards.control.versions == [711, 709]  # type: ignore[attr-defined]
    assert shards.seen == {0: 711, 1: 709}


def test_a_shard_that_is_past_the_end_of_the_run_already_ends_where_it_is() -> None:
    shards = loaded(38, (42, 38), stop_at=40)
    sent: list[tuple[int, m.Message]] = shards.control.sent  # type: ignore[attr-defined]
    assert sent == [(0, m.Stop(run=RUN, version=42)), (1, m.Stop(run=RUN, version=40))]


def test_a_shard_that_comes_back_empty_after_its_old_process_was_still_heard_is_loaded(shards: Shards) -> None:
    shards.on_exit(0)  # its host cannot be reached, but the old process still can
    shards.on_welcome(0, welcome(0, 10, "open"))
    assert shards.ready
    shards.on_welcome(0, welcome(0, 11, "empty"))
    assert not shards.ready
    assert shards.roll_back(1.0)
    assert shards.control.loaded[2:] == [(0, 2), (1, 2)]  # type: ignore[attr-defined]


def test_a_shard_that_welcomes_us_again_says_nothing_new(shards: Shards) -> None:
    shards.on_welcome(0, welcome(0, 10, "open"))
    shards.on_welcome(0, welcome(0, 10, "open"))
    assert shards.ready


def test_an_answer_that_a_later_one_has_overtaken_changes_nothing(shards: Shards) -> None:
    assert shards.on_stats(0, stats(0, 7))
    for old in (stats(0, 6), stats(0, 9, incarnation=9), stats(0, 9, generation=0)):
        assert not shards.on_stats(0, old)
    assert shards.stats[0].version == 7
    assert not shards.on_stats(0, stats(0, 5, incarnation=11)), "a process that was started again has less"
    assert shards.stats[0].version == 5


@pytest.mark.parametrize("wanted", [8, None])
def test_where_to_end_is_said_until_every_shard_says_the_same(shards: Shards, wanted: int | None) -> None:
    shards.stop_at = wanted
    said = shards.control.sent  # type: ignore[attr-defined]
    said.clear()
    for stop in (9, 9, wanted):
        shards.on_stats(0, stats(0, 3, stop=wanted))
        shards.on_stats(1, stats(1, 3, stop=stop))
        shards.say_again()
    assert said == [(1, m.Stop(run=RUN, version=wanted))] * 2


def test_a_shard_that_was_past_the_end_before_it_heard_of_it_is_to_end_where_it_is(shards: Shards) -> None:
    shards.stop_at = 3
    said = shards.control.sent  # type: ignore[attr-defined]
    said.clear()
    for stop in (None, 5):
        shards.on_stats(0, stats(0, 5, stop=stop))
        shards.say_again()
    assert said == [(0, m.Stop(run=RUN, version=5))]


def test_who_counts_is_said_until_every_shard_says_the_same(shards: Shards) -> None:
    said = shards.control.sent  # type: ignore[attr-defined]
    said.clear()
    for view in (0, 1):
        shards.on_stats(0, stats(0, 3, view=view))
        shards.say_again()
    assert said == [(0, m.ViewChange(run=RUN, view=1, quorum=1, members=(0,)))]


def test_a_run_has_reached_its_end_when_every_shard_has_though_one_has_not_heard_of_it(shards: Shards) -> None:
    shards.on_stats(0, stats(0, 8, state="ended", stop=8))
    shards.on_stats(1, stats(1, 8))
    assert not shards.all_at_stop
    shards.stop_at = 8
    assert shards.all_at_stop
    shards.on_stats(1, stats(1, 9))
    assert shards.all_at_stop
    shards.stop_at = 9
    assert not shards.all_at_stop


def test_a_shard_that_can_make_no_more_versions_is_an_error_that_says_why(shards: Shards) -> None:
    shards.on_stats(0, stats(0, 3))
    shards.on_stats(1, stats(1, 2))
    shards.check()
    why = "version 3 has numbers that are not finite, from those of ranks 0"
    shards.on_stats(1, stats(1, 2, state="ended", failure=why))
    with pytest.raises(ClusterError, match=f"^shard 1 stays at version 2: {why}; lower the learning rate"):
        shards.check()


class Launcher:
    def names(self) -> list[str]:
        return []


def test_who_works_after_a_rollback_is_forgiven_as_before() -> None:
    launcher: Any = Launcher()
    keeper = Keeper(launcher, lambda name: pytest.fail(name), lambda text: None, lambda name: "h1")
    keeper.contributed([(0, 100_000, 0, 0, 0)])
    keeper.count_anew()
    for used in range(1, FAILURES_IN_A_ROW + 1):
        keeper.start_again(Exited("worker-0", 1, "", 1.0))
        keeper.contributed([(0, used, 0, 0, 0)])
    assert not keeper.restarts.hopeless
