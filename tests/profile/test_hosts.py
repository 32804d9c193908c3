"""Profiles of runs on several hosts of the network lab."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.lab import Lab
from support.paths import ROOT
from support.run_rig import RunFiles, launching

from zmqrl.commands.inspect.profile import read
from zmqrl.profile.report import Analysis

pytestmark = pytest.mark.processes

AHEAD_S = 864_000
UPDATES = 96


def profile(files: RunFiles) -> dict[str, Any]:
    return Analysis.of(read(files.path)).to_json()


def hosts_file(path: Path, pythons: dict[str, Path], hosts: tuple[str, ...]) -> Path:
    """Write a hosts file that sets the Python of some hosts."""
    lines = [
        f'[[host]]\nname = "{host}"\n' + (f'python = "{pythons[host]}"\n' if host in pythons else "") for host in hosts
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_host_booted_at_another_time_is_on_the_same_timeline(
    lab: Lab, tmp_path: Path, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    clock = ROOT / "tests" / "support" / "another_clock"
    if subprocess.run(["unshare", "--time", "--fork", "true"], check=False, timeout=30).returncode:
        skip_or_fail("this kernel has no time namespaces")
    hosts = hosts_file(tmp_path / "hosts.toml", {"h2": clock}, ("h1", "h2"))
    options = ("--workers", "2", "--shards", "2", "--updates", str(UPDATES), "--straggle", "0:0.05", "--profile", "20")
    with launching(lab, tmp_path / "run", *options, hosts=str(hosts)) as run:
        assert run.wait() == 0, run.said()
    found = profile(run.files)
    assert found["left_out"] == []
    assert found["clocks"]["h1"] == {"offset_ms": 0.0, "drift_ppm": 0.0, "error_ms": 0.0}
    away = found["clocks"]["h2"]
    assert abs(away["offset_ms"] + 1e3 * AHEAD_S) <= away["error_ms"], "both processes have the clock of one machine"
    assert 0 < away["error_ms"] < 100
    assert found["updates"] > UPDATES // 2
    assert 50 < found["update_ms"]["mean"] < 60_000
    assert found["blame"][0]["cause"] == "straggle"
    trace = json.loads((run.files.path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert max(event["ts"] for event in trace if "ts" in event) < 600e6
    tracks = {event["pid"]: event["args"]["name"] for event in trace if event["name"] == "process_name"}
    assert len(set(tracks.values())) == len(tracks) == 4
    assert {name.rpartition(" on ")[2] for name in tracks.values()} == {"h1", "h2"}


@pytest.mark.slow
def test_a_slow_link_is_blamed_first(lab: Lab, tmp_path: Path) -> None:
    lab.rate("h3", "4mbit")
    try:
        options = ("--workers", "3", "--shards", "2", "--updates", "48", "--network.hidden", "256")
        with launching(lab, tmp_path / "run", *options, hosts="h1,h2,h3") as run:
            assert run.wait() == 0, run.said()
    finally:
        lab.heal()
    rows = profile(run.files)["blame"]
    slow = [row for row in rows if row["cause"].endswith("_transfer") and row["host"] == "h3"]
    assert rows[0]["cause"] in ("gradient_transfer", "weights_transfer")
    assert (rows[0]["rank"], rows[0]["host"]) == (2, "h3")
    assert sum(row["seconds"] for row in slow) > sum(row["seconds"] for row in rows) / 2
