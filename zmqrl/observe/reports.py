"""Checks the reports of workers, because any program can send them."""

import re
from dataclasses import dataclass
from typing import Self

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_FIGURES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReport:
    """The metrics of a worker.

    Counts and sums are cumulative over the incarnation, so that a lost or late report does no harm.

    - ``gradients``: the number of gradients pushed.
    - ``loss_sums``: ``(sum, count)`` for each figure, over the gradients that had this figure.
    - ``policy_lag_sum``: the sum of the policy lag over all gradients, in versions.
    - ``policy_lag_min``, ``policy_lag_max``: the extremes since the last report.
    - ``span_sums``: seconds by span.
    - ``games``: ``(seq, score, agent_steps)`` with seq 1, 2, ... over the incarnation.
    - ``compute``: the number format of the network, such as ``bfloat16``, or None.
    - ``first_games``: how many of the games that the worker began at its start have not ended.

    A worker without ``gradients`` sends means since the last report instead of sums: ``losses``, ``policy_lag`` and, in
    seconds, ``spans``.
    """

    rank: int
    incarnation: int
    version: int
    agent_steps: int
    abandoned_steps: int
    skipped: int
    games: tuple[tuple[int, float, int], ...]
    first_games: int
    compute: str | None
    gradients: int | None
    loss_sums: dict[str, tuple[float, int]]
    policy_lag_sum: float | None
    policy_lag_min: float | None
    policy_lag_max: float | None
    span_sums: dict[str, float]
    losses: dict[str, float]
    policy_lag: float | None
    spans: dict[str, float]

    @property
    def done(self) -> int:
        """The work of the incarnation: a number that grows with each gradient and each abandoned rollout."""
        return (self.gradients or 0) + self.abandoned_steps

    @classmethod
    def parse(cls, report: object) -> Self:
        """Check ``report``. Ignores unknown keys. Raises ValueError."""
        if not isinstance(report, dict):
            raise ValueError(f"a report must be a map, not {type(report).__name__}")
        gradients, lag_sum = report.get("gradients"), report.get("policy_lag_sum")
        return cls(
            rank=_count(report.get("rank"), limit=2**16),
            incarnation=_count(report.get("incarnation")),
            version=_count(report.get("version")),
            agent_steps=_count(report.get("agent_steps")),
            abandoned_steps=_count(report.get("abandoned_steps", 0)),
            skipped=_count(report.get("skipped", 0)),
            games=_games(report.get("games", [])),
            first_games=_count(report.get("first_games", 0)),
            compute=_name(report.get("compute")),
            gradients=None if gradients is None else _count(gradients),
            loss_sums=_sums(report.get("loss_sums", {})),
            policy_lag_sum=None if lag_sum is None else _finite(lag_sum),
            span_sums=_seconds(report.get("span_sums", {})),
            losses=_figures(report.get("losses", {})),
            **_lag(report),
            spans=_seconds(report.get("spans", {})),
        )


def _kind(value: object) -> str:
    """Describe a number by its value, and anything else by its type, because it can be too nested to print."""
    return str(value)[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"


def _count(value: object, limit: int = 2**53) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{_kind(value)} is not a count")
    return value


def _name(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and NAME.fullmatch(value)):
        raise ValueError(f"{_kind(value)} is not a name")
    return value


def _finite(value: object) -> float:
    # Workers in languages with a single number type send 3 for 3.0. The limit keeps large sums finite.
    if type(value) not in (int, float) or not -1e100 < value < 1e100:  # type: ignore[operator]
        raise ValueError(f"{_kind(value)} is not a finite number")
    return float(value)  # type: ignore[arg-type]


def _named(value: object) -> dict[str, object]:
    if not isinstance(value, dict) or len(value) > MOST_FIGURES:
        raise ValueError(f"metrics must be a map of at most {MOST_FIGURES} names")
    return {name: x for name, x in value.items() if isinstance(name, str) and NAME.fullmatch(name)}


def _figures(value: object) -> dict[str, float]:
    return {name: _finite(x) for name, x in _named(value).items()}


def _seconds(value: object) -> dict[str, float]:
    spans = _figures(value)
    if any(seconds < 0 for seconds in spans.values()):
        raise ValueError("a span is negative")
    return spans


def _sums(value: object) -> dict[str, tuple[float, int]]:
    sums = {}
    for name, pair in _named(value).items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("a sum must be [sum, count]")
        sums[name] = _finite(pair[0]), _count(pair[1])
    return sums


def _lag(report: dict[str, object]) -> dict[str, float | None]:
    names = ("policy_lag_min", "policy_lag", "policy_lag_max")
    low, mean, high = (None if x is None else _finite(x) for x in map(report.get, names))
    if mean is not None:
        low, high = (mean if x is None else x for x in (low, high))
    known = [x for x in (low, mean, high) if x is not None]
    if known != sorted(known):
        raise ValueError("the mean lag is not between the minimum and the maximum")
    return dict(zip(names, (low, mean, high), strict=True))


def _games(value: object) -> tuple[tuple[int, float, int], ...]:
    if not isinstance(value, list | tuple) or len(value) > 1024:
        raise ValueError("games must be a list of at most 1024")
    games = []
    for game in value:
        if not isinstance(game, list | tuple) or len(game) != 3:
            raise ValueError("a game must be [seq, score, agent_steps]")
        games.append((_count(game[0]), _finite(game[1]), _count(game[2])))
    return tuple(sorted(games))
