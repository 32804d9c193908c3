"""The command line. It finds a command, runs it, and turns errors into one sentence and an exit status."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from zmqrl import __version__
from zmqrl.commands import COMMANDS, GROUPS, Command, run_command
from zmqrl.errors import INTERRUPTED, LIMIT_OF_PROCESSES, UsageError, ZmqrlError, did_you_mean, refusal, request_refused
from zmqrl.hostd.user_code import in_guarded_child
from zmqrl.observe.folding import printable
from zmqrl.observe.screen import is_hung_up, never_waiting
from zmqrl.process import check_open_files, log_level, look_for_modules_here, raise_open_files, use_all_cores
from zmqrl.words import ESCAPING, ended_how

# Signals that end a process whose native code fails, or that is out of memory.
CRASHES = (
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
    signal.SIGKILL,
)
STREAMS = {1: "standard output", 2: "standard error"}


def guarded_main() -> None:
    """Run a command like :func:`main`, in a child with a guard if the command needs one."""
    _open_standard_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS and COMMANDS[name].is_guarded and (status := _explaining(lambda: _guarded(name))) is not None:
        sys.exit(status)
    main()


def _guarded(name: str) -> int | None:
    """Continue in a child with a guard, and return None there. Here, return the exit status of the command ``name``."""
    status = in_guarded_child(COMMANDS[name].ends_within_s, f"zmqrl {name}")
    if status is None or (crash := status - 128) not in CRASHES:
        return status
    how = ended_how(-crash)
    raise UsageError(
        f"zmqrl {name} ended ({how}): perhaps native code of its environment or neural network has crashed."
    )


def main() -> None:
    """Run a command. Exit status: 0 success, 2 bad usage, 3 the cluster failed, 130 interrupted."""
    _open_standard_streams()
    sys.exit(_explaining(_run_and_print))


def _explaining(step: Callable[[], int | None]) -> int | None:
    """The exit status of ``step``. Turns errors into one sentence."""
    try:
        return step()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except ZmqrlError as error:
        status = _complain(str(error), error.exit_status)
    except BrokenPipeError:  # the program that reads our output, such as head, has ended
        status = 128 + signal.SIGPIPE
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        sentence = f"cannot start a thread: too many are running: raise {LIMIT_OF_PROCESSES}."
        status = _complain(sentence, UsageError.exit_status)
    except OSError as error:
        # When a terminal closes, its SIGHUP can arrive after the first failed write.
        is_end = error.errno == errno.EIO and is_hung_up()
        status = INTERRUPTED if is_end else _complain(_sentence(error), UsageError.exit_status)
    finally:
        _drop_unwritable()
    return status


def _sentence(error: OSError) -> str:
    # A stream that does not block has a number of written characters instead of a name.
    if error.filename in STREAMS.values() or hasattr(error, "characters_written"):
        return refusal(error, STREAMS[1])
    if error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror or error}."
    return f"{error}." if error.errno is None else request_refused(error)


def _run_and_print() -> int:
    raise_open_files()
    use_all_cores()
    look_for_modules_here()
    try:
        status = run(sys.argv[1:])
    except SystemExit as stop:  # raised by --help, and perhaps by a module that is imported
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stdout.flush()
            return _complain(f"{stop.code}", 1)
        status = stop.code or 0
    sys.stdout.flush()
    return status


class _Named(io.FileIO):
    """The file of a standard stream. Its errors have a name in ``STREAMS`` as their ``filename``."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STREAMS[self.fileno()]
            raise


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
            setattr(sys, name, _naming_errors(stream, number))


def _naming_errors(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    """A stream like the standard stream ``stream``, whose errors name it. Other streams stay as they are."""
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO or raw.fileno() != number:
        return stream
    stream.flush()
    named = _Named(number, "w", closefd=False)
    buffer: Any = named if raw is stream.buffer else io.BufferedWriter(named)
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _complain(sentence: str, status: int) -> int:
    shown = "\n".join(map(printable, sentence.split("\n")))  # it can quote another machine
    with never_waiting():
        sys.stderr.write(f"zmqrl: {shown}\n")
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
    return run_command(COMMANDS[name].module, f"zmqrl {name}", rest)


def _usage() -> str:
    every = Command("", "--help", "list every option of a command")
    groups = {**GROUPS, "more": {"COMMAND": every, "--version": Command("", "", "print the version")}}
    width = max(len(f"{name} {about.arguments}") for group in groups.values() for name, about in group.items()) + 2
    lines = [f"zmqrl {__version__}: synchronous distributed actor-critic over ZeroMQ parameter servers"]
    for title, group in groups.items():
        lines += ["", title.upper()]
        lines += [f"  zmqrl {f'{name} {about.arguments}':{width}}{about.purpose}" for name, about in group.items()]
    return "\n".join(lines) + "\n"
