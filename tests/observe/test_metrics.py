import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe.metrics import FIGURES_KEPT, INCARNATIONS_KEPT, UNREPORTED_S, Counters, RunMetrics, ShardStats
from zmqrl.observe.reports import WorkerReport


def report(rank: int = 0, incarnation: int = 1, **figures: Any) -> dict[str, Any]:
    return {"rank": rank, "incarnation": incarnation, "version": 1, "agent_steps": 0, **figures}


def told(tested: RunMetrics, report: object) -> bool:
    """Whether ``report`` was accepted."""
    try:
        tested.on_report(WorkerReport.parse(report))
    except ValueError:
        return False
    return True


def shard(version: int = 0, **figures: Any) -> ShardStats:
    """The statistics of a shard whose process has made every version, unless ``totals`` say otherwise."""
    stats: dict[str, Any] = {"incarnation": 1, "version": version, "held": [], "present": [0, 1], "outcomes": {}}
    stats |= figures
    stats.setdefault("totals", [sum(column) for column in zip([0, 0, 0, 0], *stats["outcomes"].values(), strict=True)])
    return stats  # type: ignore[return-value]


def metrics() -> RunMetrics:
    return RunMetrics(start=Counters())


# counts from workers' reports


@dataclass
class Life:
    """One incarnation of a worker: its true counts at the time of each report."""

    rank: int
    incarnation: int
    agent_steps: list[int]
    games_at: list[int]  # games finished at the time of each report

    def reports(self) -> list[dict[str, Any]]:
        return [
            report(
                self.rank,
                self.incarnation,
                version=index + 1,
                agent_steps=steps,
                abandoned_steps=steps // 2,
                skipped=steps // 3,
                games=[[seq, float(seq), 10] for seq in range(max(1, games - 31), games + 1)],
            )
            for index, (steps, games) in enumerate(zip(self.agent_steps, self.games_at, strict=True))
        ]


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    def cumulative(largest: int, length: int) -> list[int]:
        grown = draw(st.lists(st.integers(0, largest), min_size=length, max_size=length))
        return [sum(grown[: index + 1]) for index in range(length)]

    made = []
    for rank in range(draw(st.integers(1, 3))):
        for incarnation in range(1, draw(st.integers(1, 3)) + 1):
            length = draw(st.integers(1, 5))
            made.append(Life(rank, incarnation, cumulative(5000, length), cumulative(50, length)))
    return made


