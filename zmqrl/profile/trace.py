"""The recording of a run as a trace for https://ui.perfetto.dev: all hosts on one clock, one track per process."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.profile.clocks import Clocks
from zmqrl.profile.recording import ProcessRecording, Recording

VERSIONS_SHOWN = 2000
Event: TypeAlias = dict[str, Any]
"""One event of the Trace Event Format (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU)."""


def write_trace(recording: Recording, path: Path, shown: range) -> list[str]:
    """Write the recording of the versions ``shown`` to ``path``. It includes single spans if they were recorded.

    The file appears whole or not at all. Returns a sentence for each process that is left out.
    """
    clocks = Clocks.of(recording)
    events = list(_events(recording, clocks, shown))
    begin_us = min((event["ts"] for event in events if "ts" in event), default=0.0)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - begin_us, 3)
    events.sort(key=lambda event: event.get("ts", -1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return left_out(recording, clocks)


def left_out(recording: Recording, clocks: Clocks) -> list[str]:
    """A sentence for each process whose clock could not be compared with the other clocks."""
    return [
        f"{each.process} on {each.host} is left out of the timeline: its clock was never compared with other clocks"
        for each in recording.processes
        if not clocks.knows(each)
    ]


def newest(recording: Recording) -> range:
    """The newest versions that workers contributed to, at most ``VERSIONS_SHOWN``."""
    contributed = [each.table("cycles")["version"] for each in recording.of_role("worker")]
    last = max((int(each.max()) for each in contributed if len(each)), default=-1)
    return range(max(0, last + 1 - VERSIONS_SHOWN), last + 1)


def _events(recording: Recording, clocks: Clocks, shown: range) -> Iterator[Event]:
    pushed: dict[tuple[int, int, int], tuple[int, float]] = {}  # by generation, version, rank: track and time
    published: dict[tuple[int, int, int], tuple[int, float]] = {}  # by generation, version, shard
    known = [(track, each) for track, each in enumerate(recording.processes, 1) if clocks.knows(each)]
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


def _slice(name: str, track: int, start_us: float, end_us: float, **args: Any) -> Event:
    duration = round(max(end_us - start_us, 0.001), 3)
    return {"ph": "X", "name": name, "cat": "span", "pid": track, "tid": 0, "ts": start_us, "dur": duration} | (
        {"args": args} if args else {}
    )


def _arrow(name: str, key: str, start: tuple[int, float], end: tuple[int, float]) -> Iterator[Event]:
    """An arrow between two slices. Each end is a track and a time in its slice."""
    about = {"name": name, "cat": "message", "id": key, "tid": 0}
    yield about | {"ph": "s", "pid": start[0], "ts": start[1]}
    yield about | {"ph": "f", "bp": "e", "pid": end[0], "ts": end[1]}


def _spans(each: ProcessRecording, clocks: Clocks, track: int, shown: range) -> Iterator[Event]:
    table = each.table("spans")
    starts_us = clocks.times_us(each, table["start_ns"] // 1000) + table["start_ns"] % 1000 / 1000
    for name, start_us, duration_ns, version in zip(
        table["name"], starts_us, table["duration_ns"], table["version"], strict=True
    ):
        if version in shown:
            end_us = start_us + duration_ns / 1000
            yield _slice(each.span_names[name], track, float(start_us), float(end_us), version=int(version))


def _cycles(
    each: ProcessRecording, clocks: Clocks, track: int, shown: range, pushed: dict[tuple[int, int, int], Any]
) -> Iterator[Event]:
    table = each.table("cycles")
    began, ended = (clocks.times_us(each, table[name]) for name in ("began_at_us", "pushed_at_us"))
    for i in np.flatnonzero(np.isin(table["version"], shown)):
        version = int(table["version"][i])
        spans = {name: int(table[name][i]) for name in ("env_step", "act", "gradient", "wait", "cpu_us")}
        yield _slice(f"contribution to {version}", track, float(began[i]), float(ended[i]), **spans)
        pushed[int(table["generation"][i]), version, each.process.number] = track, float(ended[i]) - 0.001


def _versions(
    each: ProcessRecording, clocks: Clocks, track: int, shown: range, published: dict[tuple[int, int, int], Any]
) -> Iterator[Event]:
    table = each.table("versions")
    closed, out = (clocks.times_us(each, table[name]) for name in ("closed_at_us", "published_at_us"))
    for i in np.flatnonzero(np.isin(table["version"], shown)):
        version = int(table["version"][i])
        yield _slice(f"version {version}", track, float(closed[i]), float(out[i]), kth=int(table["closing_rank"][i]))
        published[int(table["generation"][i]), version, each.process.number] = (
            track,
            max(float(closed[i]), float(out[i]) - 0.001),
        )


def _pushes(
    each: ProcessRecording, clocks: Clocks, track: int, shown: range, pushed: dict[tuple[int, int, int], Any]
) -> Iterator[Event]:
    table = each.table("arrivals")
    arrived = clocks.times_us(each, table["arrived_at_us"])
    for i in np.flatnonzero(np.isin(table["version"], shown)):
        generation, version, rank = (int(table[name][i]) for name in ("generation", "version", "rank"))
        at_us = float(arrived[i])
        yield _slice(f"rank {rank}: {SHARD_OUTCOMES[table['outcome'][i]]}", track, at_us, at_us + 0.1, version=version)
        start = pushed.get((generation, version, rank))
        if start is not None:
            yield from _arrow("push", f"p{track}.{generation}.{version}.{rank}", start, (track, at_us))


def _publications(
    each: ProcessRecording, clocks: Clocks, track: int, shown: range, published: dict[tuple[int, int, int], Any]
) -> Iterator[Event]:
    table = each.table("cycles")
    began, pulled = (clocks.times_us(each, table[name]) for name in ("began_at_us", "pulled_at_us"))
    for i in np.flatnonzero(np.isin(table["version"], shown)):
        generation, version = int(table["generation"][i]), int(table["version"][i])
        start = published.get((generation, version, int(table["last_shard"][i])))
        if start is not None:
            end = track, float(max(began[i], pulled[i]))
            yield from _arrow("publish", f"w{track}.{generation}.{version}", start, end)
