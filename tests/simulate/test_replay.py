"""The what-if questions of ``zmqrl profile``, asked about synthetic profiles."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from support.profiles import resumed, synthetic_run
from support.replays import recorded

from zmqrl.process_id import shard_id
from zmqrl.simulate.recorded import TooLittleRecorded
from zmqrl.simulate.replay import Variation, most_blamed, replay, what_if


def replayed(without: tuple[int, ...] = (), **planted: Any) -> list[str]:
    found = what_if(recorded(synthetic_run(versions=24, **planted)), pytest.fail, without)
    return [each.change for each in found if each.change.startswith("without")]


def blamed(**planted: Any) -> list[int]:
    return most_blamed(recorded(synthetic_run(versions=24, **planted)).paths)


def test_the_blamed_rank_and_the_ranks_named_by_the_user_are_left_out() -> None:
    assert replayed(worker_extra_s={("gradient", 1): 0.2}) == ["without rank 1"]
    assert replayed((2, 1), worker_extra_s={("gradient", 1): 0.2}) == ["without rank 1", "without rank 2"]


@pytest.mark.parametrize(("slow", "found"), [(2, 2), (3, 3), (6, 4)])
def test_at_most_four_ranks_are_left_out_the_most_blamed_first(slow: int, found: int) -> None:
    # The slow ranks take turns at being late. A higher rank is late by more time.
    turns = {rank: 0.5 + 0.1 * rank for rank in range(slow)}
    assert blamed(workers=12, in_turn_s=turns) == sorted(turns, reverse=True)[:found]


@pytest.mark.parametrize("updates_per_rollout", [1, 4])
def test_one_backup_more_does_not_stall_together_with_the_worker_that_it_resembles(updates_per_rollout: int) -> None:
    slow = {(version, 0): 0.3 for version in range(60) if version // updates_per_rollout % 5 == 0}
    planted = synthetic_run(workers=1, versions=60, stalls_s=slow, per_rollout=updates_per_rollout)
    run = recorded(planted, updates_per_rollout=updates_per_rollout)
    assert replay(run) == pytest.approx(run.measured, rel=0.02)
    assert replay(run, Variation(backups=1)) > 1.15 * run.measured


def test_one_backup_more_is_predicted_as_if_workers_stalled_independently() -> None:
    share, versions, random = 0.1, 400, np.random.default_rng(1)
    stalls = {key: 0.3 for key in product(range(versions), range(2)) if random.random() < share}
    truth = recorded(synthetic_run(workers=2, versions=versions, stalls_s=stalls), workers=1, backups=1)
    of_one = {(version, rank): s for (version, rank), s in stalls.items() if rank == 0}
    run = recorded(synthetic_run(workers=1, versions=versions, stalls_s=of_one))
    assert replay(truth) > 1.05 * replay(run)
    assert replay(run, Variation(backups=1)) == pytest.approx(replay(truth), rel=0.02)


def test_no_prediction_leaves_out_a_rank_with_little_blame() -> None:
    assert blamed(in_turn_s={0: 1.0, 1: 0.05}) == [0]


@pytest.mark.parametrize(("link_s", "asked"), [(0.01, True), (0.2, False)])
def test_more_shards_are_predicted_only_if_the_network_does_not_limit_the_run(link_s: float, asked: bool) -> None:
    notices: list[str] = []
    run = recorded(synthetic_run(versions=24, link_extra_s=dict.fromkeys(range(3), link_s)))
    found = what_if(run, notices.append)
    assert ("twice as many shards" in [each.change for each in found]) == asked
    assert [notice.partition(":")[0] for notice in notices] == ([] if asked else ["no prediction for more shards"])


def test_a_change_that_no_run_can_have_is_named() -> None:
    notices: list[str] = []
    run = recorded(synthetic_run(shards=3, versions=8), parameters=5 * 16)
    found = what_if(run, notices.append)
    assert "twice as many shards" not in [each.change for each in found]
    assert notices == [
        "no prediction for 'twice as many shards': --parameters 80: must be from 96 to 1099511627776 for 6 shards."
    ]


@pytest.mark.parametrize("workers", [2, 4])
def test_only_the_newest_session_of_a_resumed_run_is_replayed(workers: int) -> None:
    slow = {("gradient", workers - 1): 0.3}
    earlier = synthetic_run(versions=30, worker_extra_s={("gradient", 2): 2.0})
    newest = synthetic_run(workers=workers, versions=24, worker_extra_s=slow)
    alone = recorded(newest)
    run = recorded([*earlier, *resumed(newest, at=30, later_s=100)], workers=workers, shards=2)
    assert run.measured == pytest.approx(alone.measured)
    rates = {each.change: each.updates_per_s for each in what_if(alone, pytest.fail)}
    assert {each.change: each.updates_per_s for each in what_if(run, pytest.fail)} == pytest.approx(rates)
    assert (run.earlier, alone.earlier) == ("only the newest session is simulated: versions 31 to 54", None)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_run_without_the_profile_of_a_shard_is_not_replayed(missing: int) -> None:
    processes = [each for each in synthetic_run(shards=3, versions=24) if each.process != shard_id(missing)]
    with pytest.raises(TooLittleRecorded, match=f"shard {missing} recorded nothing, so the run cannot be replayed"):
        recorded(processes, workers=3, shards=3)


def test_a_run_resumed_with_fewer_workers_whose_newest_session_recorded_nothing_is_not_replayed() -> None:
    with pytest.raises(TooLittleRecorded, match="a session with 3 workers, but the run now has 2"):
        recorded(synthetic_run(versions=24), workers=2)
