"""Starts a process that uses :mod:`zmqrl.process`, and exchanges messages with it."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from zmqrl.errors import ClusterError
from zmqrl.words import ended_how

GUARD_ENDS_WITHIN_S = 10.0


class ChildEnded(ClusterError):
    """A child process has ended. ``how`` is its exit status in words."""

    def __init__(self, name: str, status: int) -> None:
        self.how = ended_how(status)
        super().__init__(f"{name} ended ({self.how}): its log is above.")


class ChildProcess:
    """A running ``python -P PROGRAM``. The program gets its job at once, and shares the standard error of this process.

    Errors contain the ``name``, such as ``worker 3``. ``through`` is a prefix of the command, such as ``ip netns exec
    h1``. The process also gets the file descriptors ``pass_fds``. If the program has a guard
    (:mod:`zmqrl.hostd.user_code`), ``guarded_by`` is the signal that makes the guard end everything.
    """

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        job: dict[str, Any],
        *,
        through: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        guarded_by: int | None = None,
    ) -> None:
        self.name, self._guarded_by = name, guarded_by
        self._unread = bytearray()  # messages that have arrived, and the first part of another one
        pipe = subprocess.PIPE
        command = [*through, sys.executable, "-P", *program]
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True, pass_fds=pass_fds
        )
        self.tell(job)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message. Raises ChildEnded."""
        assert self.process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.process.stdin.fileno(), line) :]
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next message of the process, or None if none comes within ``within_s``. Raises ChildEnded."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        while (end := self._unread.find(b"\n") + 1) == 0:
            # After the first part of a line, the rest follows at once.
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left_s)[0] and not self._unread:
                return None
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._ended()
            self._unread += piece
        facts: dict[str, Any] = json.loads(self._unread[:end])
        del self._unread[:end]
        return facts

    def hang_up(self) -> None:
        """Close the pipes, so that the process ends."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def kill(self) -> None:
        """Kill the process, with everything that its guard finds, and close the pipes."""
        if self._guarded_by is not None:
            self.process.send_signal(self._guarded_by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GUARD_ENDS_WITHIN_S)
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def _ended(self) -> ChildEnded:
        status = self.process.wait()
        is_of_guard = self._guarded_by is not None and status > 128
        return ChildEnded(self.name, 128 - status if is_of_guard else status)
