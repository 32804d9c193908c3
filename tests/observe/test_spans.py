import json
from pathlib import Path

import pytest

from zmqrl.observe import spans as spans_module
from zmqrl.observe.spans import SpanEvent, Spans, chrome_events, merge_traces, write_trace


class Clock:
    """A hand-wound ``time.monotonic_ns``."""

    def __init__(self) -> None:
        self.now_ns = 10_000

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spans_module, "time", clock)
    return clock


def spend(spans: Spans, clock: Clock, name: str, duration_ns: int) -> None:
    with spans(name):
        clock.now_ns += duration_ns


def test_totals_are_those_of_the_whole_process(clock: Clock) -> None:
    spans = Spans()
    spend(spans, clock, "act", 2_000_000_000)
    spend(spans, clock, "act", 500_000_000)
    spend(spans, clock, "wait", 250_000_000)
    assert spans.totals() == {"act": (2, 2.5), "wait": (1, 0.25)}
    spend(spans, clock, "act", 1_000_000_000)
    assert spans.totals() == {"act": (3, 3.5), "wait": (1, 0.25)}


def test_an_outer_span_contains_the_inner_one(clock: Clock) -> None:
    spans = Spans()
    with spans("env_step"):
        clock.now_ns += 100
        spend(spans, clock, "act", 50)
    assert spans.totals() == {"env_step": (1, 150e-9), "act": (1, 50e-9)}


def test_a_span_that_ends_in_an_error_counts_and_lets_the_error_pass(clock: Clock) -> None:
    spans = Spans()

    def fail() -> None:
        with spans("push"):
            clock.now_ns += 7
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert spans.totals() == {"push": (1, 7e-9)}


def test_a_span_makes_no_new_object() -> None:
    spans = Spans()
    assert spans("act") is spans("act")


def test_events_are_kept_only_while_recording(clock: Clock) -> None:
    spans = Spans()
    spend(spans, clock, "act", 5)
    spans.record(True)
    spans.version = 7
    spend(spans, clock, "gradient", 20)
    spans.record(False)
    spend(spans, clock, "act", 5)
    assert spans.events == [SpanEvent("gradient", 10_005, 20, 7)]
    spans.record(True)
    assert spans.events == []


def test_a_full_list_keeps_the_oldest_events_and_counts_the_rest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "MAX_EVENTS", 2)
    spans = Spans()
    spans.record(True)
    for duration_ns in range(5):
        spend(spans, clock, "act", duration_ns)
    assert [event.duration_ns for event in spans.events] == [0, 1]
    assert spans.dropped == 3


def test_chrome_events_are_in_microseconds_on_the_shared_clock() -> None:
    event = SpanEvent("commit", 5_000_000, 1_500, 42)
    named, span = chrome_events([event], 3, "shard 0", tid=1, offset_ns=-1_000_000)
    assert named == {"ph": "M", "name": "process_name", "pid": 3, "tid": 1, "args": {"name": "shard 0"}}
    assert span == {
        "ph": "X",
        "name": "commit",
        "cat": "span",
        "pid": 3,
        "tid": 1,
        "ts": 4000.0,
        "dur": 1.5,
        "args": {"version": 42},
    }


def test_merging_puts_all_processes_on_one_axis_that_begins_at_zero(tmp_path: Path) -> None:
    worker, shard, out = tmp_path / "worker.json", tmp_path / "shard.json", tmp_path / "trace.json"
    write_trace(worker, chrome_events([SpanEvent("act", 3_000_000, 1000, 1)], 1, "worker 0"))
    write_trace(shard, chrome_events([SpanEvent("receive", 2_000_000, 1000, 1)], 2, "shard 0"))
    assert merge_traces([worker, shard], out) == []
    events = json.loads(out.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"worker 0", "shard 0"}
    assert [(event["name"], event["ts"]) for event in events if event["ph"] == "X"] == [
        ("receive", 0.0),
        ("act", 1000.0),
    ]


def test_missing_and_torn_traces_are_left_out_and_named(tmp_path: Path) -> None:
    good, torn, missing, out = (tmp_path / name for name in ("good.json", "torn.json", "missing.json", "trace.json"))
    write_trace(good, chrome_events([SpanEvent("act", 0, 1, 0)], 1, "worker 0"))
    torn.write_text(good.read_text()[:-20])
    assert merge_traces([good, torn, missing], out) == [torn, missing]
    assert len(json.loads(out.read_text())["traceEvents"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "torn.json", "trace.json"]


def test_merging_nothing_still_makes_a_trace(tmp_path: Path) -> None:
    assert merge_traces([], tmp_path / "trace.json") == []
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
