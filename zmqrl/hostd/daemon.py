"""The daemon of a run on one host: it starts processes, forwards their output, and ends them before it ends itself.

``python -P -m zmqrl.hostd.daemon`` reads requests from standard input and writes events to standard output
(:mod:`zmqrl.hostd.messages`). It ends everything it has started when its input ends, when its lease runs out, or when a
signal arrives. Standard library only: no other process can start before it.
"""

import contextlib
import ctypes
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from zmqrl.hostd import files, guard, inspection
from zmqrl.hostd import messages as h
from zmqrl.hostd.child import ASK, ASK_BLOCKED
from zmqrl.hostd.interfaces import interfaces
from zmqrl.hostd.lines import Lines
from zmqrl.hostd.orphans import MARK, Orphans
from zmqrl.json_lines import parse_json
from zmqrl.observe.provenance import versions
from zmqrl.process import PR_SET_PDEATHSIG, raise_open_files, use_all_cores

PR_SET_CHILD_SUBREAPER = 36
PREDECESSOR_ENDS_WITHIN_S = 20.0
GRACE_S = 3.0
KILLED_WITHIN_S = 2.0
TURN_S = 0.25  # signals are handled between two turns
READ_BYTES = 1 << 20
READS_AT_THE_END = 64
LONGEST_LINE_BYTES = 1 << 20
PYTHON_ANSWERS_WITHIN_S = 1.0  # how soon running Python code answers a request for its stack
ANSWERS_WITHIN_S = 4.0
MOST_LINES_OF_STACKS = 10_000
STACK_ENDS_AFTER_S = 0.2  # a stack is complete after this time without a line
MOST_UNSENT_BYTES = 64 << 20  # output for a slow launcher; beyond this, log lines are dropped


@dataclass(slots=True, eq=False)
class _Asked:
    """A request for the stack of a process. The process writes the stack to its log."""

    sight: inspection.Sight
    since: float
    again: bool = False
    lines: list[str] = field(default_factory=list)
    heard_at: float | None = None

    def take(self, line: str) -> None:
        """Keep ``line`` of the log if a stack begins with it or has begun before it."""
        if (self.lines or inspection.begins_stack(line)) and len(self.lines) < MOST_LINES_OF_STACKS:
            self.lines.append(line)
            self.heard_at = time.monotonic()

    def is_over(self, now: float) -> bool:
        """Whether the process has answered or its time is up."""
        ended = self.heard_at is not None and now - self.heard_at >= STACK_ENDS_AFTER_S
        return ended or now - self.since >= ANSWERS_WITHIN_S


@dataclass(slots=True, eq=False)
class _Child:
    name: str
    mark: str
    process: "subprocess.Popen[bytes]"
    exit_fd: int
    unsent: bytearray = field(default_factory=bytearray)  # data for its standard input
    lines: dict[int, Lines] = field(default_factory=dict)  # by the pipe that the lines come from
    asked: _Asked | None = None


