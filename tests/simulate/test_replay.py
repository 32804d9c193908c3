"""The what-if questions of ``zmqrl profile``, asked about synthetic profiles."""

from typing import Any

import pytest
from support.profiles import synthetic_run

from zmqrl.profile.clocks import Clocks
from zmqrl.profile.critical_path import Timeline, critical_paths
from zmqrl.profile.run_tables import RunTables
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.replay import most_blamed, what_if
from zmqrl.simulate.scenario import Scenario


def replayed(without: tuple[int, ...] = (), **planted: Any) -> list[str]:
    tables = RunTables(tuple(synthetic_run(versions=24, **planted)))
    timeline = Timeline.of(tables, Clocks.of(tables))
    paths = critical_paths(timeline)
    scenario = Scenario(workers=planted.get("workers", 3), shards=2, parameters=10_000)
    found = what_if(RecordedRun(tables, timeline, paths, scenario), paths, without)
    return [each.change for each in found if each.change.startswith("without")]


def blamed(**planted: Any) -> list[int]:
    tables = RunTables(tuple(synthetic_run(versions=24, **planted)))
    return most_blamed(critical_paths(Timeline.of(tables, Clocks.of(tables))))


def test_the_blamed_rank_and_the_ranks_named_by_the_user_are_left_out() -> None:
    assert replayed(worker_extra_s={("gradient", 1): 0.2}) == ["without rank 1"]
    assert replayed((2, 1), worker_extra_s={("gradient", 1): 0.2}) == ["without rank 1", "without rank 2"]


@pytest.mark.parametrize(("slow", "found"), [(2, 2), (3, 3), (6, 4)])
def test_at_most_four_ranks_are_left_out_the_most_blamed_first(slow: int, found: int) -> None:
    # The slow ranks take turns at being late. A higher rank is late by more time.
    turns = {rank: 0.5 + 0.1 * rank for rank in range(slow)}
    assert blamed(workers=12, in_turn_s=turns) == sorted(turns, reverse=True)[:found]


def test_no_prediction_leaves_out_a_rank_with_little_blame() -> None:
    assert blamed(in_turn_s={0: 1.0, 1: 0.05}) == [0]


@pytest.mark.parametrize(("link_s", "asked"), [(0.01, True), (0.2, False)])
def test_more_shards_are_predicted_only_if_the_network_does_not_limit_the_run(link_s: float, asked: bool) -> None:
    run = synthetic_run(versions=24, link_extra_s=dict.fromkeys(range(3), link_s))
    tables = RunTables(tuple(run))
    timeline = Timeline.of(tables, Clocks.of(tables))
    paths = critical_paths(timeline)
    found = what_if(RecordedRun(tables, timeline, paths, Scenario(workers=3, parameters=10_000)), paths)
    assert ("twice as many shards" in [each.change for each in found]) == asked
