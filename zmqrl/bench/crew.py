"""The processes of a benchmark. They live as long as it does, and play parts in one variant after the other.

``python -m zmqrl.bench.crew`` is such a process. It reads messages from its parent and answers each of them.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self, TypeAlias

from zmqrl.bench.parts import PARTS, Part
from zmqrl.errors import ClusterError
from zmqrl.process import Messages, read_job, say

Facts: TypeAlias = dict[str, Any]

ANSWER_WITHIN_S: Final = 300.0


class Role(NamedTuple):
    """A part that a process plays. ``facts`` are those of the part."""

    name: str
    process: int
    facts: Facts


class Crew:
    """Processes that play parts. Use it as a context manager, which ends them."""

    def __init__(self, size: int) -> None:
        command = [sys.executable, "-m", "zmqrl.bench.crew"]
        pipe = subprocess.PIPE
        self._processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True) for _ in range(size)
        ]

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        for process in range(len(self._processes)):
            self._tell(process, {})  # the job, which is empty
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # it may wait for a process that is gone
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    @contextmanager
    def playing(self, name: str, part: type[Part], jobs: Mapping[int, Facts]) -> Iterator[list[Role]]:
        """Let processes play ``part`` in the block, each with its job. Raises ClusterError."""
        joining = {process: {"join": name, "part": part.__name__, "job": job} for process, job in jobs.items()}
        yield [Role(name, process, facts) for process, facts in self._ask(joining).items()]
        # Not after an error: a process that waits for one that is gone does not answer.
        self._ask({process: {"leave": name} for process in jobs})

    def run(self, roles: Sequence[Role], rounds: int, pauses_s: Sequence[float] = ()) -> list[Facts]:
        """Let all ``roles`` do so many rounds at the same time. Returns what each of them measured.

        ``pauses_s`` are their pauses before each round, in the same order; the others make none. Raises ClusterError.
        """
        pauses = [*pauses_s, *[0.0] * (len(roles) - len(pauses_s))]
        asked = {
            role.process: {"run": role.name, "rounds": rounds, "pause_s": pause}
            for role, pause in zip(roles, pauses, strict=True)
        }
        assert len(asked) == len(roles), "a process does one thing at a time"
        return list(self._ask(asked).values())

    def _ask(self, messages: Mapping[int, Facts]) -> dict[int, Facts]:
        for process, message in messages.items():
            self._tell(process, message)
        deadline = time.monotonic() + ANSWER_WITHIN_S
        return {process: self._answer(process, deadline) for process in messages}

    def _tell(self, process: int, message: Facts) -> None:
        stdin = self._processes[process].stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._gone(process) from None

    def _answer(self, process: int, deadline: float) -> Facts:
        stdout = self._processes[process].stdout
        assert stdout is not None
        line = bytearray()
        while not line.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ClusterError(f"process {process} of the benchmark did not answer within {ANSWER_WITHIN_S:g} s.")
            piece = os.read(stdout.fileno(), 1 << 16)
            if not piece:
                raise self._gone(process)
            line += piece
        answer: Facts = json.loads(line)
        return answer

    def _gone(self, process: int) -> ClusterError:
        status = self._processes[process].wait()
        return ClusterError(f"process {process} of the benchmark ended (exit status {status}): its error is above.")


def main() -> None:
    """Play parts until the parent hangs up."""
    read_job(signal.SIGKILL)
    messages = Messages()
    parts: dict[str, Part] = {}
    while True:
        match messages.get():
            case {"join": str(name), "part": part, "job": job}:
                parts[name] = PARTS[part](**job)
                say(parts[name].facts)
            case {"run": str(name), "rounds": rounds, "pause_s": pause_s}:
                say(parts[name].run(rounds, pause_s))
            case {"leave": str(name)}:
                parts.pop(name).close()
                say({})


if __name__ == "__main__":
    main()
