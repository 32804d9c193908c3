"""The command line. It finds a command, runs it, and turns errors into one sentence and an exit status."""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from zmqrl import __version__
from zmqrl.errors import UsageError, ZmqrlError, did_you_mean, refusal
from zmqrl.hostd.user_code import in_guarded_child
from zmqrl.observe.screen import is_hung_up, never_waiting
from zmqrl.process import check_open_files, log_level, look_for_modules_here, raise_open_files, use_all_cores
from zmqrl.words import ESCAPING, ended_how


class Command(NamedTuple):
    """A command is a module under ``zmqrl.commands`` with a function ``command(arguments) -> exit status``.

    If ``is_guarded``, everything that the command has started ends with it. Commands that run the user's code in their
    own process need this guard.
    """

    module: str
    arguments: str
    purpose: str
    is_guarded: bool = False


COMMANDS = {
    "train": Command("run.train", "[RECIPE] [options]", "train on this machine"),
    "launch": Command("run.launch", "-H HOSTS [RECIPE] [options]", "train on several hosts (ssh, Slurm and others)"),
    "doctor": Command("inspect.doctor", "[-H HOSTS] [RECIPE] [options]", "check that machines can run this job"),
    "recipes": Command("inspect.recipes", "[--json]", "list the recipes, with their scores and training times"),
    "eval": Command(
        "measure.evaluate", "RUN [options]", "play full games with a policy and print the scores", is_guarded=True
    ),
    "record": Command("measure.record", "RUN [options]", "record one game of a policy as a video", is_guarded=True),
    "worker": Command("run.worker", "DIR/cluster.json", "join a run as an external worker", is_guarded=True),
    "status": Command("inspect.status", "RUN [options]", "show the state of a run, and what it left on its hosts"),
    "attach": Command("inspect.attach", "RUN", "show the live panel of a run until it ends"),
    "logs": Command("inspect.logs", "RUN [PROCESS] [-f]", "show the logs of a run's processes"),
    "serve": Command("inspect.serve", "[RUNS_DIR|RUN] [options]", "show runs on a live page in the browser"),
    "stop": Command("run.stop", "RUN", "end a run with a checkpoint"),
    "check-history": Command(
        "inspect.check_history",
        "RUN [options]",
        "check that every shard made each version exactly once",
    ),
    "profile": Command("inspect.profile", "RUN [RUN] [options]", "show where the time of a run goes"),
    "simulate": Command("measure.simulate", "[FILE] [options]", "simulate a run in virtual time"),
    "plan": Command("measure.plan", "--workers-up-to N [options]", "find the workers, backups and shards to use"),
    "bench": Command(
        "measure.bench", "train|wire [options]", "measure training, or the transport of gradients", is_guarded=True
    ),
    "plot": Command("measure.plot", "RUN [RUN ...]", "draw the metrics of runs over time"),
    "compare": Command("measure.compare", "RUN RUN [RUN ...]", "compare the settings and results of runs"),
    "report": Command("measure.report", "RUN [options]", "write a page about the result of a run"),
    "reproduce": Command(
        "measure.reproduce",
        "RESULT [options]",
        "train again with the settings of a result, and compare both runs",
        is_guarded=True,
    ),
    "completion": Command("completion", "bash|zsh|fish", "print a script that completes commands in a shell"),
}


# Signals that end a process whose native code fails, or that is out of memory.
CRASHES = (
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
    signal.SIGKILL,
)


def guarded_main() -> None:
    """Run a command like :func:`main`, in a child with a guard if the command needs one."""
    _open_standard_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS and COMMANDS[name].is_guarded and (status := in_guarded_child()) is not None:
        crash = status - 128
        if crash in CRASHES:
            how = ended_how(-crash)
            sentence = (
                f"zmqrl {name} ended ({how}): perhaps native code of its environment or neural network has crashed."
            )
            status = _complain(sentence, UsageError.exit_status)
        sys.exit(status)
    main()


def main() -> None:
    """Run a command. Exit status: 0 success, 2 bad usage, 3 the cluster failed, 130 interrupted."""
    _open_standard_streams()
    try:
        raise_open_files()
        use_all_cores()
        look_for_modules_here()
        status = _run_and_print(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except ZmqrlError as error:
        status = _complain(str(error), error.exit_status)
    except BrokenPipeError:  # the program that reads our output, such as head, has ended
        status = 128 + signal.SIGPIPE
    except OSError as error:
        known = f"cannot use {error.filename}: {error.strerror or error}."
        sentence = refusal(error, "standard output") if error.filename is None else known
        # When a terminal closes, its SIGHUP can arrive after the first failed write.
        status = 130 if error.errno == errno.EIO and is_hung_up() else _complain(sentence, UsageError.exit_status)
    _drop_unwritable()
    sys.exit(status)


def _run_and_print(arguments: Sequence[str]) -> int:
    try:
        status = run(arguments)
    except SystemExit as stop:  # raised by --help
        status = int(stop.code or 0)
    sys.stdout.flush()
    return status


def _open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no other file gets its descriptor.

    Output streams write escapes for bytes and characters that they cannot encode.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
            if null != number:
                os.close(null)
        stream = getattr(sys, name)
        if name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPING)


def _complain(sentence: str, status: int) -> int:
    with never_waiting():
        sys.stderr.write(f"zmqrl: {sentence}\n")
    return status


def _drop_unwritable() -> None:
    """Drop output that cannot be written: at exit, Python would try again, and change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Raises ZmqrlError."""
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if name in ("--version", "--help", "-h"):
        sys.stdout.write(f"zmqrl {__version__}\n" if name == "--version" else _usage())
        return 0
    check_open_files()
    log_level()  # raises UsageError for an invalid value
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; zmqrl --help lists them.")
    # Import only this command's modules: torch and the games take seconds to import.
    module = importlib.import_module(f"zmqrl.commands.{COMMANDS[name].module}")
    status: int = module.command(rest, COMMANDS) if name == "completion" else module.command(rest)
    return status


def _usage() -> str:
    lines = {f"zmqrl {name} {about.arguments}": about.purpose for name, about in COMMANDS.items()}
    lines["zmqrl COMMAND --help"] = "list every option of a command"
    width = max(map(len, lines)) + 2
    return "\n".join(
        [
            f"zmqrl {__version__}: synchronous distributed actor-critic over ZeroMQ parameter servers",
            "",
            *(f"  {command:{width}}{purpose}" for command, purpose in lines.items()),
            "  zmqrl --version",
            "",
        ]
    )
