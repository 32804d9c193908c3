"""The fork server of a host daemon: a process that imports a module once, and then forks processes that need it.

Importing torch and the games takes seconds of processor time. A fork takes milliseconds, and shares the memory of the
imports. The fork server only imports, so it has no threads, ZeroMQ sockets or CUDA state, which cannot be forked.

If it does not answer, or a process needs another environment, the daemon starts the process the usual way.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zmqrl.hostd.orphans import MARK
from zmqrl.process import LOG_LEVEL, die_with_parent

MAY_DIFFER = (MARK, LOG_LEVEL)  # variables that change nothing in the imports
NAME = "zmqrl.hostd.fork_server"
IMPORTS_WITHIN_S = 60.0
FORKS_WITHIN_S = 5.0
KILLED_WITHIN_S = 1.0
THREADS_END_WITHIN_S = 1.0
MOST_REQUEST_BYTES = 1 << 20
STREAMS = 3  # standard input, output and error


@dataclass(slots=True, eq=False)
class _Request:
    """A process to fork.

    ``done`` is called with the id of the process (0 if none was forked) and the pipe ``go``. A byte in the pipe starts
    the process.
    """

    message: bytes
    streams: Sequence[int]
    done: Callable[[int, int], None]
    go: int = -1

    def finish(self, pid: int) -> None:
        """Report the process, then close ``go``. Without a byte in ``go``, the process ends."""
        try:
            self.done(pid, self.go)
        finally:
            if self.go >= 0:
                os.close(self.go)


class ForkServer:
    """The daemon's side of a fork server, which imports ``module`` in ``environment``.

    The output of the imports goes to ``log``. Forked processes keep the descriptors ``inherited`` open. When
    ``channel`` is readable, the daemon calls ``hear``. Raises OSError if the fork server cannot be started.
    """

    def __init__(self, module: str, environment: Mapping[str, str], log: int, inherited: Sequence[int]) -> None:
        self.mark, self._environment = environment[MARK], _relevant(environment)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests: deque[_Request] = deque()
        self._asked: _Request | None = None
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "zmqrl.hostd.child", NAME, str(theirs.fileno()), module],
                stdin=subprocess.PIPE,  # a pipe, as in the forked processes
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[theirs.fileno(), *inherited],
                start_new_session=True,
            )
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self.channel.setblocking(False)
        self.is_open, self._is_ready = True, False
        self._answers_until = time.monotonic() + IMPORTS_WITHIN_S

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether this environment can be forked."""
        same_length = len(environment[MARK]) == len(self.mark)  # marks are overwritten in place
        return self.is_open and same_length and self._environment == _relevant(environment)

    def fork(
        self, module: str, environment: Mapping[str, str], streams: Sequence[int], done: Callable[[int, int], None]
    ) -> None:
        """Fork a process that runs ``module``. The caller closes ``streams`` after ``done`` was called."""
        message = json.dumps({"module": module, "environment": environment}).encode()
        self._requests.append(_Request(message, streams, done))
        self._ask()

    def is_late(self) -> bool:
        """Whether the fork server should have answered by now."""
        is_busy = self._asked is not None or not self._is_ready
        return self.is_open and is_busy and time.monotonic() >= self._answers_until

    def hear(self) -> bool:
        """Take an answer. Returns False if the fork server has ended."""
        try:
            pid = int(self.channel.recv(64))
        except (OSError, ValueError):
            return False
        asked, self._asked, self._is_ready = self._asked, None, True
        if asked is not None:
            asked.finish(pid)
        self._ask()
        return True

    def close(self) -> None:
        """End the fork server. The processes that it has forked continue."""
        if not self.is_open:
            return
        self.is_open = False
        self.channel.close()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the daemon then reaps it as an orphan
            self.process.wait(KILLED_WITHIN_S)
        assert self.process.stdin is not None
        self.process.stdin.close()
        for request in (*filter(None, [self._asked]), *self._requests):
            request.finish(0)

    def _ask(self) -> None:
        """Send the next request. Only one is open at a time, so answers do not name requests."""
        while self._is_ready and self._asked is None and self._requests:
            request = self._requests.popleft()
            try:
                waits, request.go = os.pipe()
                with os.fdopen(waits):  # closes it
                    socket.send_fds(self.channel, [request.message], [*request.streams, waits])
                self._asked, self._answers_until = request, time.monotonic() + FORKS_WITHIN_S
            except OSError:  # the environment is too large, for example
                request.finish(0)


