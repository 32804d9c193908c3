"""``zmqrl plan``: the table and the recommendation."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from zmqrl.cli import run
from zmqrl.errors import UsageError

pytestmark = pytest.mark.processes

QUICK = ["--updates", "30", "--parameters", "65536"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["plan", *QUICK, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_shard_and_no_backup_are_enough_if_nothing_is_slow(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--workers-up-to", "8", "--compute", "constant:0.1")
    assert found["recommended"] == {"workers": 8, "backups": 0, "quorum": 8, "shards": 1}
    assert found["reasons"][0].startswith(
        "use 8 workers, 0 backups, 1 shard (quorum 8): this run learns from 2400 agent steps/s"
    )
    assert "with fewer workers: 1200 at best (-50%)" in found["reasons"]


def test_the_plan_recommends_more_shards_for_a_slow_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--workers-up-to", "4", "--compute", "constant:0.1", "--bandwidth", "1e7")
    assert found["recommended"]["shards"] >= 4


def test_the_plan_compares_numbers_of_shards_without_backups(capsys: pytest.CaptureFixture[str]) -> None:
    law = "constant:0.1+0.05*constant:0.5"
    found = planned(capsys, "--workers-up-to", "8", "--compute", law, "--abandon", "immediately", "--bandwidth", "1e8")
    best = found["recommended"]
    assert best["backups"] > 0
    rates = {
        each["shards"]: each["learned_steps_per_s"]
        for each in found["tried"]
        if (each["workers"], each["backups"]) == (8, 0)
    }
    fewer, same = max(rate for shards, rate in rates.items() if shards < best["shards"]), rates[best["shards"]]
    (reason,) = (each for each in found["reasons"] if each.startswith("with fewer shards"))
    assert reason == f"with fewer shards: {fewer:.0f} at best ({fewer / same - 1:+.0%}, both without backups)"


@pytest.mark.slow
def test_the_plan_recommends_backups_for_heavy_stragglers(capsys: pytest.CaptureFixture[str]) -> None:
    law = "constant:0.1+0.05*constant:2"
    found = planned(capsys, "--workers-up-to", "16", "--compute", law, "--abandon", "immediately")
    assert 1 <= found["recommended"]["backups"] <= 6


def test_a_plan_with_many_backups_for_few_workers_keeps_a_worker_in_each_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = planned(capsys, "--workers-up-to", "3", "--compute", "constant:0.01+0.2*constant:5")
    assert found["recommended"]["backups"] == 2
    assert {(each["workers"], each["backups"]) for each in found["tried"]} >= {(1, 2), (1, 0)}


def test_without_json_the_plan_is_a_table_with_a_marked_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "plan",
                "--from",
                str(ROOT / "tests" / "old_run"),
                "--workers-up-to",
                "2",
                "--cores",
                "4",
                "--hosts",
                "None",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "assumed: a host for each process, 4 cores per host, unlimited bandwidth" in lines
    assert lines[0].split()[:4] == ["workers", "backups", "shards", "updates/s"]
    assert [line.split()[:3] for line in lines if line.endswith("<-")] == [["2", "0", "1"]]


def test_a_plan_needs_something_that_takes_time() -> None:
    with pytest.raises(UsageError, match="nothing in this scenario takes time, so there is nothing to plan"):
        run(["plan", *QUICK, "--workers-up-to", "4", "--compute", "constant:0"])


def test_a_plan_requires_a_maximum_number_of_workers() -> None:
    with pytest.raises(UsageError, match="workers-up-to"):
        run(["plan"])
    with pytest.raises(UsageError, match="--workers-up-to 0: must be from 1 to 1024"):
        run(["plan", "--workers-up-to", "0"])


def test_a_plan_refuses_settings_that_no_run_can_have() -> None:
    with pytest.raises(UsageError, match=r"^--parameters 1: must be from 16 to \d+ for 1 shard\.$"):
        run(["plan", "--workers-up-to", "2", "--parameters", "1"])


@pytest.mark.parametrize("option", ["--workers", "--backups", "--shards", "--quorum"])
def test_a_plan_refuses_the_settings_that_it_chooses_itself(option: str) -> None:
    with pytest.raises(UsageError, match=rf"{option} 3: zmqrl plan chooses this number itself\. Remove {option}"):
        run(["plan", "--workers-up-to", "2", option, "3"])


def test_a_plan_names_the_scenario_settings_that_it_ignores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        "workers = 1\nshards = 1\nshard_hosts = [1]\nloss = 0.01\n[[failures]]\nprocess = 'worker-0'\nat = 1.0",
        encoding="utf-8",
    )
    assert run(["plan", str(path), *QUICK, "--workers-up-to", "1"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "--loss without --latency only adds timeouts: set --latency to also limit transfer rates.",
        "a plan does not use these settings of the scenario: failures, shard_hosts.",
    ]
    assert run(["plan", *QUICK, "--workers-up-to", "1", "--loss", "0.01", "--latency", "1e-4"]) == 0
    assert capsys.readouterr().err == ""
