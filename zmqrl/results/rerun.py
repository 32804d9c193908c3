"""Plans the repetition of a result, and judges whether it agrees with the recorded result. Pure."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from zmqrl.config import Config
from zmqrl.learner.games import FLAGS, EnvConfig
from zmqrl.observe.curves import position
from zmqrl.observe.records import MAY_DIFFER_IN_GROUP, Evaluation, differing
from zmqrl.results.bootstrap import FEWEST_TRAININGS, difference_interval, prediction_interval
from zmqrl.results.kept import RecordedLimits, Result, obstacle
from zmqrl.words import counted, told_apart

By: TypeAlias = Literal["minutes", "agent-steps"]
Word: TypeAlias = Literal["within", "outside", "undecided"]

AXES: Final[dict[By, str]] = {"minutes": "minutes", "agent-steps": "agent steps"}
ENOUGH: Final = 0.98  # share of the training before the recorded evaluation


def default_axis(result: Result, machine: tuple[str, int | None]) -> By:
    """The axis on which to repeat a run.

    Minutes if a limit in minutes ended the recorded run, and it ran only on a machine that equals ``machine``.
    Otherwise agent steps.
    """
    is_here = result.machine == machine and not result.hosts
    is_by_minutes = result.summary["exit_reason"] == "minutes" and is_here
    return "minutes" if is_by_minutes else "agent-steps"


def rerun_config(result: Result, evaluated: Evaluation, by: By, run_dir: Path, given: RecordedLimits) -> Config:
    """The settings of a run that trains as long as the evaluated version of ``result`` was trained.

    The limits ``given`` can end the new run earlier. Schedules still end where they ended in the recorded run. The
    number format is that of the recorded run, if it is known and the same for all workers.
    """
    config, schedule = result.config, result.config.schedule
    if len(result.compute) == 1:
        config = dataclasses.replace(config, network=dataclasses.replace(config.network, compute=result.compute[0]))
    if result.summary.get("flavour") == config.envs.gymnasium_flavour():  # older versions accepted these settings
        usual = {name: getattr(EnvConfig(), name) for name in FLAGS}
        config = dataclasses.replace(config, envs=dataclasses.replace(config.envs, **usual))
    limits: dict[str, Any] = {"updates": None, "agent_steps": None, "minutes": None}
    if by == "minutes":
        limits["minutes"] = min(evaluated.wall_s / 60, config.minutes or float("inf"))
    elif config.updates is not None:
        limits["updates"] = evaluated.version
    else:
        limits["agent_steps"] = int(evaluated.agent_steps)
    if by == "agent-steps" and schedule.minutes is not None:
        ends = [result.steps_at(schedule.minutes), *([schedule.agent_steps] if schedule.agent_steps else [])]
        schedule = dataclasses.replace(schedule, minutes=None, agent_steps=max(1, min(ends)))
    for name, limit in dataclasses.asdict(given).items():
        if limit is not None:
            limits[name] = min(limit, limits[name] or limit)
    return dataclasses.replace(
        config,
        schedule=schedule,
        stop_score=None,
        trackers=(),
        metrics_port=None,
        page=False,
        detach=False,
        resume=False,
        run_dir=run_dir,
        **limits,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether the mean of a repetition lies within the stated 95 % interval, and why. ``meaning`` says what this shows.

    - ``interval``: the stated interval. With one or two recorded ``trainings``, it is that of the games of one policy,
      and otherwise the prediction interval of one more training.
    - ``difference``: the 95 % interval of the repeated mean minus the recorded mean over the games of the two policies,
      or None without scores.
    - ``same_parameters``: see :func:`same_parameters`.
    """

    word: Word
    reason: str
    meaning: str = ""
    interval: tuple[float, float] | None = None
    trainings: int = 1
    difference: tuple[float, float] | None
    same_parameters: bool | None = None


