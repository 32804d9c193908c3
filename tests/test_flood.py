"""The measurement of floods: no target has an advantage from its place in a round."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import flood
import pytest


def test_each_target_of_a_flood_comes_first_in_every_third_round(monkeypatch: pytest.MonkeyPatch) -> None:
    flooded: list[str] = []

    @contextmanager
    def flooding(kind: str, connections: int, target: str) -> Iterator[None]:
        flooded.append(target)
        yield

    shards = ["run", "other"] * 4
    monkeypatch.setattr(flood, "shard", lambda curve: nullcontext(shards.pop(0)))
    monkeypatch.setattr(flood, "working", nullcontext)
    monkeypatch.setattr(flood, "version_of", lambda shards: 20)
    monkeypatch.setattr(flood, "updates_per_s", lambda shards, seconds: 1.0)
    monkeypatch.setattr(flood, "flooding", flooding)
    orders = [list(flood.measure("silent", 5, 0.0, number)) for number in range(4)]
    assert orders == [
        ["none", "another shard", "this run"],
        ["another shard", "this run", "none"],
        ["this run", "none", "another shard"],
        ["none", "another shard", "this run"],
    ]
    assert flooded == ["other", "run", "other", "run", "run", "other", "other", "run"]
