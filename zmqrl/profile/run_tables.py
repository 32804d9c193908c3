"""Reads what the processes of a run recorded in ``DIR/profile``."""

import contextlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zmqrl.json_lines import read_file
from zmqrl.observe.folding import ranges
from zmqrl.observe.histogram import Histogram
from zmqrl.process_id import ProcessId
from zmqrl.profile.profiler import segments
from zmqrl.profile.tables import COLUMNS, FORMAT, Table, unpack
from zmqrl.words import numbered

ABOUT = {"format", "process", "incarnation", "run", "host", "clock", "cores", "spans"}
MOST_CYCLES = 300_000  # contributions of all workers: each costs a profile 1.1 KB of memory and 0.1 ms
ALL = range(sys.maxsize)
Columns: TypeAlias = Mapping[str, "NDArray[np.int64]"]
"""One table by column."""


def named(hosts: Mapping[ProcessId, str]) -> str:
    """Processes of one role and their hosts, in words such as ``workers 3, 5-9 on h1..h4``."""
    (role,) = {process.role for process in hosts}
    return f"{numbered(role, (process.number for process in hosts))} on {ranges(hosts.values())}"


@dataclass(slots=True, kw_only=True)
class ProcessTables:
    """The profile of one process.

    ``clock`` identifies the monotonic clock of the process. ``cores`` counts the cores that the process could use when
    it started, and ``machine_cores`` those of its machine. Older profiles lack ``machine_memory_kb``. A process writes
    its profile in blocks. ``parts`` has the end time and the histograms of each block. ``earlier`` has the sum of the
    histograms of all blocks before ``parts[covered:]``, even if their files were removed. ``untraced`` counts the spans
    of traced versions that had no room in the trace.
    """

    process: ProcessId
    incarnation: int
    run: str
    host: str
    clock: str
    cores: int
    machine_cores: int
    machine_memory_kb: int | None = None
    tables: dict[str, list[Table]] = field(default_factory=dict)
    earlier: Mapping[str, Any] = field(default_factory=dict)
    parts: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    covered: int = 0
    untraced: int = 0
    span_names: list[str] = field(default_factory=list)

    def histograms(self) -> dict[str, Histogram]:
        """Durations in nanoseconds, by span."""
        found: dict[str, Histogram] = {}
        for part in (self.earlier, *(part for _, part in self.parts[self.covered :])):
            for name, data in part.items():
                with contextlib.suppress(ValueError):  # another program wrote it
                    found.setdefault(name, Histogram()).merge(Histogram.from_json(data))
        return found

    def table(self, name: str) -> Columns:
        """The columns of a table, by name, with rows in the order of their times."""
        columns = COLUMNS[name]
        parts = self.tables.get(name, [])
        rows = np.concatenate(parts) if parts else np.empty((0, len(columns)), np.int64)
        return {column: rows[:, i] for i, column in enumerate(columns)}

    def after(self, version: int) -> "ProcessTables":
        """This profile without the rows of versions up to ``version``. All pings are kept.

        The totals of the machine begin when the process had finished ``version``. The histograms begin with the block
        of that time, at most 5 s earlier.
        """
        tables = {}
        for name, parts in self.tables.items():
            tables[name] = [_of_versions(name, part, ALL[version + 1 :]) for part in parts]
        finished_us = self._finished_us(version)
        if finished_us is not None and "machine" in tables:
            tables["machine"] = [_since(np.concatenate(tables["machine"]), finished_us)]
        if finished_us is None:
            return replace(self, tables=tables)
        since = [(end_us, part) for end_us, part in self.parts if end_us > finished_us]
        return replace(self, tables=tables, earlier={}, parts=since, covered=0)

    def _finished_us(self, version: int) -> int | None:
        """When this process finished its work for the versions up to ``version``. None if it recorded none of them."""
        name, at = ("cycles", "pushed_at_us") if self.process.role == "worker" else ("versions", "published_at_us")
        table = self.table(name)
        ends = table[at][table["version"] <= version]
        return int(ends.max()) if len(ends) else None


def _add_block(
    found: dict[tuple[str, int], ProcessTables], about: Mapping[str, Any], block: Mapping[str, Any], versions: range
) -> None:
    """Add a block to the profile of its process, which ``about`` describes."""
    process, earlier, new = ProcessId.parse(about["process"]), {**block.get("earlier", {})}, {**block.get("new", {})}
    of_process = found.setdefault(
        (str(process), int(about["incarnation"])),
        ProcessTables(
            process=process,
            incarnation=int(about["incarnation"]),
            run=about["run"],
            host=about["host"],
            clock=about["clock"],
            cores=about["cores"],
            machine_cores=about.get("machine_cores") or about["cores"],  # not known in older profiles
            machine_memory_kb=about.get("machine_memory_kb"),
        ),
    )
    for name, table in block["tables"].items():
        if table.shape[1] == len(COLUMNS.get(name, ())):
            of_process.tables.setdefault(name, []).append(_of_versions(name, table, versions))
    if "earlier" in block:
        of_process.earlier, of_process.covered = earlier, len(of_process.parts)
    if (machine := block["tables"].get("machine")) is not None:  # the last row ends the block
        of_process.parts.append((int(machine[-1, 0]), new))
    of_process.span_names, of_process.untraced = block["spans"], block.get("untraced", 0)