def recorded_trainings(result: Result, evaluated: Evaluation, others: Iterable[Result], by: By) -> list[float]:
    """The mean scores of ``result`` and of those ``others`` that differ from it only in the seed: one for each seed."""
    means = {result.config.seed: evaluated.mean}
    for other in others:
        if other.evaluation is not None and _is_same_but_for_the_seed(result, evaluated, other, other.evaluation, by):
            means.setdefault(other.config.seed, other.evaluation.mean)
    return list(means.values())


def _is_same_but_for_the_seed(
    result: Result, evaluated: Evaluation, other: Result, evaluation: Evaluation, by: By
) -> bool:
    trained = position(evaluation, by) / position(evaluated, by)
    return (
        obstacle(other) is None
        and not differing([result.record, other.record], but=MAY_DIFFER_IN_GROUP)
        and result.compute == other.compute
        and bool(result.games.get("greedy")) == bool(other.games.get("greedy"))
        and (by == "agent-steps" or _machines(result) == _machines(other))
        and ENOUGH <= trained <= 1 / ENOUGH
    )


def _machines(result: Result) -> tuple[object, ...]:
    """What decides how much a run does in a minute. The hosts of a job can have new names in each run."""
    return *result.machine, Counter(result.hosts.values())


def same_parameters(recorded: Result, again: Result) -> bool | None:
    """Whether both runs ended with the same parameters, bit for bit. None if they need not, or if this is unknown.

    Only consistent runs with equal numbers of updates must.
    """
    hashes = [run.summary.get("params_sha256") for run in (recorded, again)]
    if None in hashes:
        return None
    if hashes[0] == hashes[1]:
        return True
    must = recorded.config.consistent and recorded.summary["updates"] == again.summary["updates"]
    return False if must else None


def judge(
    recorded: Mapping[str, Any],
    again: Mapping[str, Any],
    evaluated: Evaluation,
    repeated: Evaluation,
    by: By,
    *,
    trainings: Sequence[float] = (),
    same: bool | None = None,
) -> Verdict:
    """Judge a repetition by both evaluations. ``recorded`` and ``again`` have the scores of their games.

    ``trainings`` are the :func:`recorded_trainings`, and ``same`` are the :func:`same_parameters`. A repetition that
    trained less than the recorded run is undecided.
    """
    difference = None
    if again.get("scores") and recorded.get("scores"):
        low, high = difference_interval(again["scores"], recorded["scores"])
        difference = low, high
    trained, wanted = position(repeated, by), position(evaluated, by)
    if trained < ENOUGH * wanted:
        return Verdict(
            word="undecided",
            reason=f"the repetition trained for {trained:,.4g} of {wanted:,.4g} {AXES[by]}",
            difference=difference,
        )
    known = max(1, len(trainings))
    assert evaluated.interval is not None
    (low, high), kind = evaluated.interval, "recorded 95 % interval"
    if known >= FEWEST_TRAININGS:
        low, high = prediction_interval(trainings)
        kind = f"95 % prediction interval of {known} recorded trainings"
    word: Word = "within" if low <= repeated.mean <= high else "outside"
    mean_text, low_text, high_text = told_apart(repeated.mean, low, high)
    return Verdict(
        word=word,
        reason=f"the mean of {mean_text} is {word} the {kind}, {low_text} to {high_text}",
        meaning=_meaning(same, known),
        interval=(low, high),
        trainings=known,
        difference=difference,
        same_parameters=same,
    )


def _meaning(same: bool | None, trainings: int) -> str:
    """What the place of a mean in the stated interval shows, in sentences."""
    if same:
        return "Both runs ended with the same parameters, bit for bit."
    differ = (
        "The runs are consistent, but ended with different parameters: only the same code, packages and kind of "
        "processor repeat a run exactly. "
    )
    spread = "The interval allows for the spread of trainings with different seeds."
    unknown = (
        "Whether the trainings agree is not judged: the interval describes the games of one policy, and "
        f"{counted(trainings, 'recorded training')} cannot show the spread of trainings."
    )
    return ("" if same is None else differ) + (spread if trainings >= FEWEST_TRAININGS else unknown)
