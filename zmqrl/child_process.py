"""Starts a process that uses :mod:`zmqrl.process`, sends it a job and messages, and receives its answers."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from zmqrl.errors import ClusterError


class ChildProcess:
    """A running ``python -P PROGRAM``. It gets its job at once, and shares our standard error.

    Errors contain its ``name``, such as ``worker 3``. ``through`` is a prefix of the command, such as
    ``ip netns exec h1``. The process also gets the file descriptors in ``pass_fds``.
    """

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        job: dict[str, Any],
        *,
        through: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        pipe = subprocess.PIPE
        command = [*through, sys.executable, "-P", *program]
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True, pass_fds=pass_fds
        )
        self.tell(job)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message. Raises ClusterError when the process has ended."""
        assert self.process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.process.stdin.fileno(), line) :]
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """Wait for the next message of the process. Returns None if no message comes within ``within_s``.

        Raises ClusterError when the process has ended.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        line = bytearray()
        while not line.endswith(b"\n"):
            # After the first part of a line, the rest follows at once.
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0] and not line:
                return None
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._ended()
            line += piece
        facts: dict[str, Any] = json.loads(line)
        return facts

    def hang_up(self) -> None:
        """Close the pipes, so that the process ends."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def kill(self) -> None:
        """Kill the process if it still runs, and close the pipes."""
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def _ended(self) -> ClusterError:
        return ClusterError(f"{self.name} ended (exit status {self.process.wait()}): its log is above.")
