"""The dialog with the agent of one host, over whatever reaches it: a pipe to a child, ssh, or srun."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from zmqrl.cluster.lines import Lines

UP_WITHIN_S = 30.0
RENEW_EVERY_S = 1.0  # a lease
KILLED_WITHIN_S = 2.0
WORDS_BYTES = 4096
MOST_PIECES = 64  # of at most 64 KiB each, as long as a pipe is


class Link:
    """One connection to an agent at a time; after it is lost, ``open`` makes a new one.

    ``command`` runs the agent. ``work`` is the directory of the run on that host. Without ``lease_s``, only the end of
    the connection tells the two of each other's end. ``environment`` has variables for the processes that the agent
    starts. ``up`` is what it said of its host, once it is there.
    ``first`` is what it is asked first, if not to begin with a run.
    """

    def __init__(
        self,
        host: str,
        command: Sequence[str],
        *,
        work: str,
        lease_s: float | None,
        environment: Mapping[str, str] | None = None,
        first: Mapping[str, Any] | None = None,
        up_within_s: float = UP_WITHIN_S,
    ) -> None:
        self.host, self.command, self.work, self.lease_s = host, list(command), work, lease_s
        self.environment = dict(environment or {})
        self.first = first or {"do": "begin", "work": work, "lease_s": lease_s}
        self.up_within_s = up_within_s
        self.up: dict[str, Any] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._sending = threading.Lock()
        self._unsent = bytearray()
        self._arrived = Lines()
        self._words = bytearray()  # of what runs the agent, such as ssh
        self._opened_at = self._heard_at = 0.0

    def to_dict(self) -> dict[str, Any]:
        """What somebody else needs to look after this host: plain data."""
        work = self.work if self.up is None else self.up["work"]
        about = {"host": self.host, "command": self.command, "work": work, "lease_s": self.lease_s}
        return about | {"environment": self.environment}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Link":
        """Inverse of :meth:`to_dict`."""
        environment = data.get("environment")
        return cls(data["host"], data["command"], work=data["work"], lease_s=data["lease_s"], environment=environment)

    def is_silent(self) -> bool:
        """Whether it was opened and nothing was heard yet."""
        return self.process is not None and self._heard_at == self._opened_at

    def look(self, within_s: float) -> dict[str, Any]:
        """Whether an agent of the run lives on the host, and the files of the run there. Raises LinkLost."""
        self._run()
        self.send({"do": "look", "work": self.work})
        self.hang_up()
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for event in self.poll():
                if event["is"] == "look":
                    self._forget()
                    return event
            time.sleep(0.02)
        return self._lose(f"no answer within {within_s:g} s")

    def open(self) -> None:
        """Start the agent; ``poll`` tells when it is up, or that it is not to be."""
        self._run()
        self.send(self.first)

    def _run(self) -> None:
        assert self.process is None
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at the terminal is ours to answer
            )
        except OSError as error:
            raise LinkLost(self.host, f"cannot run {self.command[0]}: {error.strerror}") from error
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self.up, self._arrived, self._words = None, Lines(), bytearray()
        self._opened_at = self._heard_at = time.monotonic()

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask the agent for something, in the order of the calls, as soon as it can be reached. From any thread.

        While the link is lost nobody is asked: who opens it again tells anew what is needed.
        """
        with self._sending:
            if self.process is None:
                return
            self._unsent += json.dumps(request).encode() + b"\n"
            self._flush()

    def poll(self) -> list[dict[str, Any]]:
        """What the agent has said since the last call. Never waits. Raises LinkLost when there is none any more."""
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
        self._words = (self._words + _read_all(process.stderr.fileno()))[-WORDS_BYTES:]
        events = [self._event(line) for line in self._arrived.add(piece)]
        for event in events:
            if event["is"] == "up":
                self.up = event
            elif event["is"] == "refused":
                self._words += event["why"].encode()
        if not events:
            if ended:
                self._lose(f"{self._last_words() or f'exit status {process.returncode}'}")
            if self.up is None and now - self._opened_at > self.up_within_s:
                said = self._last_words() or "it said nothing"
                self._lose(f"it did not come up within {self.up_within_s:g} s: {said}")
            if self.lease_s is not None and self.up is not None and now - self._heard_at > self.lease_s:
                self._lose(f"nothing was heard for {self.lease_s:g} s")
        return events

    def renew(self) -> None:
        """Let the agent hear from us. From any thread."""
        if self.lease_s is not None and self.up is not None:
            self.send({"do": "renew"})

    def hang_up(self) -> None:
        """Let the agent end everything that it has started."""
        with self._sending:
            if self.process is not None and self.process.stdin is not None:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()

    def cut(self) -> None:
        """Hang up, and do not wait any longer for the agent."""
        self.hang_up()
        self._forget()

    def _event(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("is"), str):
            self._lose(f"it said {line[:60]!r}, as no agent does: does a startup file of the shell there print it?")
        return event

    def _lose(self, why: str) -> NoReturn:
        self._forget()
        raise LinkLost(self.host, why)

    def _forget(self) -> None:
        with self._sending:
            process, self.process, self.up = self.process, None, None
            self._unsent.clear()
        if process is not None:
            # What runs the agent, such as ssh and its jumps, not the agent: that ends by itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead network disk
                process.wait(KILLED_WITHIN_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _flush(self) -> None:
        if self.process is None or self.process.stdin is None or self.process.stdin.closed:
            return
        with contextlib.suppress(OSError):  # full for now, or broken, of which the end of the process tells
            while self._unsent:
                del self._unsent[: os.write(self.process.stdin.fileno(), self._unsent)]

    def _last_words(self) -> str:
        return self._words.decode(errors="replace").strip().rpartition("\n")[2]


class LinkLost(Exception):
    """The agent of ``host`` is gone, or cannot be reached: ``why``."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(host, why)
        self.host, self.why = host, why


def _read_all(pipe: int) -> bytes:
    """What is there, or a part of it if that is very much: others have something to say, too."""
    pieces: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(pieces) < MOST_PIECES and (piece := os.read(pipe, 1 << 20)):
            pieces.append(piece)
    return b"".join(pieces)