class Daemon:
    """The processes of one run on this host, by name. Events are written to the descriptor ``out``."""

    def __init__(self, out: int) -> None:
        self.out = out
        self.children: dict[str, _Child] = {}
        self._orphans = Orphans()
        self._starts = 0
        self.why_end: str | None = None
        self.work, self._lock = Path("/nowhere"), -1
        self._selector = selectors.DefaultSelector()
        self._requests = Lines()
        self._unsent = bytearray(b"\n")  # ends what the startup files of the shell may have printed
        self._lost_lines = 0
        self._lease_s: float | None = None
        self._heard_at = time.monotonic()
        os.set_blocking(out, False)

    def serve(self, requests: int) -> None:
        """Serve the requests that arrive on the descriptor ``requests`` until there is a reason to end."""
        os.set_blocking(requests, False)
        self._selector.register(requests, selectors.EVENT_READ, partial(self._hear, requests))
        while self.why_end is None:
            self._turn(TURN_S)
            self._orphans.step(self._marks())
            self._pass_on_stacks()
            if self._lease_s is not None and time.monotonic() - self._heard_at > self._lease_s:
                self.why_end = f"no message for {self._lease_s:g} s"

    def end(self) -> None:
        """End all processes: close their input and send SIGTERM, then SIGKILL. Then kill the remaining descendants."""
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

    # requests

    def _hear(self, requests: int) -> None:
        try:
            piece = os.read(requests, READ_BYTES)
        except BlockingIOError:
            return
        if not piece:
            self._selector.unregister(requests)
            self.why_end = self.why_end or "the launcher hung up"
            return
        self._heard_at = time.monotonic()
        for line in self._requests.add(piece):
            if self.why_end is None:
                self._handle(h.decode_request(line))

    def _handle(self, request: h.Request) -> None:
        match request:
            case h.Begin():
                self._begin(request)
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
            case h.Fetch():
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
        """Take over the directory of this run on this host from a daemon that may still be ending."""
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
            if launch == begin.launch and host != begin.host:  # the lock's owner is no old daemon of this host
                return self._refuse(f"{h.SAME_MACHINE} {host}: list it once")
            if time.monotonic() >= deadline:
                return self._refuse(f"processes of this run are still alive in {self.work}")
            time.sleep(0.1)
        self.why_end = self.why_end or "the launcher hung up"
        return None

    def _refuse(self, why: str) -> None:
        self._send(h.Refused(why))
        self.why_end = why

    def _start(self, request: h.Start) -> None:
        name = request.name
        if name in self.children:
            return None
        self._starts += 1
        mark = f"{os.getpid()}.{self._starts}"
        environment = {**request.before, **os.environ, **request.environment, MARK: mark}
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "zmqrl.hostd.child", request.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=[self._lock],  # so that the next daemon also waits for these processes
                start_new_session=True,  # its whole group can be killed, and it gets no signals from a terminal
            )
            exit_fd = os.pidfd_open(process.pid)
        except OSError as error:
            return self._exited(name, 127, f"cannot be started: {error}")
        child = _Child(name, mark, process, exit_fd)
        self.children[name] = child
        for pipe, take in ((process.stdout, self._take_said), (process.stderr, self._take_log)):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            child.lines[pipe.fileno()] = Lines()
            self._selector.register(pipe, selectors.EVENT_READ, partial(self._read, child, pipe.fileno(), take))
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._selector.register(exit_fd, selectors.EVENT_READ, partial(self._take_exit, child))
        self._send(h.Started(name, process.pid))
        for message in request.messages:
            self._tell(child, message)
        return None

    # children

    def _tell(self, child: _Child, message: Mapping[str, Any]) -> None:
        if child.process.stdin is not None and not child.process.stdin.closed:
            child.unsent += json.dumps(message).encode() + b"\n"
            self._say(child)

    def _say(self, child: _Child) -> None:
        stdin = child.process.stdin
        assert stdin is not None
        try:
            while child.unsent:
                del child.unsent[: os.write(stdin.fileno(), child.unsent)]
        except BlockingIOError:
            return self._watch_write(stdin.fileno(), partial(self._say, child))
        except BrokenPipeError:
            child.unsent.clear()
        return self._unwatch(stdin.fileno())

    def _hang_up(self, child: _Child) -> None:
        stdin = child.process.stdin
        if stdin is not None and not stdin.closed:
            self._unwatch(stdin.fileno())
            with contextlib.suppress(BrokenPipeError):
                stdin.close()

    def _marks(self) -> dict[int, str]:
        return {child.process.pid: child.mark for child in self.children.values()}

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, number)  # no other process can get its id before this child is reaped

    def _inspect(self, child: _Child) -> None:
        """Inspect a process, and ask for its stack if it can answer now. A stopped process would answer much later."""
        sight = inspection.look(child.process.pid)
        if sight is None or child.asked is not None:
            return
        child.asked = _Asked(sight, time.monotonic())
        if sight.answers and sight.state not in ("stopped", "traced", "dead"):
            inspection.ask(child.process.pid, ASK)
        else:
            self._pass_on_stack(child, child.asked)

    def _pass_on_stacks(self) -> None:
        """Forward the answers of processes. If a process gave none because it runs no Python code, ask it again."""
        now = time.monotonic()
        for child in self.children.values():
            asked = child.asked
            if asked is None:
                continue
            if asked.is_over(now):
                self._pass_on_stack(child, asked)
            elif not asked.again and not asked.lines and now - asked.since >= PYTHON_ANSWERS_WITHIN_S:
                sight = inspection.look(child.process.pid)
                if sight is not None and sight.answers and sight.is_past_python(asked.sight):
                    asked.again = True
                    inspection.ask(child.process.pid, ASK_BLOCKED)

    def _pass_on_stack(self, child: _Child, asked: _Asked) -> None:
        child.asked = None
        sight, stack = asked.sight, inspection.frames(asked.lines)
        self._send(h.Inspected(name=child.name, state=sight.state, kernel=sight.kernel, stack=stack))

    def _read(self, child: _Child, pipe: int, take: Callable[[_Child, bytes], None]) -> bool:
        """Read the available data and forward its complete lines. Returns False if there was no data."""
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
            self._send(h.Said(child.name, said))
        else:  # printed by user code, such as an environment or a model
            self._take_log(child, line)

    def _take_log(self, child: _Child, line: bytes) -> None:
        if child.asked is not None:
            child.asked.take(line.decode(errors="replace"))
        if len(self._unsent) > MOST_UNSENT_BYTES:
            self._lost_lines += 1
            return
        if self._lost_lines:
            self._send(h.Log(child.name, f"... {self._lost_lines} lines of the log are lost ..."))
            self._lost_lines = 0
        self._send(h.Log(child.name, line.decode(errors="replace")))

    def _take_exit(self, child: _Child) -> None:
        # Kill the child's session before the child is reaped: until then, no other process can get the child's id.
        self._signal(child, signal.SIGKILL)
        status = child.process.wait()
        for pipe, take in ((child.process.stdout, self._take_said), (child.process.stderr, self._take_log)):
            assert pipe is not None
            for _ in range(READS_AT_THE_END):  # its children may live on and write forever
                if not self._read(child, pipe.fileno(), take):
                    break
            if rest := bytes(child.lines[pipe.fileno()].rest):
                take(child, rest)
            self._unwatch(pipe.fileno())
            pipe.close()
        self._hang_up(child)
        self._selector.unregister(child.exit_fd)
        os.close(child.exit_fd)
        del self.children[child.name]
        self._orphans.died(child.mark, self._marks())
        if self.why_end is None:  # otherwise the launcher loses this host, with its processes
            self._exited(child.name, status, None)

    def _exited(self, name: str, status: int, why: str | None) -> None:
        self._send(h.Exited(name, status, why))

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
    """An id of this machine until its next boot. Each container and each Slurm node has its own id."""
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net")]
    return " ".join([kernel, *spaces, os.environ.get("SLURMD_NODENAME", "")])


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _adopt_orphans_and_die_with_parent() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def main() -> None:
    """Serve until there is a reason to end, then end all processes."""
    raise_open_files()
    use_all_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal: the launcher decides what it means
    _adopt_orphans_and_die_with_parent()
    parent = guard.fork_guard()
    _adopt_orphans_and_die_with_parent()
    # Events go to this copy of standard output. Anything that is printed by mistake goes to standard error.
    out = os.dup(1)
    os.dup2(2, 1)
    daemon = Daemon(out)

    def stop(number: int, _: object) -> None:
        daemon.why_end = f"received {signal.Signals(number).name}"

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if os.getppid() != parent:  # it died before it could be watched
        daemon.why_end = "the guard of this daemon has died"
    try:
        daemon.serve(0)
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"zmqrl hostd: {daemon.why_end}\n")
        daemon.end()


if __name__ == "__main__":
    main()
