"""Reads a run from its directory: settings, metrics over time, evaluations and summary."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from zmqrl.errors import UsageError
from zmqrl.json_lines import sample_lines
from zmqrl.observe.forms import EVALUATION, HOSTS, ROW, SETTINGS, SUMMARY, parsed_rows, read_lines, read_object
from zmqrl.observe.metrics import LOSSES, Counters, RunMetrics
from zmqrl.rundir import RunDirectory, not_a_run

Figures = NDArray[np.float64]

# Settings that do not change what a run learns: where the run is stored, tracked and shown, and how it was started.
PLACE: Final = frozenset({"run_dir", "resume", "detach", "trackers", "page", "metrics_port"})

MOST_SHARDS: Final = 1000  # far above the limit of a run: a higher number is a damaged setting

FIRST_NEW_SEED: Final = 2**31  # a run plays games with seeds from here on only for ``stop_score``

# Keys of a row whose values are not means over gradients. Workers choose the names of the means.
COUNTED: Final = frozenset({*RunMetrics(start=Counters()).row(0.0), "learning_rate"} - {*LOSSES, "policy_lag"})

# Settings in which runs of one experiment can differ: seed, name, length, checkpoints, evaluator and recorder.
MAY_DIFFER_IN_GROUP: Final = frozenset(
    {
        "seed",
        "recipe",
        "updates",
        "agent_steps",
        "minutes",
        "stop_score",
        "wire.address",
        "wire.port_range",
        "checkpoint",
        "profile",
        "evaluator",
        "evaluation",
        "recorder",
        "recording",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The mean score of one checkpoint in separate games.

    - ``low`` to ``high``: the 95 % interval of the mean. Both are None without one, as for a single game.
    - ``greedy``: whether the policy took the most probable actions. None: unknown.
    - ``for_stop_score``: see :func:`is_for_stop_score`.
    """

    version: int
    wall_s: float
    agent_steps: float
    episodes: int | None
    mean: float
    low: float | None
    high: float | None
    greedy: bool | None = None
    for_stop_score: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run, which may still be running, read from its files.

    ``settings`` has the settings in ``config.json`` by dotted path (``envs.num_envs``), as plain data, so that runs of
    other versions of zmqrl can be read. ``rows`` has the rows of ``metrics.jsonl``, oldest first, without those that a
    resumed run has undone. ``summary`` is None while the run is running, and after a kill.
    """

    path: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]
    summary: Mapping[str, Any] | None

    @property
    def is_asynchronous(self) -> bool:
        return bool(self.settings.get("mode") == "async")

    @property
    def shards(self) -> int:
        """The number of shards, or 0 if the settings do not tell."""
        shards = self.settings.get("shards")
        return shards if type(shards) is int and 0 < shards <= MOST_SHARDS else 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the run directory ``path``. Raises UsageError if it is not one, or has a damaged file."""
        return cls._read(path, newest=False)

    @classmethod
    def read_newest(cls, path: Path) -> Self:
        """Like :meth:`read`, but read only the :func:`last_row`, and no evaluations."""
        return cls._read(path, newest=True)

    @classmethod
    def _read(cls, path: Path, *, newest: bool) -> Self:
        directory = RunDirectory(path.resolve())
        settings = read_object(directory.config, SETTINGS, "restore the file, or use other runs")
        if settings is None:
            raise not_a_run(path)
        if newest:
            last = last_row(directory.metrics)
            rows, evaluated = [last] if last else [], []
        else:
            rows = lineage(read_lines(directory.metrics, ROW))
            evaluated = evaluations(evaluation_lines(directory), rows)
        return cls(
            path=directory.path,
            settings=dict(flat(settings)),
            rows=rows,
            evaluations=evaluated,
            summary=read_object(
                directory.summary, SUMMARY, "remove the file; metrics.jsonl has the metrics of the run"
            ),
        )

    @property
    def name(self) -> str:
        return self.path.name

    def settings_but(self, names: frozenset[str]) -> dict[str, Any]:
        """The settings without ``PLACE`` and ``names``. A name such as ``evaluation`` means all ``evaluation.*``."""
        left_out = names | PLACE
        return {
            name: value
            for name, value in self.settings.items()
            if name not in left_out and name.partition(".")[0] not in left_out
        }

    def column(self, *keys: str) -> Figures:
        """A metric over time, such as ``column("contributions", "late")``: (rows,), with NaN for missing values."""
        *above, key = keys
        objects: Iterable[Any] = self.rows
        for name in above:
            objects = [row.get(name) or {} for row in objects]
        values = [row.get(key) for row in objects]
        return np.array([value if type(value) in (float, int) else np.nan for value in values], dtype=np.float64)


