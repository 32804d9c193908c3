import logging
import threading
from pathlib import Path

import pytest

from zmqrl.observe.histogram import Histogram
from zmqrl.observe.spans import FOLD_AT, Spans
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile import profiler as profiler_module
from zmqrl.profile.profiler import SEGMENTS_KEPT, Profiler, ProfilerJob, machine_totals, segments, throttled_us
from zmqrl.profile.run_tables import RunTables
from zmqrl.profile.tables import COLUMNS
from zmqrl.profile.trace import write_trace

PINGS = len(COLUMNS["pings"])


def profiler(directory: Path, *, incarnation: int = 1, trace_below: int = 0) -> Profiler:
    job = ProfilerJob(directory, "h1", trace_below)
    return Profiler(job, worker_id(3), Spans(), run="r", incarnation=incarnation)


def test_recorded_rows_are_read_back(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    for i in range(10):
        one.add("pings", *range(i, i + PINGS))
        with one.spans("act"):
            pass
    one.flush(5.0)
    one.add("pings", *[-1] * PINGS)
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert (read.process, read.host, read.run, read.incarnation) == (worker_id(3), "h1", "r", 1)
    assert read.table("pings")["shard"].tolist() == [*range(10), -1]
    assert len(read.table("machine")["at_us"]) == 3
    assert read.histograms()["act"].count == 10
    assert read.span_names == ["act"]


def test_the_recorded_cores_are_those_that_the_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler_module, "CORES", 77)  # a quota, for example
    profiler(tmp_path).close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.cores == 77


def test_a_process_is_throttled_by_the_quotas_of_its_group_and_of_their_parents(tmp_path: Path) -> None:
    own, parent, root = tmp_path / "a/b", tmp_path / "a", tmp_path
    own.mkdir(parents=True)
    (own / "cpu.stat").write_text("nr_periods 9\nnr_throttled 1\nthrottled_usec 0\n", encoding="ascii")
    (parent / "cpu.stat").write_text("nr_periods 9\nnr_throttled 2\nthrottled_usec 1600000\n", encoding="ascii")
    (parent / "cpu.max").write_text("400000 100000\n", encoding="ascii")
    assert throttled_us([own, parent, root]) == 2 * 100_000, "the kernel adds up the times of eight CPUs"
    (own / "cpu.stat").write_text("nr_periods 9\nnr_throttled 7\nthrottled_time 4000000\n", encoding="ascii")  # v1
    for name, value in (("cpu.cfs_quota_us", "50000"), ("cpu.cfs_period_us", "25000")):
        (own / name).write_text(f"{value}\n", encoding="ascii")
    assert throttled_us([own, root]) == 7 * 25_000
    assert throttled_us([root]) == 0


def test_every_block_has_the_spans_since_the_previous_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler_module, "SEGMENT_BYTES", 600)
    one = profiler(tmp_path)
    for turn in range(60):
        spend(one, turn)
        one.add("pings", *[turn] * PINGS)
        one.flush(float(turn))
        if turn % 10 == 0:  # while the process runs
            (read,) = RunTables.read(tmp_path).processes
            assert read.histograms().get("act", Histogram()).count == sum(range(turn + 1))
    assert len(segments(tmp_path, worker_id(3))) == SEGMENTS_KEPT  # older ones were removed
    (read,) = RunTables.read(tmp_path).processes
    assert len(read.parts) < 60


def test_each_process_of_a_rank_has_its_own_profile(tmp_path: Path) -> None:
    for incarnation in (7, 10):
        one = profiler(tmp_path, incarnation=incarnation)
        one.add("pings", *[incarnation] * PINGS)
        one.close()
    read = RunTables.read(tmp_path).processes
    assert [(each.incarnation, each.table("pings")["shard"].tolist()) for each in read] == [(7, [7]), (10, [10])]


def test_the_oldest_files_of_a_process_are_removed_and_files_of_other_processes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "SEGMENT_BYTES", 500)
    other = Profiler(ProfilerJob(tmp_path, "h1"), shard_id(0), Spans(), run="r", incarnation=1)
    other.close()
    one = profiler(tmp_path, incarnation=9)
    for i in range(200):
        one.add("pings", *[i] * PINGS)
        one.flush(float(i))
    assert len(segments(tmp_path, worker_id(3))) == SEGMENTS_KEPT
    assert len(segments(tmp_path, shard_id(0))) == 1
    _, read = RunTables.read(tmp_path).processes
    kept = read.table("pings")["shard"].tolist()
    assert kept == list(range(kept[0], 200))
    assert kept[0] > 0
    assert all(path.stat().st_size < 1500 for path in segments(tmp_path))


