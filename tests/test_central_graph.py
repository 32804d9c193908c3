"""The measurement on slow links counts enough updates, and keeps each of its rows."""

import itertools
import json
import signal
import sys
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


def measured(shards: int, agent_steps_per_s: float = 10.0) -> dict[str, Any]:
    """A row of the results."""
    return {
        "shards": shards,
        "workers": 2,
        "rate": "50mbit",
        "updates_per_s": float(shards),
        "measured_s": 10.0,
        "agent_steps_per_s": agent_steps_per_s,
        "agent_steps_per_update": 20.0,
        "links_in_turn_updates_per_s": 1.0,
        "busiest_link_mbit_per_s": 40.0,
        "processors_busy": 0.5,
    }


@pytest.mark.parametrize(("first", "words"), [(1, "against one shard"), (2, "against 2 shards")])
def test_the_table_names_the_shards_that_a_row_is_compared_with(first: int, words: str) -> None:
    head, _, _, last = central_graph.table([measured(first), measured(4)]).splitlines()
    assert f"| agent steps/s | {words} | link alone |" in head
    assert f"| 10.0 | {4 / first:.1f} | 1.00 |" in last


@pytest.mark.processes  # draws for seconds
def test_the_picture_and_the_table_have_the_rows_before_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(where: object, shards: int, *others: object) -> dict[str, Any]:
        if shards == 4:
            raise SystemExit
        return measured(shards)

    (tmp_path / "README.md").write_text("<!-- central-graph -->\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(central_graph, "lab", lambda hosts: nullcontext())
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(central_graph, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["central_graph.py", "--shards", "2", "4", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        central_graph.main()
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert kept["rows"] == [measured(2)]
    assert (tmp_path / "central-graph.png").stat().st_size > 1000
    assert central_graph.table(kept["rows"]) in (tmp_path / "README.md").read_text(encoding="utf-8")
