"""The dialog with the agent of one host, over whatever reaches it: a pipe to a child, ssh, or srun."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

RENEW_EVERY_S = 1.0
UP_WITHIN_S = 30.0
END_WITHIN_S = 8.0  # an agent kills what does not end by itself, and that takes it some seconds
WORDS_BYTES = 4096


class Link:
    """One connection to an agent at a time; after it is lost, ``open`` makes a new one.

    ``command`` runs the agent. ``work`` is the directory of the run on that host. Without ``lease_s``, only the end of
    the connection tells the two of each other's end. ``up`` is what the agent said of its host, once it is there.
    """

    def __init__(self, host: str, command: Sequence[str], *, work: str, lease_s: float | None) -> None:
        self.host, self.command, self.work, self.lease_s = host, list(command), work, lease_s
        self.up: dict[str, Any] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._unsent = bytearray()
        self._arrived = bytearray()
        self._words = bytearray()  # of what runs the agent, such as ssh
        self._opened_at = self._heard_at = self._renewed_at = 0.0

    def open(self) -> None:
        """Start the agent; ``poll`` tells when it is up, or that it is not to be."""
        assert self.process is None
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is ours to answer
        )
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self.up, self._unsent, self._arrived, self._words = None, bytearray(), bytearray(), bytearray()
        self._opened_at = self._heard_at = time.monotonic()
        self.send({"do": "begin", "work": self.work, "lease_s": self.lease_s})

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask the agent for something, in the order of the calls, as soon as it can be reached."""
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
        if self.lease_s is not None and self.up is not None and now - self._renewed_at >= RENEW_EVERY_S:
            self._renewed_at = now
            self.send({"do": "renew"})
        self._flush()
        ended = process.poll() is not None
        if piece := _read_all(process.stdout.fileno()):
            self._heard_at = now
        self._words = (self._words + _read_all(process.stderr.fileno()))[-WORDS_BYTES:]
        *lines, rest = (self._arrived + piece).split(b"\n")
        self._arrived = bytearray(rest)
        events = [json.loads(line) for line in lines]
        for event in events:
            if event["is"] == "up":
                self.up = event
            elif event["is"] == "refused":
                self._words += event["why"].encode()
        if not events:
            if ended:
                self._lose(f"{self._last_words() or f'exit status {process.returncode}'}")
            if self.up is None and now - self._opened_at > UP_WITHIN_S:
                self._lose(f"no agent came up within {UP_WITHIN_S:g} s: {self._last_words() or 'it said nothing'}")
            if self.lease_s is not None and self.up is not None and now - self._heard_at > self.lease_s:
                self._lose(f"nothing was heard for {self.lease_s:g} s")
        return events

    def hang_up(self) -> None:
        """Let the agent end everything that it has started."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self) -> None:
        """Hang up, and wait until the agent has ended everything."""
        self.hang_up()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_WITHIN_S)
            self._forget()

    def _lose(self, why: str) -> None:
        self._forget()
        raise LinkLost(self.host, why)

    def _forget(self) -> None:
        process, self.process, self.up = self.process, None, None
        if process is not None:
            process.kill()  # what runs the agent, not the agent: that ends by itself
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _flush(self) -> None:
        if self.process is None or self.process.stdin is None or self.process.stdin.closed:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
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
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(pipe, 1 << 20):
            pieces.append(piece)
    return b"".join(pieces)
