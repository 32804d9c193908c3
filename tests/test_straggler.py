"""The measurement of a slow worker keeps each figure."""

import json
import signal
import sys
from pathlib import Path

import pytest
import straggler


def test_the_updates_of_each_round_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([1.0, 60.0, 2.0, 70.0])
    monkeypatch.setattr(straggler, "run", lambda options, minutes: {"updates_per_s": next(made), "contributions": {}})
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["straggler.py", "--rounds", "2", "--output", str(tmp_path / "kept")])
    straggler.main()
    kept = json.loads((tmp_path / "kept/results.json").read_text(encoding="utf-8"))
    assert kept["updates_per_s"] == {"N=4, b=0": [1.0, 2.0], "N=3, b=1": [60.0, 70.0]}
    assert {"command", "commit", "cpu", "load_before"} <= kept.keys()
