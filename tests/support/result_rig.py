"""Synthetic results: run directories that have ended, with an evaluation."""

import json
from pathlib import Path
from typing import Any

from support.record_rig import row, run_directory, summary

ORIGIN = {"commit": "abc", "cpu": "EPYC", "cores": 2, "zmqrl": "0.1.0", "python": "3.11", "packages": {"numpy": "2"}}
SCORES = [5.0, 6.0, 7.0, 8.0]


def write_result(path: Path, evaluation: dict[str, Any] | None = None, *, seconds: int = 6, **settings: Any) -> Path:
    """Write a run that lasted ``seconds``, with a thousand agent steps and ten versions per second."""
    totals = {"updates": 10 * seconds, "agent_steps": 1000 * seconds, "wall_s": float(seconds)}
    ended = summary(**totals, flavour="a vector", provenance=ORIGIN)
    run_directory(path, [row(second) for second in range(1, seconds + 1)], summary=ended, **settings)
    found = {"version": 10 * seconds, "mean": 6.5, "episodes": 4, "ci95": [5.5, 7.5], "scores": SCORES}
    (path / "evaluation.json").write_text(json.dumps(found if evaluation is None else evaluation), encoding="utf-8")
    return path