@given(lives(), st.data())
def test_totals_are_right_if_reports_are_lost_repeated_or_out_of_order(made: list[Life], data: st.DataObject) -> None:
    tested = metrics()
    arriving = []
    for life in made:
        *some, last = life.reports()
        # The last report of an incarnation arrives. Others may be lost, repeated or reordered.
        arriving += [last, *data.draw(st.lists(st.sampled_from([*some, last]), max_size=8))]
    for each in data.draw(st.permutations(arriving)):
        assert told(tested, each)
    counters = tested.counters()
    assert counters.agent_steps == sum(life.agent_steps[-1] for life in made)
    assert counters.abandoned_steps == sum(life.agent_steps[-1] // 2 for life in made)
    assert counters.contributions["skipped"] == sum(life.agent_steps[-1] // 3 for life in made)
    assert counters.episodes == sum(life.games_at[-1] for life in made)
    assert len(counters.scores) <= min(50, counters.episodes)


def test_a_restarted_rank_adds_to_its_earlier_counts() -> None:
    tested = metrics()
    assert told(tested, report(incarnation=1, agent_steps=1000, skipped=3, games=[[1, 5.0, 100]]))
    assert told(tested, report(incarnation=2, agent_steps=10, skipped=1, games=[[1, 7.0, 10]]))
    row = tested.row(1.0)
    assert (row["agent_steps"], row["contributions"]["skipped"], row["episodes"]) == (1010, 4, 2)
    assert row["score_mean_50"] == 6.0
    assert row["skipped_by_rank"] == {"0": 4}


def test_a_report_counts_even_if_the_next_process_has_already_reported() -> None:
    tested = metrics()
    assert told(tested, report(incarnation=2, agent_steps=10))
    assert told(tested, report(incarnation=1, agent_steps=1000, games=[[1, 5.0, 100]]))
    row = tested.row(1.0)
    assert (row["agent_steps"], row["episodes"]) == (1010, 1)


def test_a_process_whose_clock_was_set_back_takes_over_the_rank_and_its_reports_count() -> None:
    tested = metrics()
    over = [
        tested.on_report(WorkerReport.parse(report(incarnation=incarnation, agent_steps=steps)))
        for incarnation, steps in ((1000, 100), (1000, 200), (7, 10), (7, 20), (1000, 250))
    ]
    assert over == [False, False, True, False, False]
    assert tested.row(1.0)["agent_steps"] == 270


def test_a_worker_that_invents_incarnations_does_not_fill_the_memory() -> None:
    tested = metrics()
    for incarnation in range(10 * INCARNATIONS_KEPT):
        told(tested, report(incarnation=5, agent_steps=100))
        told(tested, report(incarnation=100 + incarnation, agent_steps=1))
    assert len(tested._workers[0]) == INCARNATIONS_KEPT
    assert tested.row(1.0)["agent_steps"] == 100 + 10 * INCARNATIONS_KEPT


@pytest.mark.parametrize("first", [0, 1])
def test_a_game_in_several_reports_counts_once(first: int) -> None:
    tested = metrics()
    told(tested, report(games=[[first, 1.0, 9]]))
    told(tested, report(version=2, games=[[first, 1.0, 9], [first + 1, 3.0, 9]]))
    row = tested.row(1.0)
    assert (row["episodes"], row["score_mean_50"]) == (2, 2.0)


def test_games_that_did_not_fit_into_a_report_are_counted_without_a_score() -> None:
    tested = metrics()
    told(tested, report(games=[[seq, 1.0, 9] for seq in range(69, 101)]))
    assert tested.counters().episodes == 100
    assert len(tested.counters().scores) == 32


def test_the_score_is_the_mean_of_the_last_fifty_games_of_all_workers() -> None:
    tested = metrics()
    assert tested.row(0.5)["score_mean_50"] is None
    for seq in range(1, 41):
        for rank in (0, 1):
            told(tested, report(rank, version=seq, games=[[seq, float(seq), 9]]))
    assert tested.row(1.0)["score_mean_50"] == sum(range(16, 41)) / 25


def test_there_is_no_score_until_the_games_begun_at_the_start_have_ended() -> None:
    tested = metrics()
    tested.on_shards([shard(present=[0, 1])])
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=1))
    told(tested, report(1, games=[[1, 2.0, 9]], first_games=0))
    assert tested.row(1.0)["score_mean_50"] is None
    assert tested.mean_score(1) == -math.inf
    assert tested.counters().scores == ()
    told(tested, report(0, games=[[2, 9.0, 99]], first_games=0))
    assert tested.row(2.0)["score_mean_50"] == 4.0
    told(tested, report(0, incarnation=2, games=[[1, 4.0, 9]], first_games=3))
    assert tested.row(3.0)["score_mean_50"] == 4.0, "a worker that starts later changes nothing"


def test_the_score_does_not_wait_for_the_games_of_a_worker_that_is_gone() -> None:
    tested = metrics()
    tested.on_shards([shard(present=[0, 1])])
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=0))
    told(tested, report(1, first_games=2))
    assert tested.row(1.0)["score_mean_50"] is None
    tested.on_shards([shard(present=[0])])
    assert tested.row(2.0)["score_mean_50"] == 1.0


def test_the_score_waits_for_the_first_report_of_a_worker_that_is_present() -> None:
    tested = RunMetrics(start=Counters(), reporting=range(2))
    tested.on_shards([shard(present=[0, 1])])
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=0))
    assert tested.row(1.0)["score_mean_50"] is None
    assert tested.mean_score(1) == -math.inf
    assert tested.counters().scores == ()
    told(tested, report(1, games=[[1, 5.0, 9]], first_games=1))
    assert tested.row(2.0)["score_mean_50"] is None
    told(tested, report(1, games=[[1, 5.0, 9], [2, 9.0, 9]], first_games=0))
    assert tested.row(3.0)["score_mean_50"] == 5.0


def test_the_score_waits_for_the_first_reports_even_before_a_shard_has_answered() -> None:
    tested = RunMetrics(start=Counters(), reporting=range(2))
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=0))
    assert tested.row(1.0)["score_mean_50"] is None
    tested.on_shards([shard(present=[0])])
    assert tested.row(2.0)["score_mean_50"] == 1.0, "worker 1 has not joined"


