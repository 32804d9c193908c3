"""Shows the progress of a run's start, from its first moment to its first figures."""

import threading
import time
from collections.abc import Callable
from typing import Final, Self

from zmqrl.observe.console import Console

TICK_S: Final = 0.25
SLOW_S: Final = 30.0


class Stages:
    """The stages of a start on a console, such as ``game, connecting 5/8 (2 s)``. Use it in a ``with`` block.

    A thread keeps the seconds up to date, because some stages are silent while they wait. If a stage is not done after
    ``SLOW_S``, or 2, 4, 8 times as long, its sentence says so, with its count. The console gets one call at a time.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._began_at = console, clock, clock()
        self._reached: dict[str, str] = {}
        self._shown: tuple[str, str, str] | None = None
        self._since = self._began_at
        self._due_s, self._slow = SLOW_S, ""
        self._over = threading.Event()
        self._showing = threading.Lock()
        threading.Thread(target=self._tick, name="stages", daemon=True).start()

    def at(self, name: str, sentence: str, done: int | None = None, total: int | None = None) -> None:
        """Show the stage ``name``, which ``sentence`` describes, and how much of it is ``done``."""
        with self._showing:
            count = "" if done is None else f"{done}/{total}"
            self._reached[name] = f"{name} {count}".rstrip()
            if self._shown is None or self._shown[0] != sentence:
                self._since, self._due_s, self._slow = self._clock(), SLOW_S, ""
            self._shown = sentence, count, ", ".join(self._reached.values())
            self._show()

    def _show(self) -> None:
        if self._shown is not None and not self._over.is_set():
            sentence, count, line = self._shown
            now = self._clock()
            if now - self._since >= self._due_s:
                self._slow = f": {count or 'not done'} after {self._due_s:.0f} s"
                self._due_s *= 2
            self._console.starting(sentence + self._slow, f"{line} ({now - self._began_at:.0f} s)")

    def _tick(self) -> None:
        while not self._over.wait(TICK_S):
            with self._showing:
                self._show()

    def close(self) -> None:
        self._over.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
