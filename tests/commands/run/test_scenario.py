"""``zmqrl train --scenario``: real training with the stragglers, the pace and the failures of a scenario file."""

import json
from pathlib import Path

import pytest

from zmqrl.cli import run
from zmqrl.commands.run.train import config_from
from zmqrl.errors import UsageError
from zmqrl.simulate import Failure

FILE = """
workers = 2
backups = 1
compute = "uniform:0.005:0.02"
bandwidth = 1e8
[[stragglers]]
rank = 1
factor = 3
seconds = 0.5
[[failures]]
process = "worker-0"
at = 0.5
[[failures]]
process = "shard-1"
at = 1
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_scenario_sets_defaults_and_names_settings_it_cannot_apply(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_from(["cartpole", "--scenario", str(scenario), "--workers", "3"])
    assert (config.workers, config.backups, config.shards, config.recipe) == (3, 1, 2, "cartpole")
    assert config.pace == "uniform:0.005:0.02"
    assert config.failures == (Failure(process="worker-0", at=0.5), Failure(process="shard-1", at=1.0))
    slow = config.stragglers()[1]
    assert (slow.factor, slow.seconds) == (3.0, 0.5)
    assert capsys.readouterr().err == f"{scenario}: a real run ignores bandwidth.\n"
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("name", "text"), [("a.toml", "workers = 3"), ("a.json", '{"workers": 3}')])
def test_a_scenario_may_begin_with_a_bom(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert config_from(["cartpole", "--scenario", str(tmp_path / name)]).workers == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pace", "normal:1"], "--pace normal:1: unknown law"),
        (["--straggle", "1:xx"], "--straggle 1:xx: must be RANK:SECONDS"),
        (["--scenario", "missing.toml"], "cannot read missing.toml"),
    ],
)
def test_a_scenario_that_cannot_be_used_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        config_from(["cartpole", *options]).check()


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_continues_after_the_kills_of_a_scenario(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    options = ["--scenario", str(scenario), "--updates", "300", "--run-dir", str(directory)]
    assert run(["train", "cartpole", *options, "--trackers"]) == 0
    said = capsys.readouterr().out
    assert "the scenario kills worker-0 after 0.5 s" in said
    assert "the scenario kills shard-1 after 1 s" in said
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "updates"
    assert summary["contributions"]["used"] == 300 * 2 * 2
    assert run(["check-history", str(directory)]) == 0
