"""The plan of a repetition, and the verdict about it."""

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.result_rig import write_result

from zmqrl.config import Config
from zmqrl.learner.games import EnvConfig
from zmqrl.observe.records import Evaluation
from zmqrl.results.bootstrap import RESAMPLES, difference_interval, mean_interval, prediction_interval
from zmqrl.results.kept import NO_LIMITS, RecordedLimits, Result, reproducible, results_beside
from zmqrl.results.rerun import By, default_axis, judge, recorded_trainings, rerun_config, same_parameters

SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=20)
AXES: st.SearchStrategy[By] = st.sampled_from(["minutes", "agent-steps"])


def evaluation(scores: list[float], trained: float) -> Evaluation:
    low, high = mean_interval(scores)
    return Evaluation(
        version=10,
        wall_s=60 * trained,
        agent_steps=trained,
        episodes=len(scores),
        mean=sum(scores) / len(scores),
        low=low,
        high=high,
    )


@given(SCORES, SCORES, st.floats(1, 1e6), st.floats(0.5, 2), AXES)
def test_the_verdict_is_the_place_of_the_new_mean_in_the_recorded_interval(
    recorded: list[float], again: list[float], trained: float, factor: float, by: By
) -> None:
    first, second = evaluation(recorded, trained), evaluation(again, factor * trained)
    verdict = judge({"scores": recorded}, {"scores": again}, first, second, by)
    if factor < 0.979:
        assert verdict.word == "undecided"
    elif factor > 0.981:
        low, high = mean_interval(recorded)
        assert (verdict.word == "within") == (low <= second.mean <= high)
    assert verdict.difference == tuple(difference_interval(again, recorded))


@given(SCORES, st.floats(1, 1e3))
def test_the_bootstrap_moves_with_the_scores(scores: list[float], shift: float) -> None:
    low, high = mean_interval(scores)
    assert min(scores) - 1e-6 <= low <= high <= max(scores) + 1e-6
    assert mean_interval([score + shift for score in scores]) == pytest.approx([low + shift, high + shift])
    below, above = difference_interval(scores, scores)
    assert below <= 0 <= above


def test_the_interval_of_a_difference_has_the_spread_of_both_samples() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(10, 2, 200).tolist(), rng.normal(7, 3, 200).tolist()
    below, above = difference_interval(first, second)
    error = (np.var(first, ddof=1) / 200 + np.var(second, ddof=1) / 200) ** 0.5
    assert (above - below) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (above + below) / 2 == pytest.approx(np.mean(first) - np.mean(second), rel=0.02)
    assert difference_interval(second, first) == pytest.approx([-above, -below], rel=0.05)


def test_the_interval_of_many_games_needs_little_memory() -> None:
    scores = np.random.default_rng(0).normal(size=2000)
    expected = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores))).mean(axis=1)
    tracemalloc.start()
    try:
        found = mean_interval(scores.tolist())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == np.percentile(expected, [2.5, 97.5]).tolist()
    assert peak_bytes < 60e6, "all resamples at once take 320 MB"


def test_a_verdict_needs_no_games() -> None:
    first = evaluation([1.0, 3.0], 10)
    assert judge({}, {"scores": [2.0, 2.0]}, first, evaluation([2.0, 2.0], 10), "minutes").word == "within"
    assert judge({}, {}, first, evaluation([9.0, 9.0], 10), "minutes").difference is None


def test_with_few_recorded_trainings_the_spread_of_trainings_is_not_judged() -> None:
    first, second = evaluation([360.0, 370.0], 10), evaluation([430.0, 440.0], 10)
    verdict = judge({}, {}, first, second, "minutes", trainings=[365.0, 400.0])
    assert verdict.word == "outside"
    assert verdict.reason == "the mean of 435.0 is outside the recorded 95 % interval, 360.0 to 370.0"
    assert verdict.meaning == (
        "Whether the trainings agree is not judged: the interval describes the games of one policy, and 2 recorded "
        "trainings cannot show the spread of trainings."
    )


