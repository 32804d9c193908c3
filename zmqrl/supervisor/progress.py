"""The progress of a run: a row of metrics every second, for metrics.jsonl, the trackers and the screen."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from zmqrl.config import Config
from zmqrl.json_lines import JsonLines
from zmqrl.learner.games import is_ale_id
from zmqrl.observe.console import Console, LiveFigures
from zmqrl.observe.live.presence import Presence, by_host
from zmqrl.observe.metrics import Counters, RunMetrics, ShardStats, summed
from zmqrl.observe.reports import WorkerReport
from zmqrl.observe.trackers import CLOSE_WITHIN_S, Tracked, Trackers
from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.shard.history import read_lines
from zmqrl.ps.shard.optimizer import Optimizer
from zmqrl.ps.wire import messages as m
from zmqrl.rundir import RunDirectory

ROW_EVERY_S = 1.0


class Progress:
    """The metrics of a run. ``row`` is the newest row, and ``processes`` has the processes that the screen shows."""

    def __init__(self, config: Config, directory: RunDirectory, counters: Counters, console: Console) -> None:
        self.config, self.directory, self.console = config, directory, console
        self.rows = JsonLines(directory.metrics)
        self.row_version = 0  # the version of each later row is higher
        for row in read_lines(directory.metrics):
            self.row_version = max(self.row_version, row["version"])
            if row["version"] <= counters.version:
                counters = counters.not_below(row)
        self.started = range(config.ranks - config.external_workers)  # the ranks that the supervisor starts
        self.metrics = RunMetrics(start=counters, reporting=self.started)
        tracked = Tracked(directory=directory, settings=config.to_json(), resumed_at=counters.version or None)
        self.trackers = Trackers(config.trackers, tracked, console.notice)
        self.malformed: set[int] = set()  # ranks whose reports were malformed
        self.began_at: float | None = None
        self.row_at = 0.0
        self.row: dict[str, Any] = self.metrics.row(0.0)
        self.processes: Sequence[Presence] = ()
        self.made_at = 0  # progress of the run at the newest version, in millionths

    def begin(self, now: float) -> None:
        """Workers begin to compute the first version: the training time starts now."""
        self.began_at = self.row_at = now

    def trained_s(self) -> float:
        return 0.0 if self.began_at is None else time.monotonic() - self.began_at

    def on_report(self, report: m.Report) -> WorkerReport | None:
        """Add a worker's report to the metrics, and return it. Ignores a malformed report, and returns None."""
        figures = _unpack(report.figures) | {"rank": report.rank, "incarnation": report.incarnation}
        try:
            parsed = WorkerReport.parse(figures)
        except ValueError as error:
            if report.rank not in self.malformed:
                self.malformed.add(report.rank)
                self.console.notice(f"reports of worker {report.rank} are ignored because they are malformed: {error}")
            return None
        if self.metrics.on_report(parsed) and report.rank not in self.started:
            self.console.notice(f"another worker has taken over rank {report.rank}")
        return parsed

    def on_stats(self, stats: Mapping[int, m.Stats], shards: Iterable[int], members: tuple[int, ...]) -> None:
        """Add the STATS of the shards to the metrics. ``stats`` lacks the shards that have not answered."""
        if stats:
            self.made_at = min(stats.values(), key=lambda each: each.version).made_at
        self.metrics.on_shards([_shard_stats(stats[s]) if s in stats else None for s in shards], members)

    def counters_at(self, version: int, stats: Mapping[int, m.Stats]) -> dict[str, Any]:
        """The counters at ``version``, which every shard has copied, without later contributions."""
        counters = self.metrics.counters()
        contributions = {**counters.contributions, **summed(each.captured_totals for each in stats.values())}
        return dataclasses.replace(counters, version=version, contributions=contributions).to_json()

    def end(self, version: int, stats: Mapping[int, m.Stats], members: tuple[int, ...], now: float) -> dict[str, Any]:
        """Make the last row, for ``version``, which every shard has copied. Returns the final counters."""
        last = {s: dataclasses.replace(each, version=version, totals=each.captured_totals) for s, each in stats.items()}
        self.on_stats(last, sorted(last), members)
        self.show(now)
        return self.counters_at(version, last)

    def undo_rows(self, version: int, generation: int) -> None:
        """All shards have gone back to ``version``: move the rows of later versions to a separate file."""
        self.metrics.go_back(version)
        try:
            self.rows.rewind(version, generation)
        except OSError as error:
            self.console.notice(f"{self.directory.metrics} still has rows that a rollback has undone: {error.strerror}")
        self.row_version = min(self.row_version, version)

    def due(self, now: float) -> bool:
        return self.began_at is not None and now - self.row_at >= ROW_EVERY_S

    def put_off(self, now: float) -> None:
        """Postpone the next row by a full interval, so that the row has new statistics."""
        self.row_at = now

    def show(self, now: float) -> None:
        """Make and show the next row. Write the row only if its version is above the version of every earlier row."""
        self.row_at = now
        is_newer = self.metrics.version > self.row_version
        self.row = self.metrics.row(self.trained_s(), written=is_newer)
        optimizer, before = Optimizer(self.config.optimizer), max(0, self.row["version"] - 1)
        self.row["learning_rate"] = optimizer.learning_rate(before, self.made_at / WHOLE)
        if is_newer:
            self.row_version = self.row["version"]
            self.rows.write_or_tell(self.row, self.console.notice)
            self.trackers.log(self.row, self.row["version"])
        figures = live_figures(self.config, self.directory, self.row, self.trained_s(), self.processes)
        self.console.update(figures)

    def close(self, *, hurried: bool) -> None:
        """Close the files and the trackers. If ``hurried``, do not wait for the trackers to finish."""
        self.rows.close()
        self.trackers.close(within_s=0.0 if hurried else CLOSE_WITHIN_S)


def live_figures(
    config: Config,
    directory: RunDirectory,
    row: Mapping[str, Any],
    trained_s: float | None,
    processes: Sequence[Presence],
) -> LiveFigures:
    """The figures that a console shows. ``trained_s`` is the training time of this session in seconds, if known."""
    return LiveFigures(
        title=f"{config.recipe} · {config.env} · {directory.path.name}",
        row=row,
        frames_per_agent_step=config.envs.mean_frame_skip if is_ale_id(config.env) else None,
        left_s=None if trained_s is None else _left_s(config, row, trained_s),
        hosts=by_host(processes),
    )


def _left_s(config: Config, row: Mapping[str, Any], trained_s: float) -> float | None:
    """Seconds until the first limit of the run at its current speed. None without a limit or a known speed."""
    left = []
    if config.minutes is not None:
        left.append(60 * config.minutes - trained_s)
    for limit, done, per_s in (
        (config.updates, row["version"], row["updates_per_s"]),
        (config.agent_steps, row["agent_steps"], row["agent_steps_per_s"]),
    ):
        if limit is not None and per_s:
            left.append((limit - done) / per_s)
    return max(0.0, min(left)) if left else None


def _shard_stats(stats: m.Stats) -> ShardStats:
    return {
        "incarnation": stats.incarnation,
        "version": stats.version,
        "held": stats.held,
        "present": stats.present,
        "outcomes": {rank: counts for rank, *counts in stats.tallies},
        "totals": stats.totals,
    }


def _unpack(figures: bytes) -> dict[str, Any]:
    try:
        unpacked = msgpack.unpackb(figures, strict_map_key=True)
    except Exception:  # msgpack raises a dozen kinds of errors on hostile bytes
        return {}
    return unpacked if isinstance(unpacked, dict) else {}
