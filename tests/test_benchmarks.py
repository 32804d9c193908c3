"""Short versions of the cluster benchmarks run and show the expected effect."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import ran
from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
STATIC = ROOT / "zmqrl" / "page" / "static"
pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]


def results_of(name: str, output: Path, *options: str) -> dict[str, Any]:
    """Run a benchmark. Returns its results."""
    command = [sys.executable, str(BENCHMARKS / name), *options, "--output", str(output)]
    ran(command, within_s=500)
    results: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return results


def test_more_shards_make_more_updates_on_a_slow_network(need_a_lab: None, tmp_path: Path) -> None:
    options = ("--shards", "1", "2", "--workers", "2", "--rate", "100mbit", "--seconds", "20", "--updates", "9")
    one, two = results_of("central_graph.py", tmp_path, *options)["rows"]
    assert (one["shards"], two["shards"]) == (1, 2)
    assert two["updates_per_s"] > one["updates_per_s"]
    assert (tmp_path / "central-graph.png").stat().st_size > 1000


def test_the_page_of_a_few_runs_is_opened_and_measured(tmp_path: Path) -> None:
    options = ("--runs", "2", "--hours", "0.01", "--rounds", "1", "--beside", "6")
    results = results_of("page.py", tmp_path, *options)
    (measured,) = results["rows"]
    assert set(measured["took_s"]) == {"files", "table", "curves", "total"}
    assert all(seconds > 0 for seconds in measured["took_s"].values())
    assert all(seconds > 0 for seconds in results["shown_s"].values())
    assert set(results["beside"]) == {"no page", "list of runs", "timing"}
    assert all(run["updates_per_s"] > 0 for (run,) in results["beside"].values())
    assert set(measured["files"]) == {
        f"static/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.suffix in (".css", ".js", ".svg")
    }


def test_the_start_of_a_run_on_a_host_is_measured(need_a_lab: None, tmp_path: Path) -> None:
    (start,) = results_of("start_up.py", tmp_path, "--hosts", "1", "--rounds", "1")["rows"]
    assert start["processes"] == 4
    assert all(seconds > 0 for seconds in start["phases_s"].values())
    assert start["worker"]["games_s"] > 0