def test_the_numbers_of_a_verdict_have_enough_digits_to_agree_with_it() -> None:
    verdict = judge({}, {}, evaluation([360.0, 370.12], 10), evaluation([370.14, 370.14], 10), "minutes")
    assert verdict.reason == "the mean of 370.14 is outside the recorded 95 % interval, 360.00 to 370.12"


def test_the_interval_of_three_trainings_allows_for_their_spread() -> None:
    first, second = evaluation([360.0, 370.0], 10), evaluation([430.0, 440.0], 10)
    verdict = judge({}, {}, first, second, "minutes", trainings=[365.0, 375.0, 385.0])
    assert (verdict.word, verdict.trainings) == ("outside", 3)
    assert verdict.interval == pytest.approx((325.3, 424.7), abs=0.05)  # 375 +- 4.303 x 10 x sqrt(4/3)
    assert verdict.reason.endswith("the 95 % prediction interval of 3 recorded trainings, 325.3 to 424.7")
    assert verdict.meaning == "The interval allows for the spread of trainings with different seeds."
    spread = judge({}, {}, first, second, "minutes", trainings=[365.0, 385.0, 405.0])
    assert spread.word == "within"


@given(st.integers(3, 12))
def test_an_interval_contains_the_mean_of_most_further_trainings(trainings: int) -> None:
    rng = np.random.default_rng(trainings)
    draws = rng.normal(5.0, 2.0, (2000, trainings + 1))
    bounds = np.array([prediction_interval(row[1:].tolist()) for row in draws])
    share = np.mean((bounds[:, 0] <= draws[:, 0]) & (draws[:, 0] <= bounds[:, 1]))
    assert share == pytest.approx(0.95, abs=0.02)
    with pytest.raises(ValueError, match="2 trainings are too few"):
        prediction_interval([1.0, 2.0])


def test_trainings_count_once_for_each_seed_if_nothing_else_differs(tmp_path: Path) -> None:
    result, evaluated = reproducible(write_result(tmp_path / "run", seed=1))

    def means() -> list[float]:
        return recorded_trainings(result, evaluated, results_beside(tmp_path / "run"), "agent-steps")

    def found(mean: float, **more: Any) -> dict[str, Any]:
        return {"version": 60, "mean": mean, "scores": [mean, mean], **more}

    write_result(tmp_path / "same-seed", found(100.0), seed=1)
    write_result(tmp_path / "other-rate", found(200.0), seed=2, optimizer={"learning_rate": 0.5})
    write_result(tmp_path / "greedy", found(300.0, greedy=True), seed=3)
    write_result(tmp_path / "short", found(400.0) | {"version": 30}, seed=4)
    write_result(tmp_path / "no-interval", {"version": 60, "mean": 500.0}, seed=5)
    write_result(tmp_path / "other-version", found(600.0), seed=6, no_such_setting=1)
    assert means() == [6.5]
    write_result(tmp_path / "seed-7", found(7.0), seed=7, run_dir="elsewhere", checkpoint={"keep": 3})
    write_result(tmp_path / "seed-8", found(8.0), seed=8)
    assert means() == [6.5, 7.0, 8.0]


def test_trainings_with_an_evaluator_count_without_an_evaluation_that_the_user_saved(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        path = write_result(tmp_path / f"seed-{seed}", {"version": 60, "mean": seed, "scores": [seed, seed]}, seed=seed)
        (path / "evaluation.json").rename(path / "evaluations.jsonl")
    write_result(tmp_path / "not-evaluated", seed=4)
    (tmp_path / "not-evaluated" / "evaluation.json").unlink()
    result, evaluated = reproducible(tmp_path / "seed-1")
    means = recorded_trainings(result, evaluated, results_beside(tmp_path / "seed-1"), "agent-steps")
    assert means == [1.0, 2.0, 3.0]


def on_hosts(result: Result, *cores: int) -> Result:
    """The same result of a run on hosts with so many ``cores``, and on a host without processes."""
    hosts = [{"host": f"h{number}", "cores": each, "processes": ["worker-0"]} for number, each in enumerate(cores)]
    idle = {"host": "idle", "cores": 64, "processes": []}
    return dataclasses.replace(result, summary={**result.summary, "hosts": [*hosts, idle]})


def test_minutes_are_not_repeated_on_one_machine_if_the_run_had_several_hosts(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "run"))
    result = dataclasses.replace(result, summary={**result.summary, "exit_reason": "minutes"})
    assert default_axis(on_hosts(result, 2), ("EPYC", 2)) == "minutes"
    assert default_axis(on_hosts(result, 2, 8), ("EPYC", 2)) == "agent-steps"


