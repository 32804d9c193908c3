"""The measurement on slow links counts enough updates."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import central_graph
import pytest
from bench_lab import Lab


class SlowLinks:
    """A lab without hosts."""

    def __call__(self, *arguments: str) -> str:
        return ""

    def bytes_by_host(self) -> dict[str, tuple[int, int]]:
        return {"h1": (0, 0), "h2": (0, 0)}


class Updating:
    """A run that makes some more updates each time that its metrics are read."""

    def __init__(self, path: Path, updates: int) -> None:
        self.path, self.updates, self.version = path, updates, 0
        (path / "cluster.json").write_text(json.dumps({"layout": {"count": 10}}), encoding="utf-8")

    def rows(self) -> list[dict[str, Any]]:
        self.version += self.updates
        row = {"version": self.version, "agent_steps": self.version, "wall_s": 1.0 + self.version, "split_s": {}}
        return [row]

    def row_after(self, wall_s: float) -> dict[str, Any]:
        return {"version": 0, "agent_steps": 0, "wall_s": 1.0}

    def wait_for(self, look: Callable[[], Any], what: str, within_s: float, *, every_s: float = 0.0) -> Any:
        return next(found for found in iter(look, None) if found)


class Clock:
    """A clock that advances by a second each time that it is read."""

    def __init__(self) -> None:
        self.seconds: Iterator[int] = itertools.count()

    def monotonic(self) -> float:
        return next(self.seconds)


@pytest.mark.parametrize(("updates", "seconds", "counted"), [(10, 5.0, 60), (1, 1.0, 10)], ids=["enough", "limit"])
def test_a_measurement_counts_enough_updates_or_takes_ten_times_as_long(
    updates: int, seconds: float, counted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Updating(tmp_path, updates)
    monkeypatch.setattr(central_graph, "launched", lambda *arguments: nullcontext(run))
    monkeypatch.setattr(central_graph, "time", Clock())
    row = central_graph.measure(cast(Lab, SlowLinks()), 1, 1, "50mbit", [], seconds, 50)
    assert row["updates_per_s"] * row["measured_s"] == pytest.approx(counted)