def _relevant(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in MAY_DIFFER}


@dataclass(frozen=True, slots=True)
class Forked:
    """A forked process: a child of the daemon, like a ``Popen``."""

    pid: int

    def wait(self) -> int:
        """Wait for the end of the process. Returns the status as ``Popen.wait`` does."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# the fork server itself


def serve(descriptor: int, module: str) -> str:
    """Import ``module``, then fork a process per request on the socket ``descriptor``.

    Returns only in forked processes, with the module to run.
    """
    die_with_parent(signal.SIGKILL)
    channel = socket.socket(fileno=descriptor)
    shown, mark = _in_memory(NAME, f"{MARK}={os.environ[MARK]}")
    importlib.import_module(module)
    del sys.modules[module]  # a forked process runs it as __main__
    _check_threads(module)
    gc.collect()
    gc.freeze()  # collections in forked processes would copy all objects
    pid = 0
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        channel.send(b"%d" % pid)
        message, descriptors, *_ = socket.recv_fds(channel, MOST_REQUEST_BYTES, STREAMS + 1)
        if not message:
            sys.exit()  # the daemon has ended
        pid, born = _fork()
        if born is not None:
            channel.close()
            request = json.loads(message)
            _become(request["environment"], descriptors, born)
            module = request["module"]
            _overwrite(shown, module.encode().ljust(len(shown), b"\0"))
            _overwrite(mark, f"{MARK}={os.environ[MARK]}".encode())
            return module
        for each in descriptors:
            os.close(each)


def _check_threads(module: str) -> None:
    """Exit if the imports have started threads. Fork once first, because some libraries end their threads at a fork."""
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + THREADS_END_WITHIN_S
    while len(list(Path("/proc/self/task").iterdir())) > 1:
        if time.monotonic() >= deadline:
            sys.exit(f"{module} has started threads: its processes cannot be forked")
        time.sleep(0.01)


def _fork() -> tuple[int, int | None]:
    """Fork a process that becomes a child of the daemon, because its own parent ends at once.

    In the fork server, returns the id of the process, or 0 if the fork failed. In the new process, returns 0 and a
    descriptor: the fork server waits until the process closes it.
    """
    told, tell = os.pipe()
    if between := os.fork():
        os.close(tell)
        with os.fdopen(told) as said:
            pid = int(said.read() or 0)
        os.waitpid(between, 0)
        return pid, None
    os.close(told)
    with contextlib.suppress(OSError):  # too many processes
        if not (pid := os.fork()):
            return 0, tell
        os.write(tell, b"%d" % pid)
    os._exit(0)


def _become(environment: Mapping[str, str], descriptors: Sequence[int], born: int) -> None:
    """Make this process like one that the daemon has started. Exit if the daemon no longer wants it."""
    os.setsid()  # before the daemon can signal its group
    *streams, go = descriptors
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.close(born)
    if not os.read(go, 1):
        os._exit(0)
    os.close(go)
    os.environ.clear()
    os.environ.update(environment)
    del sys.argv[1:]
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()  # Python's own generator has a new seed after a fork


def _in_memory(argument: str, variable: str) -> tuple[range, range]:
    """The addresses of the command line from ``argument`` on, and of the initial environment from ``variable`` on.

    ``/proc`` shows their content. Raises ValueError.
    """
    # Fields 48 to 51 are the bounds of both. The process name before them may contain spaces.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arguments, end_of_arguments, variables, end_of_variables = map(int, fields[45:49])
    return _rest(arguments, end_of_arguments, argument), _rest(variables, end_of_variables, variable)


def _rest(begin: int, end: int, words: str) -> range:
    return range(begin + ctypes.string_at(begin, end - begin).index(words.encode()), end)


def _overwrite(area: range, words: bytes) -> None:
    ctypes.memmove(area.start, words, min(len(words), len(area) - 1))  # a zero byte must stay at the end
