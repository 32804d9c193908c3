"""``zmqrl simulate``: its options, files and results."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from zmqrl.cli import run
from zmqrl.commands.measure.simulate import options_from
from zmqrl.errors import UsageError
from zmqrl.simulate import Scenario, Straggler

pytestmark = pytest.mark.processes

OLD_RUN = ROOT / "tests" / "old_run"
QUICK = ["--updates", "10", "--compute", "constant:0.1"]
FILE = """
workers = 3
bandwidth = "inf"
updates-per-rollout = 2
[costs]
optimize_s = 0.01
[[stragglers]]
rank = 1
factor = 4
[[failures]]
process = "worker-0"
at = 1
restart_s = 2.5
"""


def found_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["simulate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_run_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_by(capsys, *QUICK, "--workers", "3", "--backups", "1", "--shards", "2")
    assert found["updates"] == 10
    assert found["updates_per_s"] == pytest.approx(10.0)
    assert found["agent_steps_per_s"] == pytest.approx(4 * 30 * 10)
    assert set(found["step_ms"]) == {"mean", "p50", "p90", "p99"}
    assert found["step_ms"]["p50"] == pytest.approx(100.0)
    assert (found["used"], found["late"] + found["skipped"]) == (3 * 2 * 10, 1 * 2 * 10 - 2)


def test_a_sweep_prints_a_list_in_the_order_of_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_by(capsys, *QUICK, "--sweep", "shards=1,4", "--sweep", "backups=0,2")
    assert [(each["shards"], each["backups"]) for each in found] == [(1, 0), (1, 2), (4, 0), (4, 2)]


def test_costs_shrink_with_the_slices_if_an_option_or_a_sweep_sets_the_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("shards = 2\n[costs]\naccumulate_s = 0.01\nsend_s = 0.003", encoding="utf-8")
    option = found_by(capsys, str(path), "--compute", "constant:0", "--updates", "10", "--shards", "8")
    sweep = found_by(capsys, str(path), "--compute", "constant:0", "--updates", "10", "--sweep", "shards=2,8")
    assert option["updates_per_s"] == sweep[1]["updates_per_s"] > sweep[0]["updates_per_s"]
    costs = options_from([str(path), "--shards", "8", "--optimize-s", "0.5"]).settings.costs
    assert (costs.accumulate_s, costs.send_s, costs.optimize_s) == (0.0025, 0.003, 0.5)


def test_a_note_says_that_packet_loss_without_latency_has_little_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *QUICK, "--loss", "0.01"]) == 0
    assert capsys.readouterr().err.startswith("--loss without --latency only adds timeouts")
    assert run(["simulate", *QUICK, "--sweep", "loss=0,0.01", "--latency", "0.001"]) == 0
    assert capsys.readouterr().err == ""


def test_the_same_command_prints_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--compute", "lognormal:0.1:1", "--backups", "2", "--bandwidth", "1e8", "--json"]
    printed = []
    for seed in ("1", "1", "2"):
        assert run([*arguments, "--seed", seed]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


@pytest.mark.parametrize("how", ["first argument", "option", "json"])
def test_options_override_the_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(FILE, encoding="utf-8")
    if how == "json":
        data = Scenario.read(path).to_json()
        path = tmp_path / "scenario.json"
        path.write_text(json.dumps(data), encoding="utf-8")
    given = ["--scenario", str(path)] if how == "option" else [str(path)]
    settings = options_from([*given, "--workers", "5"]).settings
    assert (settings.workers, settings.updates_per_rollout, settings.costs.optimize_s) == (5, 2, 0.01)
    assert settings.stragglers == (Straggler(rank=1, factor=4.0),)
    assert settings.failures[0].restart_s == 2.5


def test_a_simulation_takes_settings_and_mean_times_from_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_by(capsys, "--from", str(OLD_RUN), "--workers", "3", "--updates", "32")
    assert (found["workers"], found["shards"], found["parameters"]) == (3, 2, 755)
    assert found["agent_steps"] == 3 * 2 * 8 * 128


def test_the_times_of_a_run_can_be_combined_with_other_settings() -> None:
    settings = options_from(["--compute", f"run:{OLD_RUN}", "--workers", "7"]).settings
    assert (settings.workers, settings.updates_per_rollout, settings.agent_steps_per_rollout) == (7, 16, 1024)


def test_without_json_a_run_prints_a_page_and_a_sweep_prints_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "steps.png"
    assert run(["simulate", *QUICK, "--plot", str(picture)]) == 0
    assert "updates/s      10.00\n" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(["simulate", *QUICK, "--sweep", "compute=constant:0.1,constant:0.2", "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["compute", "updates/s"]
    assert [line.split()[:2] for line in lines[1:]] == [["constant:0.1", "10.00"], ["constant:0.2", "5.00"]]


def test_the_examples_in_the_documentation_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(toml|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    path = tmp_path / "scenario.toml"
    path.write_text(blocks["toml"], encoding="utf-8")
    assert found_by(capsys, str(path))["updates"] == 100
    script = tmp_path / "script.py"
    script.write_text(blocks["python"], encoding="utf-8")
    runpy.run_path(str(script))
    assert float(capsys.readouterr().out.split()[0]) > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "0"], "--workers 0: must be 1 or more"),
        (["--quorum", "9"], r"--quorum 9 is above the number of workers, 4 \(N \+ b\)"),
        (["--workers", "2000"], "2000 is above the limit of 1024"),
        (["--compute", "normal:1"], "--compute normal:1: unknown law 'normal'"),
        (["--bandwidth", "0"], "--bandwidth 0.0: must be above 0 bytes per second"),
        (["--parameters", "8"], "--parameters 8: must be from 32 to"),
        (["--sweep", "shard=1"], r"--sweep shard=1: write NAME=VALUE,VALUE,.*did you mean shards"),
        (["--sweep", "shards"], "--sweep shards: write NAME=VALUE"),
        (["--sweep", "shards=a"], "a value is not a number"),
        (["--sweep", "shards=0"], "--shards 0: must be from 1 to 64"),
        (["--abandon", "never"], "abandon"),
        (["missing.toml"], "cannot read missing.toml: No such file"),
        (["--from", "/nowhere"], "/nowhere is not a run directory"),
        (["a.toml", "--from", "b"], "give only one of FILE, --scenario and --from"),
        (["--plot", "x.gif"], "the name must end with one of .png"),
    ],
)
def test_bad_usage_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(["simulate", *arguments, "--updates", "5"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("worker = 3", r"unknown setting worker \(did you mean workers\?\)"),
        ("workers = 'x'", "workers cannot be 'x'"),
        ("workers = true", "workers cannot be True"),
        ("[[failures]]\nat = 1", r"failures\[0\] is not complete"),
        ("[[failures]]\nprocess = 'worker-9'\nat = 1", "there is no process 'worker-9'"),
        ("workers 3", "is not valid TOML"),
        (f"workers = {'9' * 5000}", "is not valid TOML: it has a number with too many digits"),
        (f"workers = 0x{'f' * 5000}", "is not valid TOML: it has a number with too many digits"),
        ("stragglers = 3", "stragglers cannot be 3"),
        ("[[stragglers]]\nrank = 4\nfactor = 2", "rank must be from 0 to 3"),
        ("shard_hosts = [0]", "shard_hosts has 1 entry: it must have 2 host numbers"),
        ("mode = 'async'", "mode asks for asynchronous updates, which the simulator does not model: remove it"),
        ("on-loss = 'shrink'", "on_loss asks for changes of the quorum, which the simulator does not model: remove it"),
        (
            "[[failures]]\nprocess = 'shard-0'\nat = 1\nrollback = true",
            r"failures\[0\].rollback asks for rollbacks, which the simulator does not model: remove it",
        ),
    ],
)
def test_a_scenario_file_with_invalid_settings_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        run(["simulate", str(path)])


@pytest.mark.parametrize("arguments", [["--from"], ["--compute"]])
def test_an_asynchronous_run_is_not_simulated(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"mode": "async"}', encoding="utf-8")
    place = f"run:{tmp_path}" if arguments == ["--compute"] else str(tmp_path)
    with pytest.raises(UsageError, match="has mode = async: the simulator does not model asynchronous updates"):
        run(["simulate", *arguments, place])
