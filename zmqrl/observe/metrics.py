"""Turns worker reports and shard statistics into the metrics of a run: rows of ``metrics.jsonl``."""

import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, TypedDict, get_args

from zmqrl.observe.reports import WorkerReport
from zmqrl.observe.spans import WORKER_SPANS

Outcome: TypeAlias = Literal["used", "late", "duplicate", "rejected"]
SHARD_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
OUTCOMES = (*SHARD_OUTCOMES, "skipped")

# Every row has these figures. A figure is null if no worker has reported it since the last row. Workers can report
# others.
LOSSES = ("policy_loss", "value_loss", "entropy", "loss", "grad_norm")

SCORES_KEPT = 50
SMOOTHING_S = 30.0
UNREPORTED_S = 600.0  # a rollout of a slow game can take minutes
FIGURES_KEPT = 256  # limit on the number of names, because workers choose the names
INCARNATIONS_KEPT = 16  # per rank: usually one process, or two while a new one replaces an old one


class ShardStats(TypedDict):
    """The state of a shard.

    - ``totals``: ``(used, late, duplicate, rejected)`` over the lines of the shard's history up to ``version``.
    - ``outcomes``: the same counts for each rank, since the shard process ``incarnation`` began.
    - ``held``: the ranks whose contribution to the open version has arrived.
    - ``present``: the subscribed ranks.
    """

    incarnation: int
    version: int
    held: Collection[int]
    present: Collection[int]
    outcomes: Mapping[int, Sequence[int]]
    totals: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """The counts that a resumed run continues, as in the manifest of a checkpoint.

    ``scores`` has the scores of at most the last 50 games, oldest first. ``compute`` has the number formats in which
    the networks of the workers compute.
    """

    version: int = 0
    agent_steps: int = 0
    abandoned_steps: int = 0
    episodes: int = 0
    wall_s: float = 0.0
    contributions: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    scores: tuple[float, ...] = ()
    compute: tuple[str, ...] = ()

    def not_below(self, row: Mapping[str, Any]) -> Self:
        """Take each count that is higher in ``row``, which can be newer than the checkpoint."""
        higher = {
            name: row[name]
            for name in ("agent_steps", "abandoned_steps", "episodes", "wall_s")
            if isinstance(row.get(name), int | float) and row[name] > getattr(self, name)
        }
        return replace(self, **higher)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``. Raises KeyError, TypeError or ValueError for other ``data``, if it is not empty."""
        if not data:  # in version 0
            return cls()
        return cls(
            version=int(data["version"]),
            agent_steps=int(data["agent_steps"]),
            abandoned_steps=int(data["abandoned_steps"]),
            episodes=int(data["episodes"]),
            wall_s=float(data["wall_s"]),
            contributions={outcome: int(data["contributions"][outcome]) for outcome in OUTCOMES},
            scores=tuple(float(score) for score in data["scores"]),
            compute=tuple(str(each) for each in data.get("compute", ())),  # older versions did not record it
        )


@dataclass(slots=True)
class _Worker:
    """The newest counts of one incarnation of a rank."""

    version: int | None = None
    agent_steps: int = 0
    abandoned_steps: int = 0
    skipped: int = 0
    last_seq: int = -1
    gradients: int = 0
    loss_sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    lag_sum: tuple[float, int] = (0.0, 0)
    span_sums: dict[str, float] = field(default_factory=dict)


class _Means:
    """Means over the gradients of all workers, by the name of the figure."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, total: float, count: int) -> None:
        """Add ``count`` gradients whose figures add up to ``total``."""
        if name in self._sums or len(self._sums) < FIGURES_KEPT:
            before, counted = self._sums.get(name, (0.0, 0))
            self._sums[name] = before + total, counted + count

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._sums.items()}


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


