"""The connection to the daemon of one host: pipes to a child process, such as ssh, srun or the command of --via."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from zmqrl.hostd import messages as h
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.folding import printable
from zmqrl.words import ended_how

# Without -P, files in the working directory would hide modules of the same name.
DAEMON = ("-P", "-m", "zmqrl.hostd.daemon")
LAUNCH = secrets.token_hex(8)  # the id by which daemons recognize this launcher
UP_WITHIN_S = 30.0
RENEW_EVERY_S = 1.0  # time between two renewals of a lease
KILLED_WITHIN_S = 2.0
WORDS_BYTES = 4096
MOST_PRINTED_BYTES = 1 << 20
NO_OUTPUT = "it printed nothing"
# ssh prints one of these if too many clients of a server have not logged in yet (MaxStartups). It also prints one after
# the reason of a failure at a jump host.
CLOSED = ("kex_exchange_identification", "Connection closed by", "Connection reset by")
# SSH_CONNECTION would describe this machine, not the host. The others would change the streams of srun.
NOT_PASSED_ON = frozenset(
    {
        *("SSH_CONNECTION", "SLURM_LABELIO", "SLURM_UNBUFFEREDIO"),
        *("SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_STDERRMODE"),
    }
)
# BatchMode keeps ssh from asking, but not the ssh that connects to its jump host.
NEVER_ASKING = {"SSH_ASKPASS_REQUIRE": "never"}
MOST_PIECES = 64  # of at most 64 KiB each, the capacity of a pipe


class Link:
    """A connection to the daemon of one host. If it is lost, ``open`` makes a new one.

    ``command`` runs the daemon. ``work`` is the run's directory there. Without ``lease_s``, only the end of the
    connection shows each side that the other has ended. ``environment`` has variables for the daemon's processes. They
    can be secret: :meth:`to_dict` leaves them out. ``shown`` is the part of the command that messages show, if any.
    ``up`` is the daemon's report about its host, or None without a connection.

    A link can also request a Python environment, with the line ``first``. Then ``made`` is the answer.
    """

    def __init__(
        self,
        host: str,
        command: Sequence[str],
        *,
        work: str,
        lease_s: float | None,
        environment: Mapping[str, str] | None = None,
        shown: str = "",
        first: bytes | None = None,
        up_within_s: float = UP_WITHIN_S,
    ) -> None:
        self.host, self.command, self.work, self.lease_s = host, list(command), work, lease_s
        self.environment, self.shown = dict(environment or {}), shown
        self.first = first or h.encode(h.Begin(work, lease_s, LAUNCH, host))
        self.up_within_s = up_within_s
        self.up: h.Up | None = None
        self.made: h.Made | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._sending = threading.Lock()
        self._unsent = bytearray()
        self._arrived = h.Lines()
        self._words = bytearray()  # the standard error of the daemon, or of ssh
        self._refusal = ""  # why the daemon cannot continue
        self._printed, self._printed_bytes = b"", 0  # the last line that startup files printed, and the length of all
        self._has_answered = False
        self._opened_at = self._heard_at = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data with which another process can reach this host."""
        work = self.work if self.up is None else self.up.work
        about = {"host": self.host, "command": self.command, "work": work, "lease_s": self.lease_s}
        return about | {"shown": self.shown}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Link":
        """Inverse of :meth:`to_dict`. Data of older code has the environment, and the daemon can be another module."""
        command = [word.replace("zmqrl.cluster.agent", "zmqrl.hostd.daemon") for word in data["command"]]
        known = {name: data[name] for name in ("environment", "shown") if name in data}
        return cls(data["host"], command, work=data["work"], lease_s=data["lease_s"], **known)

    def is_elsewhere(self, launched_on: str | None) -> bool:
        """Whether this link means another machine, ``launched_on``, but would reach this one.

        Without a lease, all files are in the run directory, which machines can share.
        """
        is_another = launched_on not in (None, socket.gethostname())
        return self.host == LOCALHOST and self.lease_s is not None and is_another

    def is_silent(self) -> bool:
        """Whether the link is open, but the daemon has sent nothing."""
        return self.process is not None and not self._has_answered

    @property
    def is_ready(self) -> bool:
        """Whether the daemon is up, or the environment is ready."""
        return self.up is not None or self.made is not None

    def look(self, within_s: float) -> h.Seen:
        """Ask for the contents of the run's directory on the host. Raises LinkLost."""
        self._run()
        self.send(h.Look(self.work))
        self.hang_up()
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for event in self.poll():
                if isinstance(event, h.Seen):
                    self._forget()
                    return event
            time.sleep(0.02)
        return self._lose(f"no answer within {within_s:g} s")

    def open(self) -> None:
        """Start the daemon. ``poll`` then returns Up, or raises LinkLost."""
        self._run()
        self.send_line(self.first)

    def _run(self) -> None:
        assert self.process is None
        try:
            self.process = subprocess.Popen(
                self.command,
                env={name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON} | NEVER_ASKING,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # only this process handles Ctrl-C at the terminal
            )
        except OSError as error:
            raise LinkLost(self.host, f"cannot run {self.command[0]}: {error.strerror}") from error
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self.up, self.made, self._arrived, self._words = None, None, h.Lines(), bytearray()
        self._printed, self._printed_bytes, self._has_answered, self._refusal = b"", 0, False, ""
        self._opened_at = self._heard_at = time.monotonic()

    def send(self, request: h.Request) -> None:
        """Send a request, in order, as soon as the daemon can be reached. Any thread can call this.

        A lost link drops requests. After ``open``, the caller repeats those that are still needed.
        """
        self.send_line(h.encode(request))

    def send_line(self, line: bytes) -> None:
        """Like :meth:`send`, but for any line, such as one for the program that makes an environment."""
        with self._sending:
            if self.process is None:
                return
            self._unsent += line
            self._flush()

    def poll(self) -> list[h.Event]:
        """Return the events since the last call. Never waits. Raises LinkLost if the daemon cannot be reached."""
        process = self.process
        if process is None:
            return []
        assert process.stdout is not None
        assert process.stderr is not None
        now = time.monotonic()
        with self._sending:
            self._flush()
        ended = process.poll() is not None
        if piece := _read_all(process.stdout.fileno()):
            self._heard_at = now
        events = self._events(piece)
        if h.Alive() in events:
            self._words.clear()  # earlier output does not explain a later silence
        self._words = (self._words + _read_all(process.stderr.fileno()))[-WORDS_BYTES:]
        for event in events:
            match event:
                case h.Up():
                    self.up = event
                case h.Made():
                    self.made = event
                case h.HostRefused():
                    self._refusal = printable(event.why)
        if not events:
            if ended:
                self._lose(self._last_words() or f"{ended_how(process.returncode)}, and {NO_OUTPUT}")
            if not self.is_ready and now - self._opened_at > self.up_within_s:
                said = self._last_words() or NO_OUTPUT
                self._lose(f"it did not come up within {self.up_within_s:g} s: {said}")
            if self.lease_s is not None and self.up is not None and now - self._heard_at > self.lease_s:
                said = self._last_words()
                self._lose(f"no message for {self.lease_s:g} s" + (f": {said}" if said else ""))
        return events

    def renew(self) -> None:
        """Renew the lease of the daemon. Any thread can call this."""
        if self.lease_s is not None and self.up is not None:
            self.send(h.Renew())

    def hang_up(self) -> None:
        """Close the connection. The daemon then ends its processes."""
        with self._sending:
            if self.process is not None and self.process.stdin is not None:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()

    def cut(self) -> None:
        """Close the connection without waiting for the daemon."""
        self.hang_up()
        self._forget()

    def _events(self, piece: bytes) -> list[h.Event]:
        """The events in a piece of output, without what startup files of the shell print before them."""
        events: list[h.Event] = []
        if not self._has_answered:
            self._printed_bytes += len(piece)
            if self._printed_bytes > MOST_PRINTED_BYTES:
                shown = (self._printed or piece.strip())[:60]
                self._lose(f"the shell's startup files on that host print without end: {shown!r}")
        for line in self._arrived.add(piece):
            try:
                if not (self._has_answered or line.startswith(b"{")):
                    raise ValueError("no JSON object")
                events.append(h.decode_event(line))
            except ValueError:
                if self._has_answered:
                    self._lose(
                        f"unexpected output {line[:60]!r}: the shell's startup files on that host must not "
                        "print anything in the background"
                    )
                self._printed = line.strip()[:WORDS_BYTES] or self._printed
            else:
                self._has_answered = True
        return events

    def _lose(self, why: str) -> NoReturn:
        self._forget()
        raise LinkLost(self.host, f"{self.shown}: {why}" if self.shown else why)

    def _forget(self) -> None:
        with self._sending:
            process, self.process, self.up, self.made = self.process, None, None, None
            self._unsent.clear()
        if process is not None:
            # Close the pipes first: a command that runs as another user, such as sudo, cannot be killed, but ends then.
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            # Kill the command that runs the daemon, such as ssh with its jump hosts. The daemon then ends by itself, or
            # its guard ends it: even on this machine, the guard is in another process group.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except PermissionError:
                threading.Thread(target=process.wait, name="reap", daemon=True).start()
                return
            except ProcessLookupError:
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):  # a network disk may not answer
                process.wait(KILLED_WITHIN_S)

    def _flush(self) -> None:
        if self.process is None or self.process.stdin is None or self.process.stdin.closed:
            return
        with contextlib.suppress(OSError):  # the pipe is full, or poll will notice the end
            while self._unsent:
                del self._unsent[: os.write(self.process.stdin.fileno(), self._unsent)]

    def _last_words(self) -> str:
        """Why the daemon refused, or else the last words on standard error.

        If no event has arrived, the last line of standard output comes first.
        """
        if self._refusal:
            return self._refusal
        printed = b"" if self._has_answered else self._arrived.rest.strip()[:WORDS_BYTES] or self._printed
        return " / ".join(filter(None, (_text(bytes(printed)), last_words(bytes(self._words)))))


def last_words(words: bytes) -> str:
    """The last line of the standard error of ssh, or of another program. Before it, the last line with a reason."""
    lines = [line for line in map(_text, words.split(b"\n")) if line]
    reasons = [line for line in lines if not line.startswith(CLOSED)]
    return " / ".join([*reasons[-1:], *(line for line in lines[-1:] if line.startswith(CLOSED))])


def _text(line: bytes) -> str:
    return printable(line.decode(errors="replace")).strip()


class LinkLost(Exception):
    """The daemon of ``host`` has ended, or cannot be reached. ``why`` is the reason."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(host, why)
        self.host, self.why = host, why


def _read_all(pipe: int) -> bytes:
    """Read the available data, but at most a few MiB: other pipes may have data too."""
    pieces: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(pieces) < MOST_PIECES and (piece := os.read(pipe, 1 << 20)):
            pieces.append(piece)
    return b"".join(pieces)
