"""The measurement of a slow worker keeps each figure."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import straggler


def test_the_updates_of_each_round_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([(60, 4), (3600, 3), (120, 4), (4200, 3)])

    def train(options: Sequence[str], directory: Path, within_s: float) -> None:
        directory.mkdir()
        updates, quorum = next(made)
        summary = {"updates": updates, "wall_s": 60.0, "quorum": quorum, "contributions": {}}
        (directory / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(straggler, "train", train)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["straggler.py", "--rounds", "2", "--output", str(tmp_path / "kept")])
    straggler.main()
    kept = json.loads((tmp_path / "kept/results.json").read_text(encoding="utf-8"))
    assert kept["updates_per_s"] == {"N=4, b=0": [1.0, 2.0], "N=3, b=1": [60.0, 70.0]}
    assert kept["gradients_per_s"] == {"N=4, b=0": [4.0, 8.0], "N=3, b=1": [180.0, 210.0]}
    assert {"command", "commit", "cpu", "load_before"} <= kept.keys()
