"""What the report says about processor time, memory and quotas."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.profiles import US, cycle, synthetic_run, worker

from zmqrl.observe.spans import Spans
from zmqrl.process import CORES
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile.machine_use import MachineUse, machine_use, warnings
from zmqrl.profile.profiler import Profiler, ProfilerJob
from zmqrl.profile.run_tables import RunTables


def test_nothing_is_said_about_processes_that_have_what_they_need() -> None:
    assert (
        warnings({worker_id(0): MachineUse("h1", 0.98, 0.01, 0.0, 0.0, 3.0, 0.0), shard_id(0): MachineUse("h1")}) == []
    )


def test_one_sentence_names_all_workers_that_lack_a_core() -> None:
    uses = {worker_id(rank): MachineUse(f"h{rank % 3 + 1}", 0.3 + rank / 100, 0.5) for rank in (3, *range(5, 10))}
    assert warnings(uses | {worker_id(4): MachineUse("h9", 1.0, 0.0)}) == [
        "workers 3, 5-9 on h1..h3 had 33-39% of a core while working, and waited for a core for 50% of the time"
    ]


def test_shards_and_workers_have_separate_sentences() -> None:
    uses = {shard_id(1): MachineUse("h1", queued_share=0.2), worker_id(0): MachineUse("h2", 0.5, 0.3)}
    assert warnings(uses) == [
        "shard 1 on h1 waited for a core for 20% of the time",
        "worker 0 on h2 had 50% of a core while working, and waited for a core for 30% of the time",
    ]


def test_stolen_processor_time_is_reported_once_per_machine() -> None:
    uses = {worker_id(rank): MachineUse("h1", stolen_share=0.1) for rank in range(8)}
    assert warnings(uses) == ["the hypervisor took 10% of the processor time of h1"]


def test_throttled_and_paging_workers_are_named_together() -> None:
    uses = {worker_id(rank): MachineUse("h1", throttled_share=0.2, major_faults_per_s=40 + rank) for rank in range(2)}
    assert warnings(uses) == [
        "workers 0-1 on h1 used up the CPU quota in 20% of its periods: the quota is too small",
        "workers 0-1 on h1 had 40-41 major page faults per second: the host is low on memory",
    ]


def test_the_time_throttled_in_an_older_profile_is_at_most_all_time() -> None:
    process = synthetic_run()[0]
    process.tables["machine"] = [np.array([[0] * 7, [US, 0, 0, 0, 0, 6 * US, 0]])]
    assert machine_use(RunTables((process,)))[process.process].throttled_share == 1.0


def test_stolen_time_is_a_share_of_all_cores_of_the_machine_even_for_a_pinned_process() -> None:
    process = synthetic_run()[0]
    process.cores, process.machine_cores = 1, 8
    process.tables["machine"] = [
        (US * np.array([[0.0, 0, 0, 0, 0, 0, 0], [10.0, 0, 0, 0, 4.0, 0, 0]])).astype(np.int64)
    ]
    assert machine_use(RunTables((process,)))[process.process].stolen_share == pytest.approx(4 / 10 / 8)


def share_of_a_core(*machine: list[float]) -> float | None:
    """For a worker that works for 80 of 100 s, of which its own thread has 30 s on a core. ``machine`` is in seconds:
    the time, the CPU time of the worker's thread, and that of the process.
    """
    process = worker(0, cycles=[cycle(0, 0.0, 20.0, 100.0, cpu_s=30.0, wait=20.0)])
    rows = [[US * at, US * own, 0.0, US * all_threads, 0.0, 0.0, 0.0] for at, own, all_threads in machine]
    process.tables["machine"] = [np.array(rows).reshape(-1, 7).astype(np.int64)]
    return machine_use(RunTables((process,)))[process.process].core_share


def test_the_share_of_a_core_includes_the_threads_that_emulate_games() -> None:
    assert share_of_a_core([50.0, 15.0, 35.0], [90.0, 27.0, 63.0]) == pytest.approx((30 + 16 / 40 * 100) / 80)


def test_the_share_of_a_core_leaves_out_the_start_of_the_process() -> None:
    assert share_of_a_core([-60.0, 0.0, 50.0], [0.0, 0.0, 90.0], [100.0, 30.0, 160.0]) == pytest.approx(70 / 80)


def test_the_share_of_a_core_is_that_of_the_workers_thread_if_nothing_else_is_known() -> None:
    assert share_of_a_core() == pytest.approx(30 / 80)


def test_a_profile_lists_the_cores_of_the_process_and_of_its_machine(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # as for a worker with its own core
    try:
        Profiler(ProfilerJob(tmp_path, "h1"), worker_id(0), Spans(), run="r", incarnation=1).close()
    finally:
        os.sched_setaffinity(0, allowed)
    (read,) = RunTables.read(tmp_path).processes
    assert (read.cores, read.machine_cores) == (CORES, os.cpu_count())
