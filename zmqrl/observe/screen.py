"""The output of a run: writes do not block, even if nothing reads the terminal or pipe.

This module uses only the standard library.
"""

import contextlib
import io
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from zmqrl.words import ESCAPING

CLOSE_WITHIN_S = 2.0
MOST_WAITING_BYTES = 1 << 16


class Screen(io.TextIOWrapper):
    """A text stream to the file descriptor of another stream. A separate thread writes, so that writes return at once.

    If too much is queued, new writes are dropped, and a notice says how many lines. If the reader is gone, all writes
    are dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        """Raises OSError if ``stream`` has no file descriptor."""
        self._waiting = _Waiting(stream.fileno())
        super().__init__(self._waiting, stream.encoding, errors=ESCAPING, write_through=True)

    @property
    def is_idle(self) -> bool:
        return self._waiting.is_idle

    def close(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Wait at most ``within_s`` for queued writes. Later writes are dropped."""
        self._waiting.finish(within_s)


class _Waiting(io.RawIOBase):
    """The queue of writes, and the thread that empties the queue."""

    def __init__(self, descriptor: int) -> None:
        self.name = self._descriptor = descriptor
        self._writes: deque[bytes] = deque()  # the first one is being written
        self._bytes = self._lines_dropped = 0
        self._over = False
        self._changed = threading.Condition()
        # A daemon thread, because a write may never return. It writes without a lock, so that Python can shut down.
        threading.Thread(target=self._write_all, name="screen", daemon=True).start()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    @property
    def is_idle(self) -> bool:
        return not self._writes and not self._lines_dropped

    def write(self, data: Any) -> int:
        text = bytes(data)
        with self._changed:
            # After a dropped line, drop all lines until the notice about them is queued.
            if self._lines_dropped or (self._writes and self._bytes + len(text) > MOST_WAITING_BYTES):
                self._lines_dropped += text.count(b"\n")
            elif text and not self._over:
                self._writes.append(text)
                self._bytes += len(text)
                self._changed.notify_all()
        return len(text)

    def finish(self, within_s: float) -> None:
        if self._over:
            return  # Python also closes a stream that it frees. At shutdown, a dead thread can hold the lock.
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.is_idle, within_s)
            self._end()

    def _end(self) -> None:
        self._over = True
        self._writes.clear()
        self._bytes = self._lines_dropped = 0
        self._changed.notify_all()

    def _write_all(self) -> None:
        while (text := self._next()) is not None:
            try:
                while text:
                    text = text[self._write_some(text) :]
            except OSError:  # the reader is gone
                with self._changed:
                    self._end()
                return
            with self._changed:
                if self._writes:
                    self._bytes -= len(self._writes.popleft())
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """Wait for the next queued write. Returns None after the stream was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self.is_idle)
            if self._over:
                return None
            if not self._writes:
                notice = f"... lines dropped here because nothing read them: {self._lines_dropped}\n".encode()
                self._lines_dropped = 0
                self._writes.append(notice)
                self._bytes += len(notice)
            return self._writes[0]

    def _write_some(self, text: bytes) -> int:
        try:
            return os.write(self._descriptor, text)
        except BlockingIOError:  # another program has made the terminal or pipe non-blocking
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Make writes to standard output and standard error return at once.

    At the end of the block, waits at most 2 s for the queued writes.
    """
    streams = sys.stdout, sys.stderr
    screens: list[Screen] = []
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        # A stream in memory has no file descriptor. A limit can forbid another thread.
        with contextlib.suppress(OSError, RuntimeError):
            screens.append(Screen(stream))
            setattr(sys, name, screens[-1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        deadline = time.monotonic() + CLOSE_WITHIN_S
        for screen in screens:
            screen.close(max(0.0, deadline - time.monotonic()))


def is_hung_up() -> bool:
    """Whether a standard stream is a terminal that has been closed."""
    poll = select.poll()
    for descriptor in range(3):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
