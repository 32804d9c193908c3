"""Reading a run directory, and the figures of several runs as curves."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.record_rig import row, run_directory, summary

from zmqrl.errors import UsageError
from zmqrl.observe.curves import GRID_POINTS, curve, farthest, grouped, outcome_shares, smoothed
from zmqrl.observe.forms import ROW, readable_lines
from zmqrl.observe.records import PLACE, RunRecord, differing, flat, merged_rows, read_runs

FIGURE = "a number from -1e110 to 1e110, null, or an object of these"
COUNTS = "an object in which each value is a whole number from 0 to 1e110"
SEEDS = "a list in which each item is a whole number from 0 to 1e110"
INTERVAL = "a pair of numbers with the lower one first"
PROVENANCE = "an object with versions, commit, cpu and cores"

# a run directory


def test_a_run_is_read_with_its_settings_by_dotted_path(tmp_path: Path) -> None:
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1), row(2)], summary=summary()))
    assert (run.name, run.settings["workers"], run.settings["envs.num_envs"]) == ("run", 2, 8)
    assert [each["version"] for each in run.rows] == [10, 20]
    assert run.summary == summary()


def test_settings_that_this_version_does_not_know_are_read_too(tmp_path: Path) -> None:
    assert RunRecord.read(run_directory(tmp_path / "run", future={"setting": [1]})).settings["future.setting"] == [1]


def test_a_run_that_has_just_started_has_no_rows_and_no_summary(tmp_path: Path) -> None:
    run = RunRecord.read(run_directory(tmp_path / "run"))
    assert (run.rows, run.evaluations, run.summary) == ([], [], None)


def test_a_value_missing_from_a_row_is_nan_in_its_column(tmp_path: Path) -> None:
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1), row(2)]))
    np.testing.assert_array_equal(run.column("policy_loss"), [np.nan, -0.01])
    np.testing.assert_array_equal(run.column("contributions", "late"), [4, 8])
    np.testing.assert_array_equal(run.column("policy_lag_max"), [np.nan, np.nan])


@pytest.mark.parametrize("rest", [b'{"version": 20, "wa', b'{"version": 20, "note": "\xc3', b"\x00\x00"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_an_unfinished_last_line_is_ignored(tmp_path: Path, name: str, rest: bytes) -> None:
    path = run_directory(tmp_path / "run", [row(1)], evaluations=[{"version": 10, "mean": 5.0}])
    with (path / name).open("ab") as file:
        file.write(rest)
    run = RunRecord.read(path)
    assert (len(run.rows), len(run.evaluations)) == (1, 1)


def test_a_complete_last_line_counts_even_without_a_newline(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", [row(1), row(2)])
    (path / "metrics.jsonl").write_bytes((path / "metrics.jsonl").read_bytes().rstrip())
    assert len(RunRecord.read(path).rows) == 2


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as refused:
        RunRecord.read(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "there is no JSON object"),
        ("{", "there is no JSON object"),
        ("[1]", "there is no JSON object"),
        pytest.param("[" * 100_000, "there is no JSON object", id="nested too deeply"),
        ('{"version": 3, "wall_s": 1}', "agent_steps is missing"),
        ('{"version": "x", "wall_s": 1, "agent_steps": 1}', "version is not a whole number from 0 to 1e110"),
        (json.dumps(row(2, version=2.5)), "version is not a whole number from 0 to 1e110"),
        (json.dumps(row(2, version=-1)), "version is not a whole number from 0 to 1e110"),
        ('{"version": 1, "wall_s": null, "agent_steps": 1}', "wall_s is not a number from 0 to 1e110"),
        ('{"version": 1, "wall_s": NaN, "agent_steps": 1}', "wall_s is not a number from 0 to 1e110"),
        (json.dumps(row(2, wall_s=-2.0)), "wall_s is not a number from 0 to 1e110"),
        (json.dumps(row(2, score_mean_50=1e300)), "score_mean_50 is not a number from -1e110 to 1e110 or null"),
        pytest.param(
            json.dumps(row(2, wall_s=10**400)), "wall_s is not a number from 0 to 1e110", id="too large for a float"
        ),
        (json.dumps(row(2, entropy="high")), f"entropy is not {FIGURE}"),
        (json.dumps(row(2, split_s={"act": []})), f"split_s is not {FIGURE}"),
        (json.dumps(row(2, episodes={})), "episodes is not a whole number from 0 to 1e110 or null"),
        (json.dumps(row(2, contributions=3)), f"contributions is not {COUNTS}"),
        (json.dumps(row(2, contributions={"used": None})), f"contributions is not {COUNTS}"),
        (json.dumps(row(2, contributions={"used": 5, "late": -5})), f"contributions is not {COUNTS}"),
    ],
)
def test_an_error_names_a_damaged_row_and_its_problem(tmp_path: Path, line: str, complaint: str) -> None:
    path = run_directory(tmp_path / "run", [row(1)])
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n{json.dumps(row(3))}\n")
    sentence = f"{path / 'metrics.jsonl'} is damaged: in line 2 {complaint}; repair that line, or remove it."
    assert refusal(path) == sentence


def test_damaged_rows_can_be_skipped_with_a_notice(tmp_path: Path) -> None:
    path, news = tmp_path / "metrics.jsonl", list[str]()
    assert readable_lines(path, ROW, news.append) == []
    path.write_text(f"{json.dumps(row(1))}\n[1]\n{json.dumps(row(3))}\n{{\n\n{{", encoding="utf-8")
    assert news == []
    assert readable_lines(path, ROW, news.append) == [row(1), row(3)]
    assert news == [f"{path} is damaged: line 2 and 2 other lines cannot be read; the run continues without that data"]
    path.unlink()
    path.mkdir()
    assert readable_lines(path, ROW, news.append) == []
    assert news[1].startswith(f"cannot read {path}: Is a directory")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"mean": 5.0}, "version is missing"),
        ({"version": 10, "mean": "5"}, "mean is not a number from -1e110 to 1e110"),
        ({"version": 1.5, "mean": 5.0}, "version is not a whole number from 0 to 1e110"),
        ({"version": 10, "mean": 5.0, "wall_s": "x"}, "wall_s is not a number from 0 to 1e110"),
        ({"version": 10, "mean": 5.0, "agent_steps": -1}, "agent_steps is not a whole number from 0 to 1e110"),
        ({"version": 10, "mean": 5.0, "ci95": 5.0}, f"ci95 is not {INTERVAL}"),
        ({"version": 10, "mean": 5.0, "ci95": [4.0]}, f"ci95 is not {INTERVAL}"),
        ({"version": 10, "mean": 5.0, "ci95": [6.0, 4.0]}, f"ci95 is not {INTERVAL}"),
        ({"version": 10, "mean": 5.0, "seeds": [-1]}, f"seeds is not {SEEDS}"),
        ({"version": 10, "mean": 5.0, "seeds": [1.5]}, f"seeds is not {SEEDS}"),
        ({"version": 10, "mean": 5.0, "episodes": 10**7}, "episodes is not a whole number from 0 to 1000000"),
        ({"version": 10, "mean": 5.0, "median": "5"}, "median is not a number from -1e110 to 1e110"),
        ({"version": 10, "mean": 5.0, "greedy": "no"}, "greedy is not true or false"),
    ],
)
def test_an_error_names_a_damaged_evaluation_and_its_problem(
    tmp_path: Path, line: dict[str, Any], complaint: str
) -> None:
    path = run_directory(tmp_path / "run", [row(1)], evaluations=[{"version": 10, "mean": 5.0}, line])
    sentence = f"{path / 'evaluations.jsonl'} is damaged: in line 2 {complaint}; repair that line, or remove it."
    assert refusal(path) == sentence


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "there is no JSON object"),
        pytest.param("\x00" * 100, "there is no JSON object", id="zeros"),
        ("[]", "there is no JSON object"),
        ("{}", "exit_reason is missing"),
        (json.dumps(summary(wall_s=None)), "wall_s is not a number from 0 to 1e110"),
        (json.dumps(summary(score_mean_50="5")), "score_mean_50 is not a number from -1e110 to 1e110 or null"),
        (json.dumps(summary(flavour=5)), "flavour is not a string"),
        (json.dumps(summary(provenance=None)), f"provenance is not {PROVENANCE}"),
        (json.dumps(summary(provenance={"commit": ["abc"]})), f"provenance is not {PROVENANCE}"),
        (json.dumps(summary(provenance={"cores": "two"})), f"provenance is not {PROVENANCE}"),
        (json.dumps(summary(provenance={"packages": ["numpy"]})), f"provenance is not {PROVENANCE}"),
    ],
)
def test_an_error_names_a_damaged_summary_and_its_problem(tmp_path: Path, content: str, complaint: str) -> None:
    path = run_directory(tmp_path / "run", [row(1)])
    (path / "summary.json").write_text(content, encoding="utf-8")
    sentence = (
        f"{path / 'summary.json'} is damaged: {complaint}; remove the file; metrics.jsonl has the metrics of the run."
    )
    assert refusal(path) == sentence


def test_an_error_names_damaged_settings(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run")
    (path / "config.json").write_text("{", encoding="utf-8")
    sentence = f"{path / 'config.json'} is damaged: there is no JSON object; restore the file, or use other runs."
    assert refusal(path) == sentence


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json"])
def test_an_error_names_an_unreadable_file(tmp_path: Path, name: str) -> None:
    path = run_directory(tmp_path / "run", [row(1)])
    (path / name).unlink(missing_ok=True)
    (path / name).mkdir()
    assert refusal(path) == f"cannot read {path / name}: Is a directory; make it readable, or use other runs."


def test_an_error_names_an_impossible_path(tmp_path: Path) -> None:
    assert "File name too long; make it readable" in refusal(tmp_path / ("x" * 300))


def test_an_error_names_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a run directory"):
        RunRecord.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no run directory given"):
        read_runs([])


def test_rows_after_the_checkpoint_of_a_resume_are_undone(tmp_path: Path) -> None:
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1), row(2), row(3), row(4), row(2, entropy=9), row(3)]))
    assert [(each["wall_s"], each["entropy"]) for each in run.rows] == [(1, 0.6), (2, 9), (3, 0.6)]


def test_a_run_named_twice_is_read_once(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run")
    assert len(read_runs([path, path / ".." / "run"])) == 1


def test_an_evaluation_is_placed_at_the_time_of_its_version(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"version": 20, "mean": 5.0, "ci95": [4.0, 7.0], "episodes": 30},
        {"version": 99, "mean": 6.0},
    ]
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1), row(2), row(3)], evaluations=lines))
    placed = [(each.wall_s, each.agent_steps, each.mean, each.interval) for each in run.evaluations]
    assert placed == [(2, 2000, 5, (4, 7)), (3, 3000, 6, None)]


def test_an_evaluation_that_knows_its_time_counts_without_rows(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"version": 20, "mean": 5.0, "wall_s": 120.0, "agent_steps": 2000},
        {"version": 30, "mean": 6.0},
    ]
    run = RunRecord.read(run_directory(tmp_path / "run", evaluations=lines))
    assert [(each.version, each.wall_s, each.agent_steps) for each in run.evaluations] == [(20, 120.0, 2000)]
    assert (farthest([run], "minutes"), farthest([run], "agent-steps"), farthest([], "minutes")) == (2.0, 2000.0, 0.0)


def test_the_axis_reaches_an_evaluation_beyond_the_last_row(tmp_path: Path) -> None:
    later = {"version": 20, "mean": 5.0, "wall_s": 120.0, "agent_steps": 2000}
    paths = [run_directory(tmp_path / "a", [row(60)], evaluations=[later]), run_directory(tmp_path / "b", [row(60)])]
    assert [farthest([run], "minutes") for run in read_runs(paths)] == [2.0, 1.0]


def test_an_evaluation_of_one_game_has_no_interval(tmp_path: Path) -> None:
    line: dict[str, Any] = {"version": 10, "mean": 5.0, "ci95": [5.0, 5.0], "greedy": True}
    lines = [line | {"episodes": 1}, line | {"scores": [5.0]}, line | {"episodes": 2, "greedy": False}]
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1)], evaluations=lines))
    found = [(each.interval, each.greedy) for each in run.evaluations]
    assert found == [(None, True), (None, True), ((5.0, 5.0), False)]


def test_a_saved_evaluation_counts_and_replaces_that_of_its_version(tmp_path: Path) -> None:
    lines = [{"version": 10, "mean": 1.0}, {"version": 30, "mean": 3.0}]
    path = run_directory(tmp_path / "run", [row(1), row(2), row(3)], evaluations=lines)
    file = path / "evaluation.json"
    for saved, means in (
        ({"version": 20, "mean": 2.0}, [1.0, 2.0, 3.0]),
        ({"version": 30, "mean": 9.0}, [1.0, 9.0]),
    ):
        file.write_text(json.dumps(saved), encoding="utf-8")
        assert [each.mean for each in RunRecord.read(path).evaluations] == means


def test_a_saved_evaluation_that_is_being_written_is_ignored_but_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", [row(1)])
    file = path / "evaluation.json"
    file.write_bytes(b"")
    assert RunRecord.read(path).evaluations == []
    file.write_text('{"version": 10}', encoding="utf-8")
    sentence = f"{file} is damaged: mean is missing; write it again with zmqrl eval --json, or remove it."
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        RunRecord.read(path)


def test_differing_settings_are_listed_with_the_value_in_each_run(tmp_path: Path) -> None:
    runs = read_runs(
        [
            run_directory(tmp_path / "a", seed=1),
            run_directory(tmp_path / "b", seed=2, wire={"codec": "bf16"}),
        ]
    )
    found = differing(runs)
    assert (found["seed"], found["wire.codec"], found["wire.transport"]) == ([1, 2], ["f32", "bf16"], ["shm", None])
    assert "run_dir" not in found
    assert not {"seed", "wire.codec"} & differing(runs, but=frozenset({"seed", "wire"})).keys()


# groups


def labels(tmp_path: Path, *settings: dict[str, Any]) -> list[tuple[str, int]]:
    paths = [run_directory(tmp_path / f"run-{index}", **each) for index, each in enumerate(settings)]
    return [(group.label, len(group.runs)) for group in grouped(read_runs(paths))]


def test_runs_that_differ_only_in_the_seed_form_one_group(tmp_path: Path) -> None:
    assert labels(
        tmp_path,
        {"seed": 1, "workers": 4, "backups": 0},
        {"seed": 1, "workers": 3, "backups": 1},
        {"seed": 2, "workers": 4, "backups": 0},
    ) == [("workers=4 backups=0", 2), ("workers=3 backups=1", 1)]


@pytest.mark.parametrize(
    "other",
    [
        {"minutes": 5.0, "updates": 900, "agent_steps": 1000, "stop_score": 400.0},
        {"evaluator": True, "evaluation": {"episodes": 3, "every_minutes": 1.0, "greedy": True}},
        {"recorder": True, "recording": {"minutes": [1.0]}},
        {"checkpoint": {"every_minutes": 1.0, "keep": 3}, "profile": 100, "trackers": ["wandb"]},
        {"recipe": "mine"},
        {"page": True, "metrics_port": "9100"},
    ],
)
def test_settings_that_do_not_affect_learning_do_not_split_a_group(tmp_path: Path, other: dict[str, Any]) -> None:
    assert labels(tmp_path, {"seed": 1}, {"seed": 2, **other}) == [("run", 2)]
    runs = read_runs([tmp_path / "run-0", tmp_path / "run-1"])
    assert {name.partition(".")[0] for name in differing(runs)} == {"seed", *other} - PLACE


@pytest.mark.parametrize("other", [{"shards": 3}, {"wire": {"codec": "bf16"}}, {"envs": {"num_envs": 9}}])
def test_settings_that_affect_learning_split_a_group(tmp_path: Path, other: dict[str, Any]) -> None:
    assert [size for _, size in labels(tmp_path, {"seed": 1}, {"seed": 2, **other})] == [1, 1]


def test_a_single_group_or_one_with_many_differences_is_named_by_its_directories(tmp_path: Path) -> None:
    assert labels(tmp_path / "one", {"seed": 1}, {"seed": 2}) == [("run", 2)]
    other: dict[str, Any] = {"workers": 3, "shards": 3, "backups": 3, "quorum": 3}
    assert labels(tmp_path / "two", {}, other) == [("run-0", 1), ("run-1", 1)]


@pytest.mark.parametrize(
    "names", [("_tmp_a1", "_tmp_b2"), ("seed-1", "seed-2"), ("a", "b"), ("20260105-10", "20260105-11")]
)
def test_a_group_without_a_telling_common_name_is_named_by_its_recipe_or_environment(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for where, recipes, label in (("one", ("mine", "mine"), "mine"), ("two", ("mine", "other"), "CartPole-v1")):
        paths = [run_directory(tmp_path / where / name, recipe=each) for name, each in zip(names, recipes, strict=True)]
        assert [group.label for group in grouped(read_runs(paths))] == [label]
    assert [group.label for group in grouped(read_runs(paths[:1]))] == [names[0]]


def test_directories_with_the_same_name_are_distinguished_by_their_paths(tmp_path: Path) -> None:
    other: dict[str, Any] = {"workers": 3, "shards": 3, "backups": 3, "quorum": 3}
    paths = [run_directory(tmp_path / "a" / "run"), run_directory(tmp_path / "b" / "run", **other)]
    assert [group.label for group in grouped(read_runs(paths))] == [str(path) for path in paths]


# curves


def line(last: float, slope: float, points: int = 21) -> tuple[Any, Any]:
    x = np.linspace(0, last, points)
    return x, slope * x


def test_a_group_is_drawn_as_mean_and_extremes_up_to_its_shortest_run() -> None:
    found = curve([line(10, 1), line(8, 2), line(10, 6)])
    assert (len(found.x), found.x[0], found.x[-1]) == (GRID_POINTS, 0, 8)
    np.testing.assert_allclose(found.mean, 3 * found.x)
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose(found.low, found.x)
    np.testing.assert_allclose(found.high, 6 * found.x)
    assert [x[-1] for x, _ in found.beyond] == [10, 10]


def test_the_part_before_the_last_run_begins_is_drawn_like_the_rest_of_a_longer_run() -> None:
    (x, y), late = line(10, 1), (np.linspace(5, 8, 7), np.full(7, 3.0))
    found = curve([(x, y), late, (x[:0], y[:0])])
    assert (found.x[0], found.x[-1], found.runs) == (5, 8, 2)
    assert [(part[0], part[-1]) for part, _ in found.beyond] == [(0, 5), (8, 10)]


def test_the_parts_beyond_the_common_part_reach_its_ends_between_two_points() -> None:
    wide, narrow = np.array([0.0, 10, 20, 110]), np.array([5.0, 50, 100])
    found = curve([(wide, wide), (narrow, narrow)])
    assert [(x.tolist(), y.tolist()) for x, y in found.beyond] == [([0, 5], [0, 5]), ([100, 110], [100, 110])]


def test_runs_without_a_common_part_have_no_mean() -> None:
    early, late = (np.array([1.0, 2.0]), np.zeros(2)), (np.array([3.0, 60.0]), np.full(2, 10.0))
    found = curve([early, late])
    assert (len(found.x), len(found.mean), found.low, found.high) == (0, 0, None, None)
    assert [x.tolist() for x, _ in found.beyond] == [[1.0, 2.0], [3.0, 60.0]]


def test_five_runs_are_drawn_with_their_standard_deviation_instead_of_extremes() -> None:
    found = curve([line(10, slope) for slope in (1, 2, 3, 4, 5)])
    assert found.high is not None
    np.testing.assert_allclose(found.high - found.mean, np.std([1, 2, 3, 4, 5], ddof=1) * found.x)


def test_one_run_has_no_spread_and_unknown_values_are_left_out() -> None:
    x, y = line(10, 1)
    y[5] = np.nan
    found = curve([(x, y)])
    assert (found.low, found.high, found.beyond) == (None, None, ())
    np.testing.assert_allclose(found.mean, found.x)


@pytest.mark.parametrize("points", [[], [3.0]])
def test_few_points_make_a_short_curve(points: Sequence[float]) -> None:
    found = curve([(np.array(points), np.array(points))])
    np.testing.assert_array_equal(found.mean, points)


def test_a_curve_is_a_moving_mean_over_one_percent_of_its_run() -> None:
    x, y = smoothed(np.arange(1000.0), np.tile([0.0, 2.0], 500))
    np.testing.assert_array_equal(x, np.arange(1000))
    np.testing.assert_allclose(y[10:-10], 1, atol=0.1)


def test_a_smoothed_curve_has_no_slow_waves_caused_by_iterations() -> None:
    # The policy lag of a run that plays for 4 s, then makes 64 updates in 4.3 s, with one row per second.
    learned_at = np.add.outer(np.arange(0.0, 3600.0, 8.3), np.linspace(4.0, 8.29, 64)).ravel()
    lags = np.tile(np.arange(64.0), len(learned_at) // 64)
    second = np.arange(3601.0)
    gradients, sums = (np.histogram(learned_at, second, weights=each)[0] for each in (np.ones_like(lags), lags))
    lag = np.divide(sums, gradients, out=np.full(3600, np.nan), where=gradients > 0)
    assert np.nanmax(lag) > 50, "a single row shows a part of an iteration"
    found = curve([(second[1:], lag)], [gradients])
    np.testing.assert_allclose(found.mean[5:-5], 31.5, atol=0.5)


def test_several_rows_at_the_same_agent_step_count_as_one_point() -> None:
    x, y = smoothed(np.array([1.0, 2.0, 2.0]), np.array([5.0, 6.0, 8.0]))
    assert (x.tolist(), y.tolist()) == ([1, 2], [5, 7])


def test_shares_of_contributions_cover_the_time_around_a_row_not_the_whole_run(tmp_path: Path) -> None:
    def counts(used: int, late: int) -> dict[str, int]:
        return {"used": used, "late": late, "duplicate": 0, "rejected": 0, "skipped": 0}

    rows = [
        row(1, contributions=counts(100, 0)),
        row(2, contributions=counts(175, 25)),
        row(3, contributions=counts(175, 25)),
    ]
    shares = outcome_shares(RunRecord.read(run_directory(tmp_path / "run", rows)))
    np.testing.assert_array_equal(shares["used"], [100, 75, np.nan])
    np.testing.assert_array_equal(shares["late"], [0, 25, np.nan])


# merged rows


def test_a_merged_row_has_means_over_all_gradients_and_the_counts_of_the_last_row() -> None:
    lag = {"policy_lag_min": 2, "policy_lag_max": 5}
    rows = [
        row(1, gradients=1, value_loss=4.0, policy_lag=8.0, kl=1.0, policy_lag_min=8, policy_lag_max=8),
        row(2, gradients=0, value_loss=None, policy_lag=None, policy_lag_min=None, policy_lag_max=None),
        row(3, gradients=3, value_loss=2.0, policy_lag=4.0, **lag),
    ]
    found = merged_rows(rows)
    assert (found["value_loss"], found["policy_lag"], found["kl"], found["gradients"]) == (2.5, 5.0, 1.0, 4)
    assert (found["policy_lag_min"], found["policy_lag_max"]) == (2, 8)
    for name in ("version", "wall_s", "agent_steps", "agent_steps_per_s", "score_mean_50", "contributions"):
        assert found[name] == rows[-1][name]


def test_merged_rows_of_a_run_of_older_code_have_equal_weights() -> None:
    found = merged_rows([row(2, value_loss=1.0), row(3, value_loss=2.0), row(4, value_loss=6.0)])
    assert (found["value_loss"], found["policy_loss"]) == (3.0, -0.01)
    assert "gradients" not in found
    assert merged_rows([row(1)])["policy_loss"] is None


def test_settings_are_flat_however_deep_their_file_is() -> None:
    assert list(flat({"a": {"b": {}, "c": {"d": 1}, "e": 2}, "f": [3]})) == [("a.c.d", 1), ("a.e", 2), ("f", [3])]
    deep: dict[str, Any] = {"x": 1}
    for _ in range(5000):
        deep = {"a": deep}
    assert list(flat(deep)) == [("a." * 5000 + "x", 1)]
