"""``zmqrl train``: a run on this machine. The module also parses the training options of other commands."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zmqrl.commands.options import asks_for_help, option_names, parse, parse_known
from zmqrl.commands.run import help
from zmqrl.commands.run.detach import detach, on_up
from zmqrl.config import Config
from zmqrl.errors import UsageError, did_you_mean
from zmqrl.recipes import RECIPES
from zmqrl.simulate.scenario import Scenario

DEFAULT_PROFILE_VERSIONS = "100"
RECIPE = f"[{'|'.join(RECIPES)}]"  # in usage lines
SHARED: Final = frozenset({"workers", "backups", "quorum", "shards", "updates", "seed", "failures"})
IN_A_RUN: Final = frozenset(
    {"abandon", "parameters", "agent_steps_per_rollout", "updates_per_rollout", "rollout", "codec"}
)
"""Settings of a scenario that the recipe decides."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The options that select the base settings: those of an earlier run, or of a recipe and a scenario."""

    resume: bool = False
    run_dir: Path | None = None
    scenario: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on this machine, with workers, backup workers and parameter-server shards."""

    dry_run: bool = False
    """Print the processes that would start, and start nothing. Does not check the game."""


def command(arguments: list[str]) -> int:
    """Train on this machine. Raises ZmqrlError."""
    if asks_for_help(arguments):
        help.show(Options, default_of(arguments), f"zmqrl train {RECIPE}", help.RUN, help.TRAIN)
        return 0
    options, rest = parse_known(Options, arguments, f"zmqrl train {RECIPE}")
    config = config_from(rest)
    if options.dry_run:
        _print_plan(config)
        return 0
    if config.detach:
        return detach("train", arguments)
    from zmqrl.supervisor.run import train  # errors and help do not need it

    return train(config, on_up())


def config_from(arguments: list[str], adapt: Callable[[Config], Config] = lambda config: config) -> Config:
    """The settings of a ``zmqrl train`` command line. ``adapt`` changes the recipe before the options apply. Raises
    UsageError.
    """
    recipe = _recipe(arguments)
    options = _with_run_dir(_with_profile_default(arguments[1:] if recipe else arguments))
    resumed, _ = parse_known(Resumed, options, "zmqrl train")
    if not resumed.resume:
        default = adapt(default_of(arguments))
        if resumed.scenario is not None:
            default = under(default, resumed.scenario)
        return parse(Config, options, f"zmqrl train {RECIPE}", default)
    if resumed.run_dir is None:
        raise UsageError("--resume needs the directory of the run to continue: use --resume RUN or --run-dir RUN.")
    stored = Config.read(resumed.run_dir / "config.json")
    if recipe not in (None, stored.recipe):
        raise UsageError(f"{resumed.run_dir} is a run of recipe {stored.recipe}, not {recipe}.")
    given = option_names(options)  # tyro would append to the stored values
    if "--straggle" in given:
        stored = dataclasses.replace(stored, straggle=())
    for name in ("args", "wrappers"):
        if f"--envs.{name}" in given:
            stored = dataclasses.replace(stored, envs=dataclasses.replace(stored.envs, **{name: ()}))  # type: ignore[arg-type]
    if resumed.scenario is not None:
        stored = under(dataclasses.replace(stored, straggle=()), resumed.scenario)
    return parse(Config, options, "zmqrl train", adapt(stored))


def default_of(arguments: list[str]) -> Config:
    """The settings of the recipe in ``arguments``, or of breakout. Raises UsageError for an unknown recipe."""
    return RECIPES[_recipe(arguments) or "breakout"]()


def _recipe(arguments: list[str]) -> str | None:
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(
            f"unknown recipe {recipe!r}{did_you_mean(recipe, RECIPES)}; choose one of {', '.join(RECIPES)}."
        )
    return recipe


def under(config: Config, path: Path) -> Config:
    """``config`` with the settings of a scenario file. Prints the ignored settings. Raises UsageError."""
    scenario, named = Scenario.read_named(path)
    found: dict[str, Any] = {name: getattr(scenario, name) for name in SHARED & named}
    if "compute" in named and scenario.recorded_run is None:
        found["pace"] = scenario.compute
    slow = [f"{each.rank}:x{each.factor:g}" for each in scenario.stragglers if each.factor != 1]
    slow += [f"{each.rank}:{each.seconds:g}" for each in scenario.stragglers if each.seconds]
    if others := sorted(named - SHARED - {"compute", "stragglers"} - IN_A_RUN):
        sys.stderr.write(f"{path}: a real run ignores {', '.join(others)}.\n")
    return dataclasses.replace(config, **found, straggle=(*config.straggle, *slow))


def _print_plan(config: Config) -> None:
    """Print a dry run. Raises UsageError for the first invalid setting."""
    from zmqrl.hosts.deployment import placed_here

    config.check()
    placement = placed_here(config.with_schedule())
    sys.stdout.write("\n".join([placement.table(), *placement.notices]) + "\n")


def _with_run_dir(options: list[str]) -> list[str]:
    """Change ``--resume RUN`` into ``--resume --run-dir RUN``."""
    completed = list[str]()
    for option in options:
        if completed[-1:] == ["--resume"] and not option.startswith("-"):
            completed.append("--run-dir")
        completed.append(option)
    return completed


def _with_profile_default(options: list[str]) -> list[str]:
    """Add the default number of versions to a ``--profile`` without a number."""
    completed = []
    for option, following in zip(options, [*options, "--"][1:], strict=True):
        completed.append(option)
        if option == "--profile" and following.startswith("--"):
            completed.append(DEFAULT_PROFILE_VERSIONS)
    return completed
