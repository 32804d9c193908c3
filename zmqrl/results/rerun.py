"""Plans the repetition of a result, and judges whether it agrees with the recorded result. Pure."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from zmqrl.config import Config
from zmqrl.learner.games import FLAGS, EnvConfig
from zmqrl.observe.curves import position
from zmqrl.observe.records import Evaluation
from zmqrl.results.bootstrap import difference_interval
from zmqrl.results.kept import RecordedLimits, Result

By: TypeAlias = Literal["minutes", "agent-steps"]
Word: TypeAlias = Literal["within", "outside", "undecided"]

AXES: Final[dict[By, str]] = {"minutes": "minutes", "agent-steps": "agent steps"}
ENOUGH: Final = 0.98  # share of the training before the recorded evaluation


def default_axis(result: Result, machine: tuple[str, int | None]) -> By:
    """The axis on which to repeat a run.

    Minutes if a limit in minutes ended the recorded run, and that run's machine equals ``machine``. Otherwise agent
    steps.
    """
    is_by_minutes = result.summary["exit_reason"] == "minutes" and result.machine == machine
    return "minutes" if is_by_minutes else "agent-steps"


def rerun_config(result: Result, evaluated: Evaluation, by: By, run_dir: Path, given: RecordedLimits) -> Config:
    """The settings of a run that trains as long as the evaluated version of ``result`` was trained.

    The limits ``given`` can end the new run earlier. Schedules still end where they ended in the recorded run.
    """
    config, schedule = result.config, result.config.schedule
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
    """Whether the mean of a repetition lies within the 95 % interval of the recorded evaluation, and why.

    ``difference`` is the 95 % interval of the repeated mean minus the recorded mean, or None without scores.
    """

    word: Word
    reason: str
    difference: tuple[float, float] | None


def judge(
    recorded: Mapping[str, Any], again: Mapping[str, Any], evaluated: Evaluation, repeated: Evaluation, by: By
) -> Verdict:
    """Judge a repetition by both evaluations. ``recorded`` and ``again`` have the scores of their games.

    A repetition that trained less than the recorded run is undecided.
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
    word: Word = "within" if evaluated.low <= repeated.mean <= evaluated.high else "outside"
    interval = f"{evaluated.low:,.1f} to {evaluated.high:,.1f}"
    reason = f"the mean of {repeated.mean:,.1f} is {word} the recorded 95 % interval, {interval}"
    return Verdict(word=word, reason=reason, difference=difference)