def test_the_score_does_not_wait_for_a_stuck_worker_while_others_report() -> None:
    tested = RunMetrics(start=Counters(), reporting=range(3))
    tested.on_shards([shard(present=[0, 1, 2])])
    told(tested, report(1, games=[[1, 5.0, 9]], first_games=1))
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=0))
    assert tested.row(2 * UNREPORTED_S)["score_mean_50"] is None, "no worker has reported since"
    told(tested, report(0, games=[[1, 1.0, 9], [2, 3.0, 9]], first_games=0))
    assert tested.row(2 * UNREPORTED_S + 1.0)["score_mean_50"] == 3.0


def test_the_score_does_not_wait_for_an_external_worker_that_never_reports() -> None:
    tested = RunMetrics(start=Counters(), reporting=range(1))
    tested.on_shards([shard(present=[0, 1])])
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=0))
    assert tested.row(1.0)["score_mean_50"] == 1.0


def test_a_resumed_run_keeps_its_score_until_the_games_begun_at_its_start_have_ended() -> None:
    tested = RunMetrics(start=Counters(version=7, episodes=1, scores=(3.0,)), reporting=range(2))
    tested.on_shards([shard(7, present=[0, 1])])
    told(tested, report(0, games=[[1, 1.0, 9]], first_games=2))
    row = tested.row(1.0)
    assert (row["episodes"], row["score_mean_50"], tested.mean_score(1)) == (2, 3.0, 3.0)
    assert tested.counters().scores == (3.0,)
    told(tested, report(0, games=[[1, 1.0, 9], [2, 9.0, 99], [3, 8.0, 99]], first_games=0))
    told(tested, report(1, games=[[1, 4.0, 9]], first_games=0))
    assert tested.row(2.0)["score_mean_50"] == 5.0
    assert tested.counters().scores == (3.0, 1.0, 9.0, 8.0, 4.0)


def test_a_run_that_resumes_without_scores_has_none_until_enough_games_have_ended() -> None:
    """The first session can end before its first games do. Its games count, but their scores are unknown."""
    tested = RunMetrics(start=Counters(version=7, episodes=60), reporting=range(2))
    told(tested, report(0, games=[[1, -70.0, 70]], first_games=16))
    assert tested.row(1.0)["score_mean_50"] is None
    told(tested, report(0, games=[[seq, -70.0, 70] for seq in range(1, 26)], first_games=0))
    told(tested, report(1, games=[[seq, -90.0, 90] for seq in range(1, 25)], first_games=0))
    assert tested.row(2.0)["score_mean_50"] is None
    assert tested.counters().scores == ()
    told(tested, report(1, games=[[25, -90.0, 90]], first_games=0))
    assert tested.row(3.0)["score_mean_50"] == -80.0


# what external workers can send

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [*report(), "abandoned_steps", "skipped", "games", "losses", "policy_lag", "spans", "extra"]
KEYS += ["gradients", "loss_sums", "policy_lag_sum", "policy_lag_min", "policy_lag_max", "span_sums"]


@given(st.dictionaries(st.sampled_from(KEYS), anything) | anything)
def test_no_report_can_break_a_row(hostile: object) -> None:
    tested = metrics()
    for each in (hostile, {**report(), **hostile} if isinstance(hostile, dict) else hostile):
        told(tested, each)
    row = tested.row(1.0)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    "broken",
    [
        {"rank": True},
        {"rank": -1},
        {"rank": 1 << 16},
        {"rank": "0"},
        {"agent_steps": 1.0},
        {"agent_steps": None},
        {"agent_steps": 1 << 60},
        {"losses": {"loss": float("nan")}},
        {"losses": {"loss": "0.1"}},
        {"losses": [0.1]},
        {"losses": {f"loss_{i}": 0.0 for i in range(65)}},
        {"policy_lag": float("inf")},
        {"policy_lag": 1.0, "policy_lag_max": 0.5},
        {"policy_lag_min": 3, "policy_lag_max": 2},
        {"policy_lag_min": "0"},
        {"spans": {"act": -1.0}},
        {"span_sums": {"act": -1.0}},
        {"gradients": -1},
        {"gradients": 1.5},
        {"gradients": 1, "policy_lag_sum": float("nan")},
        {"loss_sums": {"loss": 1.0}},
        {"loss_sums": {"loss": [1.0]}},
        {"loss_sums": {"loss": [float("inf"), 1]}},
        {"loss_sums": {"loss": [1.0, -1]}},
        {"loss_sums": {f"loss_{i}": [0.0, 1] for i in range(65)}},
        {"games": [[1, 2.0]]},
        {"games": [[1, float("nan"), 3]]},
        {"games": 3},
    ],
)
def test_a_malformed_report_is_dropped_completely(broken: dict[str, Any]) -> None:
    tested = metrics()
    assert not told(tested, {**report(agent_steps=100, games=[[1, 2.0, 3]]), **broken})
    assert tested.row(1.0)["agent_steps"] == tested.row(1.0)["episodes"] == 0


