"""The report of a profile: plain data for ``--json``, and a text for people."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from zmqrl.observe.histogram import PERCENTS, Histogram, merged, or_dash, statistics_ms
from zmqrl.observe.spans import SHARD_SPANS, WORKER_SPANS
from zmqrl.observe.tables import plain_table
from zmqrl.process_id import ProcessId, worker_id
from zmqrl.profile.accounts import Accounts, accounts, asynchronous_accounts
from zmqrl.profile.clocks import Clocks
from zmqrl.profile.critical_path import CriticalPath, Timeline, critical_paths, without_kth, without_path
from zmqrl.profile.machine_use import MachineUse, machine_use, warnings
from zmqrl.profile.profiler import FLUSH_EVERY_S
from zmqrl.profile.run_tables import MOST_CYCLES, RunTables
from zmqrl.profile.trace import left_out
from zmqrl.words import counted, numbered

BLAME_SHOWN = 12
AS_IT_WAS, ONE_BACKUP_FEWER = "as it was", "one backup fewer"  # names of two rows in the predictions
SYNC_COLUMNS = ("counted", "was K-th", "late", "skipped", "resent", "worked s", "wasted s")
ASYNC_COLUMNS = ("counted", "staleness", "most stale", "resent", "worked s")
NO_PATH = (
    "this run is asynchronous: each contribution makes a version of its own, so there is no critical path, "
    "no blame table and no what-if"
)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the tables of a run show: the critical path of each version, and the time of each process."""

    tables: RunTables
    clocks: Clocks
    timeline: Timeline
    paths: Sequence[CriticalPath]
    accounts: Accounts
    machine: dict[ProcessId, MachineUse]
    asynchronous: bool

    @classmethod
    def of(cls, tables: RunTables, *, shards: int = 0, asynchronous: bool = False) -> "Analysis":
        """Find the critical path of every version, and add up the contributions of each rank.

        ``shards`` is the number of shards in the settings. Without the profile of one of them, there are no paths.
        An ``asynchronous`` run has no critical path, so its analysis has no paths.
        """
        tables = tables if asynchronous else tables.complete()
        clocks = Clocks.of(tables)
        timeline = Timeline.of(tables, clocks, shards)
        paths = [] if asynchronous else critical_paths(timeline)
        found = asynchronous_accounts(timeline) if asynchronous else accounts(timeline, paths)
        return cls(tables, clocks, timeline, paths, found, machine_use(tables), asynchronous)

    def newest_session(self) -> "Analysis":
        """The analysis of the newest session of a resumed run."""
        session = self.tables.newest_session()
        same = len(session.processes) == len(self.tables.processes)
        return self if same else Analysis.of(session, shards=self.timeline.shards, asynchronous=self.asynchronous)

    def to_json(self) -> dict[str, Any]:
        seconds = [path.seconds for path in self.paths]
        found = self.accounts
        return {
            "mode": "async" if self.asynchronous else "sync",
            "updates": self._versions_made() if self.asynchronous else len(self.paths),
            "without_path": {} if self.asynchronous else self._without_path(),
            "without_kth": 0 if self.asynchronous else without_kth(self.timeline),
            "update_ms": statistics_ms(seconds),
            "budget_ms": self._budget(),
            "path_ms": self._path(),
            "blame": self._blame(),
            "kth": {} if self.asynchronous else {str(rank): account.kth for rank, account in found.ranks.items()},
            "inclusion": {str(rank): account.inclusion for rank, account in found.ranks.items()},
            "ranks": {str(rank): asdict(account) for rank, account in found.ranks.items()},
            "backup_gain_s": found.backup_gain_s,
            "spans": [span_statistics(*each) for each in self._spans()],
            "clocks": {
                host: {
                    "offset_ms": clock.offset_us / 1e3,
                    "drift_ppm": clock.drift * 1e6,
                    "error_ms": clock.error_us / 1e3,
                }
                for host, clock in self.clocks.by_host(self.tables.processes).items()
            },
            "left_out": left_out(self.tables, self.clocks),
            "machine": {str(process): asdict(use) for process, use in self.machine.items()},
            "warnings": [*self._shortened(), *self._missing(), *found.warnings, *warnings(self.machine)],
            "what_if": [],
        }

    def first_version(self) -> int:
        """The lowest version whose update a shard recorded, or 0."""
        made = (
            version
            for (_, version), shards in self.timeline.publications.items()
            if any(publication.is_made for publication in shards.values())
        )
        return min(made, default=0)

    def _versions_made(self) -> int:
        """The greatest number of versions that any shard made."""
        made = Counter(
            shard
            for shards in self.timeline.publications.values()
            for shard, publication in shards.items()
            if publication.is_made
        )
        return max(made.values(), default=0)

    def _shortened(self) -> list[str]:
        left_out = self.tables.left_out
        if left_out < 0:
            return []
        return [f"the report covers only versions after {left_out:,}: its limit is {MOST_CYCLES:,} contributions"]

    def _missing(self) -> list[str]:
        missing = self.timeline.missing_shards()
        if not missing:
            return []
        which = numbered("shard", missing)
        return [f"{which} recorded nothing. Each process saves its profile every {FLUSH_EVERY_S:g} seconds"]

    def _without_path(self) -> dict[str, int]:
        """The number of updates that waited for a rank whose work is not recorded, by rank."""
        return {str(rank): updates for rank, updates in sorted(without_path(self.timeline).items())}

    def _budget(self) -> dict[str, dict[str, float]]:
        """Mean milliseconds by role and span: per contribution for workers, and per version for shards."""
        workers: defaultdict[str, float] = defaultdict(float)
        for cycle in self.timeline.cycles.values():
            for name, seconds in cycle.spans.items():
                workers[name] += 1e3 * seconds
        shards: defaultdict[str, float] = defaultdict(float)
        made = [each for shards_of in self.timeline.publications.values() for each in shards_of.values()]
        for publication in made:
            for name, seconds in publication.spans.items():
                shards[name] += 1e3 * seconds
        count = len(self.timeline.cycles)
        return {
            "worker": {name: total / count for name, total in workers.items()},
            "shard": {name: total / len(made) for name, total in shards.items()},
        }

    def _path(self) -> dict[str, float]:
        """Mean milliseconds per update for each part of the critical path."""
        parts: defaultdict[str, float] = defaultdict(float)
        for path in self.paths:
            for part in path.parts:
                parts[part.cause] += 1e3 * part.seconds / len(self.paths)
        return dict(sorted(parts.items(), key=lambda item: -item[1]))

    def _blame(self) -> list[dict[str, Any]]:
        """Seconds beyond the usual time by cause, process and host, over all updates, largest first."""
        lost: defaultdict[tuple[str, ProcessId, str], float] = defaultdict(float)
        for path in self.paths:
            for part in path.parts:
                lost[part.cause, part.process, part.host] += part.excess_s
        whole = sum(path.seconds for path in self.paths)
        return [
            {
                "cause": cause,
                "rank": process.number if process.role == "worker" else None,
                "shard": process.number if process.role == "shard" else None,
                "host": host,
                "seconds": seconds,
                "share": seconds / whole,
            }
            for (cause, process, host), seconds in sorted(lost.items(), key=lambda item: -item[1])
            if seconds > 0
        ]

    def _spans(self) -> Iterable[tuple[str, str, Histogram]]:
        """Process or group, span, and durations in nanoseconds: per role, then per host, then per process."""
        for role, names in (("worker", WORKER_SPANS), ("shard", SHARD_SPANS)):
            processes = list(self.tables.of_role(role))
            histograms = [each.histograms() for each in processes]
            whos = {f"all {role}s": histograms}
            if len({each.host for each in processes}) > 1:
                for each, found in zip(processes, histograms, strict=True):
                    whos.setdefault(f"{role}s on {each.host}", []).append(found)
            for each, found in zip(processes, histograms, strict=True):
                whos.setdefault(str(each.process), []).append(found)
            for who, group in whos.items():
                for name in names:
                    durations = merged(found[name] for found in group if name in found)
                    if durations.count:
                        yield who, name, durations


