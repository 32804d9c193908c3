"""Shows where a process spends its time, in named spans, which are always recorded."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from zmqrl.observe.histogram import Histogram

WORKER_SPANS = ("env_step", "act", "gradient", "straggle", "encode", "push", "wait", "assemble")
SHARD_SPANS = ("receive", "accumulate", "optimize", "commit", "publish")

RECENT = 4096  # spans that stay in memory
FOLD_AT = 8192  # after this many new spans, `when_full` is called

SpanEvent: TypeAlias = tuple[str, int, int, int]
"""Name, start and duration in nanoseconds of ``time.monotonic_ns``, and the version when it ended."""


class Span:
    """The running total of one span name, and the context manager that adds to this total."""

    __slots__ = ("_outer", "_spans", "count", "name", "started_ns", "total_ns")

    def __init__(self, spans: "Spans", name: str) -> None:
        self._spans = spans
        self._outer: Span | None = None
        self.name = name
        self.count = 0
        self.total_ns = 0
        self.started_ns = 0

    def __enter__(self) -> None:
        self.started_ns = time.monotonic_ns()
        self._outer, self._spans.innermost = self._spans.innermost, self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add(self.started_ns)
        self._spans.innermost = self._outer

    def add(self, started_ns: int) -> None:
        """Add a span that started at ``started_ns`` and ends now."""
        duration_ns = time.monotonic_ns() - started_ns
        self.count += 1
        self.total_ns += duration_ns
        self._spans.keep((self.name, started_ns, duration_ns, self._spans.version))


class Spans:
    """The spans of one thread: ``with spans("gradient"): ...``.

    Names are the same in every process, report, row and trace: ``WORKER_SPANS`` in a worker, ``SHARD_SPANS`` in a
    shard.

    Spans of different names can nest: the outer time includes the inner time. Spans of the same name must not nest:
    each name has only one context object, which keeps the cost of a span at about a microsecond.

    The clock is ``time.monotonic_ns``. PING and PONG compare this clock between hosts.
    """

    def __init__(self) -> None:
        self.version = 0
        """The current version, written into the events. The owner of the thread sets it."""
        self.recent: deque[SpanEvent] = deque(maxlen=RECENT)
        """The newest spans, up to the last ``fold``."""
        self.histograms: dict[str, Histogram] = {}
        """Durations in nanoseconds by name, up to the last ``fold``. The owner of the thread may take them out."""
        self._new: list[SpanEvent] = []
        self.when_full: Callable[[], object] = self.fold
        """Called in the thread of the spans after ``FOLD_AT`` new ones. It must call ``fold``, or memory grows."""
        self.innermost: Span | None = None
        """The open span that was entered last."""
        self._spans: dict[str, Span] = {}

    @property
    def current(self) -> tuple[str, int] | None:
        """Name and start (``time.monotonic_ns``) of the innermost open span. Any thread may read it."""
        span = self.innermost
        return None if span is None else (span.name, span.started_ns)

    def __call__(self, name: str) -> Span:
        try:
            return self._spans[name]
        except KeyError:
            return self._spans.setdefault(name, Span(self, name))

    def totals(self) -> dict[str, tuple[int, float]]:
        """``(count, seconds)`` by name since the process began."""
        return {span.name: (span.count, span.total_ns / 1e9) for span in self._spans.values()}

    def total_ns(self, name: str) -> int:
        span = self._spans.get(name)
        return span.total_ns if span is not None else 0

    def keep(self, event: SpanEvent) -> None:
        """Keep a span for the next ``fold``."""
        self._new.append(event)
        if len(self._new) >= FOLD_AT:
            self.when_full()

    def fold(self) -> list[SpanEvent]:
        """Add the new spans to ``histograms`` and ``recent``. Returns the new spans."""
        new, self._new = self._new, []
        self.recent.extend(new)
        durations: dict[str, list[int]] = {}
        for name, _, duration_ns, _ in new:
            durations.setdefault(name, []).append(duration_ns)
        for name, each in durations.items():
            self.histograms.setdefault(name, Histogram()).add(each)
        return new
