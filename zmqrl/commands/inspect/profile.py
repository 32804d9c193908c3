"""``zmqrl profile``: where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro
from rich.console import Console

from zmqrl.commands.options import RunPaths, check_picture
from zmqrl.commands.output import print_json
from zmqrl.errors import ClusterError, UsageError, refusal, require
from zmqrl.observe.records import RunRecord
from zmqrl.observe.tables import page
from zmqrl.process import interruptible
from zmqrl.profile.accounts import traffic
from zmqrl.profile.difference import changes, grown, print_changes
from zmqrl.profile.profiler import FLUSH_EVERY_S
from zmqrl.profile.report import Analysis, print_report, print_warnings
from zmqrl.profile.run_tables import RunTables, newest_version
from zmqrl.profile.trace import cut_short, newest, write_trace
from zmqrl.profile.versions import held_up, print_versions, version_range
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.rundir import RunDirectory, not_a_run
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.replay import what_if
from zmqrl.simulate.times import processes_of, settings_of
from zmqrl.words import numbered

GROWN = 1  # exit status


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show where the time of a run goes: the time of each span, and which worker, shard and span each update waited
    for. The run can still be in progress. With two runs, show what changed from the first to the second.
    """

    runs: Annotated[RunPaths, tyro.conf.arg(metavar="RUN [RUN]")]
    """The run directory, or two run directories to compare."""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Profile only the next S seconds of a run in progress. None: everything recorded so far."""
    json: bool = False
    """Print one JSON object."""
    processes: bool = False
    """Also print the spans and the machine use of every process."""
    without: Annotated[tuple[int, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="RANK")] = ()
    """Also predict the run without this rank. The ranks that delayed updates most are always included."""
    versions: Annotated[str | None, tyro.conf.arg(metavar="V[-W]")] = None
    """For each version from V to W, list what its update waited for: the K-th rank, the last shard, the worst delay."""
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a trace of all processes on one clock, for https://ui.perfetto.dev."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Draw the critical path, the times of updates, and what updates waited for."""
    fail_above: Annotated[str | None, tyro.conf.arg(metavar="P%")] = None
    """With two runs: exit with 1 if an update, a part of the critical path or a span grew by more than this share
    of the first run's update time. The span `wait` is ignored."""


@interruptible()
def run(options: Options) -> int:
    """Print the profile of a run, or the difference between two."""
    console = page()
    if len(options.runs) == 2:
        return _compare(options, console)
    if len(options.runs) != 1:
        raise UsageError(f"zmqrl profile takes one run, or two to compare, but {len(options.runs)} were given.")
    if options.fail_above is not None:
        raise UsageError("--fail-above compares two runs: name the earlier run, then the later one.")
    if options.plot is not None:
        check_picture("--plot", options.plot)
    shown = None if options.versions is None else version_range(options.versions)
    path = options.runs[0]
    record = RunRecord.read(path)
    asynchronous = record.is_asynchronous
    if options.without:
        check_ranks(path, record, options.without)
    if asynchronous and options.plot is not None:
        raise UsageError(f"--plot shows the critical path, but {path} is asynchronous and has none: remove --plot.")
    if asynchronous and shown is not None:
        raise UsageError(
            f"--versions shows critical paths, but {path} is asynchronous and has none: remove --versions."
        )
    tables = read(path) if options.seconds is None else watch(path, options.seconds)
    analysis = Analysis.of(tables, shards=record.shards, asynchronous=asynchronous)
    found = analysis.to_json()
    add_settings(path, record, analysis, found, options.without)
    if shown is not None:
        found["versions"] = held_up(analysis.paths, shown)
        without = f"--versions {options.versions}: the profile has no critical path for these versions."
        require(bool(found["versions"]), without)
    if options.trace is not None:
        with _written(options.trace):
            write_trace(tables.newest_generation(), options.trace, newest(tables), arrows=not asynchronous)
        found["warnings"] += cut_short(tables)
    if options.plot is not None:
        from zmqrl.profile.plot import plot_profile  # matplotlib takes a second to import

        with _written(options.plot):
            plot_profile(analysis, found, options.plot, str(path))
    if options.json:
        print_json(found)
    elif shown is not None:
        print_versions(found["versions"], console)
        print_warnings(found, console)
    else:
        print_report(found, console, processes=options.processes)
    return 0


def check_ranks(path: Path, record: RunRecord, ranks: Sequence[int]) -> None:
    """Raise UsageError if the run cannot be predicted, or lacks one of ``ranks``."""
    if record.is_asynchronous:
        raise UsageError(f"--without {ranks[0]}: {path} is asynchronous, so it cannot be predicted.")
    known = processes_of(record.settings, path).ranks
    for rank in ranks:
        require(0 <= rank < known, f"--without {rank}: the run has only {numbered('rank', range(known))}.")
        require(known > 1, f"--without {rank}: this is the only rank of the run, which makes no updates without it.")


