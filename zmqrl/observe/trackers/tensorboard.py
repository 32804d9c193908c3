"""Writes the rows of ``metrics.jsonl`` for TensorBoard, in the same groups of charts as CleanRL."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_CHARTS = frozenset(
    {
        "abandoned_steps",
        "agent_steps",
        "agent_steps_per_s",
        "episodes",
        "gradients",
        "learning_rate",
        "policy_lag",
        "policy_lag_max",
        "policy_lag_min",
        "score_mean_50",
        "updates_per_s",
        "version",
        "wall_s",
        "workers_present",
    }
)
_GROUPS = {
    "contributions": "contributions/",
    "late_by_rank": "contributions/late_rank_",
    "skipped_by_rank": "contributions/skipped_rank_",
    "missing_s": "time/missing_rank_",
    "split_s": "time/",
}
FLUSH_EVERY_S: Final = 10


class TensorBoard:
    """Writes the numbers of a row as scalars. The x-axis is the version. Agent steps are a separate chart."""

    def __init__(self, directory: Path, *, resumed_at: int | None = None) -> None:
        """``resumed_at`` is the version from which a resumed run continues.

        TensorBoard hides what an earlier session logged from this version on.
        """
        # Imported here: other trackers use ``scalars`` without TensorBoard. Torch has a writer, but takes seconds to
        # import.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._directory: int | None = None
        path = str(directory)
        try:
            path.encode()
        except UnicodeEncodeError:  # TensorBoard needs a path in UTF-8
            directory.mkdir(parents=True, exist_ok=True)
            self._directory = os.open(directory, os.O_PATH | os.O_CLOEXEC)
            path = f"/proc/self/fd/{self._directory}"
        self._writer = EventFileWriter(path, flush_secs=FLUSH_EVERY_S)
        if resumed_at is not None:
            self._write(resumed_at, session_log=SessionLog(status=SessionLog.START))

    def log(self, row: Mapping[str, Any], step: int) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row)]
        self._write(step, summary=self._summary(value=values))

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Flush. TensorBoard cannot store a ``summary``."""
        self._writer.close()
        if self._directory is not None:
            os.close(self._directory)

    def _write(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event(step=step, wall_time=time.time(), **content))


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``(tag, value)`` of every number in ``row``: charts/*, contributions/* or time/*, and losses/* for all others."""
    for key, value in row.items():
        if key in _GROUPS:
            yield from ((_GROUPS[key] + name, number) for name, number in value.items())
        elif value is not None:
            yield f"charts/{key}" if key in _CHARTS else f"losses/{key}", value
