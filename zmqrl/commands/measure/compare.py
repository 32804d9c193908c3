"""``zmqrl compare``: the settings and results of runs side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rich import box
from rich.table import Table
from rich.text import Text

from zmqrl.commands.options import RunPaths
from zmqrl.commands.output import print_json
from zmqrl.observe.folding import printable
from zmqrl.observe.metrics import OUTCOMES, SCORES_KEPT
from zmqrl.observe.records import RunRecord, differing, read_runs
from zmqrl.observe.tables import page
from zmqrl.process import interruptible
from zmqrl.results.flavour import flavour_lines, flavour_of

ComparedRun: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the settings and results of runs. The runs can still be in progress."""

    runs: RunPaths
    """Run directories."""
    json: bool = False
    """Print JSON instead of a table."""


@interruptible()
def run(options: Options) -> int:
    runs = read_runs(options.runs)
    names = _names(runs)
    settings = differing(runs)
    results = [result(each) for each in runs]
    if options.json:
        by_run = {name: {key: values[i] for key, values in settings.items()} for i, name in enumerate(names)}
        compared = {"settings": by_run, "results": dict(zip(names, results, strict=True))}
        print_json(compared, indent=1)
    else:
        shown = page()
        shown.print(table(names, settings, results))
        for line in flavour_lines((name, found["flavour"]) for name, found in zip(names, results, strict=True)):
            shown.print(Text(printable(line)))
    return 0


def result(run: RunRecord) -> ComparedRun:
    """The results of a run as plain data. Unknown values are None.

    Totals come from the summary, or from the newest row if there is none yet. ``best`` is the highest mean of 50 games,
    with the time when the run first reached it. ``evaluation`` is the last one, if possible not for
    ``--stop-score``.
    """
    last = run.rows[-1] if run.rows else {}
    summary = run.summary or {}
    # The summary describes the last checkpoint, from which a resumed run continues.
    totals = summary or {**last, "updates": last.get("version")}
    wall_s, agent_steps = totals.get("wall_s"), totals.get("agent_steps")
    provenance = summary.get("provenance", {})
    return {
        "exit_reason": summary.get("exit_reason"),
        "minutes": wall_s / 60 if wall_s is not None else None,
        "agent_steps": agent_steps,
        "agent_steps_per_s": agent_steps / wall_s if wall_s else None,
        "updates": totals.get("updates"),
        "games": totals.get("episodes"),
        "score_mean_50": totals.get("score_mean_50"),
        "best": _best(run),
        "evaluation": _last_evaluation(run),
        "flavour": flavour_of(run),
        "contributions": totals.get("contributions"),
        "commit": provenance.get("commit"),
        "cpu": provenance.get("cpu"),
    }


def _best(run: RunRecord) -> ComparedRun | None:
    """The best mean of 50 games. A mean of fewer does not count: one lucky game could be the best."""
    rows = [
        row for row in run.rows if (row.get("episodes") or 0) >= SCORES_KEPT and row.get("score_mean_50") is not None
    ]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["score_mean_50"])
    return {
        "score_mean_50": best["score_mean_50"],
        "minutes": best["wall_s"] / 60,
        "agent_steps": best["agent_steps"],
    }


def _last_evaluation(run: RunRecord) -> ComparedRun | None:
    if not run.evaluations:
        return None
    last = max(run.evaluations, key=lambda evaluation: (not evaluation.for_stop_score, evaluation.version))
    return {
        "version": last.version,
        "mean": last.mean,
        "ci95": last.interval,
        "episodes": last.episodes,
        "greedy": last.greedy,
        "for_stop_score": last.for_stop_score,
    }


def table(names: Sequence[str], settings: Mapping[str, Sequence[Any]], results: Sequence[ComparedRun]) -> Table:
    """A column for each run, with a section of settings and a section of results."""
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("", overflow="fold")
    for name in names:
        shown.add_column(Text(printable(name)), justify="right", overflow="fold")
    if settings:
        shown.add_row(Text("settings that differ", style="bold"))
    for setting, values in settings.items():
        shown.add_row(printable(setting), *(Text(printable(_setting(value))) for value in values))
    shown.add_section()
    shown.add_row(Text("results", style="bold"))
    for label, cells in _result_rows(results):
        shown.add_row(label, *(Text(printable(cell)) for cell in cells))
    return shown


def _result_rows(results: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """The label and cells of each row. Commit and processor appear only if they differ."""
    for label, cell in _ROWS.items():
        yield label, [cell(result) for result in results]
    for outcome in OUTCOMES:
        yield f"contributions {outcome}", [_contributions(result, outcome) for result in results]
    for key in ("commit", "cpu"):
        known = {result[key] for result in results} - {None}
        if len(known) > 1:
            yield key, [result[key] or "-" for result in results]


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _best_score(result: ComparedRun) -> str:
    return "-" if result["best"] is None else _number(result["best"]["score_mean_50"], 2)


def _best_at(result: ComparedRun) -> str:
    best = result["best"]
    return "-" if best is None else f"{best['minutes']:,.1f} min, {best['agent_steps']:,} steps"


def _evaluation(result: ComparedRun) -> str:
    found = result["evaluation"]
    if found is None:
        return "-"
    interval = "{:,.2f} to {:,.2f}".format(*found["ci95"]) if found["ci95"] else "-"
    remarks = f"{', greedy' if found['greedy'] else ''}{', for --stop-score' if found['for_stop_score'] else ''}"
    return f"{found['mean']:,.2f} ({interval}){remarks}"


def _contributions(result: ComparedRun, outcome: str) -> str:
    counts = result["contributions"] or {}
    total = sum(counts.values())
    return (
        f"{counts[outcome]:,} ({counts[outcome] / total:.1%})" if counts.get(outcome) else _number(counts.get(outcome))
    )


_ROWS: Final[dict[str, Callable[[ComparedRun], str]]] = {
    "exit reason": lambda result: result["exit_reason"] or "none yet",
    "minutes": lambda result: _number(result["minutes"], 1),
    "agent steps": lambda result: _number(result["agent_steps"]),
    "agent steps/s": lambda result: _number(result["agent_steps_per_s"]),
    "updates": lambda result: _number(result["updates"]),
    "games": lambda result: _number(result["games"]),
    "score, last 50 games": lambda result: _number(result["score_mean_50"], 2),
    "score, best 50 games": _best_score,
    "  reached at": _best_at,
    "evaluation (95 % interval)": _evaluation,
}


def _setting(value: object) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """The names of the run directories, or all their paths if two names are equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