def add_settings(
    path: Path, record: RunRecord, analysis: Analysis, found: dict[str, Any], without: Sequence[int]
) -> None:
    """Add predictions, bytes per shard and policy lag to ``found``.

    If the run cannot be replayed, add a warning instead of predictions. An asynchronous run gets only the policy lag.
    """
    first = analysis.first_version()
    rows = (row for row in record.rows if row["version"] >= first)
    lags = [row for row in rows if row.get("policy_lag") is not None]
    if lags:
        found["policy_lag"] = {
            "mean": fmean(row["policy_lag"] for row in lags),
            "max": max(row.get("policy_lag_max") or row["policy_lag"] for row in lags),
        }
    if analysis.asynchronous:
        return
    try:
        scenario = settings_of(path, record)
        slice_bytes = payload_bytes(scenario.codec, scenario.parameters) // scenario.shards
        found["traffic"] = {str(shard): asdict(each) for shard, each in traffic(analysis.timeline, slice_bytes).items()}
        if analysis.paths:
            recorded = RecordedRun(analysis, scenario)
            if recorded.earlier:
                found["warnings"].append(f"what if: {recorded.earlier}")
            predicted = what_if(recorded, found["warnings"].append, without)
            found["what_if"] = [asdict(each) for each in predicted]
    except (UsageError, ClusterError) as error:
        found["warnings"].append(f"no predictions: {error}")


def _compare(options: Options, console: Console) -> int:
    one_run = [name for name in ("seconds", "versions", "trace", "plot") if getattr(options, name) is not None]
    one_run += [name for name in ("processes", "without") if getattr(options, name)]
    if one_run:
        raise UsageError(f"--{one_run[0]} works with only one run: remove it to compare two.")
    limit = None if options.fail_above is None else share(options.fail_above)
    records = [RunRecord.read(path) for path in options.runs]
    for path, record in zip(options.runs, records, strict=True):
        if record.is_asynchronous:
            raise UsageError(f"{path} is asynchronous and has no updates to compare: use synchronous runs.")
    reports = []
    for path, record in zip(options.runs, records, strict=True):
        reports.append(Analysis.of(read(path), shards=record.shards).to_json())
        if not reports[-1]["updates"]:
            raise UsageError(f"{path} has no complete update in its profile.")
    before, after = reports
    found = changes(before, after)
    above = grown(found, limit) if limit is not None else []
    if options.json:
        print_json({"changes": [asdict(change) for change in found], "above": [asdict(change) for change in above]})
    else:
        print_changes(found, console)
        for each in above:
            growth = f"+{each.growth:.1%} of the first run's update time"
            console.print(f"! {each.role} {each.span}: {growth}".replace("  ", " "))
    return GROWN if above else 0


def share(text: str) -> float:
    """``10%`` as 0.1. Raises UsageError."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < 1e6:
        raise UsageError(f"--fail-above {text}: write a percentage, such as 10%.")
    return percent / 100


def read(path: Path) -> RunTables:
    """The profile of a run. Raises UsageError if the run has none."""
    directory = RunDirectory(path)
    if not directory.config.exists():
        raise not_a_run(path)
    try:
        tables = RunTables.newest(directory.profile)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or directory.profile}: {error.strerror}.") from error
    if not tables.processes:
        raise UsageError(
            f"{path} has no profile: an older zmqrl made the run, or it ended in its first seconds, or ZMQRL_PROFILE "
            "was off. The mean time of each span is still in its metrics.jsonl, under split_s."
        )
    return tables


def watch(path: Path, seconds: float) -> RunTables:
    """The profile of the next ``seconds`` of a run. Raises UsageError if it is not running.

    Processes write at intervals, so both ends of the profile can be late by up to ``FLUSH_EVERY_S``.
    """
    if not 0 < seconds < 1e6:
        raise UsageError(f"--seconds {seconds:g}: must be above 0.")
    directory = RunDirectory(path)
    if not directory.in_use():
        raise UsageError(f"{path} is not running: remove --seconds to profile everything that it recorded.")
    before = newest_version(directory.profile)
    time.sleep(seconds + FLUSH_EVERY_S)  # every process has then written its rows
    return read(path).last(seconds).after(before)


@contextlib.contextmanager
def _written(file: Path) -> Iterator[None]:
    """Raise UsageError if ``file`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(refusal(error, file)) from error
