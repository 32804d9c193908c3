"""The measurement of floods: no target has an advantage from its place in a round, and a run that stops is noticed."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import bench_lab
import flood
import pytest


class Worker:
    """A process of a worker that ends with ``status`` after ``looks`` at it."""

    name = "worker 1"

    def __init__(self, looks: int, status: int) -> None:
        self.process, self.looks, self.status = self, itertools.count(-looks), status

    def poll(self) -> int | None:
        return self.status if next(self.looks) >= 0 else None


def replaced(
    monkeypatch: pytest.MonkeyPatch, *, workers: Sequence[Worker] = (), version: int = 20, rate: float = 1.0
) -> None:
    """Replace the processes of the benchmark."""
    monkeypatch.setattr(flood, "shard", lambda curve: nullcontext("run"))
    monkeypatch.setattr(flood, "working", lambda shards: nullcontext(workers))
    monkeypatch.setattr(flood, "flooding", lambda *arguments: nullcontext())
    monkeypatch.setattr(flood, "version_of", lambda shards: version)
    monkeypatch.setattr(flood, "updates_per_s", lambda shards, seconds: rate)


def test_each_target_of_a_flood_comes_first_in_every_third_round(monkeypatch: pytest.MonkeyPatch) -> None:
    flooded: list[str] = []

    @contextmanager
    def flooding(kind: str, connections: int, target: str) -> Iterator[None]:
        flooded.append(target)
        yield

    shards = ["run", "other"] * 4
    replaced(monkeypatch)
    monkeypatch.setattr(flood, "shard", lambda curve: nullcontext(shards.pop(0)))
    monkeypatch.setattr(flood, "flooding", flooding)
    orders = [list(flood.measure("silent", 5, 0.0, number)) for number in range(4)]
    assert orders == [
        ["none", "another shard", "this run"],
        ["another shard", "this run", "none"],
        ["this run", "none", "another shard"],
        ["none", "another shard", "this run"],
    ]
    assert flooded == ["other", "run", "other", "run", "run", "other", "other", "run"]


def test_a_run_that_makes_no_versions_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, version=19)
    monkeypatch.setattr(flood, "WITHIN_S", 0.1)
    with pytest.raises(SystemExit, match=r"silent: the run has not made 20 versions within 0\.1 s"):
        flood.measure("silent", 5, 0.0, 0)


def test_a_rate_of_zero_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, rate=0.0)
    with pytest.raises(SystemExit, match="silent, flood of none: the run made no version in 8 s"):
        flood.measure("silent", 5, 8.0, 0)


@pytest.mark.parametrize(
    ("looks", "version"), [(0, 19), (1, 20)], ids=["before the first version", "while it is measured"]
)
def test_a_worker_that_ends_also_ends_the_benchmark(looks: int, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, workers=[Worker(looks, -9)], version=version)
    with pytest.raises(SystemExit, match=r"worker 1 ended during the benchmark \(killed by SIGKILL\)"):
        flood.measure("silent", 5, 0.0, 0)


def test_each_measured_flood_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [{"none": 20.0, "another shard": 10.0, "this run": rate} for rate in (9.0, 8.0, 6.0)]

    def measure(*arguments: object) -> dict[str, float]:
        if not left:
            raise SystemExit
        return left.pop(0)

    monkeypatch.setattr(flood, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(flood, "measure", measure)
    monkeypatch.setattr(bench_lab, "begin", lambda parser, output: {"commit": str(output)})
    monkeypatch.setattr(sys, "argv", ["flood.py", "--kinds", "silent", "wrong keys", "--rounds", "2"])
    with pytest.raises(SystemExit):
        flood.main()
    kept: dict[str, Any] = json.loads((tmp_path / "kept/results.json").read_text(encoding="utf-8"))
    assert [(row["kind"], row["round"]) for row in kept["rows"]] == [("silent", 0), ("wrong keys", 0), ("silent", 1)]
    assert kept["commit"] == str(tmp_path / "kept")
    assert flood.table(kept).splitlines()[2:] == [
        "| silent | 20.0 | 10.0 | 7.5 | 25.0 | - | 2 |",
        "| wrong keys | 20.0 | 10.0 | 8.0 | 20.0 | - | 1 |",
    ]


def test_the_slowdown_by_a_flood_has_an_interval_over_its_rounds() -> None:
    rows = [
        {"kind": "silent", "updates_per_s": {"none": 20.0, "another shard": 10.0, "this run": rate}}
        for rate in (9.0, 9.5, 10.0)
    ]
    assert flood.table({"connections": 5000, "rows": rows}).splitlines()[2] == (
        "| silent | 20.0 | 10.0 | 9.5 | 5.0 | -7.4 to 17.4 | 3 |"
    )
