"""The comparison of different numbers of workers and shards trains equal updates, and draws all recipes."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import profile_overhead
import pytest
import scaling
from support.record_rig import row, run_directory

from zmqrl.commands.run.train import config_from
from zmqrl.observe.records import RunRecord
from zmqrl.recipes import RECIPES


@pytest.mark.parametrize("recipe", ["cartpole", "pong", "breakout"])
def test_every_setting_uses_the_same_samples_and_updates(recipe: str) -> None:
    config = RECIPES[recipe]()
    batches = set()
    for numbers in scaling.SETTINGS.values():
        trained = config_from([recipe, *scaling.options_of(config, numbers, 3, 70)])
        assert (trained.updates, trained.agent_steps, trained.seed) == (70, None, 3)
        assert trained.effective_quorum == numbers["workers"]
        samples = trained.algorithm.minibatch_samples(trained.envs.num_envs)
        batches.add(trained.effective_quorum * samples)
        assert scaling.steps_per_update(trained) == scaling.steps_per_update(config)
    assert len(batches) == 1


def test_the_agent_steps_of_an_update_are_counted_once_for_all_epochs() -> None:
    cartpole = RECIPES["cartpole"]()  # two workers with 8 games, 128 steps, 4 epochs of 4 minibatches
    assert scaling.steps_per_update(cartpole) == 2 * 8 * 128 / 16


def test_games_that_cannot_be_distributed_equally_are_refused() -> None:
    with pytest.raises(SystemExit, match="12 games cannot be distributed equally over 5 workers"):
        scaling.options_of(RECIPES["dba3c-breakout"](), {"workers": 5, "shards": 1, "backups": 0}, 1, 10)


def test_a_curve_is_over_versions_and_not_over_the_steps_of_a_backup(tmp_path: Path) -> None:
    rows = [
        row(1, version=10, agent_steps=300, score_mean_50=None),
        row(2, version=20, agent_steps=900, score_mean_50=2.0),
        row(3, version=40, agent_steps=990, score_mean_50=4.0),
    ]
    found = scaling.on_grid(RunRecord.read(run_directory(tmp_path / "run", rows)), 40)
    assert len(found) == scaling.GRID_POINTS
    assert found[:100] == [None] * 100, "the score is known from version 20 on"
    assert found[100::50] == pytest.approx([2.0, 3.0, 4.0])


def test_a_run_without_a_score_has_an_empty_curve(tmp_path: Path) -> None:
    run = RunRecord.read(run_directory(tmp_path / "run", [row(1, score_mean_50=None)]))
    assert scaling.on_grid(run, 40) == [None] * scaling.GRID_POINTS


def result(*seeds: list[float | None], single: list[float | None]) -> dict[str, Any]:
    return {"updates": 4, "agent_steps": 400.0, "scores": {"one": list(seeds), "two": [single]}}


def test_a_mean_begins_where_all_scores_are_known() -> None:
    means = scaling.mean_scores({"one": [[None, 1.0, 3.0], [0.0, 3.0, 5.0]], "two": [[-20.0, 7.0, 7.0]]})
    assert {name: scores.tolist() for name, scores in means.items()} == {"one": [2.0, 4.0], "two": [7.0]}


def test_three_seeds_have_an_interval_by_students_t_and_fewer_have_none() -> None:
    lines = scaling.table("pong", result([1.0, 3.0], [3.0, 5.0], single=[2.0, 2.0])).splitlines()
    assert lines[0].startswith("| pong | mean score over the training |")
    assert lines[2] == "| one | 3.0 | - | 2 |"
    assert lines[3] == "| two | 2.0 | - | 1 |"
    three = scaling.table("pong", result([1.0, 3.0], [3.0, 5.0], [5.0, 7.0], single=[2.0, 2.0])).splitlines()
    assert three[2] == "| one | 4.0 | -1.0 to 9.0 | 3 |"  # 4 +- 4.303 x 2 x sqrt(1/3)


@pytest.mark.processes  # draws for seconds
def test_the_recipes_of_several_calls_are_in_one_picture_and_page(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- scaling -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    points = scaling.GRID_POINTS
    late: list[float | None] = [*[None] * 10, *[1.0] * (points - 10)]
    about = result(late, [2.0] * points, single=[3.0] * points)
    scaling.write(tmp_path, {"cartpole": about})
    alone = (tmp_path / "scaling.png").read_bytes()
    scaling.write(tmp_path, {"cartpole": about, "pong": about})
    assert (tmp_path / "scaling.png").read_bytes() != alone
    assert list(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))) == ["cartpole", "pong"]
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("before\n<!-- scaling -->\n![")
    assert "](scaling.png)\n\n| cartpole |" in page
    assert "\n\n| pong |" in page
    assert page.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in page


class Ended(Exception):
    """The benchmark was ended by force."""


def test_each_training_is_kept_and_a_result_stays_until_a_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("<!-- scaling -->\nNot measured yet.\n<!-- end -->\n", encoding="utf-8")
    first = next(iter(scaling.SETTINGS))

    def call(score: float, trainings: int) -> tuple[dict[str, Any], str]:
        """The result of cartpole, and the row of the first setting, after this number of trainings."""
        left = [score] * trainings

        def scores_of(*arguments: object) -> list[float]:
            if not left:
                raise Ended
            return [left.pop()] * scaling.GRID_POINTS

        monkeypatch.setattr(scaling, "scores_of", scores_of)
        if trainings == 10:
            scaling.main()
        else:
            with pytest.raises(Ended):
                scaling.main()
        kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cartpole"]
        page = (tmp_path / "README.md").read_text(encoding="utf-8")
        return kept, next((line for line in page.splitlines() if line.startswith(f"| {first} |")), "no row")

    def lengths(result: dict[str, Any]) -> list[int]:
        return [len(seeds) for seeds in result["scores"].values()]

    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(scaling, "draw", lambda results, path: None)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--seeds", "2", "--output", str(tmp_path)])
    kept, row = call(1.0, 3)
    assert (lengths(kept), row) == ([1, 1, 1, 0, 0], "no row")
    (tmp_path / "results.json").unlink()
    assert {"commit", "load_before"} <= kept.keys()
    kept, row = call(2.0, 7)
    assert (lengths(kept), row) == ([2, 2, 1, 1, 1], f"| {first} | 2.0 | - | 1 |")
    kept, row = call(3.0, 10)
    assert (lengths(kept), row) == ([2] * 5, f"| {first} | 3.0 | - | 2 |")
    kept, row = call(4.0, 9)
    assert (lengths(kept), lengths(kept["next"]), row) == ([2] * 5, [2, 2, 2, 2, 1], f"| {first} | 3.0 | - | 2 |")
    kept, row = call(5.0, 10)
    assert (lengths(kept), row) == ([2] * 5, f"| {first} | 5.0 | - | 2 |")
    assert "next" not in kept


def test_the_speed_of_a_run_is_measured_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(options: list[str], directory: Path, within_s: float, **environment: str) -> None:
        rows = [row(wall_s, version=wall_s * 10) for wall_s in range(1, 11)]
        run_directory(directory, [*rows, row(30, version=101)])

    monkeypatch.setattr(profile_overhead, "train", train)
    assert profile_overhead.run(["cartpole"], 101, "on", tmp_path / "run") == 10.0


def test_the_cost_of_a_profile_has_an_interval_by_students_t_from_three_rounds_on() -> None:
    assert profile_overhead.compared([0.9, 1.1]) == "on/off: 1.0000, median 1.0000"
    assert profile_overhead.compared([0.9, 1.0, 1.1]) == "on/off: 1.0000 (95 % 0.7516 to 1.2484), median 1.0000"
