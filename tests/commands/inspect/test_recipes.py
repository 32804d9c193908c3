"""``zmqrl recipes`` shows only measured figures, from the results in the repository."""

import dataclasses
import json
from typing import Any

import pytest
from support.paths import ROOT

from zmqrl import cli
from zmqrl.commands.inspect.recipes import ATARI, BUSY, RESULTS, WITH_AMX, WITH_AVX512, MeasuredRun
from zmqrl.errors import UsageError
from zmqrl.observe.records import flat
from zmqrl.recipes import RECIPES

# Settings that do not change what a run of the given minutes learns. The schedules of older results end after a number
# of updates, which took the same minutes.
OTHER = {"run_dir", "minutes", "recorder", "checkpoint", "recording", "schedule"}


def read(source: str, name: str) -> Any:
    return json.loads((ROOT / source / name).read_text(encoding="utf-8"))


ALL = [(name, result) for name, results in RESULTS.items() for result in results]
MEASURED = [(name, result) for name, result in ALL if (ROOT / result.source / "summary.json").exists()]
CONTINUOUS = "benchmarks/results/continuous"


def test_a_test_compares_the_figures_of_every_source() -> None:
    others = {(name, result.source) for name, result in ALL} - {(name, result.source) for name, result in MEASURED}
    assert len(MEASURED) >= 4
    assert others == {("cartpole", "README.md")} | {
        (name, CONTINUOUS) for name in ("pendulum", "bipedalwalker", "hopper")
    }


@pytest.mark.parametrize(("name", "result"), MEASURED, ids=[result.source for _, result in MEASURED])
def test_every_figure_is_that_of_a_kept_result(name: str, result: MeasuredRun) -> None:
    summary = read(result.source, "summary.json")
    assert summary["recipe"] == name
    assert result.score == summary["score_mean_50"]
    assert result.flavour == summary["flavour"]
    assert result.minutes == round(summary["wall_s"] / 60, 1)
    assert result.agent_steps_per_s == round(summary["agent_steps_per_s"])
    assert f"--minutes {result.minutes:g}" in result.options
    processor = "Intel(R) Xeon(R) Processor" if result.machine == WITH_AMX else "AMD EPYC"
    assert (summary["provenance"]["cores"], summary["provenance"]["cpu"]) == (2, processor)
    evaluations = ROOT / result.source / "evaluation.json"
    assert (result.evaluation is not None) == evaluations.exists()
    if evaluations.exists():
        evaluation = read(result.source, "evaluation.json")
        assert (result.evaluation, result.games) == (evaluation["mean"], evaluation["episodes"])
    folder = ROOT / result.source
    text = next(path / "README.md" for path in (folder, folder.parent) if (path / "README.md").exists()).read_text()
    assert ("AVX-512 and bfloat16" in " ".join(text.split())) == (result.machine in (WITH_AVX512, WITH_AMX))


@pytest.mark.parametrize(("name", "result"), MEASURED, ids=[result.source for _, result in MEASURED])
def test_every_figure_is_that_of_the_recipe_as_it_is_now(name: str, result: MeasuredRun) -> None:
    kept = dict(flat(read(result.source, "config.json")))
    now = dict(flat(json.loads(json.dumps(RECIPES[name]().to_json()))))  # tuples become lists
    changed = {key for key in kept.keys() & now.keys() if kept[key] != now[key]}
    changed = {key for key in changed if key.split(".")[0] not in OTHER and not key.endswith("schedule_updates")}
    changed.discard("wire.transport")  # the numbers are the same
    if f"--seed {kept['seed']}" in result.options:
        changed.discard("seed")
    if "--envs.sticky-actions 0.25" in result.options:
        changed.discard("envs.sticky_actions")
    if "--optimizer.name rmsprop" in result.options:
        changed -= {"optimizer.name", "optimizer.beta1", "optimizer.beta2"}  # rmsprop does not use the last two
    assert not changed


def test_the_figures_of_cartpole_are_those_of_the_readme() -> None:
    (row,) = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "CartPole to" in line]
    first, second = RESULTS["cartpole"]
    assert f"{60 * first.minutes:.0f} and {60 * second.minutes:.0f} s" in row
    assert f"`zmqrl train cartpole {first.options}`" in row
    assert "no AVX-512" in row


def test_the_figures_of_continuous_control_are_those_of_the_benchmark() -> None:
    lines = (ROOT / CONTINUOUS / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["side"] == "zmqrl"]
    measured = {
        (
            row["recipe"],
            f"--agent-steps {row['agent_steps']} --seed {row['seed']}",
            row["score_mean_50"],
            row["seconds"],
        )
        for row in rows
        if row["recipe"] in RECIPES and row["env"] == RECIPES[row["recipe"]]().env
    }
    listed = [(name, result) for name, result in ALL if result.source == CONTINUOUS]
    assert {(name, each.options, each.score, round(60 * each.minutes)) for name, each in listed} == measured
    assert all((each.evaluation, each.agent_steps_per_s, each.machine) == (None, None, BUSY) for _, each in listed)
    page = " ".join((ROOT / CONTINUOUS / "README.md").read_text(encoding="utf-8").split())
    assert "The machine has 2 cores (AMD EPYC) and was busy with other work" in page


def test_the_readme_names_the_flavour_of_its_atari_games() -> None:
    assert ATARI in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_every_recipe_has_figures() -> None:
    assert set(RESULTS) == set(RECIPES)


def test_every_recipe_is_listed_and_one_without_figures_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RESULTS, "hopper")
    assert cli.run(["recipes"]) == 0
    shown = capsys.readouterr().out
    paragraphs = dict(text.split(":", 1) for text in shown.strip().split("\n\n")[:-1])
    assert list(paragraphs) == list(RECIPES)
    for name, text in paragraphs.items():
        assert ("\n  not measured" in text) == (name not in RESULTS)
        assert ("\n  games: " in text) == (name in RESULTS)
    told = "132.9 in 50 full games; 176.0 in training after 60 minutes (--minutes 60; 957 agent steps/s; 2 cores of"
    assert told in paragraphs["breakout-ppo"]
    assert f"\n  games: {ATARI}" in paragraphs["breakout-ppo"]
    assert "\n  19.5 in 50 full games; 19.0 in training after 12 minutes (" in paragraphs["pong"]
    assert "\n  reached 475 in training after 57 s (" in paragraphs["cartpole"], "475 is a limit, not a mean of games"


def test_one_recipe_can_be_shown_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "pong"]) == 0
    assert [text.partition(":")[0] for text in capsys.readouterr().out.strip().split("\n\n")[:-1]] == ["pong"]
    assert cli.run(["recipes", "--json", "pong"]) == 0
    assert [recipe["recipe"] for recipe in json.loads(capsys.readouterr().out)] == ["pong"]
    with pytest.raises(UsageError, match=r"^unknown recipe 'pon' \(did you mean pong\?\); choose one of breakout, "):
        cli.run(["recipes", "pon"])


def test_the_list_is_also_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "--json"]) == 0
    found = {recipe["recipe"]: recipe for recipe in json.loads(capsys.readouterr().out)}
    assert list(found) == list(RECIPES)
    assert found["pong"]["env"] == "ALE/Pong-v5"
    assert found["pong"]["results"] == [dataclasses.asdict(result) for result in RESULTS["pong"]]
