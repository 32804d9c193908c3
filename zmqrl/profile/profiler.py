"""Records how a process spends its time, in files of ``DIR/profile``. ``run_tables.py`` reads these files."""

import contextlib
import logging
import os
import re
import resource
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from zmqrl.observe.histogram import Histogram
from zmqrl.observe.spans import SpanEvent, Spans
from zmqrl.process import CORES, boot_id, control_groups, quota_of
from zmqrl.process_id import ProcessId
from zmqrl.profile.tables import COLUMNS, FORMAT, pack

FLUSH_EVERY_S = 5.0
FLUSH_AT_ROWS = 1024
SEGMENT_BYTES = 4 << 20
SEGMENTS_KEPT = 8  # per process, at most 32 MiB without the trace: older files are removed
SEGMENT = re.compile(r"([a-z]+-\d+)\.(\d+)\.(\d+)(\.trace)?\.blocks", re.ASCII)
RECENT_WRITTEN = 256  # most single spans in a block without --profile
TRACE_SPANS = 200_000  # most spans in the trace of a process, about 2 MB
NEWEST_EVERY_S = 60.0  # between two blocks with recent spans


class _ThisThread(threading.local):
    """State of each thread: the open file with its times in the scheduler."""

    schedstat: int | None = None


_this_thread = _ThisThread()


@dataclass(frozen=True, slots=True)
class ProfilerJob:
    """The instructions for a process to record its profile. ``host`` is the run's name for the host of the process.

    The profiler keeps each span of the versions below ``trace_below``, but at most ``TRACE_SPANS`` spans.
    """

    directory: Path
    host: str
    trace_below: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"directory": str(self.directory)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(Path(data["directory"]), data["host"], data["trace_below"])