@pytest.mark.parametrize("where", ["version", "losses", "spans", "games", "policy_lag"])
def test_a_report_nested_too_deeply_to_be_printed_is_malformed(where: str) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert not told(metrics(), report() | {where: {"loss": deep} if where in ("losses", "spans") else deep})


def test_keys_that_the_protocol_does_not_define_are_ignored() -> None:
    tested = metrics()
    extra: dict[Any, Any] = {"gpu": {"util": "high"}, 7: None}
    assert told(tested, {**report(agent_steps=5), **extra})
    assert tested.row(1.0)["agent_steps"] == 5


def test_a_worker_cannot_name_a_loss_after_a_key_of_the_row() -> None:
    tested = metrics()
    told(tested, report(losses={"version": 99.0, "wall_s": -1.0, "Bad name\x1b": 1.0, "approx_kl": 3}))
    row = tested.row(2.0)
    assert (row["version"], row["wall_s"], row["approx_kl"]) == (0, 2.0, 3.0)
    assert "Bad name\x1b" not in row


# means and rates of a row


def sums(rank: int, gradients: int, lag_sum: float, **losses: float) -> dict[str, Any]:
    """A report with the sum of each loss over ``gradients``."""
    figures = {name: [total, gradients] for name, total in losses.items()}
    return report(rank, version=gradients, gradients=gradients, loss_sums=figures, policy_lag_sum=lag_sum)


def test_losses_are_means_over_all_gradients_since_the_last_row() -> None:
    tested = metrics()
    told(tested, sums(0, 3, 6, loss=3.0))
    told(tested, sums(1, 1, 4, loss=3.0, approx_kl=0.5) | {"policy_lag_min": 1, "policy_lag_max": 9})
    row = tested.row(1.0)
    assert (row["loss"], row["approx_kl"], row["policy_lag"], row["entropy"]) == (1.5, 0.5, 2.5, None)
    assert (row["policy_lag_min"], row["policy_lag_max"], row["gradients"]) == (1, 9, 4)
    told(tested, sums(0, 5, 6, loss=4.0))
    row = tested.row(2.0)
    assert (row["loss"], row["policy_lag"], row["gradients"]) == (0.5, 0.0, 2)
    row = tested.row(3.0)
    assert (row["loss"], row["policy_lag"], row["policy_lag_max"], row["gradients"]) == (None, None, None, 0)
    assert "approx_kl" not in row


def test_the_lag_of_a_row_lies_between_its_extremes_even_after_a_lost_report() -> None:
    tested = metrics()
    told(tested, sums(0, 2, 20) | {"policy_lag_min": 3, "policy_lag_max": 4})
    row = tested.row(1.0)
    assert (row["policy_lag_min"], row["policy_lag"], row["policy_lag_max"]) == (3, 10, 10)


def test_a_worker_that_invents_names_does_not_fill_the_memory() -> None:
    tested = metrics()
    for number in range(20):
        told(tested, sums(0, number + 1, 0, **{f"loss_{number}_{i}": 1.0 for i in range(60)}))
        told(tested, report(1, version=number + 1, losses={f"mean_{number}_{i}": 1.0 for i in range(60)}))
    assert len(tested._workers[0][1].loss_sums) <= FIGURES_KEPT
    assert len(tested.row(1.0, written=False)) < FIGURES_KEPT + 40


# workers that send means since the last report instead of sums