def last_row(metrics: Path) -> dict[str, Any]:
    """The last undamaged row among the last few rows of ``metrics.jsonl``. Empty if there is none."""
    for most in (1, 8):
        if rows := list(parsed_rows(sample_lines(metrics, most)[-most:])):
            return rows[-1]
    return {}


def hosts_of(directory: RunDirectory) -> list[dict[str, Any]]:
    """The hosts in ``hosts.json``, with versions and ``processes``. Empty without a readable file, as in older runs."""
    try:
        found = read_object(directory.hosts, HOSTS, "")
    except UsageError:
        return []
    return [] if found is None else list(found["hosts"])


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read run directories, each once. Raises UsageError without paths, or if a path is not a run directory."""
    if not paths:
        raise UsageError("no run directory given: name at least one, such as runs/first.")
    return [RunRecord.read(path) for path in {path.resolve(): path for path in paths}.values()]


def differing(runs: Sequence[RunRecord], *, but: frozenset[str] = frozenset()) -> dict[str, list[Any]]:
    """The settings that differ between ``runs``, except ``PLACE`` and ``but``.

    Maps the name of a setting to its values, one per run, with None for a run without it.
    """
    settings = [run.settings_but(but) for run in runs]
    values = {name: [each.get(name) for each in settings] for name in dict.fromkeys(itertools.chain(*settings))}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``(dotted path, value)`` of every setting."""
    within = [("", iter(settings.items()))]  # no recursion, because the data can be nested too deeply
    while within:
        above, items = within[-1]
        for name, value in items:
            if isinstance(value, dict):
                within.append((f"{above}{name}.", iter(value.items())))
                break
            yield f"{above}{name}", value
        else:
            within.pop()


def lineage(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove rows that a later session undid: time goes back when a session resumes from a checkpoint."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["wall_s"] >= row["wall_s"]:
            kept.pop()
        kept.append(row)
    return kept


def merged_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge consecutive rows into the last one. Each mean is over the gradients of all rows."""
    merged = dict(rows[-1])
    for name in set().union(*rows) - COUNTED:
        known = [(row[name], row.get("gradients", 1)) for row in rows if isinstance(row.get(name), int | float)]
        total = sum(weight for _, weight in known)
        merged[name] = sum(value * weight for value, weight in known) / total if total else None
    for name, extreme in (("policy_lag_min", min), ("policy_lag_max", max)):
        merged[name] = extreme((row[name] for row in rows if row.get(name) is not None), default=None)
    if "gradients" in merged:
        merged["gradients"] = sum(row.get("gradients", 0) for row in rows)
    return merged


def evaluation_lines(directory: RunDirectory) -> list[dict[str, Any]]:
    """The evaluations in ``evaluations.jsonl`` and ``evaluation.json``, as :func:`with_saved`. Raises UsageError."""
    remedy = "write it again with zmqrl eval --json, or remove it"
    # A shell makes the file before `zmqrl eval --json` writes it.
    saved = read_object(directory.evaluation, EVALUATION, remedy, may_be_empty=True)
    return with_saved(saved, read_lines(directory.evaluations, EVALUATION))


def with_saved(saved: dict[str, Any] | None, lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in ``lines`` and the ``saved`` one, by version. The saved one replaces those of its version.

    It has the key ``saved``, because the user can have chosen any seeds.
    """
    if saved is not None:
        lines = [*(line for line in lines if line["version"] != saved["version"]), saved | {"saved": True}]
    return sorted(lines, key=lambda line: line["version"])


def evaluations(lines: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations in ``lines``. A line without the time of its version needs ``rows``, which give this time."""
    found: list[Evaluation] = []
    for line in lines:
        at = {**next((row for row in rows if row["version"] >= line["version"]), rows[-1] if rows else {}), **line}
        if not {"wall_s", "agent_steps"} <= at.keys():
            continue
        is_one_game = line.get("episodes", len(line.get("scores", []))) == 1
        low, high = (None, None) if is_one_game else line.get("ci95", (None, None))
        found.append(
            Evaluation(
                version=line["version"],
                wall_s=at["wall_s"],
                agent_steps=at["agent_steps"],
                episodes=line.get("episodes"),
                mean=line["mean"],
                low=low,
                high=high,
                greedy=line.get("greedy"),
                for_stop_score=is_for_stop_score(line),
            )
        )
    return found


def is_for_stop_score(line: Mapping[str, Any]) -> bool:
    """Whether an evaluation of the run itself is from new games, which only --stop-score asks for.

    A run repeats such an evaluation until one reaches the score, so the last one is too high on average. Older versions
    could play the games with greedy actions.
    """
    return not line.get("saved") and bool(line.get("seeds")) and line["seeds"][0] >= FIRST_NEW_SEED
