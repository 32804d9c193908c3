"""Profiles as traces for https://ui.perfetto.dev: all hosts on one clock, one track per process."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zmqrl.json_lines import replacing
from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.profile.clocks import Clocks
from zmqrl.profile.profiler import TRACE_SPANS
from zmqrl.profile.run_tables import Columns, ProcessTables, RunTables, named
from zmqrl.words import counted

VERSIONS_SHOWN = 2000
TraceEvent: TypeAlias = dict[str, Any]
"""One event of the Trace Event Format (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU)."""
Starts: TypeAlias = dict[tuple[int, int, int], tuple[int, float, float]]
"""Track, begin and end of the trace slice from which an arrow starts, by message."""


def write_trace(tables: RunTables, path: Path, shown: range, *, arrows: bool) -> list[str]:
    """Write the profile of the versions ``shown``, with its single spans, to ``path``: completely or not at all.

    ``tables`` are those of one session, because all processes are shown on one clock.
    Do not draw ``arrows`` for an asynchronous run, whose versions do not show which messages belong together. Returns a
    sentence for each role with missing processes or spans.
    """
    clocks = Clocks.of(tables)
    events = list(_events(tables, clocks, shown))
    if not arrows:
        events = [event for event in events if event["ph"] not in "sf"]
    begin_us = min((event["ts"] for event in events if "ts" in event), default=0.0)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - begin_us, 3)
    events.sort(key=lambda event: event.get("ts", -1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
    return [*left_out(tables, clocks), *cut_short(tables)]


def cut_short(tables: RunTables) -> list[str]:
    """A sentence for each role with processes that had more spans than a trace can hold."""
    return [
        f"the trace holds the first {counted(TRACE_SPANS, 'span')} of each process: "
        f"it lacks {counted(sum(each.untraced for each in cut), 'span')} of {_names(cut)}"
        for cut in _by_role(each for each in tables.processes if each.untraced)
    ]


def left_out(tables: RunTables, clocks: Clocks) -> list[str]:
    """A sentence for each role with processes whose clocks cannot be compared with the others."""
    return [
        f"the timeline leaves out {_names(unknown)}: the profile has no PING to compare clocks"
        for unknown in _by_role(each for each in tables.processes if not clocks.knows(each))
    ]


def _by_role(processes: Iterable[ProcessTables]) -> Iterator[list[ProcessTables]]:
    return (list(group) for _, group in groupby(processes, lambda each: each.process.role))


def _names(processes: Iterable[ProcessTables]) -> str:
    return named({each.process: each.host for each in processes})


def newest(tables: RunTables) -> range:
    """The newest versions to which workers contributed in the newest generation, at most ``VERSIONS_SHOWN``."""
    generation = max(tables.generations(), default=-1)
    contributed = [each.table("cycles", generation)["version"] for each in tables.of_role("worker")]
    last = max((int(each.max()) for each in contributed if len(each)), default=-1)
    return range(max(0, last + 1 - VERSIONS_SHOWN), last + 1)


def _events(tables: RunTables, clocks: Clocks, shown: range) -> Iterator[TraceEvent]:
    pushed: Starts = {}  # slices by generation, version, rank
    published: Starts = {}  # slices by generation, version, shard
    known = [(track, each) for track, each in enumerate(tables.processes, 1) if clocks.knows(each)]
    for track, each in known:
        name = f"{each.process.role} {each.process.number} on {each.host}"
        yield {"ph": "M", "name": "process_name", "pid": track, "tid": 0, "args": {"name": name}}
        order = {"ph": "M", "name": "process_sort_index", "pid": track, "tid": 0}
        yield order | {"args": {"sort_index": track}}
        yield from _spans(each, clocks, track, shown)
        yield from _cycles(each, clocks, track, shown, pushed)
        yield from _versions(each, clocks, track, shown, published)
    for track, each in known:
        yield from _pushes(each, clocks, track, shown, pushed)
        yield from _publications(each, clocks, track, shown, published)


def _shown(table: Columns, shown: range) -> NDArray[np.intp]:
    """The rows of the versions ``shown``. Its cost does not depend on their number."""
    versions = table["version"]
    rows: NDArray[np.intp] = np.flatnonzero((versions >= shown.start) & (versions < shown.stop))
    return rows


def _slice(name: str, track: int, start_us: float, end_us: float, **args: Any) -> TraceEvent:
    duration = round(max(end_us - start_us, 0.001), 3)
    return {"ph": "X", "name": name, "cat": "span", "pid": track, "tid": 0, "ts": start_us, "dur": duration} | (
        {"args": args} if args else {}
    )


def _arrow(name: str, key: str, start: tuple[int, float, float], end: tuple[int, float]) -> Iterator[TraceEvent]:
    """An arrow from the end of the trace slice ``start`` to the track and time ``end``.

    A message can arrive before the sender has recorded the end of sending. The arrow then starts earlier in the slice.
    There is no arrow if a clock error lets the message arrive before the slice begins.
    """
    track, begin_us, end_us = start
    start_us = max(begin_us, min(end_us - 0.001, end[1]))
    if start_us <= end[1]:
        about = {"name": name, "cat": "message", "id": key, "tid": 0}
        yield about | {"ph": "s", "pid": track, "ts": start_us}
        yield about | {"ph": "f", "bp": "e", "pid": end[0], "ts": end[1]}


def _spans(each: ProcessTables, clocks: Clocks, track: int, shown: range) -> Iterator[TraceEvent]:
    table = each.table("spans")
    starts_us = clocks.times_us(each, table["start_ns"] // 1000) + table["start_ns"] % 1000 / 1000
    for i in _shown(table, shown):
        start_us, name = float(starts_us[i]), each.span_names[table["name"][i]]
        end_us = start_us + float(table["duration_ns"][i]) / 1000
        yield _slice(name, track, start_us, end_us, version=int(table["version"][i]))


def _cycles(each: ProcessTables, clocks: Clocks, track: int, shown: range, pushed: Starts) -> Iterator[TraceEvent]:
    table = each.table("cycles")
    began, ended = (clocks.times_us(each, table[name]) for name in ("began_at_us", "pushed_at_us"))
    for i in _shown(table, shown):
        version = int(table["version"][i])
        spans = {name: int(table[name][i]) for name in ("env_step", "act", "gradient", "wait", "cpu_us")}
        yield _slice(f"contribution to {version}", track, float(began[i]), float(ended[i]), **spans)
        key = int(table["generation"][i]), version, each.process.number
        pushed.setdefault(key, (track, float(began[i]), float(ended[i])))


def _versions(each: ProcessTables, clocks: Clocks, track: int, shown: range, published: Starts) -> Iterator[TraceEvent]:
    table = each.table("versions")
    closed, out = (clocks.times_us(each, table[name]) for name in ("closed_at_us", "published_at_us"))
    for i in _shown(table, shown):
        version = int(table["version"][i])
        kth = int(table["closing_rank"][i])
        args = {"kth": kth} if kth >= 0 else {}
        yield _slice(f"version {version}", track, float(closed[i]), float(out[i]), **args)
        key = int(table["generation"][i]), version, each.process.number
        published.setdefault(key, (track, float(closed[i]), float(out[i])))


def _pushes(each: ProcessTables, clocks: Clocks, track: int, shown: range, pushed: Starts) -> Iterator[TraceEvent]:
    table = each.table("arrivals")
    arrived = clocks.times_us(each, table["arrived_at_us"])
    come: set[tuple[int, int, int]] = set()  # a gradient slice that is sent again has no second arrow
    for i in _shown(table, shown):
        generation, version, rank = (int(table[name][i]) for name in ("generation", "version", "rank"))
        at_us = float(arrived[i])
        yield _slice(f"rank {rank}: {SHARD_OUTCOMES[table['outcome'][i]]}", track, at_us, at_us + 0.1, version=version)
        key = generation, version, rank
        start = pushed.get(key)
        if start is not None and key not in come:
            come.add(key)
            yield from _arrow("push", f"p{track}.{generation}.{version}.{rank}", start, (track, at_us))


def _publications(
    each: ProcessTables, clocks: Clocks, track: int, shown: range, published: Starts
) -> Iterator[TraceEvent]:
    table = each.table("cycles")
    began, pulled = (clocks.times_us(each, table[name]) for name in ("began_at_us", "pulled_at_us"))
    for i in _shown(table, shown):
        generation, version = int(table["generation"][i]), int(table["version"][i])
        start = published.get((generation, version, int(table["last_shard"][i])))
        if start is not None:
            end = track, float(max(began[i], pulled[i]))
            yield from _arrow("publish", f"w{track}.{generation}.{version}", start, end)
