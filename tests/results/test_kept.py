"""Results are read, or refused with the reason why they cannot be reproduced."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.record_rig import row, run_directory
from support.result_rig import SCORES, write_result

from zmqrl import cli
from zmqrl.errors import UsageError
from zmqrl.results.bootstrap import mean_interval
from zmqrl.results.kept import NO_LIMITS, RecordedLimits, Result, obstacle, reproducible
from zmqrl.results.pages import report_page
from zmqrl.results.rerun import default_axis, rerun_config
from zmqrl.rundir import write_json


def test_the_interval_is_computed_from_the_games_if_it_is_missing(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", {"version": 60, "mean": 6.5, "scores": SCORES})
    _, evaluated = reproducible(path)
    assert [evaluated.low, evaluated.high] == mean_interval(SCORES)
    assert Result.read(path).seeds == [0, 1, 2, 3]


def test_the_newest_evaluation_counts(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", {"version": 20, "mean": 1.0})
    lines = [{"version": version, "mean": 2.0, "ci95": [1.0, 3.0], "episodes": 5} for version in (10, 40)]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result, evaluated = reproducible(path)
    assert (evaluated.version, evaluated.agent_steps) == (40, 4000)
    assert [each.version for each in result.record.evaluations] == [10, 20, 40]


def test_an_evaluation_that_the_user_made_counts_whatever_its_seeds(tmp_path: Path) -> None:
    seeds = [2**31, 2**31 + 1]
    path = write_result(tmp_path / "run", {"version": 40, "mean": 1.0, "scores": [0.5, 1.5], "seeds": seeds})
    result, evaluated = reproducible(path)
    assert (evaluated.version, evaluated.for_stop_score, result.seeds) == (40, False, seeds)


def test_an_evaluation_for_the_stop_score_does_not_count(tmp_path: Path) -> None:
    stopped = {"version": 60, "mean": 9.0, "ci95": [8.0, 10.0], "scores": [8.0, 10.0], "seeds": [2**31, 2**31 + 1]}
    path = write_result(tmp_path / "run", {"version": 40, "mean": 1.0, "scores": [0.5, 1.5]})
    (path / "evaluations.jsonl").write_text(json.dumps(stopped), encoding="utf-8")
    result, evaluated = reproducible(path)
    assert evaluated.version == 40
    assert [(each.version, each.for_stop_score) for each in result.record.evaluations] == [(60, True), (40, False)]
    (path / "evaluation.json").unlink()
    assert "because it has no evaluation with an interval" in refusal(path)
    page = report_page(Result.read(path), "report.svg")
    assert page.startswith("# run: 5.5 in the last 50 games of training\n")
    assert "The run has only evaluations for `--stop-score`." in page


def test_an_evaluation_within_the_limits_of_the_user_is_preferred(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run")
    early = {"version": 20, "mean": 2.0, "ci95": [1.0, 3.0], "episodes": 5, "wall_s": 2.0, "agent_steps": 2000}
    (path / "evaluations.jsonl").write_text(json.dumps(early) + "\n", encoding="utf-8")
    assert reproducible(path)[1].version == 60
    write_json(path / "evaluation.json", json.loads((path / "evaluation.json").read_text()) | {"agent_steps": 6000})
    assert reproducible(path, RecordedLimits(agent_steps=2500))[1].version == 20
    assert reproducible(path, RecordedLimits(agent_steps=6000))[1].version == 60
    assert reproducible(path, RecordedLimits(agent_steps=100))[1].version == 60


def write_manifest(path: Path, generation: int) -> None:
    manifest = path / "checkpoints" / "v00000060" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"generation": generation}), encoding="utf-8")


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        cli.run(["reproduce", str(path)])
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"recipe": "chess"}, "a run of recipe 'chess', which this version of zmqrl does not have"),
        ({"speed": 1}, "config.json cannot be used: unknown setting speed (did you mean seed?)."),
        ({"external_workers": 1}, "cannot be reproduced, because zmqrl cannot start its 1 external worker."),
        (
            {"evaluation": {"version": 60, "mean": 1.0}},
            "it has no evaluation with an interval, and no checkpoint was kept that could be evaluated.",
        ),
        (
            {"evaluation": {"version": 60, "mean": 5.0, "episodes": 1, "ci95": [5.0, 5.0], "scores": [5.0]}},
            "it has no evaluation with an interval, and no checkpoint was kept that could be evaluated.",
        ),
        ({"evaluation": {"version": 60, "mean": 1.0, "scores": "5"}}, "is damaged: scores is not a list in which each"),
    ],
)
def test_a_result_that_cannot_be_reproduced_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    assert reason in refusal(write_result(tmp_path / "run", **settings))


@pytest.mark.parametrize(
    "stored",
    [{"metrics_port": "0.0.0.0:80"}, {"wire": {"address": "10.9.9.9"}}, {"envs": {"min_frame_skip": 2}}],
)
def test_a_result_is_read_even_if_its_settings_cannot_start_a_run(tmp_path: Path, stored: dict[str, Any]) -> None:
    result = Result.read(write_result(tmp_path / "run", **stored))
    with pytest.raises(UsageError):
        result.config.check()


EVALUATION = {"version": 60, "mean": 6.5, "episodes": 4, "ci95": [5.5, 7.5], "wall_s": 6.0, "agent_steps": 6000}


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"version": 99_999_999}, "is of a policy after 99,999,999 updates, but the run ended after 60"),
        ({"version": 0}, "is of a policy after 0 updates, but the run ended after 60"),
        ({"agent_steps": 10**12}, "is of a policy after 1,000,000,000,000 agent steps, but the run ended after 6,000"),
        ({"wall_s": 6.5}, "is of a policy after 6.5 seconds, but the run ended after 6"),
        ({"seeds": [1, 2, 3]}, "has different numbers of games, scores and seeds"),
        ({"scores": [5.0, 6.0]}, "has different numbers of games, scores and seeds"),
        ({"mean": 7.52}, "has a mean of 7.52, outside its own interval of 5.50 to 7.50"),
        ({"mean": 200.0}, "has a mean of 200.0, outside its own interval of 5.5 to 7.5"),
    ],
)
def test_an_impossible_evaluation_is_not_repeated(tmp_path: Path, change: dict[str, Any], doubt: str) -> None:
    reproducible(write_result(tmp_path / "possible", EVALUATION))
    path = write_result(tmp_path / "run", EVALUATION | change)
    with pytest.raises(UsageError) as refused:
        reproducible(path)
    lost = "and no checkpoint was kept that could be evaluated"
    assert str(refused.value) == f"{path} cannot be reproduced, because its evaluation {doubt}, {lost}."


@pytest.mark.parametrize("evaluation", [{"version": 60, "mean": 1.0}, EVALUATION | {"mean": 200.0}])
def test_the_advice_to_evaluate_a_result_needs_a_checkpoint(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    path = write_result(tmp_path / "run", evaluation)
    assert "zmqrl eval" not in refusal(path)
    write_manifest(path, generation=1)
    assert refusal(path).endswith(f": evaluate it with `zmqrl eval {path} --json > {path}/evaluation.json`.")


def test_the_advice_to_evaluate_a_result_is_not_given_if_it_would_not_help(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", {"version": 60, "mean": 1.0}, external_workers=1)
    write_manifest(path, generation=1)
    assert "zmqrl eval" not in refusal(path)


def test_an_evaluation_between_two_rows_is_repeated_up_to_the_end_of_the_run_at_most(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", {"version": 60, "mean": 6.5, "scores": SCORES})
    lines = [json.dumps(row(second, version=10 * second - 5)) + "\n" for second in (1, 9)]
    (path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    _, evaluated = reproducible(path)
    assert (evaluated.wall_s, evaluated.agent_steps) == (6.0, 6000)


def test_whole_numbers_of_any_size_can_be_scores(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", {"version": 60, "mean": 10.0**30, "scores": [10**30, 10**30]})
    assert reproducible(path)[1].low == pytest.approx(1e30)


def test_a_run_without_an_end_or_with_several_sessions_is_refused(tmp_path: Path) -> None:
    assert "is not a run directory" in refusal(tmp_path)
    assert "has no result yet" in refusal(run_directory(tmp_path / "running", [row(1)]))
    resumed = write_result(tmp_path / "resumed")
    write_manifest(resumed, generation=2)
    assert "the run was resumed or rolled back" in refusal(resumed)


# the results in the repository

NO_EVALUATION = "it has no evaluation with an interval, and no checkpoint was kept that could be evaluated"
RESUMED = "the run was resumed or rolled back, so the settings of its earlier sessions are unknown"
KEPT = {
    "breakout/seed-1": None,
    "breakout/seed-2": None,
    "breakout/seed-3": None,
    "breakout-ppo": None,
    "breakout-rmsprop/seed-1": None,
    "breakout-rmsprop/seed-2": None,
    "breakout-sticky/amd-epyc": None,
    "breakout-sticky/intel-xeon": None,
    "cartpole": None,
    "dba3c-breakout": None,
    "five-games/assault": None,
    "five-games/beamrider": None,
    "five-games/boxing": None,
    "five-games/seaquest": None,
    "five-games/spaceinvaders": None,
    "gymnasium": None,
    "peers/breakout": None,
    "pong": None,
    "pong-long": RESUMED,
    "pong-width/128": NO_EVALUATION,
    "pong-width/256": NO_EVALUATION,
    "pong-width/512": NO_EVALUATION,
    "sync-async/async": NO_EVALUATION,
    "sync-async/sync": NO_EVALUATION,
    "sync-async/wait": NO_EVALUATION,
}
RESULTS = ROOT / "benchmarks" / "results"


def test_every_result_in_the_repository_is_listed_as_reproducible_or_not() -> None:
    assert set(KEPT) == {str(path.parent.relative_to(RESULTS)) for path in RESULTS.rglob("summary.json")}


@pytest.mark.parametrize(("name", "why"), KEPT.items())
def test_a_result_in_the_repository_can_be_reproduced_unless_its_page_says_why_not(name: str, why: str | None) -> None:
    page = (RESULTS / name / "report.md").read_text(encoding="utf-8")
    assert obstacle(Result.read(RESULTS / name)) == why
    if why is not None:
        assert f"`zmqrl reproduce` refuses this result, because {why}." in page
        assert refusal(RESULTS / name) == f"{RESULTS / name} cannot be reproduced, because {why}."
        return
    assert "`zmqrl reproduce` repeats this run and compares the scores." in page
    result, evaluated = reproducible(RESULTS / name)
    rerun_config(result, evaluated, default_axis(result, result.machine), Path("again"), NO_LIMITS).check()
