"""The daemon of a run on one host: it starts processes, forwards their output, and ends them.

``python -P -m zmqrl.hostd.daemon`` reads requests from standard input and writes events to standard output
(:mod:`zmqrl.hostd.messages`). It ends everything that it has started when its input ends, its lease runs out, or a
signal arrives.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import contextlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from zmqrl.errors import UsageError
from zmqrl.hostd import files, guard, inspection
from zmqrl.hostd import messages as h
from zmqrl.hostd.child import ASK, ASK_BLOCKED
from zmqrl.hostd.fork_server import Forked, ForkServer
from zmqrl.hostd.interfaces import interfaces
from zmqrl.hostd.orphans import MARK, Orphans, adopt_orphans
from zmqrl.json_lines import parse_json
from zmqrl.observe.provenance import versions
from zmqrl.process import check_pidfd, die_with_parent, raise_open_files, use_all_cores

BEGIN_WITHIN_S = 30.0  # a launcher begins at once, but the network can be lost before
PREDECESSOR_ENDS_WITHIN_S = 20.0
GRACE_S = 3.0
KILLED_WITHIN_S = 2.0
SENT_WITHIN_S = 3.0  # after the launcher has hung up, which it may do before it reads an answer
TURN_S = 0.25  # signals are handled between turns
READ_BYTES = 1 << 20
READS_AT_THE_END = 64
LONGEST_LINE_BYTES = 1 << 20
PYTHON_ANSWERS_WITHIN_S = 1.0  # how soon running Python code writes its stack
ANSWERS_WITHIN_S = 4.0
MOST_LINES_OF_STACKS = 10_000
STACK_ENDS_AFTER_S = 0.2  # after this time without a line, a stack is complete
MOST_UNSENT_BYTES = 64 << 20  # for a slow launcher, before log lines are dropped


@dataclass(slots=True, eq=False)
class _Asked:
    """A request to a process to write its stack to its log."""

    sight: inspection.Sight
    since: float
    again: bool = False
    lines: list[str] = field(default_factory=list)
    heard_at: float | None = None

    def take(self, line: str) -> None:
        """Keep ``line`` of the log if a stack has begun."""
        if (self.lines or inspection.begins_stack(line)) and len(self.lines) < MOST_LINES_OF_STACKS:
            self.lines.append(line)
            self.heard_at = time.monotonic()

    def is_over(self, now: float) -> bool:
        """Whether the process has answered, or has had enough time."""
        ended = self.heard_at is not None and now - self.heard_at >= STACK_ENDS_AFTER_S
        return ended or now - self.since >= ANSWERS_WITHIN_S


@dataclass(slots=True, eq=False)
class _Child:
    stdin: int  # -1 if it is closed
    stdout: int
    stderr: int
    streams: tuple[int, ...]  # the other ends of these pipes, until the process has them
    lines: dict[int, h.Lines]  # by pipe
    name: str = ""
    mark: str = ""
    process: "subprocess.Popen[bytes] | Forked | None" = None  # None until the fork server has forked it
    exit_fd: int = -1
    unsent: bytearray = field(default_factory=bytearray)  # for its standard input
    asked: _Asked | None = None

    @classmethod
    def waiting(cls) -> "_Child":
        """A process with pipes that has not started. Raises OSError."""
        pipes: list[int] = []
        try:
            for _ in range(3):
                pipes += os.pipe()
        except OSError:
            _close(pipes)
            raise
        read_in, stdin, stdout, write_out, stderr, write_err = pipes
        for pipe in (stdin, stdout, stderr):
            os.set_blocking(pipe, False)
        lines = {stdout: h.Lines(), stderr: h.Lines()}
        return cls(stdin, stdout, stderr, (read_in, write_out, write_err), lines)

    def let_go(self) -> None:
        """Close the process's ends of the pipes."""
        _close(self.streams)
        self.streams = ()


