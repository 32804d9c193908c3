"""The report page of a result, and the page that compares a repetition with it: Markdown text. Pure."""

import math
import os
import re
import shlex
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import numpy as np

from zmqrl.config import Config
from zmqrl.observe.curves import positions
from zmqrl.observe.folding import printable, ranges
from zmqrl.observe.metrics import OUTCOMES
from zmqrl.observe.records import Evaluation, RunRecord
from zmqrl.results.command_line import train_command
from zmqrl.results.kept import Result, obstacle
from zmqrl.results.rerun import AXES, By, Verdict
from zmqrl.words import counted, mean_words

ROWS: Final = 10  # in a table of scores, approximately
# The characters that Markdown or HTML gives a meaning. An underscore inside a word has none.
MARKS: Final = re.compile(r"[\\`*\[\]{}<>&|~$]|(?<![^\W_])_|_(?![^\W_])")


def report_page(result: Result, picture: str) -> str:
    """The page of one result. ``picture`` is the name of the file with its curves."""
    return "\n".join(
        [
            f"# {_text(result.record.name)}: {_headline(result)}",
            "",
            "`zmqrl report` wrote this page from the files of the run.",
            "",
            f"![score against minutes and agent steps]({quote(os.fsencode(picture))})",
            "",
            *_table(facts(result)),
            "",
            "## Command",
            "",
            "This command has the settings of the run:",
            "",
            *_command(result.config),
            *_sessions(result),
            "",
            "## Score",
            "",
            "The score is the mean of the last 50 games of training.",
            "",
            *score_table({"": result.record}, "minutes"),
            "",
            "## Evaluation",
            "",
            *_evaluation(result),
            "",
            "## Reproduction",
            "",
            _reproduction(result),
            "",
        ]
    )


def reproduction_page(result: Result, again: Result, by: By, verdict: Verdict, picture: str) -> str:
    """The page of a repetition: both runs side by side, and the verdict."""
    runs = {"recorded": result, "again": again}
    records = {name: run.record for name, run in runs.items()}
    return "\n".join(
        [
            f"# {_text(result.record.name)}: {_title(verdict)}",
            "",
            f"{verdict.reason[0].upper()}{verdict.reason[1:]}. {verdict.meaning}".rstrip(),
            *_difference(verdict),
            "",
            f"![score of both runs]({quote(os.fsencode(picture))})",
            "",
            "| | recorded | new |",
            "|---|---|---|",
            *(_cells(name, *(facts(run)[name] for run in runs.values())) for name in facts(result)),
            "",
            *_command(again.config),
            *_sessions(again),
            "",
            f"The scores are means of the last 50 games at the same {AXES[by]}.",
            "",
            *score_table(records, by),
            "",
        ]
    )


def facts(result: Result) -> dict[str, str]:
    summary, settings = result.summary, result.config
    origin = summary.get("provenance", {})
    processor, cores = result.machine
    versions = {"zmqrl": origin.get("zmqrl"), "Python": origin.get("python"), **origin.get("packages", {})}
    minutes = summary["wall_s"] / 60
    return {
        "evaluation": _mean_of(result.evaluation) if result.evaluation else "none",
        "score of the last 50 games": _score(summary["score_mean_50"]),
        "minutes": f"{minutes:,.1f}",
        "agent steps": f"{summary['agent_steps']:,}",
        "agent steps/s": f"{summary['agent_steps'] / (60 * minutes):,.0f}" if minutes else "-",
        "updates": f"{summary['updates']:,}",
        "contributions": ", ".join(f"{summary['contributions'].get(name, 0):,} {name}" for name in OUTCOMES),
        "end": summary["exit_reason"],
        "environment": settings.env,
        "flavour": summary.get("flavour", "unknown"),
        "algorithm and network": f"{settings.algo}, {settings.model}",
        "number format of the network": ", ".join(result.compute) or "not recorded",
        "processes": ", ".join(
            [
                counted(settings.workers, "worker"),
                counted(settings.backups, "backup"),
                f"quorum {settings.effective_quorum}",
                counted(settings.shards, "shard"),
            ]
        ),
        "seed": str(settings.seed),
        "machine": (processor if cores is None else f"{processor}, {counted(cores, 'core')}") + _hosts(result),
        "commit": origin.get("commit") or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "unknown",
    }


def _hosts(result: Result) -> str:
    """The hosts of a run on several hosts, after its machine, which is that of the supervisor."""
    if not result.hosts:
        return ""
    cores = sum(each or 0 for each in result.hosts.values())
    return f"; hosts {ranges(result.hosts)} with {counted(cores, 'core')} in total"


