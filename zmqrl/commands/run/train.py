"""``zmqrl train``: a run on this machine. Also parses the training options of other commands."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from zmqrl.commands.options import OPTION, asks_for_help, operands, option_names, parse, parse_known
from zmqrl.commands.run import help
from zmqrl.commands.run.detach import detach, on_up
from zmqrl.config import Config
from zmqrl.errors import UsageError, require
from zmqrl.learner.dummy import DUMMY_ID
from zmqrl.learner.games import is_atari_id
from zmqrl.recipes import OF_ANY, RECIPES, require_recipe
from zmqrl.rundir import not_a_run
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
    """The options that select the base settings: an earlier run, or a scenario."""

    resume: bool = False
    run_dir: Path | None = None
    scenario: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on this machine, with workers, backup workers and parameter-server shards."""

    dry_run: bool = False
    """Print the processes that would start, and start nothing. Does not check the game."""


def command(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        help.show(Options, default_of(arguments, Options), f"zmqrl train {RECIPE}", help.RUN, help.TRAIN)
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


def config_from(
    arguments: list[str],
    adapt: Callable[[Config], Config] = lambda config: config,
    *,
    program: str = "zmqrl train",
    own: type[Any] = Options,
) -> Config:
    """The settings of a command line of ``program``, whose ``own`` options have been removed. ``adapt`` changes the
    recipe before options apply. Raises UsageError.
    """
    recipe, options = recipe_of(arguments)
    resumed, _ = parse_known(Resumed, options, program)
    if not resumed.resume:
        default = adapt(_base(recipe, options))
        if resumed.scenario is not None:
            default = under(default, resumed.scenario)
        return _checked(parse(Config, options, program, default, beside=[own]), options)
    if resumed.run_dir is None:
        raise UsageError("--resume needs the directory of the run to continue: use --resume RUN or --run-dir RUN.")
    file = resumed.run_dir / "config.json"
    try:
        stored = Config.read(file)
    except UsageError as error:
        raise (error if file.exists() else not_a_run(resumed.run_dir)) from error
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
    return _checked(parse(Config, options, program, adapt(stored), beside=[own]), options)


def _checked(config: Config, options: list[str]) -> Config:
    """``config``. Raises UsageError if one of the ``options`` has no effect.

    Options with their default values are accepted anywhere, except clipped rewards.
    """
    given = option_names(options)
    for name, reason in config.without_effect().items():
        option = f"--{name.replace('_', '-')}"
        require(option not in given, f"{option} has no effect {reason}")
    require(
        not (config.envs.clip_rewards and "--envs.clip-rewards" in given) or is_atari_id(config.env),
        "--envs.clip-rewards applies only to Atari games, where it is the default: remove it. To clip the rewards of "
        "another environment, use --wrapper.",
    )
    return config


def default_of(arguments: list[str], own: type[Any]) -> Config:
    """The settings of the recipe named in ``arguments``, or of one that fits ``--env``. Raises UsageError."""
    return _base(*recipe_of(arguments, own))


def _base(recipe: str | None, options: list[str]) -> Config:
    """The settings of ``recipe`` before ``options`` apply. If it is None, they are those of a recipe for ``--env``."""
    if recipe is None:
        env = _env_in(options)
        recipe = "breakout" if env is None or env == DUMMY_ID or is_atari_id(env) else OF_ANY
    config = RECIPES[recipe]()
    if recipe == OF_ANY and "--envs.images" in options:  # networks scale images themselves
        config = dataclasses.replace(config, envs=dataclasses.replace(config.envs, normalize_observations=False))
    return config


def _env_in(options: list[str]) -> str | None:
    """The value of ``--env`` in ``options``, or None."""
    for word, following in pairwise([*options, ""]):
        if word == "--env":
            return following
        if word.startswith("--env="):
            return word.removeprefix("--env=")
    return None


def recipe_of(arguments: list[str], *own: type[Any]) -> tuple[str | None, list[str]]:
    """The recipe, from anywhere in ``arguments``, and the options. Raises UsageError."""
    words, options = operands(_with_profile_default(with_run_dir(arguments)), (*own, Config), RECIPES)
    if words:
        require_recipe(words[0])
    require(len(words) < 2, f"{' '.join(words)}: a command takes only one recipe.")
    return words[0] if words else None, options


def under(config: Config, path: Path) -> Config:
    """``config`` with the settings of a scenario file. Prints those that a real run ignores. Raises UsageError."""
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


def with_run_dir(arguments: list[str]) -> list[str]:
    """Turn ``--resume RUN`` into ``--resume --run-dir RUN``, unless RUN can only be a recipe."""
    completed, recipes = list[str](), RECIPES if "--run-dir" in option_names(arguments) else ()
    for argument in arguments:
        if completed[-1:] == ["--resume"] and not argument.startswith("-") and argument not in recipes:
            completed.append("--run-dir")
        completed.append(argument)
    return completed


def _with_profile_default(arguments: list[str]) -> list[str]:
    """Complete a ``--profile`` without a number."""
    completed = []
    for argument, following in zip(arguments, [*arguments, "--end"][1:], strict=True):
        completed.append(argument)
        if argument == "--profile" and (OPTION.match(following) or following in RECIPES):
            completed.append(DEFAULT_PROFILE_VERSIONS)
    return completed