def test_the_means_of_a_report_are_weighted_by_its_number_of_versions() -> None:
    tested = metrics()
    for version in (1, 2, 3):
        told(tested, report(0, version=version, losses={"loss": 1.0}, policy_lag=2))
    told(tested, report(1, losses={"loss": 3.0, "approx_kl": 0.5}, policy_lag=4, policy_lag_max=9))
    row = tested.row(1.0)
    assert (row["loss"], row["approx_kl"], row["policy_lag"], row["entropy"]) == (1.5, 0.5, 2.5, None)
    assert (row["policy_lag_min"], row["policy_lag_max"], row["gradients"]) == (2, 9, 4)
    row = tested.row(2.0)
    assert (row["loss"], row["policy_lag"], row["policy_lag_max"]) == (None, None, None)
    assert "approx_kl" not in row


def test_split_is_the_time_of_one_worker_in_one_update() -> None:
    tested = metrics()
    for rank in (0, 1):
        told(tested, report(rank, version=10, spans={"act": 0.5, "wait": 0.1}))
        told(tested, report(rank, version=13, spans={"act": 1.5}))
    assert tested.row(1.0)["split_s"] == {"act": 4.0 / 8, "wait": pytest.approx(0.2 / 8)}
    # A rollout lasts for many rows, so its spans stay in the mean for a while.
    assert tested.row(2.0)["split_s"] == {"act": pytest.approx(0.5), "wait": pytest.approx(0.2 / 8)}


def test_split_and_losses_are_weighted_by_the_updates_of_each_report() -> None:
    tested = metrics()
    # After a resume, the worker has played, but not yet learned.
    told(tested, report(version=34_000, agent_steps=100, spans={"act": 0.5}))
    told(tested, report(version=34_003, agent_steps=100, losses={"loss": 1.0}, spans={"gradient": 1.0}))
    # Since its last report, the worker has played, but learned nothing.
    told(tested, report(version=34_003, agent_steps=200, spans={"act": 0.5}))
    told(tested, report(version=34_004, agent_steps=200, losses={"loss": 5.0}, spans={"gradient": 1.0}))
    row = tested.row(1.0)
    assert row["split_s"] == {"act": 1.0 / 5, "gradient": 2.0 / 5}
    assert row["loss"] == (3 * 1.0 + 5.0) / 4


def test_a_run_that_waits_for_days_still_makes_rows() -> None:
    tested = metrics()
    told(tested, report(version=10, spans={"act": 0.5}))
    for day in range(1, 4):
        row = tested.row(day * 86_400.0)
    assert row["split_s"] == {}


def test_a_repeated_report_counts_once_in_the_means() -> None:
    tested = metrics()
    slow = report(version=1, losses={"loss": 1.0}, spans={"act": 2.0})
    for each in (slow, slow, slow, report(version=2, losses={"loss": 4.0}, spans={"act": 1.0})):
        told(tested, each)
    row = tested.row(1.0)
    assert (row["loss"], row["split_s"]) == (2.5, {"act": 1.5})


def test_rates_are_averaged_over_about_half_a_minute() -> None:
    tested = metrics()
    told(tested, report(agent_steps=1000))
    tested.on_shards([shard(20)])
    row = tested.row(2.0)
    assert (row["agent_steps_per_s"], row["updates_per_s"]) == (500.0, 10.0)
    row = tested.row(4.0)
    assert row["updates_per_s"] == pytest.approx(5, rel=0.1)
    assert row["agent_steps_per_s"] == pytest.approx(250, rel=0.1)
    assert tested.row(64.0)["updates_per_s"] < 0.1, "the run has made no update for a minute"
    assert metrics().row(0.0)["updates_per_s"] is None


def test_a_rollback_lowers_the_version_and_the_contributions_but_not_the_steps() -> None:
    tested = metrics()
    told(tested, report(version=50, agent_steps=1000, losses={"loss": 1.0}))
    tested.on_shards([shard(50, outcomes={0: [50, 1, 0, 0], 1: [50, 0, 0, 0]})])
    tested.row(1.0)
    told(tested, report(version=31, agent_steps=1100, losses={"loss": 2.0}))
    tested.on_shards([shard(30, outcomes={0: [50, 1, 0, 0], 1: [50, 0, 0, 0]}, totals=[60, 0, 0, 0])])
    row = tested.row(2.0)
    assert (row["version"], row["agent_steps"], row["loss"]) == (30, 1100, 2.0)
    assert row["updates_per_s"] == pytest.approx(25, rel=0.1), "20 updates in the first second, and none since"
    assert (row["contributions"]["used"], row["contributions"]["late"]) == (60, 0)


