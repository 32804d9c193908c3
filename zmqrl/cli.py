"""The command line: ``zmqrl train`` and the commands around it."""

import contextlib
import dataclasses
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zmqrl import __version__, open_files
from zmqrl.errors import UsageError, ZmqrlError, did_you_mean, refusal
from zmqrl.interrupts import interruptible
from zmqrl.observe.screen import never_waiting

if TYPE_CHECKING:  # torch and the games take seconds to import: only the commands that need them do
    from zmqrl.config import Config

T = TypeVar("T")


class Command(NamedTuple):
    """A command is a module with a frozen dataclass ``Options`` and a function ``run(options) -> exit status``."""

    module: str
    arguments: str
    purpose: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumed:
    """Which run is to be resumed, if any: other options are read over its settings, and not over a recipe's."""

    resume: bool = False
    run_dir: Path | None = None


COMMANDS = {
    "train": Command("zmqrl.cluster.run", "[RECIPE] [options]", "train on this machine"),
    "launch": Command(
        "zmqrl.cluster.launch", "-H HOSTS [RECIPE] [options]", "train on several hosts, over ssh or Slurm"
    ),
    "doctor": Command("zmqrl.cluster.doctor", "-H HOSTS [RECIPE] [options]", "look whether hosts are fit for a run"),
    "eval": Command("zmqrl.evaluate", "RUN [options]", "play whole games with a run's policy, say its score"),
    "record": Command("zmqrl.record", "RUN [options]", "play one game with a run's policy, keep it as a video"),
    "worker": Command("zmqrl.join", "DIR/cluster.json", "join a living run as one of its open ranks"),
    "status": Command("zmqrl.status", "RUN [options]", "show what a run is doing, or what a dead one left where"),
    "logs": Command("zmqrl.logs", "RUN [PROCESS] [-f]", "show the logs of a run's processes"),
    "stop": Command("zmqrl.stop", "RUN", "let a run end with a checkpoint, and wait for it"),
    "check-history": Command(
        "zmqrl.check_history", "RUN [options]", "check that every shard of a run made each version once"
    ),
    "plot": Command("zmqrl.plot", "RUN [RUN ...]", "draw what runs did over time"),
    "compare": Command("zmqrl.compare", "RUN RUN [RUN ...]", "show the settings and results of runs side by side"),
}
DEFAULT_PROFILE_VERSIONS = "100"


