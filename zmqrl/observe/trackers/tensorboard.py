"""The rows of ``metrics.jsonl`` for TensorBoard, in the same groups of charts as in CleanRL."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


class TensorBoard:
    """Writes the numbers of a row as scalars. The x-axis is the version. Agent steps are a separate chart."""

    def __init__(self, directory: Path, *, resumed_at: int | None = None) -> None:
        """``resumed_at`` is the version from which a resumed run continues. What an earlier session logged from then on
        is hidden.
        """
        # Imported here, because the import takes seconds, and other commands do not need it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resumed_at, flush_secs=10)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Write ``row`` of ``RunMetrics`` at version ``step``, without null values."""
        for tag, value in scalars(row):
            self._writer.add_scalar(tag, value, step)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Flush. TensorBoard cannot store a ``summary``."""
        self._writer.close()


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``(tag, value)`` of every number in ``row``: charts/*, contributions/*, time/*, or losses/* for all others."""
    for key, value in row.items():
        if key in _GROUPS:
            yield from ((_GROUPS[key] + name, number) for name, number in value.items())
        elif value is not None:
            yield f"charts/{key}" if key in _CHARTS else f"losses/{key}", value
