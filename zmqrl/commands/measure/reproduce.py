"""``zmqrl reproduce``: train with the settings of a recorded result, and judge whether both results agree."""

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.commands.measure.evaluate import evaluate
from zmqrl.commands.measure.report import write_page
from zmqrl.commands.output import print_json, prints_to_stderr
from zmqrl.config import Config
from zmqrl.errors import UsageError, require
from zmqrl.local.extras import require_extra
from zmqrl.observe.curves import Group
from zmqrl.observe.provenance import provenance
from zmqrl.observe.records import Evaluation
from zmqrl.policy import load_policy
from zmqrl.process import CORES, interruptible
from zmqrl.results.kept import RecordedLimits, Result, reproducible, results_beside
from zmqrl.results.pages import reproduction_page
from zmqrl.results.rerun import By, default_axis, judge, recorded_trainings, rerun_config, same_parameters
from zmqrl.rundir import RunDirectory, new_path, write_json
from zmqrl.supervisor.resume import changed_settings
from zmqrl.supervisor.run import train

REACHED_A_LIMIT = ("updates", "agent_steps", "minutes")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train again with the settings of a recorded result, and compare both runs.

    The exit status is 0 if the new mean score is within the stated interval, and 1 if not.
    """

    result: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULT")]
    """A run directory with an evaluation, such as benchmarks/results/cartpole."""
    by: By | None = None
    """Train for as many minutes, or for as many agent steps, as the recorded run.

    None: minutes if a limit in minutes ended that run, on a machine equal to this one. Otherwise agent steps.
    """
    minutes: float | None = None
    """Stop the new run after this many minutes, even if the recorded run was longer. None: no such limit."""
    agent_steps: int | None = None
    """Stop the new run after this many agent steps, even if the recorded run was longer. None: no such limit."""
    run_dir: Path | None = None
    """Directory of the new run. If that run has already ended, only judge it. None: runs/reproduced-NAME-DATE-TIME."""
    json: bool = False
    """Print one JSON object."""


@interruptible()
def run(options: Options) -> int:
    """Train, evaluate, write reproduction.md into the new run directory, and print the verdict."""
    require_extra("plot", "pictures need")
    limits = RecordedLimits(minutes=options.minutes, agent_steps=options.agent_steps)
    recorded, evaluated = reproducible(options.result, limits)
    here = provenance()
    by = options.by or default_axis(recorded, (here["cpu"], here["cores"]))
    run_dir = options.run_dir or new_path(f"reproduced-{recorded.record.name}")
    require(
        run_dir.resolve() != options.result.resolve(),
        f"--run-dir {run_dir} is the recorded result itself: choose another directory.",
    )
    config = rerun_config(recorded, evaluated, by, run_dir, limits)
    with prints_to_stderr() if options.json else contextlib.nullcontext():
        if status := _train(config, run_dir):
            return status
        again, repeated = _evaluated(recorded, run_dir)
    trainings = recorded_trainings(recorded, evaluated, results_beside(options.result, limits), by)
    same = same_parameters(recorded, again)
    verdict = judge(recorded.games, again.games, evaluated, repeated, by, trainings=trainings, same=same)
    page = run_dir / "reproduction.md"
    groups = [Group(label="recorded", runs=(recorded.record,)), Group(label="again", runs=(again.record,))]
    write_page(page, reproduction_page(recorded, again, by, verdict, "reproduction.svg"), groups)
    if options.json:
        print_json(
            {**asdict(verdict), "by": by, "recorded": asdict(evaluated), "again": asdict(repeated), "page": str(page)}
        )
    else:
        lines = [f"{verdict.word}: {verdict.reason}; see {page}", verdict.meaning]
        sys.stdout.write("".join(f"{line}\n" for line in lines if line))
    return 0 if verdict.word == "within" else 1


def _train(config: Config, run_dir: Path) -> int:
    """Train, unless ``run_dir`` already has the result. Returns the exit status. Raises ZmqrlError."""
    directory = RunDirectory(run_dir)
    if not directory.config.exists():
        return train(config)
    if differences := changed_settings(Config.read(directory.config), config):
        raise UsageError(f"{run_dir} holds another run ({', '.join(differences)}): choose another --run-dir.")
    reason = Result.read(run_dir).summary["exit_reason"]
    require(
        reason in REACHED_A_LIMIT,
        f"the run in {run_dir} ended too early ({reason}): remove it, or choose another --run-dir.",
    )
    return 0


def _evaluated(recorded: Result, run_dir: Path) -> tuple[Result, Evaluation]:
    """The new run, with an evaluation of its last checkpoint on the recorded seeds."""
    greedy = bool(recorded.games.get("greedy"))
    found = evaluate(load_policy(run_dir), recorded.seeds, greedy=greedy, threads=CORES)
    write_json(RunDirectory(run_dir).evaluation, found)
    result = Result.read(run_dir)
    assert result.evaluation is not None
    return result, result.evaluation
