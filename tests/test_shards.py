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
from zmqrl.ps import messages as m
from zmqrl.ps.partition import Layout

RUN = "0123456789abcdef"


class Control:
    """Remembers what was loaded."""

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
