"""Where the time of a run's newest versions went, as plain data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from zmqrl.observe.folding import by_number
from zmqrl.profile.critical_path import WORK, Cycle
from zmqrl.profile.machine_use import grown_s
from zmqrl.profile.report import BLAME_SHOWN, Analysis
from zmqrl.profile.run_tables import ProcessTables, RunTables

VERSIONS = 240
VERSIONS_SHOWN = 60
BLOCKS = 12  # a process writes a block at least every 5 s
SPANS = (*WORK[2:], *WORK[:2])  # wait and assemble come last


def read_timing(profile: Path, *, shards: int = 0, asynchronous: bool) -> dict[str, Any]:
    """The heat map, the blame table and the use of hosts over the newest versions in the directory ``profile``.

    ``shards`` is the number of shards in the settings of the run.

    - ``spans``: by rank, the mean seconds of each span per contribution.
    - ``kth``: by rank, the share of versions that its contribution completed, as the K-th.
    - ``versions``: the last versions, each with the rank that was the K-th.
    - ``work``: by rank, the seconds of work for each of these versions, or null.
    """
    tables = _newest_versions(RunTables.tail(profile, BLOCKS))
    found = Analysis.of(tables, shards=shards, asynchronous=asynchronous)
    paths = found.paths
    kth = {(path.generation, path.version): path.kth.number for path in paths}
    shown = sorted(kth)[-VERSIONS_SHOWN:]
    ranks = sorted({rank for _, rank in found.timeline.cycles} | set(kth.values()))
    cycles: dict[int, list[Cycle]] = {rank: [] for rank in ranks}
    for (_, rank), made in found.timeline.cycles.items():
        cycles[rank].append(made)
    report = found.to_json()
    return {
        "versions_covered": len(paths),
        "update_ms": report["update_ms"],
        "spans": {str(rank): _spans(of_rank) for rank, of_rank in cycles.items()},
        "kth": report["kth"],
        "inclusion": report["inclusion"],
        "versions": [{"version": version + 1, "kth": kth[generation, version]} for generation, version in shown],
        "work": {
            str(rank): [
                None if (cycle := found.timeline.cycles.get((version, rank))) is None else cycle.worked_s
                for version in shown
            ]
            for rank in ranks
        },
        "blame": report["blame"][:BLAME_SHOWN],
        "warnings": report["warnings"],
        "hosts": _hosts(tables.processes),
    }


def _newest_versions(tables: RunTables) -> RunTables:
    """The newest ``VERSIONS`` versions that all processes recorded since the last resume or rollback."""
    tables = tables.newest_generation().complete()
    published = tables.published()
    if published is None:
        return tables
    (generation, version), _ = published
    return tables.after((generation, version - VERSIONS))


def _spans(cycles: Sequence[Cycle]) -> dict[str, float]:
    """Mean seconds of each span of a rank's contributions, without spans that took no time."""
    means = {name: fmean(cycle.spans.get(name, 0.0) for cycle in cycles) for name in SPANS if cycles}
    return {name: mean for name, mean in means.items() if mean > 0}


def _hosts(processes: Iterable[ProcessTables]) -> dict[str, Any]:
    """By host: its cores and memory, and those that each process used in its newest profile."""
    newest: dict[str, ProcessTables] = {}
    for each in processes:
        newest[str(each.process)] = max(each, newest.get(str(each.process), each), key=lambda one: one.incarnation)
    hosts: dict[str, dict[str, Any]] = {}
    for name in sorted(newest, key=by_number):
        each = newest[name]
        host = hosts.setdefault(
            each.host, {"cores": each.machine_cores, "memory_kb": each.machine_memory_kb, "processes": {}}
        )
        host["processes"][name] = _use(each)
    return hosts


def _use(each: ProcessTables) -> Mapping[str, float | None]:
    machine = each.table("machine")
    elapsed_s = grown_s(machine, "at_us")
    memory_kb = machine["memory_kb"][-1:].tolist()
    return {
        "cores": grown_s(machine, "process_cpu_us") / elapsed_s if elapsed_s > 0 else None,
        "memory_kb": memory_kb[0] if memory_kb and memory_kb[0] > 0 else None,
    }