def score_table(records: Mapping[str, RunRecord], x: By) -> list[str]:
    """The lines of a table: at about ten points of ``x``, the position on the other axis and the score of each run."""
    other: By = "agent-steps" if x == "minutes" else "minutes"
    ends = [float(positions(run, x)[-1]) for run in records.values()]
    columns = [column for name in records for column in (AXES[other], f"score{name and f', {name}'}")]
    lines = [_cells(AXES[x], *columns), "|---" * (1 + len(columns)) + "|"]
    for point in sorted({*_round_points(min(ends), max(ends)), *ends}):
        cells = [cell for run in records.values() for cell in _at(run, x, other, point)]
        lines.append(_cells(_amount(point, x), *cells))
    return lines


def _at(run: RunRecord, x: By, other: By, point: float) -> tuple[str, str]:
    """The position of a run on the axis ``other`` and its score, in the row nearest to ``point`` on the axis ``x``."""
    along = positions(run, x)
    if point > along[-1]:
        return "-", "-"
    nearest = int(np.abs(along - point).argmin())
    return _amount(positions(run, other)[nearest], other), _score(run.rows[nearest].get("score_mean_50"))


def _round_points(*ends: float) -> list[float]:
    """About ``ROWS`` round positive numbers up to the largest of ``ends``, none of them close to one of ``ends``."""
    farthest = max(ends)
    if farthest < 1e-9:  # a tiny number divided by ROWS can be 0
        return []
    power = 10 ** math.floor(math.log10(farthest / ROWS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * ROWS >= farthest * (1 - 1e-9))
    points = [step * number for number in range(1, math.ceil(farthest / step))]
    return [point for point in points if all(abs(point - end) > step / 4 for end in ends)]


def _amount(value: float, x: By) -> str:
    return f"{value:,.0f}" if x == "agent-steps" else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _score(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:,.1f}"


def _headline(result: Result) -> str:
    if result.evaluation is not None:
        return _mean_of(result.evaluation)
    score = _score(result.summary["score_mean_50"])
    games = min(50, result.summary.get("episodes", 50))
    return f"{score} in the last {counted(games, 'game')} of training" if score != "-" else "no score"


def _mean_of(evaluation: Evaluation) -> str:
    episodes = f" in {counted(int(evaluation.episodes), 'game')}" if evaluation.episodes else ""
    return f"{mean_words(evaluation.mean, evaluation.interval)}{episodes}"


def _evaluation(result: Result) -> list[str]:
    evaluation, games = result.evaluation, result.games
    if evaluation is None:
        if result.record.evaluations:
            text = "A run repeats them until one reaches the score, so they are no evidence."
            return [f"The run has only evaluations for `--stop-score`. {text}"]
        return ["No evaluation was kept."]
    rows = {
        "mean": _mean_of(evaluation),
        **{name: f"{games[name]:,.1f}" for name in ("median", "min", "max") if name in games},
        "version": f"{evaluation.version:,}, after {evaluation.agent_steps:,.0f} agent steps, "
        f"{_amount(evaluation.wall_s / 60, 'minutes')} minutes",
        **({"actions": "greedy" if games["greedy"] else "sampled"} if "greedy" in games else {}),
        **({"seeds": f"{min(games['seeds']):,} to {max(games['seeds']):,}"} if games.get("seeds") else {}),
    }
    return _table(rows)


def _reproduction(result: Result) -> str:
    if why := obstacle(result):
        return f"`zmqrl reproduce` refuses this result, because {_text(why)}."
    return "`zmqrl reproduce` repeats this run and compares the scores."


def _command(config: Config) -> list[str]:
    """The command of a run, between fences that are longer than any backticks in it."""
    line = shlex.join(train_command(config))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", line)), default=0))
    return [f"{fence}sh", line, fence]


def _sessions(result: Result) -> list[str]:
    if result.generation <= 1:
        return []
    return ["", "The run was resumed or rolled back. The command has the settings of its last session."]


def _title(verdict: Verdict) -> str:
    if verdict.word == "undecided":
        return "undecided"
    if verdict.word == "within" and verdict.same_parameters:
        return "reproduced exactly"
    return f"{verdict.word} the stated interval"


def _difference(verdict: Verdict) -> list[str]:
    if verdict.difference is None:
        return []
    low, high = verdict.difference
    over = "over the games of these two policies"
    return ["", f"The 95 % interval of the new mean minus the recorded mean, {over}, is {low:,.1f} to {high:,.1f}."]


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(_cells(name, value) for name, value in rows.items())]


def _cells(*cells: str) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(text: str) -> str:
    """``text`` as plain text on one line of a page, even if a name or a file contains Markdown or HTML."""
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", printable(text))