class Daemon:
    """The processes of one run on this host, by name. Events go to the descriptor ``out``."""

    def __init__(self, out: int) -> None:
        self.out = out
        self.children: dict[str, _Child] = {}
        self._orphans = Orphans()
        self._fork_server: ForkServer | None = None  # at most one: after its end, processes start without it
        self._first: _Child | None = None  # the next forked process: its log gets the output of the fork server
        self._starts = 0
        self.why_end: str | None = None
        self.work, self._lock = Path("/nowhere"), -1
        self._selector = selectors.DefaultSelector()
        self._requests = h.Lines()
        self._has_heard = False
        self._unsent = bytearray(b"\n")  # ends what the startup files of the shell may have printed
        self._lost_lines = 0
        self._lease_s: float | None = BEGIN_WITHIN_S
        self._heard_at = time.monotonic()
        os.set_blocking(out, False)

    def serve(self, requests: int) -> None:
        """Serve requests from the descriptor ``requests`` until there is a reason to end."""
        os.set_blocking(requests, False)
        try:
            self._selector.register(requests, selectors.EVENT_READ, partial(self._hear, requests))
        except PermissionError:  # epoll cannot wait for /dev/null or for a file
            self.why_end = h.NO_INPUT
        while self.why_end is None:
            self._turn(TURN_S)
            self._orphans.step(self._marks())
            self._pass_on_stacks()
            if self._fork_server is not None and self._fork_server.is_late():
                self._close_fork_server()
            if self._lease_s is not None and time.monotonic() - self._heard_at > self._lease_s:
                self.why_end = f"no message for {self._lease_s:g} s"

    def end(self) -> None:
        """End all processes: close their input and send SIGTERM, then SIGKILL, also to other descendants."""
        for child in [child for child in self.children.values() if child.process is None]:
            self._forget(child)
        self._close_fork_server()
        for number, within_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, KILLED_WITHIN_S)):
            for child in self.children.values():
                self._hang_up(child)
                self._signal(child, number)
            deadline = time.monotonic() + within_s
            while self.children and (left_s := deadline - time.monotonic()) > 0:
                self._turn(left_s)
        guard.end_children(0)
        if self._lock >= 0:
            files.leave(self.work, self._lock)
        files.leave_base()
        deadline = time.monotonic() + SENT_WITHIN_S
        while self._unsent and (left_s := deadline - time.monotonic()) > 0:
            self._turn(left_s)

    # requests

    def _hear(self, requests: int) -> None:
        try:
            piece = os.read(requests, READ_BYTES)
        except BlockingIOError:
            return
        if not piece:
            self._selector.unregister(requests)
            self.why_end = self.why_end or ("the launcher hung up" if self._has_heard else h.NO_INPUT)
            return
        self._has_heard, self._heard_at = True, time.monotonic()
        for line in self._requests.add(piece):
            if self.why_end is None:
                self._handle(h.decode_request(line))

    def _handle(self, request: h.Request) -> None:
        match request:
            case h.Begin():
                self._begin(request)
            case h.Prepare():
                self._prepare(request.module, self._environment(request))
            case h.Start():
                self._start(request)
            case h.Tell():
                if child := self.children.get(request.name):
                    self._tell(child, request.message)
            case h.HangUp():
                if child := self.children.get(request.name):
                    self._hang_up(child)
            case h.Signal():
                if child := self.children.get(request.name):
                    self._signal(child, signal.Signals(request.number))
            case h.Inspect():
                if child := self.children.get(request.name):
                    self._inspect(child)
            case h.List():
                self._send(h.Listing(files.sizes(self.work, request.under)))
            case h.FetchPiece():
                self._send(files.read(self.work, request.path, request.offset))
            case h.Put():
                error = files.write(self.work, request.path, request.offset, b64decode(request.data), request.unless)
                self._send(h.Written(request.path, error))
            case h.Remove():
                shutil.rmtree(self.work / request.path, ignore_errors=True)
            case h.Clean():
                files.clean(self.work, whole=request.whole)
            case h.Renew():
                self._send(h.Alive())
            case h.Look():
                self._send(files.look(request.work))
            case _:
                assert_never(request)

    def _begin(self, begin: h.Begin) -> None:
        """Take over the run's directory from an earlier daemon, which may still be ending."""
        self._lease_s = begin.lease_s
        deadline = time.monotonic() + PREDECESSOR_ENDS_WITHIN_S
        while self.why_end is None and not _hung_up(0):
            try:
                self.work, lock = files.open_directory(begin.work)
            except OSError as error:
                return self._refuse(f"cannot use {error.filename or begin.work}: {error.strerror}")
            if files.take(self.work, lock):
                self._lock = lock
                files.set_user(lock, f"{begin.launch} {begin.host}" if begin.launch else "")
                self._heard_at = time.monotonic()
                return self._send(_about_this_host(self.work))
            launch, _, host = files.user_of(lock).partition(" ")
            os.close(lock)
            if launch == begin.launch and host != begin.host:  # this launcher lists the machine twice
                return self._refuse(f"{h.SAME_MACHINE} {host}: list it once")
            if time.monotonic() >= deadline:
                return self._refuse(f"processes of this run are still alive in {self.work}")
            time.sleep(0.1)
        self.why_end = self.why_end or "the launcher hung up"
        return None

    def _refuse(self, why: str) -> None:
        self._send(h.HostRefused(why))
        self.why_end = why

    def _environment(self, request: h.Start | h.Prepare) -> dict[str, str]:
        """The environment of a process, with a new mark."""
        self._starts += 1
        mark = f"{os.getpid()}.{self._starts:06}"
        return {**request.before, **os.environ, **request.environment, MARK: mark}

    def _start(self, request: h.Start) -> None:
        name, module = request.name, request.module
        if name in self.children:
            return None
        if request.forked:
            self._prepare(module, self._environment(request))
        environment = self._environment(request)
        try:
            child = self._first if request.forked and self._first is not None else _Child.waiting()
        except OSError as error:
            return self._exited(name, 127, f"cannot be started: {error}")
        if child is self._first:
            self._first = None
        child.name, child.mark = name, environment[MARK]
        self.children[name] = child
        for pipe, take in ((child.stdout, self._take_said), (child.stderr, self._take_log)):
            self._selector.register(pipe, selectors.EVENT_READ, partial(self._read, child, pipe, take))
        for message in request.messages:
            self._tell(child, message)
        begin, server = partial(self._begin_process, child, module, environment), self._fork_server
        if request.forked and server is not None and server.fits(environment):
            return server.fork(module, environment, child.streams, begin)
        return begin(0, -1)

    def _prepare(self, module: str, environment: Mapping[str, str]) -> None:
        """Start the fork server, unless one was started before."""
        if self._fork_server is not None:
            return
        with contextlib.suppress(OSError):  # without the fork server, processes start the usual way
            self._first = self._first or _Child.waiting()
            self._fork_server = ForkServer(module, environment, self._first.streams[2], [self._lock])
            self._selector.register(self._fork_server.channel, selectors.EVENT_READ, self._hear_fork_server)

    def _hear_fork_server(self) -> None:
        assert self._fork_server is not None
        if not self._fork_server.hear():
            self._close_fork_server()

    def _close_fork_server(self) -> None:
        if self._fork_server is not None and self._fork_server.is_open:
            self._selector.unregister(self._fork_server.channel)
            self._fork_server.close()

    def _begin_process(self, child: _Child, module: str, environment: Mapping[str, str], pid: int, go: int) -> None:
        """Take over ``pid``, which was forked for ``child``. If no process was forked, start one."""
        try:
            if self.children.get(child.name) is not child:
                return None
            if not self._take_over(child, pid, go):
                child.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "zmqrl.hostd.child", module],
                    stdin=child.streams[0],
                    stdout=child.streams[1],
                    stderr=child.streams[2],
                    env=environment,
                    pass_fds=[self._lock],  # the next daemon also waits for these processes
                    start_new_session=True,  # to kill its whole group, and to keep signals of a terminal away
                )
                child.exit_fd = os.pidfd_open(child.process.pid)
        except OSError as error:
            self._forget(child)
            return self._exited(child.name, 127, f"cannot be started: {error}")
        finally:
            child.let_go()
        self._selector.register(child.exit_fd, selectors.EVENT_READ, partial(self._take_exit, child))
        return self._send(h.Started(child.name, self._pid(child)))

    def _take_over(self, child: _Child, pid: int, go: int) -> bool:
        """Make the process ``pid`` run as ``child``. Returns False if there is no such process."""
        if pid == 0:
            return False
        exit_fd = -1
        try:
            exit_fd = os.pidfd_open(pid)
            os.waitid(os.P_PIDFD, exit_fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # an error if it is not our child
            os.write(go, b"!")
        except OSError:
            _close([exit_fd] if exit_fd >= 0 else [])
            return False
        child.process, child.exit_fd = Forked(pid), exit_fd
        return True

    # children

    def _tell(self, child: _Child, message: Mapping[str, Any]) -> None:
        if child.stdin >= 0:
            child.unsent += json.dumps(message).encode() + b"\n"
            self._say(child)

    def _say(self, child: _Child) -> None:
        try:
            while child.unsent:
                del child.unsent[: os.write(child.stdin, child.unsent)]
        except BlockingIOError:
            return self._watch_write(child.stdin, partial(self._say, child))
        except BrokenPipeError:
            child.unsent.clear()
        return self._unwatch(child.stdin)

    def _hang_up(self, child: _Child) -> None:
        if child.stdin >= 0:
            self._unwatch(child.stdin)
            os.close(child.stdin)
            child.stdin = -1

    def _marks(self) -> dict[int, str]:
        marks = {child.process.pid: child.mark for child in self.children.values() if child.process is not None}
        if self._fork_server is not None and self._fork_server.is_open:
            marks[self._fork_server.process.pid] = self._fork_server.mark
        return marks

    def _pid(self, child: _Child) -> int:
        """The id of a process, or of the fork server until the process is forked."""
        if child.process is not None:
            return child.process.pid
        assert self._fork_server is not None
        return self._fork_server.process.pid

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)  # no other process can get its id before this child is reaped
        elif number in (signal.SIGTERM, signal.SIGKILL):
            self._forget(child)
            self._exited(child.name, -number, None)

    def _inspect(self, child: _Child) -> None:
        """Inspect a process, and ask for its stack if it can answer now. A stopped process would answer much later."""
        sight = inspection.look(self._pid(child))
        if sight is None or child.asked is not None:
            return
        child.asked = _Asked(sight, time.monotonic())
        if sight.answers and sight.state not in ("stopped", "traced", "dead"):
            inspection.ask(self._pid(child), ASK)
        else:
            self._pass_on_stack(child, child.asked)

    def _pass_on_stacks(self) -> None:
        """Forward the stacks of processes. Ask again if a process does not answer because it runs no Python code."""
        now = time.monotonic()
        for child in self.children.values():
            asked = child.asked
            if asked is None:
                continue
            if asked.is_over(now):
                self._pass_on_stack(child, asked)
            elif not asked.again and not asked.lines and now - asked.since >= PYTHON_ANSWERS_WITHIN_S:
                sight = inspection.look(self._pid(child))
                if sight is not None and sight.answers and sight.is_past_python(asked.sight):
                    asked.again = True
                    inspection.ask(self._pid(child), ASK_BLOCKED)

    def _pass_on_stack(self, child: _Child, asked: _Asked) -> None:
        child.asked = None
        sight, stack = asked.sight, inspection.frames(asked.lines)
        self._send(h.InspectionReport(name=child.name, state=sight.state, kernel=sight.kernel, stack=stack))

    def _read(self, child: _Child, pipe: int, take: Callable[[_Child, bytes], None]) -> bool:
        """Forward the complete lines that are available. Returns False if there was no data."""
        try:
            piece = os.read(pipe, 65536)
        except BlockingIOError:
            return False
        if not piece:
            self._unwatch(pipe)
            return False
        for line in child.lines[pipe].add(piece):
            take(child, line)
        if len(child.lines[pipe].rest) > LONGEST_LINE_BYTES:
            take(child, bytes(child.lines[pipe].rest))
            child.lines[pipe].rest.clear()
        return True

    def _take_said(self, child: _Child, line: bytes) -> None:
        try:
            said = parse_json(line)
        except ValueError:
            said = None
        if isinstance(said, dict):
            self._send(h.Output(child.name, said))
        else:  # printed by user code, such as an environment or a model
            self._take_log(child, line)

    def _take_log(self, child: _Child, line: bytes) -> None:
        if child.asked is not None:
            child.asked.take(line.decode(errors="replace"))
        if len(self._unsent) > MOST_UNSENT_BYTES:
            self._lost_lines += 1
            return
        if self._lost_lines:
            self._send(h.LogLine(child.name, f"... lines of the log lost here: {self._lost_lines} ..."))
            self._lost_lines = 0
        self._send(h.LogLine(child.name, line.decode(errors="replace")))

    def _take_exit(self, child: _Child) -> None:
        # Kill the child's group before reaping the child: until then, no other process can get its id.
        self._signal(child, signal.SIGKILL)
        assert child.process is not None
        status = child.process.wait()
        for pipe, take in ((child.stdout, self._take_said), (child.stderr, self._take_log)):
            for _ in range(READS_AT_THE_END):  # its children may write forever
                if not self._read(child, pipe, take):
                    break
            if rest := bytes(child.lines[pipe].rest):
                take(child, rest)
        self._selector.unregister(child.exit_fd)
        os.close(child.exit_fd)
        self._forget(child)
        self._orphans.died(child.mark, self._marks())
        if self.why_end is None:  # otherwise this daemon is ending, and the launcher takes its host as lost
            self._exited(child.name, status, None)

    def _forget(self, child: _Child) -> None:
        self._hang_up(child)
        for pipe in child.lines:
            self._unwatch(pipe)
            os.close(pipe)
        del self.children[child.name]

    def _exited(self, name: str, status: int, why: str | None) -> None:
        self._send(h.ExitReport(name, status, why))

    # the loop

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fd in self._selector.get_map():
                key.data()

    def _watch_write(self, fd: int, callback: Callable[[], None]) -> None:
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_WRITE, callback)

    def _unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _send(self, event: h.Event) -> None:
        self._unsent += h.encode(event)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self.out, self._unsent)]
        except BlockingIOError:
            return self._watch_write(self.out, self._flush)
        except BrokenPipeError:
            self._unsent.clear()
            self.why_end = self.why_end or "the launcher is gone"
        return self._unwatch(self.out)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _about_this_host(work: Path) -> h.Up:
    connection = os.environ.get("SSH_CONNECTION", "").split()
    address = connection[2].removeprefix("::ffff:") if len(connection) == 4 else None
    return h.Up(
        host=socket.gethostname(),
        pid=os.getpid(),
        **versions(),
        interfaces=interfaces(),
        address="127.0.0.1" if address == "::1" else address,
        work=str(work),
        machine=_machine(),
    )


