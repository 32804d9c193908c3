"""A terminal for tests, with a command on it."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.rig import WITHIN_S, ending, eventually

# Makes the terminal at standard input our own: Ctrl-C there interrupts us, and when it closes, we get SIGHUP.
ON_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios
signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("zmqrl", run_name="__main__", alter_sys=True)
"""


class Terminal:
    """A terminal, and a command that leads its session. ``said``: the output of the command so far."""

    def __init__(self, ours: int, process: "subprocess.Popen[bytes]") -> None:
        self._ours, self.process, self.said = ours, process, ""
        os.set_blocking(ours, False)

    def read(self) -> str:
        with contextlib.suppress(OSError):  # nothing more has been printed, or the terminal is closed
            while piece := os.read(self._ours, 1 << 16):
                self.said += piece.decode(errors="replace")
        return self.said

    def has_said(self, words: str) -> None:
        eventually(lambda: words in self.read() or self._has_ended(), f"{words!r} on the terminal", WITHIN_S)
        assert words in self.said, f"ended without {words!r}:\n{self.said}"

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1

    def wait(self) -> int:
        """Read until the command has ended. Returns its exit status."""
        eventually(self._has_ended, "the end of the command", WITHIN_S)
        self.read()
        return self.process.wait()

    def _has_ended(self) -> bool:
        self.read()
        return self.process.poll() is not None


@contextlib.contextmanager
def terminal_of(*command: str, variables: Mapping[str, str], directory: Path | None = None) -> Iterator[Terminal]:
    """Run ``command`` on a terminal, with these environment variables added. Leaving the block ends the command."""
    ours, theirs = pty.openpty()
    with ending(
        subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=directory,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    ) as process:
        os.close(theirs)
        terminal = Terminal(ours, process)
        try:
            yield terminal
        finally:
            terminal.close()


def on_a_terminal(*arguments: str, hang_up: str = "SIG_DFL") -> contextlib.AbstractContextManager[Terminal]:
    """Run ``zmqrl ARGUMENTS`` on a terminal, with the given handler of SIGHUP. Leaving the block ends the command."""
    command = (sys.executable, "-c", ON_A_TERMINAL, hang_up, *arguments)
    return terminal_of(*command, variables={"TERM": "xterm-256color"})
