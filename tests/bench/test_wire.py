"""``zmqrl bench wire`` measures real processes: causes precede effects, and the processes end with the benchmark."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from zmqrl.bench import samples, wire
from zmqrl.bench.crew import Crew
from zmqrl.bench.grid import OPERATIONS, Grid, Implementation
from zmqrl.bench.parts import Copier, RawWorker
from zmqrl.bench.samples import Blocks, Round
from zmqrl.errors import ClusterError
from zmqrl.observe.spans import Spans
from zmqrl.process_id import shard_id
from zmqrl.profile.profiler import Profiler, ProfilerJob
from zmqrl.profile.run_tables import RunTables


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


def assert_in_order(each: Round, workers: int, shards: int) -> None:
    assert [len(ends) for ends in each.arrived] == [workers] * shards
    assert len(each.begun) == len(each.done) == workers
    for ends, published in zip(each.arrived, each.published, strict=True):
        assert min(each.begun) < min(ends)
        assert max(each.begun) < max(ends) < published < min(each.done)


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
