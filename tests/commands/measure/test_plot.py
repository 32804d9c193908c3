"""``zmqrl plot`` writes a picture with the right labels. These tests cannot judge how the picture looks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.record_rig import row, run_directory, summary

from zmqrl import cli
from zmqrl.commands.measure.plot import layout
from zmqrl.errors import UsageError

pytestmark = pytest.mark.processes

FIRST_BYTES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def words(*arguments: str | Path) -> str:
    """Draw a plot as an SVG. Returns the file, which contains all text in the plot."""
    output = Path(arguments[0]) / "picture.svg"
    assert cli.run(["plot", *map(str, arguments), "--output", str(output)]) == 0
    return output.read_text(encoding="utf-8")


def test_the_picture_goes_to_the_first_run_directory_and_its_path_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_directory(tmp_path / "run", [row(second) for second in range(1, 9)])
    assert cli.run(["plot", str(path), "--x", "minutes"]) == 0
    assert capsys.readouterr().out == f"{path / 'plot.png'}\n"
    assert (path / "plot.png").read_bytes().startswith(FIRST_BYTES[".png"])


@pytest.mark.parametrize("suffix", FIRST_BYTES)
def test_the_file_extension_decides_the_format(tmp_path: Path, suffix: str) -> None:
    path = run_directory(tmp_path / "run", [row(1), row(2)])
    output = tmp_path / f"picture{suffix}"
    assert cli.run(["plot", str(path), "--output", str(output), "--panels", "score"]) == 0
    assert output.read_bytes().startswith(FIRST_BYTES[suffix])


def test_every_panel_names_its_quantity_and_unit(tmp_path: Path) -> None:
    evaluations = [{"version": 20, "mean": 3.0, "ci95": [2.5, 3.5]}]
    lag = {"policy_lag_min": 1.0, "policy_lag_max": 9.0}
    rows = [row(second, **lag) for second in range(1, 5)]
    picture = words(run_directory(tmp_path / "first", rows, evaluations=evaluations))
    for what in (
        "cartpole · CartPole-v1 · first",
        "training time (minutes)",
        "agent steps",
        "of 50 games",
        "policy loss",
    ):
        assert what in picture
    for what in (
        "value loss",
        "entropy (nats)",
        "(agent steps/s)",
        "duplicate",
        "(versions)",
        "evaluation, 95 % interval",
    ):
        assert what in picture


def test_the_legend_says_how_the_groups_differ(tmp_path: Path) -> None:
    rows = [row(second) for second in range(1, 5)]
    paths = [
        run_directory(tmp_path / "a1", rows, seed=1, workers=4),
        run_directory(tmp_path / "a2", rows[:3], seed=2, workers=4),
        run_directory(tmp_path / "b", rows, seed=1, workers=3, backups=1),
    ]
    picture = words(*paths)
    assert "workers=4 backups=0" in picture
    assert "workers=3 backups=1" in picture
    assert "mean and min-max of up to 2 runs" in picture
    assert "not used (%)" in picture


def test_the_title_names_the_bands_of_small_and_of_large_groups(tmp_path: Path) -> None:
    rows = [row(second) for second in range(1, 5)]
    sizes = {"few": 3, "many": 5}
    paths = [
        run_directory(tmp_path / f"{name}{seed}", rows, seed=seed, workers=size)
        for name, size in sizes.items()
        for seed in range(size)
    ]
    assert "mean and min-max or standard deviation of up to 5 runs" in words(*paths)


def test_the_title_counts_the_runs_whose_values_are_known(tmp_path: Path) -> None:
    rows = [row(second) for second in range(1, 5)]
    silent = [each | {"score_mean_50": None} for each in rows]
    paths = [run_directory(tmp_path / f"run-{n}", each, seed=n) for n, each in enumerate((rows, rows, silent))]
    assert "mean and min-max of 2 runs" in words(*paths, "--panels", "score")
    assert "mean and min-max of up to 3 runs" in words(*paths, "--panels", "score,contributions")


@pytest.mark.filterwarnings("error")
def test_runs_that_begin_and_end_at_different_times_are_drawn_whole(tmp_path: Path) -> None:
    rows = [row(second) for second in range(1, 9)]
    paths = [run_directory(tmp_path / f"run-{n}", rows[n : 5 + n], seed=n) for n in range(3)]
    picture = words(*paths, "--panels", "contributions", "--x", "minutes")
    assert picture.count("stroke: #666666; stroke-opacity: 0.6; stroke-width: 0.8") == 4, "two parts before, two after"


def test_the_title_names_the_recipe_once(tmp_path: Path) -> None:
    paths = [run_directory(tmp_path / f"seed-{seed}", [row(1), row(2)], seed=seed, recipe="mine") for seed in (1, 2)]
    assert "mine · CartPole-v1 · mean and min-max of 2 runs" in words(*paths)


@pytest.mark.parametrize("panels", [["--panels", "score,entropy"], ["--panels", "score", "entropy"]])
def test_only_the_requested_panels_are_drawn(tmp_path: Path, panels: list[str]) -> None:
    picture = words(run_directory(tmp_path / "run", [row(1), row(2)]), *panels, "--x", "agent-steps")
    assert "entropy (nats)" in picture
    assert "value loss" not in picture
    assert "minutes" not in picture


def test_a_picture_of_scores_names_the_flavour_of_the_games(tmp_path: Path) -> None:
    paths = [
        run_directory(tmp_path / name, [row(1), row(2)], summary=summary(flavour=flavour))
        for name, flavour in {"a": "sticky 0", "b": "sticky 0", "c": "sticky 0.25"}.items()
    ]
    assert "games: sticky 0<" in words(*paths[:2], "--panels", "score")
    different = words(*paths, "--panels", "score")
    assert "games of a, b: sticky 0<" in different
    assert "games of c: sticky 0.25<" in different
    assert "games" not in words(paths[0], "--panels", "entropy").replace("of 50 games", "")


def test_a_long_flavour_is_drawn_in_several_lines(tmp_path: Path) -> None:
    long = run_directory(tmp_path / "long", [row(1), row(2)], summary=summary(flavour="sticky 0, " * 40))
    lines = re.findall(r">([^<]*sticky 0[^<]*)<", words(long, "--panels", "score"))
    assert len(lines) > 1
    assert all(len(line) < 200 for line in lines)


def test_a_run_with_one_row_and_no_finished_game_can_be_plotted(tmp_path: Path) -> None:
    assert "nothing yet" in words(run_directory(tmp_path / "run", [row(1, score_mean_50=None)]))


@pytest.mark.filterwarnings("error")
def test_a_run_with_only_evaluations_can_be_plotted(tmp_path: Path) -> None:
    evaluations = [{"version": 20, "mean": 3.0, "ci95": [2.5, 3.5], "wall_s": 120.0, "agent_steps": 2000}]
    run = run_directory(tmp_path / "run", evaluations=evaluations)
    picture = words(run)
    assert "nothing yet" in picture
    assert "evaluation, 95 % interval" in picture
    assert "2k<" in picture, "the axis reaches the evaluation"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [row(1)],
        [row(second, agent_steps=0) for second in (1, 2, 3)],
        [row(0, agent_steps_per_s=None, policy_lag=None)],
        [row(second, agent_steps_per_s=0.0, policy_lag=0.0) for second in (1, 2)],
    ],
    ids=["one row", "no agent steps", "nothing at all", "figures of zero"],
)
def test_a_short_run_is_drawn_without_a_warning(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    picture = words(run_directory(tmp_path / "run", rows))
    assert ("duplicate" in picture) == (rows[0]["wall_s"] > 0)


def test_the_axis_of_agent_steps_shows_no_fractions(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1, agent_steps=0)])
    assert not re.search(r"\dm<", words(run, "--x", "agent-steps", "--panels", "score"))


def test_a_name_with_dollar_signs_is_not_drawn_as_a_formula(tmp_path: Path) -> None:
    assert "a$^$b" in words(run_directory(tmp_path / "a$^$b", [row(1), row(2)]), "--panels", "score")


def test_a_name_that_is_not_text_can_be_drawn(tmp_path: Path) -> None:
    assert "a b c" in words(run_directory(tmp_path / "a\nb\x1bc", [row(1), row(2)]), "--panels", "score")


@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_that_a_row_can_have_are_drawn(tmp_path: Path) -> None:
    most = int(1e110)
    figures = dict.fromkeys(("score_mean_50", "value_loss", "agent_steps_per_s", "policy_lag"), 1e110)
    rows = [row(1), row(2, **figures), row(3, entropy=-1e110, agent_steps=most, wall_s=1e110, gradients=most)]
    about: dict[str, Any] = {"evaluations": [{"version": 20, "mean": most, "ci95": [-most, most]}]}
    paths = [run_directory(tmp_path / f"run-{workers}", rows, workers=workers, **about) for workers in (1, 2)]
    assert "entropy (nats)" in words(*paths)
    with (paths[0] / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row(4, entropy=1e300)) + "\n")
    assert "is damaged: in line 4 entropy is not a number from -1e110 to 1e110" in refusal(paths[0])


def test_more_groups_than_colours_can_be_drawn(tmp_path: Path) -> None:
    paths = [run_directory(tmp_path / f"run-{n}", [row(1), row(2 + n)], workers=n) for n in range(1, 11)]
    picture = words(*paths, "--panels", "score", "--x", "minutes")
    assert all(f"workers={n}<" in picture for n in range(1, 11))


def test_the_last_of_an_odd_number_of_panels_fills_its_row() -> None:
    assert layout(["a", "b", "c"], ["minutes"]) == [[("a", "minutes")], [("b", "minutes"), ("c", "minutes")]]
    assert layout(["a", "b"], ["minutes"]) == [[("a", "minutes"), ("b", "minutes")]]
    assert layout(["a"], ["minutes"]) == [[("a", "minutes")]]
    assert layout(["a"], ["minutes", "agent-steps"]) == [[("a", "minutes"), ("a", "agent-steps")]]


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        cli.run(["plot", *map(str, arguments)])
    return str(caught.value)


def test_plot_refuses_bad_usage_in_one_sentence(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1)])
    new = run_directory(tmp_path / "new")
    assert "nowhere is not a run directory" in refusal(run, tmp_path / "nowhere")
    assert f"{new} has no metrics yet" in refusal(run, new)
    assert "no such panel" in refusal(run, "--panels", "scores")
    picture = tmp_path / "picture.jpg"
    assert f"{picture}: the name must end with one of .png, .svg, .pdf" in refusal(run, "--output", picture)
    assert "No such file" in refusal(run, "--output", tmp_path / "gone" / "picture.png", "--panels", "score")
    assert "no run directory given" in refusal()
