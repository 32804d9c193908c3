"""``zmqrl bench wire`` measures real processes: causes precede effects, and the processes end with the benchmark."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from zmqrl.bench import samples, wire
from zmqrl.bench.crew import Crew
from zmqrl.bench.grid import OPERATIONS, Grid, Implementation
from zmqrl.bench.parts import ByteLimit, Copier, RawHub, RawWorker
from zmqrl.bench.samples import Blocks, Round
from zmqrl.errors import ClusterError
from zmqrl.observe.spans import Spans
from zmqrl.process import usable_cores
from zmqrl.process_id import shard_id
from zmqrl.profile.profiler import Profiler, ProfilerJob
from zmqrl.profile.run_tables import RunTables
from zmqrl.ps.wire.codec import CODECS, payload_bytes
from zmqrl.ps.wire.messages import Codec


def test_the_times_of_a_shard_are_read_from_its_profile(tmp_path: Path) -> None:
    spans = Spans()
    profiler = Profiler(ProfilerJob(tmp_path, "h", 10), shard_id(0), spans, run="r", incarnation=1)
    for event in (("receive", 1, 2, 3), ("accumulate", 10, 2, 3), ("accumulate", 20, 2, 3), ("publish", 30, 2, 4)):
        spans.keep(event)
    profiler.close()
    (tables,) = RunTables.read(tmp_path).of_role("shard")
    arrived, published = wire.shard_instants(tables)
    assert arrived == {3: [12, 22]}
    assert published == {4: 30}


@pytest.mark.processes
@pytest.mark.parametrize("implementation", ["zmqrl", "raw_tcp"])
def test_a_round_has_every_push_arrival_and_publication_in_order(
    implementation: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Blocks] = []

    def noted(blocks: Blocks) -> dict[Any, list[float]]:
        found.append(blocks)
        return samples.samples(blocks)

    monkeypatch.setattr(wire, "samples", noted)
    grid = Grid(
        transport=("tcp",),
        codec=("f32",),
        curve=(False,),
        parameters=(1000,),
        workers=(3,),
        shards=(2,),
        operation=OPERATIONS,
        implementation=(implementation,),
        rounds=12,
        minutes=60.0,
    )
    (rows,) = wire.measure(grid, lambda group: None)
    assert {row["operation"]: row["rounds"] for row in rows} == {
        "update_round": 12,
        "push": 12,
        "ingest": 24,  # 12 on each shard
        "fan_out": 12,
        "round_trip": 12,
    }
    (blocks,) = found
    rounds = [each for block in (*blocks["together"], *blocks["alone"]) for each in block]
    assert len(rounds) == 2 * (12 + 2), "each block has one more round, the warm-up"
    for each in rounds:
        assert_in_order(each, workers=3, shards=2)


@pytest.mark.processes
@pytest.mark.parametrize("codec", CODECS)
def test_a_hub_on_plain_sockets_adds_the_gradients_of_each_round(codec: Codec) -> None:
    workers, count = 3, 4
    hub = RawHub(workers=workers, slice_bytes=payload_bytes(codec, count), codec=codec)
    sent = CODECS[codec].encode(np.array([1.0, -2.0, 0.5, 8.0], np.float32)).tobytes()
    with ExitStack() as stack:
        stack.callback(hub.close)
        for _ in range(workers):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", hub.facts["port"])))
            connection.sendall(2 * sent)
        for _ in range(2):
            told = hub.run(1, 0.0)
            assert hub.sum.value.tolist() == [3.0, -6.0, 1.5, 24.0], "a round begins with a new sum"
            assert [len(ends) for ends in told["arrived"]] == [workers]


@pytest.mark.processes
def test_the_bytes_of_a_round_trip_are_not_added() -> None:
    hub = RawHub(workers=1, slice_bytes=70, codec=None)
    try:
        assert hub.codec is None
        assert hub.sum.value.size == 0
    finally:
        hub.close()


def test_the_limit_of_a_round_is_the_time_of_its_copies_and_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 10, 20, 35, 100, 101, 200, 203])  # two copies, then two steps
    monkeypatch.setattr("zmqrl.bench.parts.time", SimpleNamespace(monotonic_ns=lambda: next(clock)))
    limit = ByteLimit(pieces=4, piece_bytes=400, workers=2, count=100)
    told = limit.run(2, 0.0)
    assert [done - begun for begun, done in zip(told["begun"], told["done"], strict=True)] == [10 + 1, 15 + 3]
    assert limit.steps.version == 2
    assert np.abs(limit.steps.old[0]).min() > 0, "the optimizer has changed every weight"


def assert_in_order(each: Round, workers: int, shards: int) -> None:
    assert [len(ends) for ends in each.arrived] == [workers] * shards
    assert len(each.begun) == len(each.done) == workers
    for ends, published in zip(each.arrived, each.published, strict=True):
        assert min(each.begun) < min(ends)
        assert max(each.begun) < max(ends) < published < min(each.done)


@pytest.fixture
def two_cores(skip_or_fail: Callable[[str], NoReturn]) -> Iterator[list[int]]:
    """Binds this thread, and the processes that it starts, to two cores."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:2]
    if len(cores) < 2 or usable_cores() < 2:
        skip_or_fail("two processes can only be bound if this machine has two cores")
    os.sched_setaffinity(0, cores)
    yield cores
    os.sched_setaffinity(0, before)


@pytest.mark.processes
@pytest.mark.parametrize("asked", [None, [(0, 2), (1, 2)]])
def test_two_processes_are_bound_on_request_if_there_are_two_cores(
    asked: list[tuple[int, int] | None] | None, two_cores: list[int]
) -> None:
    job = {"pieces": 1, "piece_bytes": 100}
    with Crew(2, cores=asked) as crew, crew.playing("copy", Copier, dict.fromkeys(range(2), job)):
        found = [os.sched_getaffinity(pid) for pid in crew.pids]
    assert found == ([{core} for core in two_cores] if asked else [set(two_cores)] * 2)


@pytest.mark.processes
def test_a_process_that_dies_ends_the_benchmark_with_a_clear_error() -> None:
    with Crew(2) as crew, crew.playing("copy", Copier, {0: {"pieces": 1, "piece_bytes": 100}}) as roles:
        crew.run(roles, 2)
        os.kill(crew.pids[1], signal.SIGKILL)
        with (
            pytest.raises(ClusterError, match="process 1 of the benchmark ended"),
            crew.playing("x", RawWorker, {1: {}}),
        ):
            pass
    assert not any(Path(f"/proc/{pid}").exists() for pid in crew.pids)
