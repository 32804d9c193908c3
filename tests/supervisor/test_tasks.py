"""cluster.json is written again when its contents change, and only then."""

import json
import time
from pathlib import Path

import pytest

from zmqrl.config import Config
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.process_id import shard_id
from zmqrl.ps.layout import Layout
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.tasks import FORK, RunTasks

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


def test_all_processes_but_shards_are_forked_unless_the_user_turns_this_off(
    tasks: RunTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORK, raising=False)
    assert tasks.worker_task(0, None).forked
    assert not tasks.shard_task(0, None).forked
    monkeypatch.setenv(FORK, "off")
    assert not tasks.worker_task(0, None).forked