def span_statistics(who: str, span: str, durations: Histogram) -> dict[str, Any]:
    """The statistics of a span in milliseconds."""
    percentiles = {f"p{percent:g}": durations.percentile(percent) / 1e6 for percent in (*PERCENTS, 99.9)}
    return {"who": who, "span": span, "count": durations.count, "mean": durations.mean / 1e6} | (
        percentiles | {"max": durations.maximum / 1e6}
    )


def print_report(found: dict[str, Any], console: Console, *, processes: bool) -> None:
    """Print the data of ``Analysis.to_json``. ``processes`` adds the spans and machine use of every process."""
    if found["mode"] == "async":
        console.print(f"{NO_PATH}\n\neach shard made at most {counted(found['updates'], 'version')}\n", soft_wrap=True)
    elif not found["updates"] and not found["without_path"] and not found["without_kth"]:
        console.print("no complete update was recorded")
    else:
        _print_updates(found, console)
    for role, spans in found["budget_ms"].items():
        _print_bars(f"time of a {role} per {'contribution' if role == 'worker' else 'version'}, ms", spans, console)
    _print_ranks(found, console)
    if found["spans"]:
        _print_spans(found["spans"], console, all_of_them=processes)
    if processes:
        _print_machine(found["machine"], console)
    _print_clocks(found["clocks"], console)
    if lag := found.get("policy_lag"):
        console.print(f"policy lag: mean {lag['mean']:.2f} versions, at most {lag['max']:.0f}")
    for number, each in found.get("traffic", {}).items():
        console.print(
            f"shard {number}: received {each['received'] / 1e6:,.1f} MB, sent {each['sent'] / 1e6:,.1f} MB",
            highlight=False,
        )
    console.print()
    if found["what_if"]:
        _print_what_if(found["what_if"], console)
    print_warnings(found, console)