def test_a_trace_keeps_all_spans_of_the_first_versions_and_the_newest_of_later_ones(tmp_path: Path) -> None:
    one = profiler(tmp_path, trace_below=103)
    for version in range(100, 110):
        one.spans.version = version
        with one.spans("gradient"):
            pass
    one.flush(1.0)
    (read,) = RunTables.read(tmp_path).processes
    assert read.table("spans")["version"].tolist() == [100, 101, 102]
    with one.spans("push"):
        pass
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.span_names == ["gradient", "push"]
    assert read.table("spans")["version"].tolist() == [*range(100, 110), 109]


def spend(one: Profiler, spans: int, version: int = 0) -> None:
    one.spans.version = version
    for number in range(spans):
        one.spans.keep(("act", number, 1, version))


def test_a_trace_has_every_span_however_many_there_are_between_two_writes(tmp_path: Path) -> None:
    one = profiler(tmp_path, trace_below=1)
    spend(one, 3 * FOLD_AT + 5)
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.table("spans")["start_ns"].tolist() == list(range(3 * FOLD_AT + 5))
    assert (read.untraced, read.histograms()["act"].count) == (0, 3 * FOLD_AT + 5)


def test_spans_that_a_trace_has_no_room_for_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "TRACE_SPANS", 10)
    one = profiler(tmp_path / "profile", trace_below=1)
    for _ in range(2):
        spend(one, 8)
        one.flush(1.0)
    spend(one, 100, version=1)
    one.close()
    tables = RunTables.read(tmp_path / "profile")
    (read,) = tables.processes
    assert read.table("spans")["start_ns"].tolist() == [*range(8), 0, 1, *range(100)]
    assert read.untraced == 6
    assert write_trace(tables, tmp_path / "trace.json", range(2), arrows=True) == [
        "the trace holds the first 200,000 spans of each process: it lacks 6 spans of worker 3 on h1"
    ]


def test_a_long_run_does_not_remove_the_files_of_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler_module, "SEGMENT_BYTES", 500)
    one = profiler(tmp_path, trace_below=2)
    for version in range(200):
        spend(one, 3, version)
        one.add("pings", *[version] * PINGS)
        one.flush(float(version))
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.table("spans")["version"].tolist()[:6] == [0, 0, 0, 1, 1, 1]
    assert read.histograms()["act"].count == 3 * 200
    ordinary = [path for path in segments(tmp_path) if not path.name.endswith(".trace.blocks")]
    assert len(ordinary) == SEGMENTS_KEPT
    assert len(segments(tmp_path)) <= SEGMENTS_KEPT + 2


def test_no_span_is_recorded_twice(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    for version in range(5):
        one.spans.version = version
        with one.spans("gradient"):
            pass
        one.flush(0.0, last=True)
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.table("spans")["version"].tolist() == [*range(5)]


def test_an_unwritable_directory_ends_only_the_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    one = profiler(tmp_path / "file" / "profile")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            one.add("pings", *[1] * PINGS)
            one.flush(1.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"the profile is no longer recorded: {tmp_path / 'file' / 'profile'}: Not a directory"
    ]
    one.close()


def test_rows_from_another_thread_are_not_lost(tmp_path: Path) -> None:
    one = profiler(tmp_path)
    rows = 20_000

    def add() -> None:
        for i in range(rows):
            one.add("pings", *[i] * PINGS)

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive():
        one.flush(1.0)
    thread.join()
    one.close()
    (read,) = RunTables.read(tmp_path).processes
    assert read.table("pings")["shard"].tolist() == list(range(rows))


def test_time_in_the_run_queue_counts_except_in_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the start, at both ends of the wait, and at the ends of the first and the second cycle.
    queued_us = iter([1000, 1010, 1300, 1305, 1400])
    monkeypatch.setattr(profiler_module, "_scheduled_us", lambda: (0, next(queued_us)))
    monkeypatch.setattr(Profiler, "_add_machine", lambda *_: None)
    one = profiler(tmp_path)
    with one.waiting():
        pass
    assert [one.queued_us(), one.queued_us()] == [15, 95]


def test_the_totals_of_the_machine_never_decrease() -> None:
    before = machine_totals()
    sum(range(200_000))
    after = machine_totals()
    assert all(late >= early >= 0 for early, late in zip(before, after, strict=True))
    assert after[2] > before[2]
