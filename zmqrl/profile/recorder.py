"""Records how a process spends its time, in files of ``DIR/profile``. ``recording.py`` reads them."""

import contextlib
import logging
import os
import re
import resource
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from zmqrl.observe.spans import SpanEvent, Spans
from zmqrl.process_id import ProcessId
from zmqrl.profile.tables import COLUMNS, FORMAT, pack

FLUSH_EVERY_S = 5.0
FLUSH_AT_ROWS = 1024
SEGMENT_BYTES = 4 << 20
SEGMENTS_KEPT = 8  # per process: the oldest files are removed, so that a process keeps at most 32 MiB
SEGMENT = re.compile(r"([a-z]+-\d+)\.(\d+)\.(\d+)\.blocks", re.ASCII)
RECENT_WRITTEN = 256  # spans in a block without --profile
TRACE_SPANS = 200_000  # most spans of a process with --profile: about 2 MB
TOTALS_EVERY_S = 60.0  # between two blocks with histograms and recent spans


@dataclass(frozen=True, slots=True)
class RecorderJob:
    """Where a process records its profile. ``host`` is the name of its host in this run.

    ``trace_versions``: the recorder keeps all spans of this many versions, beginning with the first recorded one.
    """

    directory: Path
    host: str
    trace_versions: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"directory": str(self.directory)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(Path(data["directory"]), data["host"], data["trace_versions"])


