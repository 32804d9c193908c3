"""The command line. It finds a command, runs it, and turns errors into one sentence and an exit status."""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from zmqrl import __version__
from zmqrl.commands import COMMANDS
from zmqrl.errors import UsageError, ZmqrlError, did_you_mean, refusal
from zmqrl.hostd.user_code import in_guarded_child
from zmqrl.observe.screen import is_hung_up, never_waiting
from zmqrl.process import check_open_files, log_level, look_for_modules_here, raise_open_files, use_all_cores
from zmqrl.words import ESCAPING, ended_how

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
    except SystemExit as stop:  # raised by --help, and perhaps by a module that is imported
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stdout.flush()
            return _complain(f"{stop.code}", 1)
        status = stop.code or 0
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
    status: int = module.command(rest)
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
