"""Traces of synthetic runs, read as Perfetto reads them."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support.recordings import asynchronous_run, synthetic_run

from zmqrl.profile.recording import Recording
from zmqrl.profile.trace import newest, write_trace

Event = dict[str, Any]


def trace(tmp_path: Path, recording: Recording, shown: range | None = None) -> list[Event]:
    path = tmp_path / "trace.json"
    write_trace(recording, path, newest(recording) if shown is None else shown)
    events: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    return events


def assert_valid(events: list[Event]) -> None:
    """Assert what Perfetto needs: times from 0, nested slices in a track, and arrows with both ends in slices."""
    slices: defaultdict[int, list[Event]] = defaultdict(list)
    arrows: defaultdict[str, dict[str, Event]] = defaultdict(dict)
    tracks = set()
    for event in events:
        assert set(event) >= {"ph", "pid", "tid", "name"}
        if event["ph"] == "M":
            tracks.add(event["pid"])
            continue
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
            slices[event["pid"]].append(event)
        else:
            assert event["ph"] not in arrows[event["id"]]
            arrows[event["id"]][event["ph"]] = event
    assert tracks == set(slices)
    for each in slices.values():
        ends: list[float] = []
        for event in sorted(each, key=lambda event: (event["ts"], -event["dur"])):
            while ends and ends[-1] <= event["ts"] + 1e-6:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 0.01
            ends.append(event["ts"] + event["dur"])
    for arrow in arrows.values():
        assert set(arrow) == {"s", "f"}
        assert arrow["s"]["ts"] <= arrow["f"]["ts"]
        for event in arrow.values():
            assert any(one["ts"] <= event["ts"] <= one["ts"] + one["dur"] for one in slices[event["pid"]])


def test_every_push_and_publication_is_an_arrow_between_two_tracks(tmp_path: Path) -> None:
    events = trace(tmp_path, Recording(tuple(synthetic_run(workers=3, shards=2, versions=10))))
    assert_valid(events)
    pushes = [event for event in events if event["ph"] == "s" and event["name"] == "push"]
    publications = [event for event in events if event["ph"] == "s" and event["name"] == "publish"]
    assert (len(pushes), len(publications)) == (10 * 3 * 2, 10 * 3)
    names = {event["args"]["name"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    assert names == {"shard 0 on h1", "shard 1 on h1", "worker 0 on w0", "worker 1 on w1", "worker 2 on w2"}


@pytest.mark.parametrize("shown", [range(3), range(4, 7), range(20)])
def test_only_the_requested_versions_are_shown(tmp_path: Path, shown: range) -> None:
    recording = Recording(tuple(synthetic_run(versions=10)))
    events = trace(tmp_path, recording, shown)
    assert_valid(events)
    found = {event["name"] for event in events if event["name"].startswith("contribution to")}
    assert found == {f"contribution to {version}" for version in shown if version < 10}
    assert newest(recording) == range(10)


def test_the_trace_of_an_asynchronous_run_has_no_arrows(tmp_path: Path) -> None:
    recording = Recording(tuple(asynchronous_run()))
    write_trace(recording, tmp_path / "trace.json", newest(recording), arrows=False)
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert_valid(events)


def test_an_empty_recording_is_an_empty_trace(tmp_path: Path) -> None:
    assert trace(tmp_path, Recording(())) == []