class Profiler:
    """Records rows of the tables in :mod:`zmqrl.profile.tables`, and the histograms of ``spans``.

    Any thread can call ``add``. Only the thread of ``spans`` can call the other methods. If a file cannot be written,
    the profile ends, but the process continues.
    """

    def __init__(
        self,
        job: ProfilerJob,
        process: ProcessId,
        spans: Spans,
        *,
        run: str,
        incarnation: int,
        log: logging.Logger | None = None,
    ) -> None:
        self.spans = spans
        self._process, self._incarnation = process, incarnation
        self._directory = job.directory
        self._about = {
            "format": FORMAT,
            "process": str(process),
            "run": run,
            "host": job.host,
            "incarnation": incarnation,
            "pid": os.getpid(),
            "clock": clock_id(),
            "cores": CORES,
            "machine_cores": os.cpu_count(),
            "machine_memory_kb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024,
            "spans": list[str](),
        }
        self._log = log or logging.getLogger("zmqrl.profile")
        self._rows: dict[str, deque[tuple[int, ...]]] = {name: deque() for name in COLUMNS}
        spans.when_full = self._fold
        self._trace_below, self._traced, self._untraced = job.trace_below, 0, 0
        self._newest = 0  # version of the newest span
        self._totals: dict[str, Histogram] = {}  # of all written spans
        self._flushed_at = self._newest_at = time.monotonic()
        self._segment = -1
        self._segment_bytes, self._suffix = SEGMENT_BYTES, ""
        self._failed = False
        self._span_ns = dict.fromkeys((*COLUMNS["cycles"], *COLUMNS["versions"]), 0)
        self._usage = resource.getrusage(resource.RUSAGE_THREAD)
        self._queued_us = _scheduled_us()[1]
        self._add_machine(time.monotonic())  # differences need two rows, even in a short run

    def add(self, table: str, *row: int) -> None:
        self._rows[table].append(row)

    def spent_us(self, *names: str) -> tuple[int, ...]:
        """Microseconds in the spans of each name since the last call with that name."""
        spent = []
        for name in names:
            total_ns = self.spans.total_ns(name)
            spent.append((total_ns - self._span_ns[name]) // 1000)
            self._span_ns[name] = total_ns
        return tuple(spent)

    def used(self) -> tuple[int, int, int]:
        """CPU time in microseconds, preemptions, and major page faults of this thread since the last call."""
        then, now = self._usage, resource.getrusage(resource.RUSAGE_THREAD)
        self._usage = now
        cpu_us = round(1e6 * (now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime))
        return cpu_us, now.ru_nivcsw - then.ru_nivcsw, now.ru_majflt - then.ru_majflt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the block as a wait of this thread, which :meth:`queued_us` leaves out."""
        began_us = _scheduled_us()[1]
        try:
            yield
        finally:
            self._queued_us += _scheduled_us()[1] - began_us

    def queued_us(self) -> int:
        """Microseconds, since the last call, for which this thread was ready but had no core. Waits do not count."""
        then, self._queued_us = self._queued_us, _scheduled_us()[1]
        return self._queued_us - then

    def step(self, now: float) -> None:
        """Write the recorded rows if a block is due."""
        rows = sum(map(len, self._rows.values()))
        if now - self._flushed_at >= FLUSH_EVERY_S or rows >= FLUSH_AT_ROWS:
            self.flush(now)

    def flush(self, now: float, *, last: bool = False) -> None:
        """Write the recorded rows and the histograms of new spans. If ``last``, also write the newest spans."""
        if self._failed:
            for waiting in self._rows.values():
                waiting.clear()
            self.spans.fold()
            return
        self._flushed_at = now
        self._add_machine(now)
        self._fold()
        if last or now - self._newest_at >= NEWEST_EVERY_S:
            self._newest_at = now
            self._keep_newest()
        first = self._segment_bytes >= SEGMENT_BYTES
        block: dict[str, Any] = {"about": self._about, "earlier": _json(self._totals)} if first else {}
        new, self.spans.histograms = self.spans.histograms, {}
        block["new"] = _json(new)
        for name, each in new.items():
            self._totals.setdefault(name, Histogram()).merge(each)
        block["spans"], block["untraced"] = self._about["spans"], self._untraced
        data = pack(block, {name: _drain(rows) for name, rows in self._rows.items()})
        try:
            self._write(data, first=first)
        except OSError as error:
            self._failed = True
            self._log.warning("the profile is no longer recorded: %s: %s", self._directory, error.strerror)

    def close(self) -> None:
        """Write the remaining rows."""
        self.flush(time.monotonic(), last=True)

    def _add_machine(self, now: float) -> None:
        self.add("machine", int(now * 1e6), *machine_totals(), _memory_kb())

    def _fold(self) -> None:
        """Add the new spans to the histograms, and those of traced versions to the trace while it has room."""
        new = self.spans.fold()
        if self._failed or not new:
            return
        self._newest = new[-1][3]
        traced = [event for event in new if event[3] < self._trace_below]
        kept = traced[: TRACE_SPANS - self._traced]
        self._traced += len(kept)
        self._untraced += len(traced) - len(kept)
        self._add_spans(kept)

    def _keep_newest(self) -> None:
        """Record the newest spans that are not in the trace. No span is recorded twice."""
        self._add_spans([event for event in self.spans.recent if event[3] >= self._trace_below][-RECENT_WRITTEN:])
        self.spans.recent.clear()

    def _add_spans(self, kept: list[SpanEvent]) -> None:
        names: list[str] = self._about["spans"]  # type: ignore[assignment]
        for name, *rest in kept:
            if name not in names:
                names.append(name)
            self.add("spans", names.index(name), *rest)

    def _write(self, data: bytes, *, first: bool) -> None:
        if first:
            self._begin_segment()
        with self._path().open("ab") as file:
            file.write(data)
        self._segment_bytes += len(data)

    def _begin_segment(self) -> None:
        """Begin a new file, and remove the oldest files if there are too many."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._segment += 1
        self._segment_bytes = 0
        self._suffix = ".trace.blocks" if self._newest < self._trace_below and not self._untraced else ".blocks"
        self._path().touch()
        prune(self._directory, self._process)

    def _path(self) -> Path:
        return self._directory / f"{self._process}.{self._incarnation}.{self._segment}{self._suffix}"


def segments(directory: Path, process: ProcessId | None = None) -> list[Path]:
    """The files of all processes, or of one process. The oldest file of a process comes first."""
    name = "*" if process is None else str(process)
    found = ((path, SEGMENT.fullmatch(path.name)) for path in directory.glob(f"{name}.*.*.blocks"))
    numbered = [(each[1], int(each[2]), int(each[3]), path) for path, each in found if each is not None]
    return [path for *_, path in sorted(numbered)]


def prune(directory: Path, process: ProcessId) -> None:
    """Remove files of ``process``, except the ``SEGMENTS_KEPT`` newest ones and those of a trace."""
    ordinary = [path for path in segments(directory, process) if not path.name.endswith(".trace.blocks")]
    for old in ordinary[:-SEGMENTS_KEPT]:
        old.unlink(missing_ok=True)


def now_us() -> int:
    """The current time as in the tables: ``time.monotonic_ns`` in microseconds."""
    return time.monotonic_ns() // 1000


def clock_id() -> str:
    """The id of the monotonic clock: the boot id of the machine, and the time namespace of the process."""
    namespace = ""
    with contextlib.suppress(OSError):  # a kernel without time namespaces
        namespace = str(Path("/proc/self/ns/time").readlink())
    return f"{boot_id()} {namespace}"


def machine_totals() -> tuple[int, int, int, int, int]:
    """Totals in microseconds, or 0 where the kernel reports none.

    CPU time of this thread, its time in the run queue, CPU time of the process, stolen time of the machine, time
    of the periods in which a quota stopped the control group.
    """
    return *_scheduled_us(), time.process_time_ns() // 1000, _stolen_us(), throttled_us(_groups())


def _scheduled_us() -> tuple[int, int]:
    """CPU time of this thread, and its time in the run queue.

    A worker calls this three times for each contribution. The file stays open, because opening takes ten times as long
    as reading.
    """
    with contextlib.suppress(OSError, ValueError):
        if _this_thread.schedstat is None:
            _this_thread.schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        running_ns, waiting_ns, _ = map(int, os.pread(_this_thread.schedstat, 128, 0).split())
        return running_ns // 1000, waiting_ns // 1000
    return 0, 0


def _stolen_us() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), Path("/proc/stat").open(encoding="ascii") as file:
        return int(file.readline().split()[8]) * 1_000_000 // os.sysconf("SC_CLK_TCK")  # the ninth field is steal
    return 0


def throttled_us(groups: Iterable[Path]) -> int:
    """The total of the periods in which a quota stopped processes, for the group (version 1 or 2) with the most.

    The kernel's own total is a sum over CPUs, so it can grow faster than time.
    """
    most_us = 0
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            most_us = max(most_us, _facts(group / "cpu.stat").get("nr_throttled", 0) * quota_of(group)[1])
    return most_us


@cache
def _groups() -> list[Path]:
    return control_groups(Path("/proc/self"), "cpu")


def _memory_kb() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024
    return 0


def _facts(path: Path) -> Mapping[str, int]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def _json(histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    return {name: each.to_json() for name, each in histograms.items()}


def _drain(rows: deque[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Remove and return all rows. Another thread can append rows meanwhile."""
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(rows.popleft())
    return taken
