"""cluster.json is written again when its contents change, and only then."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zmqrl.config import Config
from zmqrl.hostd.inspection import state_of
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.layout import Layout
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.tasks import BIND, FORK, RunTasks

PIDS = {shard_id(0): 7}


@pytest.fixture
def tasks(tmp_path: Path) -> RunTasks:
    directory, config = RunDirectory(tmp_path), Config(shards=1)
    return RunTasks(config, directory, Layout.of([("w", (100,))], 1), on_this_machine(config, directory))


def unreachable(tasks: RunTasks) -> dict[str, float]:
    since: dict[str, float] = json.loads(tasks.directory.cluster.read_text())["unreachable_since"]
    return since


def test_a_host_that_is_lost_or_back_while_no_process_changes_is_written(tasks: RunTasks) -> None:
    tasks.write_cluster({}, PIDS)
    assert unreachable(tasks) == {}
    lost_at = {"h2": time.monotonic() - 22.0}
    tasks.write_cluster({}, PIDS, lost_at)
    assert unreachable(tasks) == {"h2": pytest.approx(time.time() - 22.0, abs=5.0)}
    tasks.write_cluster({}, PIDS, lost_at | {"h1": time.monotonic()})
    assert unreachable(tasks).keys() == {"h1", "h2"}
    tasks.write_cluster({}, PIDS)
    assert unreachable(tasks) == {}


def test_nothing_is_written_while_nothing_changes(tasks: RunTasks) -> None:
    lost_at = {"h2": 5.0}
    tasks.write_cluster({}, PIDS, lost_at)
    tasks.directory.cluster.unlink()
    tasks.write_cluster({}, dict(PIDS), dict(lost_at))
    assert not tasks.directory.cluster.exists()
    tasks.write_cluster({}, PIDS | {shard_id(0): 8}, lost_at)
    assert json.loads(tasks.directory.cluster.read_text())["shards"] == []


def test_cluster_json_tells_where_the_process_id_of_the_supervisor_is_valid(tasks: RunTasks) -> None:
    supervisor = tasks.cluster({}, PIDS)["supervisor"]
    assert state_of(supervisor["host"], supervisor["pid"], supervisor["pid_space"]) == "running"


def test_a_worker_that_restarts_before_the_next_version_gets_another_seed(tasks: RunTasks) -> None:
    starts = [(0, 7), (0, 7), (1, 7), (0, 7), (0, 30)]  # rank, version of the run
    assert [tasks.worker_job(rank, version, {}).version for rank, version in starts] == [7, 8, 7, 9, 30]


def test_the_workers_of_a_resumed_session_get_other_seeds(tasks: RunTasks) -> None:
    assert tasks.worker_job(0, 7, {}).generation == 0
    tasks.generation = 3
    assert tasks.worker_job(0, 7, {}).generation == 3


def test_all_processes_but_shards_are_forked_unless_the_user_turns_this_off(
    tasks: RunTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORK, raising=False)
    assert tasks.worker_task(0, None).forked
    assert not tasks.shard_task(0, None).forked
    monkeypatch.setenv(FORK, "off")
    assert not tasks.worker_task(0, None).forked


def cores_of_workers(path: Path, hosts: dict[str, list[ProcessId]], config: Config) -> list[tuple[int, int] | None]:
    """The cores in the jobs of all workers, if ``hosts`` run these processes."""
    directory = RunDirectory(path)
    here = on_this_machine(config, directory)
    sites = {each: replace(here.sites[shard_id(0)], host=host) for host, found in hosts.items() for each in found}
    deployment = replace(here, sites=sites, threads=dict.fromkeys(sites, 1))
    tasks = RunTasks(config, directory, Layout.of([("w", (100,))], 1), deployment)
    return [tasks.worker_job(rank, 0, {}).core for rank in tasks.local_ranks]


FIVE = [worker_id(rank) for rank in range(5)]


def test_each_worker_of_a_host_gets_another_core(tmp_path: Path) -> None:
    hosts = {"h1": [shard_id(0), *FIVE[:3]], "h2": FIVE[3:]}
    config = Config(workers=5, shards=1)
    assert cores_of_workers(tmp_path, hosts, config) == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]


def test_no_worker_gets_its_own_core_beside_other_processes_that_compute(tmp_path: Path) -> None:
    hosts = {"h1": [shard_id(0), *FIVE[:3]], "h2": [*FIVE[3:], ProcessId("evaluator", 0)]}
    assert cores_of_workers(tmp_path, hosts, Config(workers=5, shards=1))[2:] == [(2, 3), None, None]
    one_more = Config(workers=6, shards=1, external_workers=1)
    assert cores_of_workers(tmp_path, {"h1": [shard_id(0), *FIVE]}, one_more) == [None] * 5


def test_the_user_can_leave_the_cores_of_workers_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BIND, "off")
    assert cores_of_workers(tmp_path, {"h1": [shard_id(0), *FIVE]}, Config(workers=5, shards=1)) == [None] * 5
