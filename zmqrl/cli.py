"""The command line: ``zmqrl train`` and ``zmqrl worker``."""

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zmqrl import __version__
from zmqrl.errors import UsageError, ZmqrlError

if TYPE_CHECKING:  # torch and the games take seconds to import: only the commands that need them do
    from zmqrl.config import Config

T = TypeVar("T")

COMMANDS = {
    "train": "zmqrl train [RECIPE] [options]    train on this machine",
    "worker": "zmqrl worker DIR/cluster.json     join a living run as one of its open ranks",
}
USAGE = f"""\
zmqrl {__version__}: synchronous distributed actor-critic over ZeroMQ parameter servers

  {COMMANDS["train"]}
  {COMMANDS["worker"]}
  zmqrl COMMAND --help              every option of a command
  zmqrl --version
"""
DEFAULT_PROFILE_VERSIONS = "100"


def main() -> None:
    """Run a command; exit with 0 done, 2 bad usage, 3 the cluster failed, 130 interrupted."""
    try:
        sys.exit(run(sys.argv[1:]))
    except ZmqrlError as error:
        sys.stderr.write(f"zmqrl: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status. Raises ZmqrlError."""
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    match command:
        case "train":
            return train(rest)
        case "worker":
            return worker(rest)
        case "--version":
            sys.stdout.write(f"zmqrl {__version__}\n")
            return 0
        case "--help" | "-h":
            sys.stdout.write(USAGE)
            return 0
    raise UsageError(f"unknown command {command!r}{_did_you_mean(command, COMMANDS)}; zmqrl --help lists them.")


def train(arguments: list[str]) -> int:
    """``zmqrl train``: read the settings, then run. Raises ZmqrlError."""
    from zmqrl.cluster.run import train as run_training

    return run_training(train_config(arguments))


def train_config(arguments: list[str]) -> "Config":
    """The settings that a ``zmqrl train`` command line means. Raises UsageError."""
    from zmqrl.config import Config
    from zmqrl.recipes import RECIPES

    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    options = _with_profile_default(arguments[1:] if recipe else arguments)
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}{_did_you_mean(recipe, RECIPES)}; there are {', '.join(RECIPES)}.")
    base = RECIPES[recipe or "breakout"]()
    config = _parse(Config, base, options, f"zmqrl train [{'|'.join(RECIPES)}]")
    if not config.resume:
        return config
    if config.run_dir is None:
        raise UsageError("--resume needs --run-dir: the directory of the run to go on with.")
    stored = Config.read(config.run_dir / "config.json")
    if recipe not in (None, stored.recipe):
        raise UsageError(f"{config.run_dir} is a run of recipe {stored.recipe}, not {recipe}.")
    return _parse(Config, stored, options, "zmqrl train")


def worker(arguments: list[str]) -> int:
    """``zmqrl worker``: join a run from its ``cluster.json``. Raises ZmqrlError."""
    from dataclasses import dataclass
    from typing import Annotated

    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Join:
        """Join a living run as one of its open ranks, and work until it ends."""

        cluster: tyro.conf.Positional[Path]
        """The cluster.json of the run."""
        rank: int | None = None
        """Which open rank; the first one if not given."""
        threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
        """Threads for games and network."""

    from zmqrl.cluster.local import PATIENCE

    os.environ.update(PATIENCE | os.environ)  # before torch comes with its OpenMP
    from zmqrl.cluster.run import join

    options = _parse(Join, None, arguments, "zmqrl worker")
    return join(options.cluster, options.rank, options.threads)


def _parse(cls: type[T], default: T | None, options: list[str], prog: str) -> T:
    """Parse ``options`` over ``default``; what tyro has against them becomes one sentence of ours."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(cls, args=options, prog=prog)
            return tyro.cli(cls, default=default, args=options, prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│╭╮╰╯ ") for line in complaint.getvalue().splitlines()]
    # The sentence stands in a box, between the title and the first rule.
    end = next((i for i, line in enumerate(lines) if i and set(line) <= {"─"}), len(lines))
    sentence = " ".join(line for line in lines[1:end] if line).rstrip(".")
    raise UsageError(f"{sentence}; {prog.split(' [')[0]} --help lists the options.")


def _with_profile_default(options: list[str]) -> list[str]:
    """``--profile`` may stand without its number."""
    completed = []
    for option, following in zip(options, [*options, "--"][1:], strict=True):
        completed.append(option)
        if option == "--profile" and following.startswith("--"):
            completed.append(DEFAULT_PROFILE_VERSIONS)
    return completed


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