def print_warnings(found: Mapping[str, Any], console: Console) -> None:
    """Print the warnings in the data of ``Analysis.to_json``."""
    for text in (*found["warnings"], *found["left_out"]):
        console.print(f"! {text}", soft_wrap=True)


def _print_updates(found: dict[str, Any], console: Console) -> None:
    update, left_out, without_kth = found["update_ms"], found["without_path"], found["without_kth"]
    whole = found["updates"] + sum(left_out.values()) + without_kth
    updates = counted(whole, "update")
    if found["updates"] < whole:
        updates = f"{found['updates']:,} of {updates}"
    if found["updates"]:
        percentiles = (f"{name} {or_dash(update[name], 2)}" for name in ("p50", "p90", "p99"))
        updates += f": mean {update['mean']:.2f} ms, {', '.join(percentiles)}"
    console.print(updates, soft_wrap=True)
    if left_out:
        ranks = numbered("rank", map(int, left_out))
        waited = f"{counted(sum(left_out.values()), 'update')} that waited for {ranks}"
        console.print(f"! the report leaves out {waited}, whose work is not in the profile", soft_wrap=True)
    if without_kth:
        closed = f"{counted(without_kth, 'update')} that no contribution completed: the quorum became smaller"
        console.print(f"! the report leaves out {closed}", soft_wrap=True)
    console.print()
    if found["updates"]:
        _print_bars("critical path of an update, ms", found["path_ms"], console)
        _print_blame(found["blame"], console)


def _print_bars(title: str, values: dict[str, float], console: Console) -> None:
    whole = sum(values.values())
    table = plain_table(title, "", "ms", "share", "")
    table.columns[3].justify = "left"
    for name, value in sorted(values.items(), key=lambda item: -item[1]):
        if value > 0:
            table.add_row(name, f"{value:.3f}", f"{value / whole:.0%}", "█" * round(40 * value / whole))
    console.print(table, "")


def who(row: Mapping[str, Any]) -> str:
    """The process in a row of the blame, in words."""
    return f"rank {row['rank']}" if row["rank"] is not None else f"shard {row['shard']}"


