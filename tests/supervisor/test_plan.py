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
from zmqrl.supervisor.plan import FORK, Plan

PIDS = {shard_id(0): 7}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    directory, config = RunDirectory(tmp_path), Config(shards=1)
    return Plan(config, directory, Layout.of([("w", (100,))], 1), on_this_machine(config, directory))


def unreachable(plan: Plan) -> dict[str, float]:
    since: dict[str, float] = json.loads(plan.directory.cluster.read_text())["unreachable_since"]
    return since


def test_a_host_that_is_lost_or_back_while_no_process_changes_is_written(plan: Plan) -> None:
    plan.write_cluster({}, PIDS)
    assert unreachable(plan) == {}
    lost_at = {"h2": time.monotonic() - 22.0}
    plan.write_cluster({}, PIDS, lost_at)
    assert unreachable(plan) == {"h2": pytest.approx(time.time() - 22.0, abs=5.0)}
    plan.write_cluster({}, PIDS, lost_at | {"h1": time.monotonic()})
    assert unreachable(plan).keys() == {"h1", "h2"}
    plan.write_cluster({}, PIDS)
    assert unreachable(plan) == {}


def test_nothing_is_written_while_nothing_changes(plan: Plan) -> None:
    lost_at = {"h2": 5.0}
    plan.write_cluster({}, PIDS, lost_at)
    plan.directory.cluster.unlink()
    plan.write_cluster({}, dict(PIDS), dict(lost_at))
    assert not plan.directory.cluster.exists()
    plan.write_cluster({}, PIDS | {shard_id(0): 8}, lost_at)
    assert json.loads(plan.directory.cluster.read_text())["shards"] == []


def test_all_processes_but_shards_are_forked_unless_the_user_turns_this_off(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORK, raising=False)
    assert plan.worker_task(0, None).forked
    assert not plan.shard_task(0, None).forked
    monkeypatch.setenv(FORK, "off")
    assert not plan.worker_task(0, None).forked