# shards


def test_the_version_is_the_lowest_and_outcomes_are_sums_over_shards() -> None:
    tested = metrics()
    tested.on_shards(
        [
            shard(6, present=[0, 1, 2], outcomes={0: [6, 1, 2, 3], 1: [6, 0, 0, 0]}),
            shard(5, present=[0, 2], outcomes={0: [5, 2, 0, 0], 1: [5, 4, 0, 0]}, totals=[10, 6, 0, 7]),
        ]
    )
    row = tested.row(1.0)
    assert row["version"] == 5
    assert row["workers_present"] == 2
    assert row["contributions"] == {"used": 22, "late": 7, "duplicate": 2, "rejected": 10, "skipped": 0}
    assert row["late_by_rank"] == {"0": 3, "1": 4}


def test_version_and_contributions_do_not_change_until_every_shard_has_answered() -> None:
    tested = metrics()
    tested.on_shards([shard(5, outcomes={0: [5, 0, 0, 0]}), None])
    assert (tested.counters().version, tested.counters().contributions["used"]) == (0, 0)
    tested.on_shards([shard(5, outcomes={0: [5, 0, 0, 0]}), shard(4, outcomes={0: [4, 0, 0, 0]})])
    tested.on_shards([shard(2, totals=[2, 0, 0, 0]), None])  # a rollback that shard 1 has not reported yet
    row = tested.row(1.0)
    assert (row["version"], row["contributions"]["used"]) == (4, 9)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("make"), st.integers(1, 30)),
            st.tuples(st.just("restart"), st.integers(0, 2)),  # loses the counts since its last commit
            st.tuples(st.just("back"), st.integers(0, 40)),
        ),
        max_size=12,
    )
)
def test_contributions_match_the_histories_whatever_happens_to_the_shard(story: list[tuple[str, int]]) -> None:
    tested = metrics()
    history: list[tuple[int, int, int, int]] = []
    incarnation, counted = 1, [0, 0, 0, 0]
    for what, number in story:
        match what:
            case "make":
                history += [(2, 1, 0, 0)] * number
                counted = [counted[0] + number, counted[1] + number, 0, 0]
            case "restart":
                incarnation, counted = incarnation + 1, [max(0, n - number) for n in counted]
            case "back":
                history = history[: max(0, len(history) - number)]
                incarnation, counted = incarnation + 1, [0, 0, 0, 0]
        totals = [sum(column) for column in zip((0, 0, 0, 0), *history, strict=True)]
        tested.on_shards([shard(len(history), incarnation=incarnation, outcomes={0: counted}, totals=totals)])
        contributions = tested.counters().contributions
        assert (contributions["used"], contributions["late"]) == (2 * len(history), len(history))


def test_late_counts_continue_even_if_a_shard_restarts_or_answers_out_of_order() -> None:
    tested = metrics()
    for incarnation, late in ((1, 5), (1, 4), (1, 6), (2, 3), (2, 4), (3, 0), (3, 2)):
        tested.on_shards([shard(9, incarnation=incarnation, outcomes={0: [9, late, 0, 0]})])
    assert tested.row(1.0)["late_by_rank"] == {"0": 6 + 1 + 2}


def test_missing_ranks_are_listed_with_how_long_the_open_version_has_waited() -> None:
    tested = metrics()
    all_four = {rank: [4, 0, 0, 0] for rank in range(3)}
    tested.on_shards([shard(4, present=[0, 1, 2], outcomes=all_four), shard(4, outcomes=all_four)])
    assert tested.row(10.0)["missing_s"] == {"0": 0.0, "1": 0.0, "2": 0.0}
    # rank 2 dies; rank 0 contributes to both shards, rank 1 only to shard 0
    gone = {0: [5, 0, 0, 0], 1: [5, 0, 0, 0], 2: [4, 0, 0, 0]}
    tested.on_shards([shard(5, held=[0, 1], outcomes=gone), shard(5, held=[0], outcomes=gone)])
    tested.row(11.0)
    row = tested.row(13.5)
    assert row["missing_s"] == {"1": 2.5, "2": 3.5}
    assert row["workers_present"] == 2


