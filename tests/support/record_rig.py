"""Synthetic run directories for tests of the code that reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zmqrl.recipes import cartpole

Line = dict[str, Any]


def row(second: int, **figures: Any) -> Line:
    """A row of ``metrics.jsonl`` at ``second``: ten updates/s, 1000 agent steps/s, one in ten contributions late."""
    return {
        "version": 10 * second,
        "wall_s": float(second),
        "agent_steps": 1000 * second,
        "agent_steps_per_s": 1000.0,
        "updates_per_s": 10.0,
        "score_mean_50": float(second),
        "episodes": 10 * second,
        "policy_loss": None if second % 2 else -0.01,
        "value_loss": 0.5,
        "entropy": 0.6,
        "policy_lag": 4.0,
        "contributions": {"used": 36 * second, "late": 4 * second, "duplicate": 0, "rejected": 0, "skipped": 0},
        **figures,
    }


def summary(**figures: Any) -> Line:
    """The parts of ``summary.json`` that zmqrl reads, for a run that ended after twelve seconds."""
    return {
        "exit_reason": "updates",
        "updates": 60,
        "agent_steps": 6000,
        "wall_s": 12.0,
        "episodes": 60,
        "score_mean_50": 5.5,
        "contributions": {"used": 90, "late": 6, "duplicate": 0, "rejected": 0, "skipped": 4},
        "provenance": {"commit": "abc", "cpu": "EPYC"},
        **figures,
    }


def run_directory(
    path: Path,
    rows: Sequence[Line] = (),
    *,
    evaluations: Sequence[Line] = (),
    summary: Line | None = None,
    **settings: Any,
) -> Path:
    """Write a run directory of the cartpole recipe with changed ``settings``."""
    path.mkdir(parents=True)
    config = cartpole().to_json() | {"run_dir": str(path)} | settings
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, lines in (("metrics.jsonl", rows), ("evaluations.jsonl", evaluations)):
        if lines:
            (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path
