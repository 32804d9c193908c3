"""Reads the result of a run: its settings, its record and the evaluation of its policy."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from zmqrl import checkpoint
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.observe.forms import MANIFEST, read_object
from zmqrl.observe.records import Evaluation, RunRecord, evaluation_lines, evaluations, is_for_stop_score
from zmqrl.recipes import RECIPES
from zmqrl.results.bootstrap import mean_interval
from zmqrl.rundir import RunDirectory
from zmqrl.words import as_word, counted, told_apart


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedLimits:
    """How long a run may train. None: no limit."""

    minutes: float | None = None
    agent_steps: int | None = None

    def allow(self, wall_s: float, agent_steps: float) -> bool:
        return (self.minutes is None or wall_s <= 60 * self.minutes) and (
            self.agent_steps is None or agent_steps <= self.agent_steps
        )


NO_LIMITS: Final = RecordedLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of a run. ``evaluation`` belongs to the newest evaluated version, or is None.

    Evaluations for ``--stop-score`` do not count. Their scores are too high on average.

    ``games`` is the evaluation as ``zmqrl eval --json`` prints it, possibly without keys that older versions did not
    write. ``generation`` is above 1 if the run was resumed or rolled back.
    """

    record: RunRecord
    config: Config
    summary: Mapping[str, Any]
    evaluation: Evaluation | None
    games: Mapping[str, Any]
    generation: int

    @classmethod
    def read(cls, path: Path, limits: RecordedLimits = NO_LIMITS) -> Self:
        """Read the run directory ``path``. ``evaluation`` is the newest one within ``limits``, else the newest of all.

        Raises UsageError if the run has not ended, or if this version of zmqrl lacks its recipe or one of its settings.
        """
        record = RunRecord.read(path)
        if record.summary is None or not record.rows:
            raise UsageError(f"{path} has no result yet: there is no summary.json or no metrics.")
        config = Config.read(RunDirectory(path).config)
        if config.recipe not in RECIPES:
            raise UsageError(
                f"{path} is a run of recipe {config.recipe!r}, which this version of zmqrl does not have: "
                "use the version that made the run."
            )
        games = _newest_evaluation(path, limits)
        found = evaluations([games] if games else [], record.rows)
        versions = {each.version for each in found}
        others = [each for each in record.evaluations if each.version not in versions]
        return cls(
            record=dataclasses.replace(record, evaluations=[*others, *found]),
            config=config,
            summary=record.summary,
            evaluation=found[0] if found else None,
            games=games,
            generation=_generation(path),
        )

    @property
    def machine(self) -> tuple[str, int | None]:
        origin = self.summary.get("provenance", {})
        return origin.get("cpu") or "unknown processor", origin.get("cores")

    @property
    def hosts(self) -> dict[str, int | None]:
        """The number of cores of each host, by name, if the run had several hosts. Otherwise empty."""
        found = {each["host"]: each.get("cores") for each in self.summary.get("hosts", []) if each["processes"]}
        return found if len(found) > 1 else {}

    @property
    def compute(self) -> list[Any]:
        """The number formats in which the networks of the workers computed. Empty if they were not recorded."""
        return list(self.summary.get("compute", []))

    @property
    def seeds(self) -> list[int]:
        episodes = self.games.get("episodes") or len(self.games.get("scores", []))
        return [int(seed) for seed in self.games.get("seeds") or range(int(episodes))]

    def steps_at(self, minutes: float) -> int:
        """The agent steps after some minutes of training, extrapolated beyond the end of the run."""
        points = [(0.0, 0.0), *((row["wall_s"] / 60, row["agent_steps"]) for row in self.record.rows)]
        for (before, first), (after, last) in itertools.pairwise(points):
            if before <= minutes <= after and before < after:
                return int(first + (last - first) * (minutes - before) / (after - before))
        end, steps = points[-1]
        return int(steps * minutes / end) if end else 0