def _machine() -> str:
    """An id of this machine until its next boot. Each container and node has its own."""
    return f"{inspection.pid_space()} {Path('/proc/self/ns/net').readlink()} {files.node_name()}"


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _adopt_orphans_and_die_with_parent() -> None:
    adopt_orphans()
    die_with_parent(signal.SIGTERM)


def main() -> None:
    """Serve until there is a reason to end, then end all processes."""
    try:
        check_pidfd()
    except UsageError as error:
        sys.exit(str(error))
    raise_open_files()
    use_all_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher handles Ctrl-C at a terminal
    die_with_parent(signal.SIGTERM)
    front = guard.fork_front()
    _adopt_orphans_and_die_with_parent()
    if os.getppid() != front:  # it died before this process could notice
        sys.exit("the process that started this host daemon has died")
    parent = guard.fork_guard()
    _adopt_orphans_and_die_with_parent()
    # Events go to this copy of standard output. What is printed by mistake goes to standard error.
    out = os.dup(1)
    os.dup2(2, 1)
    daemon = Daemon(out)

    def stop(number: int, _: object) -> None:
        daemon.why_end = f"received {signal.Signals(number).name}"

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if os.getppid() != parent:  # the parent died before this process could watch it
        daemon.why_end = "the guard of this daemon has died"
    try:
        daemon.serve(0)
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"zmqrl hostd: {daemon.why_end}\n")
        daemon.end()


if __name__ == "__main__":
    main()
