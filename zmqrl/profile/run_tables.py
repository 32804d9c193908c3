"""Reads what the processes of a run recorded in ``DIR/profile``."""

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zmqrl.json_lines import read_file
from zmqrl.observe.folding import ranges
from zmqrl.observe.histogram import Histogram
from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.process_id import ProcessId
from zmqrl.profile.profiler import FLUSH_EVERY_S, segments
from zmqrl.profile.tables import COLUMNS, FORMAT, Table, unpack
from zmqrl.words import numbered

ABOUT = {"format", "process", "incarnation", "run", "host", "clock", "cores", "spans"}
MOST_CYCLES = 300_000  # contributions of all workers: each costs a profile 1.1 KB of memory and 0.1 ms
ALL = range(sys.maxsize)
REJECTED = SHARD_OUTCOMES.index("rejected")
ALIVE_S = 2 * FLUSH_EVERY_S  # a process that lives has written its contributions to older versions
Columns: TypeAlias = Mapping[str, "NDArray[np.int64]"]
"""One table by column."""
Version: TypeAlias = tuple[int, int]
"""Generation and version."""


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

    def table(self, name: str, generation: int | None = None) -> Columns:
        """The columns of a table, by name, with rows in the order of their times: all rows, or one generation."""
        rows = self._rows(name)
        if generation is not None:
            rows = rows[rows[:, 0] == generation]
        return {column: rows[:, i] for i, column in enumerate(COLUMNS[name])}

    def _rows(self, name: str) -> Table:
        return np.concatenate([np.empty((0, len(COLUMNS[name])), np.int64), *self.tables.get(name, [])])

    def generations(self) -> set[int]:
        """The generations in which this process has recorded something."""
        return {int(each) for name in self.tables if _has_versions(name) for each in np.unique(self._rows(name)[:, 0])}

    def after(self, version: Version) -> "ProcessTables":
        """This profile without the rows up to ``version``. All pings are kept.

        The totals of the machine and the single spans begin when the process had finished ``version``. The histograms
        begin with the block of that time, at most 5 s earlier.
        """
        tables = {
            name: [part[_is_later(part, version)] if _has_versions(name) else part for part in parts]
            for name, parts in self.tables.items()
        }
        finished_us = self._finished_us(version)
        if finished_us is None:
            return replace(self, tables=tables)
        if "machine" in tables:
            tables["machine"] = [_since(np.concatenate(tables["machine"]), finished_us)]
        start_ns = COLUMNS["spans"].index("start_ns")
        tables["spans"] = [part[part[:, start_ns] // 1000 >= finished_us] for part in tables.get("spans", [])]
        since = [(end_us, part) for end_us, part in self.parts if end_us > finished_us]
        return replace(self, tables=tables, earlier={}, parts=since, covered=0)

    def up_to(self, update: Version) -> "ProcessTables":
        """This profile without the rows of later updates than that of the version ``update``."""
        generation, version = update
        tables = {}
        for name, parts in self.tables.items():
            last = (generation, version + 1) if name == "versions" else update
            tables[name] = [part[~_is_later(part, last)] if _has_versions(name) else part for part in parts]
        return replace(self, tables=tables)

    def _finished_us(self, version: Version) -> int | None:
        """When this process finished its work for the versions up to ``version``. None if it recorded none of them."""
        name, at = ("cycles", "pushed_at_us") if self.process.role == "worker" else ("versions", "published_at_us")
        rows = self._rows(name)
        ends = rows[~_is_later(rows, version), COLUMNS[name].index(at)]
        return int(ends.max()) if len(ends) else None


def _has_versions(name: str) -> bool:
    """Whether a table begins with the columns of generation and version."""
    return COLUMNS[name][:2] == ("generation", "version")


def _is_later(rows: Table, version: Version) -> "NDArray[np.bool_]":
    """Which rows of a table with versions belong to a later one, in the same or in a later generation."""
    generations, versions = rows[:, 0], rows[:, 1]
    later: NDArray[np.bool_] = (generations > version[0]) | ((generations == version[0]) & (versions > version[1]))
    return later


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
        left_out = newest_version(directory)[1] - MOST_CYCLES // max(len(workers), 1)
        if left_out < 0:
            return cls.read(directory)
        newest = cls.read(directory, ALL[left_out:])  # the times after `left_out` begin at its end
        oldest = min(newest.generations(), default=0)
        processes = []
        for each in newest.processes:
            rest = each.after((oldest, left_out))
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

    def after(self, version: Version) -> "RunTables":
        """The part of the profile after ``version``."""
        return RunTables(tuple(each.after(version) for each in self.processes))

    def generations(self) -> set[int]:
        return set().union(*(each.generations() for each in self.processes))

    def of_session(self, run: str) -> "RunTables":
        """The profiles of the processes of one session, by its run id."""
        return replace(self, processes=tuple(each for each in self.processes if each.run == run))

    def newest_session(self) -> "RunTables":
        """The profiles of the processes of the newest session, or this profile if nothing was recorded."""
        newest = max(self.generations(), default=-1)
        run = next((each.run for each in self.processes if newest in each.generations()), None)
        return self if run is None else self.of_session(run)

    def newest_generation(self) -> "RunTables":
        """The part of the profile since the last resume or rollback, which can have undone earlier versions."""
        newest = max(self.generations(), default=-1)
        return self.newest_session().after((newest - 1, sys.maxsize))

    def published(self) -> tuple[Version, Columns] | None:
        """The newest version that all shards recorded, and the table of versions of the shard that ends with it.

        None without such a version. Earlier generations do not count.
        """
        generation = max(self.generations(), default=-1)
        parts: defaultdict[int, list[Columns]] = defaultdict(list)  # a restarted shard has several profiles
        for shard in self.of_role("shard"):
            parts[shard.process.number].append(shard.table("versions", generation))
        tables = [{name: np.concatenate([part[name] for part in of]) for name in of[0]} for of in parts.values()]
        newest = [(int(table["version"].max()), table) for table in tables if len(table["version"])]
        if not newest:
            return None
        version, table = min(newest, key=lambda each: each[0])
        return (generation, version), table

    def complete(self) -> "RunTables":
        """This profile without the newest updates, which some living processes have not written yet.

        A worker that lives has written a contribution to one of the versions of the last ``ALIVE_S``. Other workers
        are slow, died, are external, or could not write their profiles.
        """
        published = self.published()
        if published is None:
            return self
        (generation, version), table = published
        recent = int(table["version"][_seconds_ago(table, version) <= ALIVE_S].min()) - 1
        written: dict[int, int] = {}
        for each in self.of_role("worker"):
            versions = each.table("cycles", generation)["version"]
            written[each.process.number] = max(written.get(each.process.number, -1), int(versions.max(initial=-1)))
        arrivals = [each.table("arrivals", generation) for each in self.of_role("shard")]
        end = version - 1
        for rank, newest in written.items():
            for arrived in arrivals if newest >= recent else ():
                is_unwritten = (arrived["rank"] == rank) & (arrived["version"] > newest)
                unwritten = arrived["version"][is_unwritten & (arrived["outcome"] != REJECTED)]
                end = min(end, int(unwritten.min(initial=version)) - 1)
        return replace(self, processes=tuple(each.up_to((generation, end)) for each in self.processes))

    def last(self, seconds: float) -> "RunTables":
        """The part of the newest generation in the last ``seconds`` before its newest complete update."""
        complete = self.newest_generation().complete()
        published = complete.published()
        if published is None:
            return complete
        (generation, version), table = published
        early = table["version"][_seconds_ago(table, version) > seconds]
        return complete.after((generation, int(early.max(initial=-1))))

    def of_role(self, role: str) -> Iterable[ProcessTables]:
        """The profiles of a role, sorted by number and incarnation."""
        return (each for each in self.processes if each.process.role == role)


def _seconds_ago(versions: Columns, newest: int) -> "NDArray[np.float64]":
    """How many seconds before the version ``newest`` a shard published each of the ``versions``."""
    at_us = versions["published_at_us"]
    ago: NDArray[np.float64] = (at_us[versions["version"] == newest].max() - at_us) / 1e6
    return ago


def newest_version(directory: Path) -> Version:
    """The newest version that a shard recorded, or (-1, -1). Reads only the newest files."""
    newest = (-1, -1)
    shards = {path.name.partition(".")[0] for path in segments(directory) if path.name.startswith("shard-")}
    for shard in shards:
        for path in reversed(segments(directory, ProcessId.parse(shard))):
            tables = [block["tables"].get("versions") for block in unpack(read_file(path))]
            found = [_newest_of(table) for table in tables if table is not None and len(table)]
            if found:
                newest = max(newest, *found)
                break
    return newest


def _newest_of(rows: Table) -> Version:
    """The newest version in the rows of a table with versions."""
    generation = rows[:, 0].max()
    return int(generation), int(rows[rows[:, 0] == generation, 1].max())