def reproducible(path: Path, limits: RecordedLimits = NO_LIMITS) -> tuple[Result, Evaluation]:
    """The result at ``path`` and its evaluation. Raises UsageError if the result cannot be reproduced or judged."""
    result = Result.read(path, limits)
    if why := obstacle(result):
        can_evaluate = result.generation and not _repetition_fails(result)
        remedy = f": evaluate it with `zmqrl eval {as_word(path)} --json > {as_word(RunDirectory(path).evaluation)}`"
        raise UsageError(f"{path} cannot be reproduced, because {why}{remedy if can_evaluate else ''}.")
    assert result.evaluation is not None
    # If the evaluation lacks these figures, they come from a row of metrics, which can be of a later version.
    wall_s = min(result.evaluation.wall_s, result.summary["wall_s"])
    agent_steps = min(result.evaluation.agent_steps, result.summary["agent_steps"])
    return result, dataclasses.replace(result.evaluation, wall_s=wall_s, agent_steps=agent_steps)


def results_beside(path: Path, limits: RecordedLimits = NO_LIMITS) -> Iterator[Result]:
    """The evaluated results in the directory of the result at ``path``, with this result.

    ``limits`` chooses their evaluations, as in :meth:`Result.read`.
    """
    above = path.resolve().parent
    files = [*above.glob("*/evaluation.json"), *above.glob("*/evaluations.jsonl")]
    for found in sorted({file.parent for file in files}):
        with contextlib.suppress(UsageError):
            yield Result.read(found, limits)


def obstacle(result: Result) -> str | None:
    """Why ``zmqrl reproduce`` cannot repeat or judge ``result``, as a clause, or None."""
    return _repetition_fails(result) or _judgement_fails(result)


def _repetition_fails(result: Result) -> str | None:
    if result.generation > 1:
        return "the run was resumed or rolled back, so the settings of its earlier sessions are unknown"
    if external := result.config.external_workers:
        return f"zmqrl cannot start its {counted(external, 'external worker')}"
    return None


def _judgement_fails(result: Result) -> str | None:
    lost = "" if result.generation else ", and no checkpoint was kept that could be evaluated"
    if result.evaluation is None or result.evaluation.interval is None or not result.seeds:
        return f"it has no evaluation with an interval{lost}"
    doubt = _doubt(result.evaluation, result.evaluation.interval, result.games, result.summary)
    return doubt and f"its evaluation {doubt}{lost}"


def _doubt(
    evaluation: Evaluation, interval: tuple[float, float], games: Mapping[str, Any], summary: Mapping[str, Any]
) -> str | None:
    """Why ``games`` cannot be an evaluation of the run with ``summary``, or None."""
    for key, total_key, unit in (
        ("version", "updates", "updates"),
        ("agent_steps", "agent_steps", "agent steps"),
        ("wall_s", "wall_s", "seconds"),
    ):
        total = summary[total_key]
        trained = games.get(key, total)
        if not 0 < trained <= total:
            return f"is of a policy after {trained:,.15g} {unit}, but the run ended after {total:,.15g}"
    if len({evaluation.episodes, len(games.get("scores", [])), len(games.get("seeds", []))} - {None, 0}) > 1:
        return "has different numbers of games, scores and seeds"
    low, high = interval
    rounding = 1e-9 * max(abs(low), abs(high))
    if not low - rounding <= evaluation.mean <= high + rounding:
        return "has a mean of {}, outside its own interval of {} to {}".format(*told_apart(evaluation.mean, low, high))
    return None


def _newest_evaluation(path: Path, limits: RecordedLimits) -> dict[str, Any]:
    """The evaluation of the highest version, with the 95 % interval of its scores. Empty if there is none.

    If any are within ``limits``, only these count.
    """
    found = [each for each in evaluation_lines(RunDirectory(path)) if not is_for_stop_score(each)]
    within = [each for each in found if limits.allow(each.get("wall_s", 0.0), each.get("agent_steps", 0))]
    newest = max(within or found, key=lambda each: each["version"], default={})
    scores = newest.get("scores", [])
    return {"ci95": mean_interval(scores)} | newest if scores and "ci95" not in newest else newest


def _generation(path: Path) -> int:
    """The generation of the newest checkpoint, or 0 if there is none."""
    found = checkpoint.checkpoints(RunDirectory(path).checkpoints)
    manifest = read_object(found[-1] / checkpoint.MANIFEST, MANIFEST, "restore the file") if found else None
    return int(manifest["generation"]) if manifest else 0