def test_only_trainings_on_hosts_of_the_same_size_are_comparable_by_minutes(tmp_path: Path) -> None:
    result, evaluated = reproducible(write_result(tmp_path / "seed-1", seed=1))
    other = Result.read(write_result(tmp_path / "seed-2", {"version": 60, "mean": 7.0, "scores": [7.0, 7.0]}, seed=2))
    for hosts, means in (((2,), [6.5]), ((8, 2, 8), [6.5, 7.0]), ((8, 8, 8), [6.5])):
        found = recorded_trainings(on_hosts(result, 8, 8, 2), evaluated, [on_hosts(other, *hosts)], "minutes")
        assert found == means
    assert recorded_trainings(on_hosts(result, 8, 8), evaluated, [other], "agent-steps") == [6.5, 7.0]


def test_a_shorter_repetition_is_judged_by_the_early_evaluations_of_all_trainings(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        last = {"version": 60, "mean": 9.0, "scores": [9.0, 9.0], "wall_s": 6.0, "agent_steps": 6000}
        path = write_result(tmp_path / f"seed-{seed}", last, seed=seed)
        early = {"version": 20, "mean": seed, "ci95": [0.0, 4.0], "wall_s": 2.0, "agent_steps": 2000, "episodes": 2}
        (path / "evaluations.jsonl").write_text(json.dumps(early | {"scores": [seed, seed]}), encoding="utf-8")
    limits = RecordedLimits(minutes=2.5 / 60)
    result, evaluated = reproducible(tmp_path / "seed-1", limits)
    means = recorded_trainings(result, evaluated, results_beside(tmp_path / "seed-1", limits), "agent-steps")
    assert means == [1.0, 2.0, 3.0]


def test_only_consistent_runs_must_end_with_the_same_parameters(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "run"))

    def with_hash(value: str, *, consistent: bool, updates: int = 60) -> Result:
        config = dataclasses.replace(result.config, consistent=consistent)
        ended = {**result.summary, "params_sha256": value, "updates": updates}
        return dataclasses.replace(result, config=config, summary=ended)

    recorded = with_hash("a", consistent=True)
    assert same_parameters(result, with_hash("a", consistent=True)) is None, "an old result has no hash"
    assert same_parameters(recorded, with_hash("a", consistent=True)) is True
    assert same_parameters(recorded, with_hash("b", consistent=True)) is False
    assert same_parameters(recorded, with_hash("b", consistent=True, updates=30)) is None
    loose = with_hash("a", consistent=False)
    assert same_parameters(loose, with_hash("b", consistent=False)) is None
    assert same_parameters(loose, with_hash("a", consistent=False)) is True


def test_a_verdict_names_equal_and_unexpected_parameters() -> None:
    first = evaluation([1.0, 3.0], 10)
    equal = judge({}, {}, first, first, "minutes", same=True)
    assert (equal.word, equal.meaning) == ("within", "Both runs ended with the same parameters, bit for bit.")
    other = judge({}, {}, first, first, "minutes", same=False)
    assert other.meaning.startswith("The runs are consistent, but ended with different parameters: only the same code")
    assert other.meaning.endswith("and 1 recorded training cannot show the spread of trainings.")


