"""Kills a process of a run at one of its system calls. Python loads this module if its folder is on PYTHONPATH.

The system calls are renames, removals, syncs and writes of files in the run directory, writes to the mapped files in
this directory, and messages sent over ZeroMQ. The variable KILLED_AT holds a :class:`Plan`. Each process appends the
names of its calls to the file ``log`` of the plan. The first process that reaches the call with the number ``nth``
kills itself.
"""

import _pyio  # type: ignore[import-not-found]  # the standard library's open in pure Python, which calls os.write
import builtins
import dataclasses
import io
import json
import mmap
import os
import re
import signal
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "KILLED_AT"
PROCESSES = 2  # number of shards, which start together. A resumed run first starts them once to read their old state
SHARD = "zmqrl.ps.shard.server"


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Which process to kill, and when. ``half``: kill in the middle of the write, not before the call."""

    run: str
    role: str
    log: str
    call: str = ""
    nth: int = 0
    half: bool = False

    def text(self) -> str:
        """The value of the variable KILLED_AT."""
        return json.dumps(dataclasses.asdict(self))


class Calls:
    """Counts the calls of this process by name."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.file = _open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.start = "" if plan.role == "supervisor" else f"{self._number() // PROCESSES} "

    def at(self, what: str, place: str = "", half: Callable[[], Any] | None = None) -> None:
        """This process makes a call. ``half`` does the first half of the call."""
        if place and not place.startswith(f"{self.plan.run}/"):
            return
        inside = re.sub(r"\d{5,}|(?<=json\.)\d+", "N", place[len(self.plan.run) + 1 :])
        call = f"{self.start}{what} {inside}".rstrip()
        with self.lock:
            self.counts[call] += 1
            _write(self.file, f"{call}{'' if half is None else ' +'}\n".encode())
            if (call, self.counts[call]) == (self.plan.call, self.plan.nth) and self._is_first("killed"):
                if self.plan.half and half is not None:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)

    def _number(self) -> int:
        return next(number for number in range(1000) if self._is_first(f"process-{number}"))

    def _is_first(self, name: str) -> bool:
        try:
            os.close(_open(f"{self.plan.log}.{name}", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True


_open, _write, _readlink = os.open, os.write, os.readlink


def place_of(file: Any, dir_fd: int | None = None) -> str:
    """The path of an open or named file."""
    if isinstance(file, int):
        return _readlink(f"/proc/self/fd/{file}")
    folder = place_of(dir_fd) if dir_fd is not None else str(Path.cwd())
    return str(Path(folder, os.fsdecode(file)))


def is_regular(file: Any) -> bool:
    return not isinstance(file, int) or stat.S_ISREG(os.fstat(file).st_mode)


def install(plan: Plan) -> None:
    """Watch the calls of this process from now on."""
    calls = Calls(plan)

    def watch(name: str, half: bool = False) -> None:
        real = getattr(os, name)

        def call(*given: Any, **options: Any) -> Any:
            if is_regular(given[0]):
                first = None
                if half and len(given[1]) > 1:
                    first = lambda: real(given[0], given[1][: len(given[1]) // 2], *given[2:])  # noqa: E731
                calls.at(name, place_of(given[0], options.get("dir_fd")), first)
            return real(*given, **options)

        setattr(os, name, call)

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "ftruncate", "posix_fallocate"):
        watch(name)
    for name in ("write", "pwrite"):
        watch(name, half=True)

    usual = io.open

    def opened(file: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
        return (_pyio.open if set(mode) & set("wax+") and is_regular(file) else usual)(file, mode, *given, **options)

    io.open = builtins.open = opened

    class Mapped(mmap.mmap):
        def __setitem__(self, key: Any, value: Any) -> None:
            place = self.place  # type: ignore[attr-defined]

            def half() -> None:
                middle = len(value) // 2
                super(Mapped, self).__setitem__(slice(key.start, key.start + middle), value[:middle])

            calls.at("map", place, half)
            super().__setitem__(key, value)

    def mapped(file: int, length: int) -> Mapped:
        made = Mapped(file, length)
        made.place = place_of(file)  # type: ignore[attr-defined]
        return made

    mmap.mmap = mapped  # type: ignore[assignment,misc]

    import zmq

    send = zmq.Socket.send

    def sent(self: Any, *given: Any, **options: Any) -> Any:
        calls.at("send")
        return send(self, *given, **options)

    zmq.Socket.send = sent  # type: ignore[method-assign]


if VARIABLE in os.environ and SHARD in sys.orig_argv:
    asked = Plan(**json.loads(os.environ[VARIABLE]))
    if asked.role == "shard":
        install(asked)
