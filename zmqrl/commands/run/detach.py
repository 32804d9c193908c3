"""Starts a run that continues without its terminal, for ``--detach``."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from zmqrl.observe.screen import Screen
from zmqrl.process import LOOK_UP_EVERY_S, interruptible, unset
from zmqrl.rundir import RunDirectory
from zmqrl.words import as_text, as_word

STARTER = "ZMQRL_STARTER"  # descriptor of a pipe, to which a detached run writes its directory when it is up
PIPE_BYTES = 4096  # more than any path
PIPE_OF_SHELL = re.compile(r"(?:.*=)?/(?:dev|proc/self)/fd/([0-9]+)")  # the shell's <(...) as an argument


@interruptible()
def detach(command: str, arguments: Sequence[str]) -> int:
    """Run ``zmqrl COMMAND`` with ``arguments`` in a session of its own.

    Returns 0 when the run is up, or its exit status if it ends before. Until then, it prints to this terminal, and
    Ctrl-C and SIGTERM interrupt it.
    """
    program = [sys.executable, "-P", "-m", "zmqrl", command, *(each for each in arguments if each != "--detach")]
    reader, writer = os.pipe()
    run: subprocess.Popen[bytes] | None = None
    early = list[int]()

    def interrupt(number: int, frame: FrameType | None) -> None:  # must not raise, or a starting run is lost
        if run is None:
            early.append(number)
        else:
            run.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):  # false if the signal is ignored
            signal.signal(number, interrupt)
    if callable(signal.getsignal(signal.SIGHUP)):
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # unlike SIG_IGN, not inherited by the run
    run = subprocess.Popen(
        program,
        stdin=subprocess.DEVNULL,
        env=unset | os.environ | {STARTER: str(writer)},
        pass_fds=[writer, *_open_pipes(arguments)],
        start_new_session=True,  # no signals from our terminal
    )
    for asked in early:
        run.send_signal(asked)
    os.close(writer)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while not select.select([reader], [], [], LOOK_UP_EVERY_S)[0]:
        pass
    if path := os.read(reader, PIPE_BYTES):
        return _told(Path(os.fsdecode(path)), run.pid)
    status = run.wait()
    return status if status >= 0 else 128 - status


def _open_pipes(arguments: Sequence[str]) -> list[int]:
    """The open file descriptors that ``arguments`` name, such as /dev/fd/63."""
    found = [int(each[1]) for each in map(PIPE_OF_SHELL.fullmatch, arguments) if each is not None]
    return [number for number in found if Path(f"/dev/fd/{number}").exists()]


def _told(path: Path, pid: int) -> int:
    here = Path.cwd()
    name = as_word(path.relative_to(here) if path.is_relative_to(here) else path)
    sys.stdout.write(
        f"run directory {as_text(path)}: the run is up and continues without this terminal (process {pid})\n"
        f"  zmqrl attach {name}  # show it\n"
        f"  zmqrl stop {name}  # end it with a checkpoint\n"
    )
    return 0


def on_up() -> Callable[[RunDirectory], None] | None:
    """A function that reports a run as up and leaves the terminal, if :func:`detach` started this process."""
    starter = os.environ.pop(STARTER, None)
    return None if starter is None else partial(_leave_terminal, int(starter))


def _leave_terminal(starter: int, directory: RunDirectory) -> None:
    """Send further output, such as that of a crash, to the supervisor's log. Then report the run as up."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Screen):
            stream.close()
    log = os.open(directory.log("supervisor"), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    with contextlib.suppress(BrokenPipeError):  # the starter was killed
        os.write(starter, os.fsencode(directory.path))
    os.close(starter)