def test_minutes_are_repeated_only_on_the_recorded_machine(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "run"))
    assert default_axis(result, ("EPYC", 2)) == "agent-steps"  # its number of updates ended it
    by_time = dataclasses.replace(result, summary={**result.summary, "exit_reason": "minutes"})
    assert default_axis(by_time, ("EPYC", 2)) == "minutes"
    assert default_axis(by_time, ("EPYC", 4)) == default_axis(by_time, ("Xeon", 2)) == "agent-steps"


def planned(path: Path, by: By, given: RecordedLimits = NO_LIMITS, **settings: Any) -> Config:
    """The plan for a result with ``settings``."""
    result, evaluated = reproducible(write_result(path, **settings), given)
    return rerun_config(result, evaluated, by, Path("again"), given)


def limits(config: Config) -> tuple[int | None, int | None, float | None]:
    return config.updates, config.agent_steps, config.minutes


def test_a_repetition_trains_as_long_as_the_evaluated_version(tmp_path: Path) -> None:
    shown: dict[str, Any] = {
        "minutes": 30.0,
        "stop_score": 5.0,
        "page": True,
        "trackers": ["wandb"],
        "metrics_port": "0",
    }
    config = planned(tmp_path / "a", "agent-steps", **shown)
    assert limits(config) == (None, 6000, None)
    assert (config.stop_score, config.page, config.trackers, config.metrics_port) == (None, False, (), None)
    assert config.run_dir == Path("again")
    assert limits(planned(tmp_path / "b", "minutes", **shown)) == (None, None, 0.1)
    assert limits(planned(tmp_path / "c", "agent-steps", updates=500)) == (60, None, None)
    early = {"version": 30, "mean": 1.0, "scores": [1.0, 1.0]}
    assert limits(planned(tmp_path / "d", "agent-steps", evaluation=early)) == (None, 3000, None)


def test_switches_of_atari_games_that_older_versions_accepted_are_not_repeated(tmp_path: Path) -> None:
    off = {"grayscale": False, "life_loss": False, "fire_reset": False}
    result, evaluated = reproducible(write_result(tmp_path / "run", envs=off))
    for flavour, kept in ((EnvConfig().gymnasium_flavour(), False), (result.config.envs.flavour(), True)):
        recorded = dataclasses.replace(result, summary={**result.summary, "flavour": flavour})
        envs = rerun_config(recorded, evaluated, "minutes", Path("again"), NO_LIMITS).envs
        assert envs == (result.config.envs if kept else EnvConfig())


@pytest.mark.parametrize(
    ("recorded", "repeated"),
    [(["float32"], "float32"), (["bfloat16"], "bfloat16"), (["bfloat16", "float32"], "auto"), ([], "auto")],
)
def test_a_repetition_uses_the_recorded_number_format(recorded: list[str], repeated: str, tmp_path: Path) -> None:
    result, evaluated = reproducible(write_result(tmp_path / "run"))
    result = dataclasses.replace(result, summary={**result.summary, "compute": recorded})
    assert rerun_config(result, evaluated, "minutes", Path("again"), NO_LIMITS).network.compute == repeated


def test_the_user_can_end_a_repetition_earlier(tmp_path: Path) -> None:
    assert limits(planned(tmp_path / "a", "agent-steps", RecordedLimits(agent_steps=100, minutes=2.0))) == (
        None,
        100,
        2.0,
    )
    assert limits(planned(tmp_path / "b", "agent-steps", RecordedLimits(agent_steps=10**6))) == (None, 6000, None)
    assert limits(planned(tmp_path / "c", "minutes", RecordedLimits(minutes=0.05))) == (None, None, 0.05)


def test_a_schedule_in_minutes_becomes_one_in_the_agent_steps_of_these_minutes(tmp_path: Path) -> None:
    by_time: dict[str, Any] = {"schedule": {"minutes": 0.05}}
    assert planned(tmp_path / "a", "agent-steps", **by_time).schedule.agent_steps == 3000
    assert planned(tmp_path / "b", "agent-steps", schedule={"minutes": 0.2}).schedule.agent_steps == 12_000
    assert planned(tmp_path / "c", "minutes", **by_time).schedule.minutes == 0.05