def test_a_rank_that_is_no_longer_a_member_is_not_missing() -> None:
    tested = metrics()
    tested.on_shards([shard(4, present=[0, 1, 2])], members=[0, 1])
    assert tested.row(1.0)["missing_s"] == {"0": 0.0, "1": 0.0}


# resuming


def test_the_number_formats_of_all_workers_and_sessions_are_counted_once() -> None:
    first = metrics()
    for rank, compute in ((0, "float32"), (1, "float32"), (2, None)):
        assert told(first, report(rank, compute=compute))
    assert not told(first, report(3, compute="<b>"))
    assert not told(first, report(3, compute=["float32"]))
    assert first.counters().compute == ("float32",)
    resumed = RunMetrics(start=Counters.from_json(first.counters().to_json()))
    told(resumed, report(compute="bfloat16"))
    assert resumed.counters().compute == ("bfloat16", "float32")
    older = {name: value for name, value in Counters().to_json().items() if name != "compute"}
    assert Counters.from_json(older).compute == ()


def test_a_resumed_run_continues_from_its_checkpoint() -> None:
    first = metrics()
    told(first, report(agent_steps=1000, abandoned_steps=10, skipped=2, games=[[1, 4.0, 9]]))
    first.on_shards([shard(20, outcomes={0: [20, 1, 0, 0]})])
    first.row(8.0)
    saved = json.loads(json.dumps(first.counters().to_json()))
    assert Counters.from_json(saved) == first.counters()

    resumed = RunMetrics(start=Counters.from_json(saved))
    told(resumed, report(agent_steps=100, games=[[1, 6.0, 9]]))
    assert resumed.counters().contributions == first.counters().contributions
    resumed.on_shards([shard(22, outcomes={0: [2, 0, 0, 0]}, totals=[22, 1, 0, 0])])
    row = resumed.row(1.0)
    assert (row["wall_s"], row["agent_steps"], row["agent_steps_per_s"]) == (9.0, 1100, 100.0)
    assert (row["updates_per_s"], row["episodes"], row["score_mean_50"]) == (2.0, 2, 5.0)
    assert row["contributions"] == {"used": 22, "late": 1, "duplicate": 0, "rejected": 0, "skipped": 2}


def test_figures_continue_from_a_row_newer_than_the_checkpoint() -> None:
    saved = Counters(version=20, agent_steps=1000, abandoned_steps=7, episodes=5, wall_s=8.0)
    row = {"version": 20, "agent_steps": 1200, "abandoned_steps": None, "episodes": 4, "wall_s": 8.5}
    assert saved.not_below(row) == Counters(version=20, agent_steps=1200, abandoned_steps=7, episodes=5, wall_s=8.5)


# metrics.jsonl


# TensorBoard


def test_tensorboard_gets_every_number_of_a_row_under_its_group(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from zmqrl.observe.trackers.tensorboard import TensorBoard

    tested = metrics()
    told(tested, report(agent_steps=500, games=[[1, 4.0, 9]], losses={"entropy": 0.5, "clip_fraction": 0.25}))
    told(tested, report(version=3, agent_steps=1000, skipped=1, spans={"act": 1.5}))
    tested.on_shards([shard(3, outcomes={0: [3, 2, 0, 0], 1: [3, 0, 0, 0]})])
    board = TensorBoard(tmp_path)
    board.log(tested.row(2.0), 3)
    board.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    logged = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"]}
    assert {scalar.step for scalar in logged.values()} == {3}
    expected = {
        "charts/agent_steps": 1000,
        "charts/agent_steps_per_s": 500,
        "charts/score_mean_50": 4,
        "contributions/late": 2,
        "contributions/late_rank_0": 2,
        "contributions/used": 6,
        "losses/clip_fraction": 0.25,
        "losses/entropy": 0.5,
        "time/act": 0.5,
        "time/missing_rank_1": 0,
    }
    assert {tag: logged[tag].value for tag in expected} == expected
    assert {tag.split("/")[0] for tag in logged} == {"charts", "contributions", "losses", "time"}
    assert "losses/value_loss" not in logged
