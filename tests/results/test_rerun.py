"""The plan of a repetition, and the verdict about it."""

import dataclasses
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
from zmqrl.results.bootstrap import RESAMPLES, difference_interval, mean_interval
from zmqrl.results.kept import NO_LIMITS, RecordedLimits, Result, reproducible
from zmqrl.results.rerun import By, default_axis, judge, rerun_config

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
        assert (verdict.word == "within") == (first.low <= second.mean <= first.high)
    assert verdict.difference == tuple(difference_interval(again, recorded))


@given(SCORES, st.floats(1, 1e3))
def test_the_bootstrap_moves_with_the_scores(scores: list[float], shift: float) -> None:
    low, high = mean_interval(scores)
    assert min(scores) - 1e-6 <= low <= high <= max(scores) + 1e-6
    assert mean_interval([score + shift for score in scores]) == pytest.approx([low + shift, high + shift])
    below, above = difference_interval(scores, scores)
    assert below <= 0 <= above


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