class RunMetrics:
    """Adds up the reports of workers and shards. Pure: no clock. The caller passes ``wall_s``.

    Counts and sums in a report are cumulative, so a lost report does no harm.
    """

    def __init__(self, *, start: Counters, reporting: Iterable[int] = ()) -> None:
        """``start`` has the counters of the checkpoint. For a new run, it is ``Counters()``.

        ``reporting`` are the ranks whose workers certainly report. An external worker may not.
        """
        self._start = start
        self._version = start.version
        self._wall_s = start.wall_s
        self._agent_steps = start.agent_steps
        self._abandoned_steps = start.abandoned_steps
        self._episodes = start.episodes
        self._contributions = {outcome: start.contributions.get(outcome, 0) for outcome in OUTCOMES}
        self._scores = deque(start.scores, maxlen=SCORES_KEPT)
        self._first_games: dict[int, int] | None = {}  # by rank. None: all have ended
        self._early_scores: deque[float] = deque(maxlen=SCORES_KEPT)  # of this session, until then
        self._compute: dict[int, str] = {}  # by rank
        self._reporting = frozenset(reporting)
        self._reported_at_s: dict[int, float] = {}  # by rank
        self._workers: defaultdict[int, dict[int, _Worker]] = defaultdict(dict)  # by rank and incarnation
        self._skipped_by_rank: defaultdict[int, int] = defaultdict(int)
        self._late_by_rank: defaultdict[int, int] = defaultdict(int)

        self._shards: dict[int, ShardStats] = {}
        self._tallies: dict[int, tuple[int, dict[int, list[int]]]] = {}  # by shard: incarnation, counts by rank
        self._members: frozenset[int] = frozenset()
        self._arrived: set[int] = set()  # ranks that contributed since the last row
        self._contributed_at_s: dict[int, float] = {}

        self._row_version, self._row_agent_steps = self._version, self._agent_steps
        self._smooth_steps = self._smooth_updates = self._smooth_s = 0.0
        self._span_s: defaultdict[str, float] = defaultdict(float)
        self._worker_updates = 0.0
        self._begin_row()

    def _begin_row(self) -> None:
        self._gradients = 0
        self._figures = _Means()
        self._lags = _Means()
        self._lag_range: list[float] = []

    def on_report(self, report: WorkerReport) -> bool:
        """Add a worker's report. Returns whether this is the first report of a process that took over the rank."""
        processes = self._workers[report.rank]
        self._reported_at_s[report.rank] = self._wall_s
        if report.compute is not None:
            self._compute[report.rank] = report.compute
        if self._first_games is not None:
            self._first_games[report.rank] = report.first_games
        takes_over = bool(processes) and report.incarnation not in processes
        worker = processes[report.incarnation] = processes.pop(report.incarnation, _Worker())
        if len(processes) > INCARNATIONS_KEPT:
            del processes[next(iter(processes))]  # the process with the oldest report
        self._finished(worker, report)
        self._agent_steps += max(0, report.agent_steps - worker.agent_steps)
        self._abandoned_steps += max(0, report.abandoned_steps - worker.abandoned_steps)
        self._contributions["skipped"] += max(0, report.skipped - worker.skipped)
        self._skipped_by_rank[report.rank] += max(0, report.skipped - worker.skipped)
        if report.gradients is not None:
            self._cumulative(worker, report, report.gradients)
        # After a rollback, the version falls, but the steps grow. If neither grows, the report is out of date.
        elif worker.version is None or report.version > worker.version or report.agent_steps > worker.agent_steps:
            self._since_last(worker, report)
            worker.version = report.version
        worker.agent_steps = max(worker.agent_steps, report.agent_steps)
        worker.abandoned_steps = max(worker.abandoned_steps, report.abandoned_steps)
        worker.skipped = max(worker.skipped, report.skipped)
        return takes_over

    def _cumulative(self, worker: _Worker, report: WorkerReport, gradients: int) -> None:
        """Add what the sums in ``report`` have grown by. A report that is out of date adds nothing."""
        for name, (total, count) in report.loss_sums.items():
            known_total, known_count = worker.loss_sums.get(name, (0.0, 0))
            if count > known_count and (known_count or len(worker.loss_sums) < FIGURES_KEPT):
                self._figures.add(name, total - known_total, count - known_count)
                worker.loss_sums[name] = total, count
        if gradients > worker.gradients:
            if report.policy_lag_sum is not None:
                known_total, known_count = worker.lag_sum
                self._lags.add("policy_lag", report.policy_lag_sum - known_total, gradients - known_count)
                worker.lag_sum = report.policy_lag_sum, gradients
            self._note_lags(report)
            self._count(gradients - worker.gradients)
            worker.gradients = gradients
        for name in WORKER_SPANS:
            known_s, seconds = worker.span_sums.get(name, 0.0), report.span_sums.get(name, 0.0)
            if seconds > known_s:
                self._span_s[name] += seconds - known_s
                worker.span_sums[name] = seconds

    def _since_last(self, worker: _Worker, report: WorkerReport) -> None:
        """Add the means in ``report``, each weighted by the number of versions since the last report."""
        updates = 1 if worker.version is None else max(0, report.version - worker.version)
        for name, value in report.losses.items():
            self._figures.add(name, value * max(1, updates), max(1, updates))
        if report.policy_lag is not None:
            self._lags.add("policy_lag", report.policy_lag * max(1, updates), max(1, updates))
            self._note_lags(report)
        for name in WORKER_SPANS:  # other names, from third-party workers, would accumulate
            if name in report.spans:
                self._span_s[name] += report.spans[name]
        self._count(updates)

    def _count(self, gradients: int) -> None:
        self._gradients += gradients
        self._worker_updates += gradients

    def _note_lags(self, report: WorkerReport) -> None:
        found = [*self._lag_range, *(lag for lag in (report.policy_lag_min, report.policy_lag_max) if lag is not None)]
        self._lag_range = [min(found), max(found)] if found else []

    def _finished(self, worker: _Worker, report: WorkerReport) -> None:
        for seq, score, _ in report.games:
            if seq > worker.last_seq:
                # A report has room for a limited number of games. The others count, but their scores are unknown.
                self._episodes += seq - worker.last_seq if worker.last_seq >= 0 else max(1, seq)
                (self._early_scores if self._first_games is not None else self._scores).append(score)
                worker.last_seq = seq

    def on_shards(self, stats: Sequence[ShardStats | None], members: Iterable[int] | None = None) -> None:
        """Add the statistics of all shards, in order. None stands for a shard that has not answered.

        Version and contributions change only if all shards have answered. ``members`` are the member ranks (default:
        every rank that was ever present).
        """
        told = [each for each in stats if each is not None]
        for shard, now in enumerate(stats):
            if now is not None:
                self._shards[shard] = now
                self._tally(shard, now)
                self._arrived.update(now["held"])
        seen = {rank for shard in self._shards.values() for rank in (*shard["present"], *shard["outcomes"])}
        self._members = frozenset(seen | self._members if members is None else members)
        if len(told) == len(stats):
            self._version = min(each["version"] for each in told)
            self._contributions |= summed(each["totals"] for each in told)

    def go_back(self, version: int) -> None:
        """All shards went back to ``version``. Their counts at that version are not known yet."""
        self._version = version

    def _tally(self, shard: int, now: ShardStats) -> None:
        """Find the ranks whose contributions arrived, even late, since the last call.

        A new shard process can have lower counts.
        """
        incarnation, known = self._tallies.get(shard, (now["incarnation"], {}))
        newest = dict(known) if incarnation == now["incarnation"] else {}
        for rank, counts in now["outcomes"].items():
            before = known.get(rank, [0, 0, 0, 0])
            if any(count > then for count, then in zip(counts, before, strict=True)):
                self._arrived.add(rank)
            self._late_by_rank[rank] += max(0, counts[1] - before[1])
            newest[rank] = [max(pair) for pair in zip(counts, newest.get(rank, counts), strict=True)]
        self._tallies[shard] = now["incarnation"], newest

    @property
    def version(self) -> int:
        return self._version

    def row(self, wall_s: float, *, written: bool = True) -> dict[str, Any]:
        """The next row of ``metrics.jsonl``. ``wall_s`` is the time since the start of this session.

        - ``wall_s`` in the row adds the time of earlier sessions, up to the checkpoint.
        - Means are over all ``gradients`` that workers have reported since the last row that was ``written``.
        - ``split_s`` is the mean time of a worker per gradient, by span. Like rates, it covers about 30 s, because
          workers report complete rollouts.
        - ``score_mean_50`` leaves out the games of this session until every game that began with it has ended. Before,
          only short games have scores. The score is that of the last session, or None.
        - ``missing_s`` has the time since the last contribution of each member whose contribution to the open version
          is missing.
        - ``contributions`` and ``agent_steps`` cover the whole run. A rollback undoes contributions, but not steps.
        - Counts by rank cover only this session.
        """
        elapsed_s = max(0.0, self._start.wall_s + wall_s - self._wall_s)
        self._wall_s += elapsed_s
        steps = self._agent_steps - self._row_agent_steps
        updates = max(0, self._version - self._row_version)
        keep = math.exp(-elapsed_s / SMOOTHING_S)
        self._smooth_steps = self._smooth_steps * keep + steps
        self._smooth_updates = self._smooth_updates * keep + updates
        self._smooth_s = self._smooth_s * keep + elapsed_s
        lag = self._lags.means().get("policy_lag")
        lags = [] if lag is None else [*self._lag_range, lag]  # the extremes may have been in a lost report
        row = {
            # Workers choose these names. Our own keys come later, so that they win.
            **dict.fromkeys(LOSSES),
            **self._figures.means(),
            "version": self._version,
            "wall_s": self._wall_s,
            "agent_steps": self._agent_steps,
            "abandoned_steps": self._abandoned_steps,
            "agent_steps_per_s": _rate(self._smooth_steps, self._smooth_s),
            "updates_per_s": _rate(self._smooth_updates, self._smooth_s),
            "score_mean_50": _mean(scores) if (scores := self._fair_scores()) else None,
            "episodes": self._episodes,
            "gradients": self._gradients,
            "policy_lag": lag,
            "policy_lag_min": min(lags, default=None),
            "policy_lag_max": max(lags, default=None),
            "contributions": dict(self._contributions),
            "late_by_rank": _by_rank(self._late_by_rank),
            "skipped_by_rank": _by_rank(self._skipped_by_rank),
            "missing_s": self._missing(),
            "workers_present": self._present(),
            "split_s": self._split(),
        }
        self._span_s = defaultdict(float, {name: keep * seconds for name, seconds in self._span_s.items()})
        self._worker_updates *= keep
        self._row_version, self._row_agent_steps = self._version, self._agent_steps
        if written:
            self._begin_row()
        return row

    def _split(self) -> dict[str, float]:
        if not self._worker_updates:  # no report yet, or so long ago that the sum has decayed to zero
            return {}
        return {name: seconds / self._worker_updates for name, seconds in self._span_s.items()}

    def _present(self) -> int:
        present = [set(shard["present"]) for shard in self._shards.values()]
        return len(set.intersection(*present)) if present else 0

    def _missing(self) -> dict[str, float]:
        for rank in self._members:
            self._contributed_at_s.setdefault(rank, self._wall_s)
        for rank in self._arrived:
            self._contributed_at_s[rank] = self._wall_s
        self._arrived.clear()
        lowest = min((shard["version"] for shard in self._shards.values()), default=None)
        open_at = [set(shard["held"]) for shard in self._shards.values() if shard["version"] == lowest]
        held = set.intersection(*open_at) if open_at else set()
        return _by_rank({rank: self._wall_s - self._contributed_at_s[rank] for rank in self._members - held})

    def mean_score(self, games: int) -> float:
        """Mean score of the last games in ``score_mean_50``. -inf if these are fewer than ``games``."""
        scores = self._fair_scores()
        return _mean(scores) if len(scores) >= games else -math.inf

    def _fair_scores(self) -> Collection[float]:
        """The scores of the last games. Those of this session count once every game that began with it has ended.

        If the checkpoint lacks scores, this is empty until this session has as many.
        """
        if self._first_games is not None and self._early_scores and not self._awaits(self._first_games):
            self._scores.extend(self._early_scores)
            self._first_games = None
        return self._scores if len(self._scores) >= min(SCORES_KEPT, self._start.episodes) else ()

    def _awaits(self, first_games: Mapping[int, int]) -> bool:
        """Whether some of the ``first_games`` of a worker, by rank, have not ended.

        A worker that is present but has not reported yet still plays its first games. A stuck worker must not block
        the score: it is not awaited if others have reported for ``UNREPORTED_S`` since its last report.
        """
        silent = self._reporting - first_games.keys()
        awaited = silent.union(rank for rank, left in first_games.items() if left)
        if self._shards:
            awaited &= {rank for shard in self._shards.values() for rank in shard["present"]}
        began_s = self._start.wall_s
        latest_s = max(self._reported_at_s.values(), default=began_s)
        return any(latest_s - self._reported_at_s.get(rank, began_s) < UNREPORTED_S for rank in awaited)

    def counters(self) -> Counters:
        """The counters for a checkpoint. ``wall_s`` is the same as in the last row."""
        return Counters(
            version=self._version,
            agent_steps=self._agent_steps,
            abandoned_steps=self._abandoned_steps,
            episodes=self._episodes,
            wall_s=self._wall_s,
            contributions=dict(self._contributions),
            scores=tuple(self._fair_scores()),
            compute=tuple(sorted({*self._start.compute, *self._compute.values()})),
        )


def summed(totals: Iterable[Sequence[int]]) -> dict[str, int]:
    """Contributions by outcome: the sum of the ``totals`` of all shards."""
    return dict(zip(SHARD_OUTCOMES, map(sum, zip(*totals, strict=True)), strict=True))


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def _by_rank(figures: Mapping[int, float]) -> dict[str, float]:
    return {str(rank): figure for rank, figure in sorted(figures.items())}