def main() -> None:
    """Run a command; exit with 0 done, 2 bad usage, 3 the cluster failed, 130 interrupted."""
    _open_standard_streams()
    try:
        open_files.raise_limit()
        _look_for_modules_here()
        status = _run_and_print(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except ZmqrlError as error:
        status = _complain(str(error), error.exit_status)
    except BrokenPipeError:  # who reads what we print has seen enough, as head has
        _print_no_more()
        status = 128 + signal.SIGPIPE
    except OSError as error:
        _print_no_more()
        known = f"cannot use {error.filename}: {error.strerror or error}."
        sentence = refusal(error, "standard output") if error.filename is None else known
        status = _complain(sentence, UsageError.exit_status)
    sys.exit(status)


def _run_and_print(arguments: Sequence[str]) -> int:
    """Run a command line and flush what it prints."""
    try:
        status = run(arguments)
    except SystemExit as stop:  # of --help
        status = int(stop.code or 0)
    sys.stdout.flush()
    return status


def _open_standard_streams() -> None:
    """Open /dev/null in place of a closed standard stream. Else the next file that is opened gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, os.O_RDWR)
            os.dup2(place, number)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
            if place != number:
                os.close(place)


def _look_for_modules_here() -> None:
    """As in the processes of a run: what users wrote (games, a model, a loss) is found where they stand."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise UsageError("the current directory has been removed: change to another one.") from None
    if here not in sys.path:
        sys.path.insert(0, here)


def _complain(sentence: str, status: int) -> int:
    with never_waiting():
        sys.stderr.write(f"zmqrl: {sentence}\n")
    return status


def _print_no_more() -> None:
    with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status. Raises ZmqrlError."""
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if command in ("--version", "--help", "-h"):
        sys.stdout.write(f"zmqrl {__version__}\n" if command == "--version" else _usage())
        return 0
    open_files.check()
    match command:
        case "train":
            from zmqrl.cluster.run import train

            return train(train_config(rest))
        case "launch":
            from zmqrl.cluster import launch, requeue
            from zmqrl.cluster.reach import over_tcp

            options, rest = _parse_known(launch.Options, rest, "zmqrl launch")
            config = train_config(rest, over_tcp)
            if options.requeue and not config.resume and requeue.is_begun(config):
                config = train_config([*rest, "--resume"], over_tcp)
            with interruptible():
                return launch.run(options, config)
        case "doctor":
            from zmqrl.cluster import doctor
            from zmqrl.cluster.reach import over_tcp

            wishes, rest = _parse_known(doctor.Options, rest, "zmqrl doctor")
            config = train_config(rest, over_tcp)
            with interruptible():
                return doctor.run(wishes, config)
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}; zmqrl --help lists them.")
    module = importlib.import_module(COMMANDS[command].module)
    options = _parse(module.Options, None, rest, f"zmqrl {command}")
    with interruptible():
        status: int = module.run(options)
    return status


def train_config(arguments: list[str], adapt: "Callable[[Config], Config]" = lambda config: config) -> "Config":
    """The settings that a ``zmqrl train`` command line means, read over ``adapt`` of its recipe. Raises UsageError."""
    from zmqrl.config import Config
    from zmqrl.recipes import RECIPES

    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    options = _with_profile_default(arguments[1:] if recipe else arguments)
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}{did_you_mean(recipe, RECIPES)}; there are {', '.join(RECIPES)}.")
    resumed = None if {"-h", "--help"} & set(options) else _parse_known(Resumed, options, "zmqrl train")[0]
    if resumed is None or not resumed.resume:
        return _parse(Config, adapt(RECIPES[recipe or "breakout"]()), options, f"zmqrl train [{'|'.join(RECIPES)}]")
    if resumed.run_dir is None:
        raise UsageError("--resume needs --run-dir: the directory of the run to go on with.")
    stored = Config.read(resumed.run_dir / "config.json")
    if recipe not in (None, stored.recipe):
        raise UsageError(f"{resumed.run_dir} is a run of recipe {stored.recipe}, not {recipe}.")
    if any(option.partition("=")[0] == "--straggle" for option in options):  # it would be appended to what is stored
        stored = dataclasses.replace(stored, straggle=())
    return _parse(Config, adapt(stored), options, "zmqrl train")


def _parse(cls: type[T], default: T | None, options: list[str], prog: str) -> T:
    """Parse ``options`` over ``default``. Raises UsageError for what is unknown or cannot be."""
    import tyro

    with _one_sentence(prog):
        if default is None:
            return tyro.cli(cls, args=options, prog=prog)
        return tyro.cli(cls, default=default, args=options, prog=prog)


def _parse_known(cls: type[T], options: list[str], prog: str) -> tuple[T, list[str]]:
    """Parse those of ``options`` that ``cls`` has; the others are given back, in their order. Raises UsageError."""
    import tyro

    with _one_sentence(prog):
        return tyro.cli(cls, args=options, prog=prog, return_unknown_args=True)


@contextlib.contextmanager
def _one_sentence(prog: str) -> Iterator[None]:
    """What tyro has against the command line becomes one sentence of ours; ``--help`` exits as it does."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
            return
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


def _usage() -> str:
    commands = [f"  zmqrl {f'{name} {about.arguments}':34}{about.purpose}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            f"zmqrl {__version__}: synchronous distributed actor-critic over ZeroMQ parameter servers",
            "",
            *commands,
            f"  {'zmqrl COMMAND --help':40}every option of a command",
            "  zmqrl --version",
            "",
        ]
    )
