"""Where a process spends its time: named spans that are always on, and a trace while profiling."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

WORKER_SPANS = ("env_step", "act", "gradient", "encode", "push", "wait", "assemble")

# About 40 MB of tuples: a profile that never stops must not fill the memory of the host.
MAX_EVENTS = 200_000


class SpanEvent(NamedTuple):
    """One span of time. ``start_ns`` is ``time.monotonic_ns`` of the host, ``version`` the current version."""

    name: str
    start_ns: int
    duration_ns: int
    version: int


class Span:
    """The running total of one name, and the context that adds to it."""

    __slots__ = ("_spans", "_started_ns", "count", "name", "total_ns")

    def __init__(self, spans: "Spans", name: str) -> None:
        self._spans = spans
        self._started_ns = 0
        self.name = name
        self.count = 0
        self.total_ns = 0

    def __enter__(self) -> None:
        self._started_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        duration_ns = time.monotonic_ns() - self._started_ns
        self.count += 1
        self.total_ns += duration_ns
        if self._spans.recording:
            self._spans.keep(SpanEvent(self.name, self._started_ns, duration_ns, self._spans.version))


class Spans:
    """The spans of one thread: ``with spans("gradient"): ...``.

    Names are the same in every process, report, row and trace: ``env_step, act, gradient, encode, push, wait,
    assemble`` in a worker, ``receive, accumulate, optimize, commit, publish`` in a shard.

    Different names can nest. The outer one then contains the inner one. A name must not nest in itself, because each
    name has one context object, which keeps the cost of a span well under a microsecond.

    The clock is ``time.monotonic_ns``: on Linux the same clock as ``perf_counter_ns``, and the one that PING and PONG
    compare between hosts.
    """

    def __init__(self) -> None:
        self.version = 0
        """The current version, written into the events. The owner of the thread sets it."""
        self.recording = False
        self.events: list[SpanEvent] = []
        self.dropped = 0
        """Number of events since recording began that found the list full."""
        self._spans: dict[str, Span] = {}

    def __call__(self, name: str) -> Span:
        try:
            return self._spans[name]
        except KeyError:
            return self._spans.setdefault(name, Span(self, name))

    def totals(self) -> dict[str, tuple[int, float]]:
        """``(count, seconds)`` by name since the process began."""
        return {span.name: (span.count, span.total_ns / 1e9) for span in self._spans.values()}

    def record(self, on: bool) -> None:
        """Start to keep events in an empty list, at most ``MAX_EVENTS``. Or stop, and leave them in ``events``."""
        if on:
            self.events, self.dropped = [], 0
        self.recording = on

    def keep(self, event: SpanEvent) -> None:
        """Append ``event`` while there is room. The oldest stay, so that a trace has no gaps."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1


def chrome_events(
    events: Iterable[SpanEvent], pid: int, process_name: str, *, tid: int = 0, offset_ns: int = 0
) -> list[dict[str, Any]]:
    """The events of one thread in the Trace Event Format that Perfetto and chrome://tracing read.

    ``pid`` must differ for each process of the trace, also on different hosts. ``offset_ns`` is added to every start:
    the clock all hosts share, minus this host's. Times come out in microseconds.
    """
    named = {"ph": "M", "name": "process_name", "pid": pid, "tid": tid, "args": {"name": process_name}}
    return [
        named,
        *(
            {
                "ph": "X",
                "name": event.name,
                "cat": "span",
                "pid": pid,
                "tid": tid,
                "ts": (event.start_ns + offset_ns) / 1000,
                "dur": event.duration_ns / 1000,
                "args": {"version": event.version},
            }
            for event in events
        ),
    ]


def write_trace(path: Path, events: Sequence[dict[str, Any]]) -> None:
    """Write Chrome events as a trace file. It appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def merge_traces(paths: Iterable[Path], out: Path) -> list[Path]:
    """Merge the trace files of the processes into ``out``. Its time starts at the earliest event.

    Returns the files that are missing or damaged: a killed process writes no trace.
    """
    merged: list[dict[str, Any]] = []
    left_out = []
    for path in paths:
        try:
            merged += json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        except (OSError, ValueError, KeyError, TypeError):
            left_out.append(path)
    timed = [event for event in merged if "ts" in event]
    begin_us = min((event["ts"] for event in timed), default=0)
    for event in timed:
        event["ts"] -= begin_us
    write_trace(out, sorted(merged, key=lambda event: event.get("ts", -1.0)))
    return left_out
