"""Reports to the supervisor: each rank sends them through its own shard, and logs oversized reports once."""

import itertools
import logging
from pathlib import Path

import msgpack
import pytest
from support.rig import QUICK_WORKER, Served, eventually, served
from support.worker_rig import RANK, heartbeat, new, welcome, welcomed

from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.connection import Connection


@pytest.mark.parametrize(("shards", "order"), [(1, [0]), (2, [1, 0]), (3, [0, 1, 2]), (5, [3, 4, 0, 1, 2])])
def test_ranks_begin_at_different_shards(shards: int, order: list[int]) -> None:
    assert RANK == 3
    assert welcomed(shards).report_order() == order


def test_a_report_does_not_go_to_a_shard_before_its_welcome() -> None:
    worker = new(shards=3)
    assert worker.report_order() == []
    welcome(worker, 2)
    assert worker.report_order() == [2]
    welcome(worker, 0)
    assert worker.report_order() == [0, 2]
    heartbeat(worker, 0, 0, incarnation=6)  # a restarted shard
    assert worker.report_order() == [2]


def arrived(running: Served) -> list[tuple[int, m.Report]]:
    return [(s, each) for s, each in running.shards.control.arrivals(0.05) if isinstance(each, m.Report)]


@pytest.mark.processes
def test_reports_pass_through_different_shards_and_avoid_a_dead_one(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=2) as running,
        Connection(running.cluster, 0, timing=QUICK_WORKER) as first,
        Connection(running.cluster, 1, timing=QUICK_WORKER) as second,
    ):
        count = itertools.count()
        ways: dict[int, dict[int, int]] = {0: {}, 1: {}}  # by rank and report: the shard that the report came through

        def reported(rank: int, shard: int) -> bool:
            for connection in (first, second):
                connection.report({"number": next(count)})
            for through, report in arrived(running):
                ways[report.rank][msgpack.unpackb(report.figures)["number"]] = through
            return shard in ways[rank].values()

        eventually(lambda: reported(0, 0), "a report of rank 0 through shard 0")
        eventually(lambda: reported(1, 1), "a report of rank 1 through shard 1")
        # Until its own shard has welcomed it, a rank reports through the other shard.
        for rank, each in ways.items():
            welcomed_at = min(number for number, shard in each.items() if shard == rank)
            assert {shard for number, shard in each.items() if number >= welcomed_at} == {rank}
        for each in ways.values():
            each.clear()
        running.kill(1)
        eventually(lambda: reported(1, 0), "a report of rank 1 through shard 0")


@pytest.mark.processes
def test_oversized_reports_are_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(tmp_path, shards=1, workers=1) as running, caplog.at_level(logging.WARNING):
        with Connection(running.cluster, 0, timing=QUICK_WORKER) as connection:
            for _ in range(3):
                connection.report({"version": 1, "games": "x" * 20_000, "losses": "y" * 1000})
            assert connection.reports_too_large == 3

            def small_one_arrives() -> bool:
                connection.report({"version": 2})
                return [msgpack.unpackb(report.figures) for _, report in arrived(running)] != []

            eventually(small_one_arrives, "a report that is small enough")
        once, at_the_end = [record.getMessage() for record in caplog.records]
    for words in ("21029 bytes", "the limit is 16384", "'games' alone takes 20003"):
        assert words in once
    assert at_the_end == "3 reports were too large and not sent"
