"""Trackers, which receive the rows of a run: TensorBoard, MLflow, Weights & Biases."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from zmqrl.json_lines import read_json
from zmqrl.rundir import RunDirectory

ROWS_WAITING: Final = 600  # ten minutes of rows: a tracker that lags further behind will not catch up
CLOSE_WITHIN_S: Final = 30.0


class Tracker(Protocol):
    """Receives the rows of one run."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Record ``row`` of ``metrics.jsonl`` at version ``step``."""

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Record ``summary``, the content of ``summary.json``, and finish. None: the run has no summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracked:
    """A run: its directory, and its settings as plain data.

    ``resumed_at`` is the version that the run resumes from, or None for a new run.
    """

    directory: RunDirectory
    settings: Mapping[str, Any]
    resumed_at: int | None = None


def _tensorboard(run: Tracked) -> Tracker:
    from zmqrl.observe.trackers.tensorboard import TensorBoard

    return TensorBoard(run.directory.tensorboard, resumed_at=run.resumed_at)


def _mlflow(run: Tracked) -> Tracker:
    from zmqrl.observe.trackers.mlflow import MLflow

    return MLflow(run.directory.path, run.settings)


def _wandb(run: Tracked) -> Tracker:
    from zmqrl.observe.trackers.wandb import WandB

    return WandB(run.directory.path, run.settings)


# How to make each tracker. The extra of the same name installs its packages.
KINDS: Final[dict[str, Callable[[Tracked], Tracker]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}


class Trackers:
    """All trackers of a run. If one fails, ``notice`` reports it once, and the run continues without it."""

    def __init__(self, names: Iterable[str], run: Tracked, notice: Callable[[str], None]) -> None:
        self._summary = run.directory.summary
        self._feeds = [_Feed(name, run, notice) for name in dict.fromkeys(names)]

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Give ``row`` to every tracker. Never waits."""
        for feed in self._feeds:
            feed.put(_Row(row, step))

    def close(self, within_s: float) -> None:
        """Give all trackers the summary of the run, if it exists. Wait at most ``within_s`` until they have closed."""
        try:
            summary = read_json(self._summary)
        except (OSError, ValueError):
            summary = None
        for feed in self._feeds:
            feed.put(_End(summary))
        deadline = time.monotonic() + within_s
        for feed in self._feeds:
            if not feed.join(deadline):
                feed.give_up(f"it did not finish within {within_s:g} s", at_the_end=True)


class _Row(NamedTuple):
    row: Mapping[str, Any]
    step: int


class _End(NamedTuple):
    summary: Mapping[str, Any] | None


class _Feed:
    """Feeds one tracker from a separate thread, so that slow imports, a slow network and errors do no harm."""

    def __init__(self, name: str, run: Tracked, notice: Callable[[str], None]) -> None:
        self._name, self._run, self._notice = name, run, notice
        self._waiting: queue.Queue[_Row | _End] = queue.Queue(ROWS_WAITING)
        self._error: Exception | None = None
        self._given_up = False
        self._thread = threading.Thread(target=self._feed, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        try:
            tracker = KINDS[self._name](self._run)
            while isinstance(item := self._waiting.get(), _Row):
                tracker.log(item.row, item.step)
            tracker.close(item.summary)
        except Exception as error:
            self._error = error

    def put(self, item: _Row | _End) -> None:
        """Give ``item`` to the tracker. Gives up a tracker that has failed, or is too many rows behind. Never waits."""
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self.give_up(f"it is more than {ROWS_WAITING} rows behind")
        self._look()

    def join(self, deadline: float) -> bool:
        """Wait for the tracker to close, until ``deadline`` on the monotonic clock. Returns whether it has closed."""
        if not self._given_up:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._look()
        return not self._thread.is_alive()

    def _look(self) -> None:
        # The tracker's thread does not report its error: only the thread of the run may draw the console.
        if isinstance(self._error, UnicodeError):
            self.give_up("it needs a run directory whose path is text in UTF-8: choose another --run-dir")
        elif self._error is not None:
            self.give_up(str(self._error).strip().partition("\n")[0] or repr(self._error))

    def give_up(self, why: str, *, at_the_end: bool = False) -> None:
        if not self._given_up:
            self._given_up = True
            what = f"{self._name} may lack the last rows" if at_the_end else f"the run continues without {self._name}"
            self._notice(f"{what}: {why}")
