"""The heat map, the blame table and the hosts of the page."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.page_rig import write_profile
from support.profiles import TRANSFER_S, USUAL_S, asynchronous_run, resumed, synthetic_run

from zmqrl.page import timing
from zmqrl.page.timing import read_timing
from zmqrl.process_id import shard_id
from zmqrl.profile.run_tables import ProcessTables
from zmqrl.profile.tables import COLUMNS


def test_a_slow_rank_stands_out_in_the_heat_map_and_the_blame_table(tmp_path: Path) -> None:
    processes = synthetic_run(workers=3, shards=2, versions=100, worker_extra_s={("gradient", 1): 0.05})
    found = read_timing(write_profile(tmp_path / "profile", processes), asynchronous=False)
    assert found["spans"]["1"]["gradient"] == pytest.approx(USUAL_S["gradient"] + 0.05, rel=0.01)
    assert found["spans"]["0"]["gradient"] == pytest.approx(USUAL_S["gradient"], rel=0.01)
    assert {version["kth"] for version in found["versions"]} == {1}
    assert [version["version"] for version in found["versions"]] == list(range(41, 101))
    assert all(len(of_rank) == 60 for of_rank in found["work"].values())
    assert found["kth"]["1"] == 1.0
    worst = found["blame"][0]
    assert (worst["cause"], worst["rank"]) == ("gradient", 1)
    assert worst["share"] == pytest.approx(0.05 / found["update_ms"]["mean"] * 1e3, rel=0.05)
    assert TRANSFER_S < found["update_ms"]["p50"] / 1e3 < 1.0


def test_only_the_newest_versions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCKS", 2)
    profile = write_profile(tmp_path / "profile", synthetic_run(versions=300))
    found = read_timing(profile, asynchronous=False)
    assert found["versions"][-1]["version"] == 300
    assert 50 < found["versions_covered"] < 65  # two of ten blocks
    monkeypatch.setattr(timing, "VERSIONS", 30)
    assert read_timing(profile, asynchronous=False)["versions_covered"] <= 30


@pytest.mark.parametrize("clock", [None, "booted again"])
def test_versions_that_a_resumed_run_has_undone_are_left_out(tmp_path: Path, clock: str | None) -> None:
    planted = {("gradient", 1): 0.05}
    write_profile(tmp_path / "profile", synthetic_run(workers=4, versions=300, worker_extra_s=planted))
    later = resumed(synthetic_run(versions=100), clock=clock)
    found = read_timing(write_profile(tmp_path / "profile", later), asynchronous=False)
    assert found["versions_covered"] == 100
    assert [version["version"] for version in found["versions"]] == list(range(41, 101))
    assert found["spans"]["1"]["gradient"] == pytest.approx(USUAL_S["gradient"], rel=0.01)
    assert set(found["hosts"]) == {"h1", "w0", "w1", "w2"}, "worker 3 belongs to the earlier session"


def test_only_the_newest_versions_of_a_restarted_shard_are_shown(tmp_path: Path) -> None:
    processes = synthetic_run(workers=2, shards=1, versions=400)
    (shard,) = (each for each in processes if each.process.role == "shard")

    def part(incarnation: int, versions: range) -> ProcessTables:
        tables = {
            name: [rows[np.isin(rows[:, COLUMNS[name].index("version")], versions)]]
            for name, (rows,) in shard.tables.items()
        }
        return replace(shard, incarnation=incarnation, tables=tables)

    parts = [part(1, range(50)), part(2, range(50, 401))]
    workers = [each for each in processes if each is not shard]
    found = read_timing(write_profile(tmp_path / "profile", [*workers, *parts]), asynchronous=False)
    assert found["versions"][-1]["version"] == 400
    assert 200 < found["versions_covered"] <= timing.VERSIONS


def test_hosts_have_their_processes_with_cores_and_memory(tmp_path: Path) -> None:
    processes = synthetic_run(workers=2, shards=1, versions=60, hosts={"worker-0": "h1", "worker-1": "h2"})
    hosts = read_timing(write_profile(tmp_path / "profile", processes), asynchronous=False)["hosts"]
    assert {host: list(each["processes"]) for host, each in hosts.items()} == {
        "h1": ["shard-0", "worker-0"],
        "h2": ["worker-1"],
    }
    assert (hosts["h2"]["cores"], hosts["h2"]["memory_kb"]) == (4, 8_000_000)
    assert hosts["h2"]["processes"]["worker-1"] == {"cores": pytest.approx(0.5), "memory_kb": 100_000}


def test_a_run_without_a_profile_has_nothing_to_show(tmp_path: Path) -> None:
    found = read_timing(tmp_path / "profile", asynchronous=False)
    assert (found["spans"], found["versions"], found["blame"], found["hosts"]) == ({}, [], [], {})


@pytest.mark.parametrize("missing", [0, 1])
def test_a_shard_without_a_profile_is_named(tmp_path: Path, missing: int) -> None:
    planted = synthetic_run(workers=2, versions=60, shard_extra_s={("optimize", 1): 0.2})
    profile = write_profile(tmp_path / "profile", [each for each in planted if each.process != shard_id(missing)])
    found = read_timing(profile, shards=2, asynchronous=False)
    assert (found["versions"], found["blame"], set(found["spans"])) == ([], [], {"0", "1"})
    assert found["warnings"][0].startswith(f"shard {missing} recorded nothing")


def test_symbolic_links_are_left_out(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "profile", synthetic_run(workers=2, shards=1, versions=60))
    assert read_timing(profile, asynchronous=False)["spans"]
    (tmp_path / "link").symlink_to(profile)
    (tmp_path / "links").mkdir()
    for path in profile.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    for name in ("link", "links"):
        assert read_timing(tmp_path / name, asynchronous=False)["spans"] == {}


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
def test_pipes_are_left_out(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "profile", synthetic_run(workers=2, shards=1, versions=60))
    before = read_timing(profile, asynchronous=False)
    for name in ("worker-0.1.1.blocks", "worker-7.1.0.blocks"):
        os.mkfifo(profile / name)
    assert read_timing(profile, asynchronous=False) == before
    assert before["spans"]


def test_an_asynchronous_run_has_spans_but_no_kth_worker(tmp_path: Path) -> None:
    found = read_timing(write_profile(tmp_path / "profile", asynchronous_run()), asynchronous=True)
    assert (found["versions"], found["blame"]) == ([], [])
    assert set(found["spans"]) == {"0", "1"}
