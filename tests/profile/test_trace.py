"""Traces of synthetic runs, read as Perfetto reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.profiles import asynchronous_run, resumed, rolled_back, synthetic_run
from support.traces import Event, assert_valid

from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.profile.run_tables import RunTables
from zmqrl.profile.tables import COLUMNS
from zmqrl.profile.trace import newest, write_trace


def trace(tmp_path: Path, tables: RunTables, shown: range | None = None) -> list[Event]:
    path = tmp_path / "trace.json"
    write_trace(tables, path, newest(tables) if shown is None else shown, arrows=True)
    events: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    return events


def test_every_push_and_publication_is_an_arrow_between_two_tracks(tmp_path: Path) -> None:
    events = trace(tmp_path, RunTables(tuple(synthetic_run(workers=3, shards=2, versions=10))))
    assert_valid(events)
    pushes = [event for event in events if event["ph"] == "s" and event["name"] == "push"]
    publications = [event for event in events if event["ph"] == "s" and event["name"] == "publish"]
    assert (len(pushes), len(publications)) == (10 * 3 * 2, 10 * 3)
    names = {event["args"]["name"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    assert names == {"shard 0 on h1", "shard 1 on h1", "worker 0 on w0", "worker 1 on w1", "worker 2 on w2"}


def test_a_slice_that_is_sent_again_has_one_arrow_to_its_first_arrival(tmp_path: Path) -> None:
    processes = synthetic_run(workers=2, shards=2, versions=10)
    for each in processes[:2]:
        (rows,) = each.tables["arrivals"]
        again = rows.copy()
        again[:, COLUMNS["arrivals"].index("outcome")] = SHARD_OUTCOMES.index("duplicate")
        again[:, -2:] += 40_000
        each.tables["arrivals"].append(again)
    events = trace(tmp_path, RunTables(tuple(processes)))
    assert_valid(events)
    assert len([event for event in events if event["ph"] == "s" and event["name"] == "push"]) == 10 * 2 * 2
    assert len([event for event in events if event["name"].endswith(": duplicate")]) == 10 * 2 * 2


def test_an_arrow_points_forward_even_if_the_arrival_has_the_earlier_time(tmp_path: Path) -> None:
    processes = synthetic_run(workers=2, shards=2, versions=10)
    for each in processes:
        if each.process.role == "worker":
            each.tables["cycles"][0][:, COLUMNS["cycles"].index("pushed_at_us")] += 2_500
            each.tables["cycles"][0][:, COLUMNS["cycles"].index("began_at_us")] += 2_500
        else:
            each.tables["arrivals"][0][:, -2:] -= 1_000
    events = trace(tmp_path, RunTables(tuple(processes)))
    assert_valid(events)
    assert len([event for event in events if event["ph"] == "s" and event["name"] == "push"]) == 10 * 2 * 2


def test_an_arrow_never_leads_back_in_time(tmp_path: Path) -> None:
    processes = synthetic_run(workers=2, shards=2, versions=10)
    for each in processes[:2]:
        each.tables["arrivals"][0][:, -2:] -= 10_000_000
    events = trace(tmp_path, RunTables(tuple(processes)))
    assert_valid(events)
    assert [event for event in events if event["ph"] == "s" and event["name"] == "push"] == []


def test_a_trace_can_cover_more_versions_than_memory_can_hold(tmp_path: Path) -> None:
    tables = RunTables(tuple(synthetic_run(workers=2, shards=2, versions=10)))
    worker = tables.processes[-1]
    worker.span_names = ["act"]
    worker.tables["spans"] = [np.array([[0, 10**9 + i, 500, i] for i in range(11)])]
    everything = trace(tmp_path, tables, range(11))
    assert trace(tmp_path, tables, range(2**60)) == everything
    assert len([event for event in everything if event["name"] == "act"]) == 11
    assert [
        event["args"]["version"] for event in trace(tmp_path, tables, range(4, 2**60)) if event["name"] == "act"
    ] == [*range(4, 11)]


@pytest.mark.parametrize("shown", [range(3), range(4, 7), range(20)])
def test_only_the_requested_versions_are_shown(tmp_path: Path, shown: range) -> None:
    tables = RunTables(tuple(synthetic_run(versions=10)))
    events = trace(tmp_path, tables, shown)
    assert_valid(events)
    found = {event["name"] for event in events if event["name"].startswith("contribution to")}
    assert found == {f"contribution to {version}" for version in shown if version < 10}
    assert newest(tables) == range(10)


def test_the_trace_of_an_asynchronous_run_has_no_arrows(tmp_path: Path) -> None:
    tables = RunTables(tuple(asynchronous_run()))
    write_trace(tables, tmp_path / "trace.json", newest(tables), arrows=False)
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert_valid(events)


def test_an_empty_profile_is_an_empty_trace(tmp_path: Path) -> None:
    assert trace(tmp_path, RunTables(())) == []


def test_the_newest_versions_are_those_of_the_newest_generation() -> None:
    before, after = synthetic_run(versions=40), resumed(synthetic_run(versions=20), at=10, run="r", later_s=60)
    assert newest(RunTables(tuple(rolled_back(before, after)))) == range(30)
