"""The predictions of the report, for cases whose right numbers are known."""

from typing import Any

import pytest
from support.profiles import ACCUMULATE_S, SHARD_S, TRANSFER_S, USUAL_S, synthetic_run

from zmqrl.profile.report import AS_IT_WAS, ONE_BACKUP_FEWER, Analysis
from zmqrl.profile.run_tables import RunTables
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.replay import what_if
from zmqrl.simulate.scenario import Scenario

UPDATE_S = 2 * TRANSFER_S + sum(USUAL_S.values()) + ACCUMULATE_S + sum(SHARD_S.values())


def predicted_s(**planted: Any) -> dict[str, float]:
    """The predicted seconds per update, by change."""
    analysis = Analysis.of(RunTables(tuple(synthetic_run(versions=30, **planted))))
    quorum = planted.get("quorum", 3)
    scenario = Scenario(workers=3, shards=2, parameters=10_000, backups=planted.get("workers", quorum) - quorum)
    return {each.change: 1 / each.updates_per_s for each in what_if(RecordedRun(analysis, scenario), print)}


def test_the_unchanged_replay_takes_as_long_as_the_run() -> None:
    assert predicted_s()["as it was"] == pytest.approx(UPDATE_S, rel=0.05)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("span", ["env_step", "gradient"])
def test_without_a_slow_rank_updates_take_their_usual_time(span: str, rank: int) -> None:
    found = predicted_s(worker_extra_s={(span, rank): 0.3})
    assert found["as it was"] == pytest.approx(UPDATE_S + 0.3, rel=0.05)
    assert found[f"without rank {rank}"] == pytest.approx(UPDATE_S, rel=0.05)


def test_with_a_backup_updates_do_not_wait_for_a_slow_rank() -> None:
    found = predicted_s(worker_extra_s={("gradient", 1): 0.3})
    assert found["one backup more"] == pytest.approx(UPDATE_S, rel=0.05)


def test_the_rows_that_the_report_reads_have_these_names() -> None:
    assert {AS_IT_WAS, ONE_BACKUP_FEWER} <= set(predicted_s(workers=4, quorum=3))


def test_halving_the_pauses_or_the_transfers_saves_half_of_their_time() -> None:
    found = predicted_s(worker_extra_s={("gradient_transfer", rank): 0.1 for rank in range(3)})
    assert found["as it was"] == pytest.approx(UPDATE_S + 0.1, rel=0.05)
    assert found["transfers in half the time"] == pytest.approx(UPDATE_S + 0.05 - TRANSFER_S, rel=0.05)
