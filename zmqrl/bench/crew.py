"""The processes of a benchmark, which run the parts of all variants in turn.

``python -m zmqrl.bench.crew`` runs such a process. It answers each message of its parent.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import importlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self, TypeAlias

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError
from zmqrl.process import Messages, bind_to_core, look_for_modules_there, read_job, say

PartFacts: TypeAlias = dict[str, Any]

ANSWER_WITHIN_S: Final = 300.0


class Part:
    """What a process does in one variant. The arguments of a part are plain data.

    ``facts`` is what the benchmark must know about the part, such as its port.
    """

    facts: Mapping[str, Any] = {}

    def run(self, *args: Any, **given: Any) -> PartFacts:
        """Run, as :meth:`Crew.run` or :meth:`Crew.run_for` asks. Returns the measurements."""
        raise NotImplementedError

    def close(self) -> None:
        """End the part."""


class Role(NamedTuple):
    """A process that runs the part ``name``, with the ``facts`` of that part."""

    name: str
    process: int
    facts: PartFacts


class Crew:
    """Processes that run parts. The end of the ``with`` block kills them."""

    def __init__(
        self,
        size: int,
        environment: Mapping[str, str] | None = None,
        cores: Sequence[tuple[int, int] | None] | None = None,
    ) -> None:
        """``environment`` adds variables to the environment of the processes. ``cores`` has the arguments of
        :func:`zmqrl.process.bind_to_core` for each process, or None for a process that is not bound.
        """
        through = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
        names = [f"process {process} of the benchmark" for process in range(size)]
        program = ["-m", "zmqrl.bench.crew"]
        self._children = [
            ChildProcess(name, program, {"core": core}, through=through)
            for name, core in zip(names, cores or [None] * size, strict=True)
        ]

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()  # the process may be waiting for a process that has ended

    @contextmanager
    def playing(self, name: str, part: type[Part], jobs: Mapping[int, PartFacts]) -> Iterator[list[Role]]:
        """Let processes play ``part`` during the block, each with its job. Raises ClusterError if a process fails."""
        about = {"join": name, "module": part.__module__, "part": part.__name__}
        joining = {process: {**about, "job": job} for process, job in jobs.items()}
        yield [Role(name, process, facts) for process, facts in self._ask(joining).items()]
        # Not after an error: a process that waits for a dead process does not answer.
        self._ask({process: {"leave": name} for process in jobs})

    def run(self, roles: Sequence[Role], rounds: int, pauses_s: Sequence[float] = ()) -> list[PartFacts]:
        """Run ``rounds`` rounds of all ``roles`` at the same time. Returns the measurements of each role.

        Before each round, role i pauses for ``pauses_s[i]``, or not at all. Raises ClusterError if a process fails.
        """
        pauses = [*pauses_s, *[0.0] * (len(roles) - len(pauses_s))]
        return self._run(roles, [{"rounds": rounds, "pause_s": pause} for pause in pauses])

    def run_for(self, roles: Sequence[Role], seconds: float) -> list[PartFacts]:
        """Run all ``roles`` at the same time for ``seconds``. Returns the measurements of each role.

        Raises ClusterError if a process fails.
        """
        return self._run(roles, [{"seconds": seconds} for _ in roles], within_s=seconds + ANSWER_WITHIN_S)

    def _run(
        self, roles: Sequence[Role], given: Sequence[PartFacts], within_s: float = ANSWER_WITHIN_S
    ) -> list[PartFacts]:
        asked = {role.process: {"run": role.name, "given": each} for role, each in zip(roles, given, strict=True)}
        assert len(asked) == len(roles), "a process does one thing at a time"
        return list(self._ask(asked, within_s).values())

    def _ask(self, messages: Mapping[int, PartFacts], within_s: float = ANSWER_WITHIN_S) -> dict[int, PartFacts]:
        for process, message in messages.items():
            self._children[process].tell(message)
        deadline = time.monotonic() + within_s
        return {process: self._answer(process, deadline) for process in messages}

    def _answer(self, process: int, deadline: float) -> PartFacts:
        answer = self._children[process].hear(max(0.0, deadline - time.monotonic()))
        if answer is None:
            raise ClusterError(f"process {process} of the benchmark did not answer in time.")
        return answer


def main() -> None:
    look_for_modules_there()
    if core := read_job(signal.SIGKILL)["core"]:
        bind_to_core(*core)
    messages = Messages()
    parts: dict[str, Part] = {}
    while True:
        match messages.get():
            case {"join": str(name), "module": module, "part": part, "job": job}:
                parts[name] = getattr(importlib.import_module(module), part)(**job)
                say(dict(parts[name].facts))
            case {"run": str(name), "given": given}:
                say(parts[name].run(**given))
            case {"leave": str(name)}:
                parts.pop(name).close()
                say({})


if __name__ == "__main__":
    main()