class Recorder:
    """Records rows of the tables in :mod:`zmqrl.profile.tables`, and the histograms of ``spans``.

    Any thread may call ``add``. Only the thread of ``spans`` may call the other methods. If a file cannot be written,
    the recording ends, but the process continues.
    """

    def __init__(
        self,
        job: RecorderJob,
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
            "cores": len(os.sched_getaffinity(0)),
            "spans": list[str](),
        }
        self._log = log or logging.getLogger("zmqrl.profile")
        self._rows: dict[str, deque[tuple[int, ...]]] = {name: deque() for name in COLUMNS}
        self._trace_versions, self._traced_from, self._traced = job.trace_versions, -1, 0
        self._flushed_at = self._totals_at = time.monotonic()
        self._segment = -1
        self._segment_bytes = SEGMENT_BYTES
        self._failed = False
        self._span_ns = dict.fromkeys((*COLUMNS["cycles"], *COLUMNS["versions"]), 0)
        self._usage = resource.getrusage(resource.RUSAGE_THREAD)
        self._add_machine(time.monotonic())  # a difference needs two rows, even in a short run

    def add(self, table: str, *row: int) -> None:
        """Record a row of ``table``."""
        self._rows[table].append(row)

    def spent_us(self, *names: str) -> tuple[int, ...]:
        """Microseconds in spans of each name since the last call for that name."""
        spent = []
        for name in names:
            total_ns = self.spans.total_ns(name)
            spent.append((total_ns - self._span_ns[name]) // 1000)
            self._span_ns[name] = total_ns
        return tuple(spent)

    def used(self) -> tuple[int, int, int]:
        """What this thread used since the last call: CPU in microseconds, preemptions, major page faults."""
        then, now = self._usage, resource.getrusage(resource.RUSAGE_THREAD)
        self._usage = now
        cpu_us = round(1e6 * (now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime))
        return cpu_us, now.ru_nivcsw - then.ru_nivcsw, now.ru_majflt - then.ru_majflt

    def step(self, now: float) -> None:
        """Write the recorded rows if a block is due."""
        rows = sum(map(len, self._rows.values()))
        if now - self._flushed_at >= FLUSH_EVERY_S or rows >= FLUSH_AT_ROWS:
            self.flush(now)

    def flush(self, now: float, *, last: bool = False) -> None:
        """Write the recorded rows. ``last`` adds the histograms and the newest spans."""
        if self._failed:
            for waiting in self._rows.values():
                waiting.clear()
            self.spans.fold()
            return
        self._flushed_at = now
        totals = last or now - self._totals_at >= TOTALS_EVERY_S
        self._add_machine(now)
        self._keep_spans(self.spans.fold(), totals)
        block: dict[str, Any] = {"about": self._about} if self._segment_bytes >= SEGMENT_BYTES else {}
        if totals or block:
            self._totals_at = now
            block["histograms"] = {name: each.to_json() for name, each in self.spans.histograms.items()}
        block["spans"] = self._about["spans"]
        data = pack(block, {name: _drain(rows) for name, rows in self._rows.items()})
        try:
            self._write(data, first="about" in block)
        except OSError as error:
            self._failed = True
            self._log.warning("the profile is no longer recorded: %s: %s", self._directory, error.strerror)

    def close(self) -> None:
        """Write the remaining rows."""
        self.flush(time.monotonic(), last=True)

    def _add_machine(self, now: float) -> None:
        self.add("machine", int(now * 1e6), *machine_totals())

    def _keep_spans(self, new: list[SpanEvent], totals: bool) -> None:
        """Record single spans: all of them while tracing, else the newest at intervals. No span is recorded twice."""
        if self._traced_from < 0 and new:
            self._traced_from = new[0][3]
        until = self._traced_from + self._trace_versions
        kept = [event for event in new if event[3] < until][: TRACE_SPANS - self._traced]
        self._traced += len(kept)
        if not kept and totals:
            kept = [event for event in self.spans.recent if event[3] >= until][-RECENT_WRITTEN:]
            self.spans.recent.clear()
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
        """Begin a new file, and remove the oldest one if there are too many."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._segment += 1
        self._segment_bytes = 0
        self._path().touch()
        prune(self._directory, self._process)

    def _path(self) -> Path:
        return self._directory / f"{self._process}.{self._incarnation}.{self._segment}.blocks"


def segments(directory: Path, process: ProcessId | None = None) -> list[Path]:
    """The files of all processes, or of one process. The files of a process are sorted oldest first."""
    name = "*" if process is None else str(process)
    found = ((path, SEGMENT.fullmatch(path.name)) for path in directory.glob(f"{name}.*.*.blocks"))
    numbered = [(each[1], int(each[2]), int(each[3]), path) for path, each in found if each is not None]
    return [path for *_, path in sorted(numbered)]


def prune(directory: Path, process: ProcessId) -> None:
    """Remove the files of ``process``, except the ``SEGMENTS_KEPT`` newest."""
    for old in segments(directory, process)[:-SEGMENTS_KEPT]:
        old.unlink(missing_ok=True)


def now_us() -> int:
    """The time as in the tables: ``time.monotonic_ns`` in microseconds."""
    return time.monotonic_ns() // 1000


def clock_id() -> str:
    """Identifies the monotonic clock of this process: the boot of its machine, and its time namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = ""
    with contextlib.suppress(OSError):  # a kernel without time namespaces
        namespace = str(Path("/proc/self/ns/time").readlink())
    return f"{boot} {namespace}"


def machine_totals() -> tuple[int, int, int, int, int]:
    """Totals in microseconds. Values that the kernel does not report are 0.

    In this order: CPU time of this thread, its time in the run queue, CPU time of the process, stolen time of the
    machine, throttled time of the control group.
    """
    cpu_us = queued_us = 0
    with contextlib.suppress(OSError, ValueError):
        running_ns, waiting_ns, _ = map(int, Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split())
        cpu_us, queued_us = running_ns // 1000, waiting_ns // 1000
    return cpu_us, queued_us, time.process_time_ns() // 1000, _stolen_us(), _throttled_us()


def _stolen_us() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), Path("/proc/stat").open(encoding="ascii") as file:
        return int(file.readline().split()[8]) * 1_000_000 // os.sysconf("SC_CLK_TCK")  # the ninth field is steal
    return 0


def _throttled_us() -> int:
    with contextlib.suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2].lstrip("/")
        facts = _facts(Path("/sys/fs/cgroup") / group / "cpu.stat")
        return facts.get("throttled_usec", 0)
    return 0


def _facts(path: Path) -> Mapping[str, int]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def _drain(rows: deque[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Remove and return all rows. Another thread may append rows meanwhile."""
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(rows.popleft())
    return taken