def _of_versions(name: str, table: Table, versions: range) -> Table:
    """The rows of a table that belong to ``versions``: all rows if the table has no version column."""
    columns = COLUMNS[name]
    if "version" not in columns or versions == ALL:
        return table
    numbers = table[:, columns.index("version")]
    return table[(numbers >= versions.start) & (numbers < versions.stop)]


def _since(machine: Table, at_us: int) -> Table:
    """The totals from ``at_us`` on. The first row is interpolated from the rows before and after ``at_us``."""
    times = machine[:, 0]
    first = np.array([np.interp(at_us, times, column) for column in machine.T]).astype(np.int64)
    return np.concatenate([first[None], machine[times > at_us]])


@dataclass(frozen=True, slots=True)
class RunTables:
    """The profiles of all processes of a run. A restarted process has several.

    ``left_out`` is the newest version that was left out to save memory, or -1.
    """

    processes: tuple[ProcessTables, ...]
    left_out: int = -1

    @classmethod
    def newest(cls, directory: Path) -> Self:
        """Read the newest versions, with at most ``MOST_CYCLES`` contributions, and the histograms of all versions."""
        workers = {path.name.partition(".")[0] for path in segments(directory) if path.name.startswith("worker-")}
        left_out = newest_version(directory) - MOST_CYCLES // max(len(workers), 1)
        if left_out < 0:
            return cls.read(directory)
        processes = []
        for each in cls.read(
            directory, ALL[left_out:]
        ).processes:  # including `left_out`: the times of the later versions begin at its end
            rest = each.after(left_out)
            processes.append(replace(rest, earlier=each.earlier, parts=each.parts, covered=each.covered))
        return cls(tuple(processes), left_out)

    @classmethod
    def read(cls, directory: Path, versions: range = ALL) -> Self:
        """Read ``versions``. A file that is cut off or damaged is read up to the damage."""
        return cls._of(((path, None) for path in segments(directory)), versions)

    @classmethod
    def tail(cls, directory: Path, blocks: int) -> Self:
        """Read only the newest blocks of each process, approximately ``blocks``, so that long runs cost no more.

        Only regular files are read, and no symbolic links.
        """
        by_process: dict[str, list[Path]] = {}
        found = [] if directory.is_symlink() else segments(directory)
        for path in (path for path in found if path.is_file() and not path.is_symlink()):
            by_process.setdefault(path.name.partition(".")[0], []).append(path)
        return cls._of((path, blocks) for paths in by_process.values() for path in paths[-2:])

    @classmethod
    def _of(cls, files: Iterable[tuple[Path, int | None]], versions: range = ALL) -> Self:
        """Read each file, or only the given number of its newest blocks."""
        found: dict[tuple[str, int], ProcessTables] = {}
        for path, newest in files:
            about = None
            for block in unpack(read_file(path), newest):
                about = block.get("about", about)
                try:
                    if about is None or not about.keys() >= ABOUT or about["format"] != FORMAT:
                        break
                    _add_block(found, about, block, versions)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # a damaged block
                    break
        return cls(tuple(found[key] for key in sorted(found)))

    def after(self, version: int) -> "RunTables":
        """The part of the profile for versions above ``version``."""
        return RunTables(tuple(each.after(version) for each in self.processes))

    def last(self, seconds: float) -> "RunTables":
        """The part of the profile for the last ``seconds`` before the newest version that all shards recorded."""
        newest: dict[int, tuple[int, Columns]] = {}
        for shard in self.of_role("shard"):
            table = shard.table("versions")
            if len(table["version"]):
                number, version = shard.process.number, int(table["version"].max())
                newest[number] = max(newest.get(number, (-1, table)), (version, table), key=lambda each: each[0])
        if not newest:
            return self
        version, table = min(newest.values(), key=lambda each: each[0])
        at_us = table["published_at_us"]
        early = table["version"][at_us < at_us[table["version"] == version].max() - 1e6 * seconds]
        return self.after(int(early.max(initial=-1)))

    def of_role(self, role: str) -> Iterable[ProcessTables]:
        """The profiles of a role, sorted by number and incarnation."""
        return (each for each in self.processes if each.process.role == role)


def newest_version(directory: Path) -> int:
    """The newest version that a shard recorded, or -1. Reads only the newest files."""
    newest = -1
    shards = {path.name.partition(".")[0] for path in segments(directory) if path.name.startswith("shard-")}
    for shard in shards:
        for path in reversed(segments(directory, ProcessId.parse(shard))):
            tables = [block["tables"].get("versions") for block in unpack(read_file(path))]
            found = [int(table[:, 1].max()) for table in tables if table is not None]
            if found:
                newest = max(newest, *found)
                break
    return newest