def _print_blame(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = plain_table("causes of delay beyond the usual time", "cause", "who", "host", "seconds", "share")
    for row in rows[:BLAME_SHOWN]:
        table.add_row(row["cause"], who(row), row["host"], f"{row['seconds']:.2f}", f"{row['share']:.1%}")
    if len(rows) > BLAME_SHOWN:
        rest = sum(row["seconds"] for row in rows[BLAME_SHOWN:])
        table.add_row(f"{len(rows) - BLAME_SHOWN} more", "", "", f"{rest:.2f}", "")
    console.print(table, "")


def _sync_cells(each: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{each['inclusion']:.1%}", f"{each['kth']:.1%}", str(each["late"]), str(each["skipped"]))
    return (*counts, str(each["again"]), f"{each['worked_s']:.1f}", f"{each['wasted_s']:.1f}")


def _async_cells(each: Mapping[str, Any]) -> tuple[str, ...]:
    age = ("", "") if each["staleness"] is None else (f"{each['staleness']:.1f}", str(each["most_stale"]))
    return (f"{each['inclusion']:.1%}", *age, str(each["again"]), f"{each['worked_s']:.1f}")


def _print_ranks(found: dict[str, Any], console: Console) -> None:
    columns, cells = (ASYNC_COLUMNS, _async_cells) if found["mode"] == "async" else (SYNC_COLUMNS, _sync_cells)
    table = plain_table("workers", "rank", "host", *columns, "of a core")
    for rank, each in found["ranks"].items():
        share = found["machine"].get(str(worker_id(int(rank))), {}).get("core_share")
        table.add_row(rank, each["host"], *cells(each), "" if share is None else f"{share:.0%}")
    console.print(table)
    if found["backup_gain_s"] is not None:
        console.print(_last_backup(found), soft_wrap=True)
    console.print()


def _last_backup(found: dict[str, Any]) -> str:
    """In words: what the last backup costs, what it saves with cores of its own, and what it saves in the replay."""
    gain_ms, cost_s = 1e3 * found["backup_gain_s"], sum(each["worked_s"] for each in found["ranks"].values())
    cost_ms = 1e3 * cost_s / len(found["ranks"]) / max(found["updates"], 1)
    text = f"the last backup works for {cost_ms:.2f} ms per update. With cores of its own, it saves {gain_ms:.2f} ms"
    rates = {row["change"]: row["updates_per_s"] for row in found["what_if"]}
    if ONE_BACKUP_FEWER in rates:
        saved_ms = 1e3 / rates[ONE_BACKUP_FEWER] - 1e3 / rates[AS_IT_WAS]
        text += f". In the replay, with the cores of this run, it {'saves' if saved_ms >= 0 else 'costs'} "
        text += f"{abs(saved_ms):.2f} ms"
    return text


def _print_spans(rows: Sequence[dict[str, Any]], console: Console, *, all_of_them: bool) -> None:
    table = plain_table("spans, ms", "who", "span", "count", "mean", "p50", "p90", "p99", "p99.9", "max")
    for row in rows if all_of_them else [row for row in rows if " " in row["who"]]:
        numbers = (f"{row[name]:.3f}" for name in ("mean", "p50", "p90", "p99", "p99.9", "max"))
        table.add_row(row["who"], row["span"], f"{row['count']:,}", *numbers)
    console.print(table, "")


def _print_machine(uses: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    titles = (
        "process",
        "host",
        "of a core",
        "waits for a core",
        "stolen",
        "throttled",
        "preempted/s",
        "major faults/s",
    )
    table = plain_table("use of the machine", *titles)
    for process, use in uses.items():
        shares = (use[name] for name in ("core_share", "queued_share", "stolen_share", "throttled_share"))
        rates = (use[name] for name in ("preempted_per_s", "major_faults_per_s"))
        cells = [("" if each is None else f"{each:.1%}") for each in shares]
        table.add_row(process, use["host"], *cells, *("" if each is None else f"{each:.1f}" for each in rates))
    console.print(table, "")


def _print_clocks(clocks: dict[str, dict[str, float]], console: Console) -> None:
    if len(clocks) > 1:
        table = plain_table("clocks", "host", "offset ms", "drift ppm", "error ms")
        for host, clock in clocks.items():
            numbers = (f"{clock['offset_ms']:.3f}", f"{clock['drift_ppm']:.2f}", f"{clock['error_ms']:.3f}")
            table.add_row(host, *numbers)
        console.print(table, "")


def _print_what_if(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = plain_table("what if", "change", "updates/s", "error of the replay")
    for row in rows:
        table.add_row(row["change"], f"{row['updates_per_s']:.2f}", f"{row['replay_error']:+.1%}")
    console.print(table, "")
