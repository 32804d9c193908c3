"""Bringing up shards: ``bring_up`` waits for all of them, and their reports are checked."""

from typing import Any

import pytest

from zmqrl.errors import ClusterError
from zmqrl.ps.control import bring_up
from zmqrl.ps.wire.sockets import ShardUp


def up(shard: int) -> ShardUp:
    return ShardUp({"control": f"tcp://h{shard}:1"})


def test_the_shards_are_returned_in_order_once_all_are_up() -> None:
    started: list[int] = []
    reports = iter([{}, {2: up(2)}, {0: up(0)}, {1: up(1)}])
    found = bring_up(range(3), started.append, lambda: next(reports), within_s=60.0)
    assert started == [0, 1, 2]
    assert list(found.items()) == [(shard, up(shard)) for shard in range(3)]


def test_the_error_names_the_shards_that_did_not_come_up() -> None:
    with pytest.raises(ClusterError, match=r"^shard 0, shard 2 did not come up within 0 s: see the logs\.$"):
        bring_up(range(3), lambda shard: None, lambda: {1: up(1)}, within_s=0.0, advice=": see the logs")


def test_a_report_survives_json() -> None:
    whole = ShardUp({"grad": "tcp://h:1", "weights": "tcp://h:2", "control": "tcp://h:3"})
    assert ShardUp.from_json(whole.to_json() | {"pid": 7}) == whole
    assert ShardUp.from_json(up(0).to_json()) == up(0)


@pytest.mark.parametrize("said", [{}, {"endpoints": None}, {"endpoints": {}}, {"endpoints": {"control": 5}}])
def test_a_report_without_valid_endpoints_is_an_error(said: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match="a shard did not report its endpoints"):
        ShardUp.from_json(said)
