"""Replays of synthetic profiles: the predicted rates, and where the time of the workers goes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import SHARD_S, TRANSFER_S, USUAL_S, synthetic_run
from support.replays import recorded

from zmqrl.profile.run_tables import ProcessTables
from zmqrl.profile.tables import COLUMNS
from zmqrl.simulate.recorded import STRETCHES, evenly_chosen
from zmqrl.simulate.replay import Variation, replay
from zmqrl.simulate.virtual.world import simulate

ONE_HOST = {name: "h1" for role in ("worker", "shard") for name in (f"{role}-0", f"{role}-1", f"{role}-2")}
WORKED_S = sum(USUAL_S.values())
START_S = 60.0  # time in the run queue before the first cycle


def off_core(processes: Sequence[ProcessTables], on_core: float, queued: float | None) -> list[ProcessTables]:
    """Change the profiles: each worker was on a core for the share ``on_core`` of its work.

    Each worker was in the run queue for the share ``queued`` of its work. None stands for a profile by an older
    version. The processes waited in the run queue for a long time at their start.
    """
    for each in processes:
        if each.process.role == "worker":
            (rows,) = each.tables["cycles"]
            at = {name: i for i, name in enumerate(COLUMNS["cycles"])}
            worked_us = sum(rows[:, at[name]] for name in ("env_step", "act", "gradient", "encode", "push"))
            rows[:, at["cpu_us"]] = worked_us * on_core
            rows[:, at["queued_us"]] = -1 if queued is None else worked_us * queued
            machine = [[0, 0, 0, 0, 0, 0, 0], [9_000_000, 0, round(1e6 * START_S), 0, 0, 0, 0]]
            each.tables["machine"] = [np.array(machine, np.int64)]
    return list(processes)


def with_other_threads(processes: Sequence[ProcessTables], cpu_s: float) -> list[ProcessTables]:
    """Change the profiles: the other threads of each worker use ``cpu_s`` of CPU time per contribution."""
    for each in processes:
        if each.process.role == "worker":
            cycles = each.table("cycles")
            times_us = 0, cycles["began_at_us"][0], cycles["pushed_at_us"][-1]
            used_us = 0, 0, round(1e6 * cpu_s * len(cycles["version"]))
            rows = [[at_us, 0, 0, cpu_us, 0, 0, 0] for at_us, cpu_us in zip(times_us, used_us, strict=True)]
            each.tables["machine"] = [np.array(rows, np.int64)]
    return list(processes)


@pytest.mark.parametrize("on_core", [0.25, 0.5, 1.0])
def test_time_off_the_core_that_was_not_in_the_run_queue_stays_in_the_replay(on_core: float) -> None:
    run = recorded(off_core(synthetic_run(), on_core, queued=0.0))
    assert replay(run) == pytest.approx(run.measured, rel=0.02)


def test_transfers_that_are_slow_half_of_the_time_are_replayed() -> None:
    run = recorded(synthetic_run(shards=1, link_extra_s=dict.fromkeys(range(3), 0.2), every=2))
    assert replay(run) == pytest.approx(run.measured, rel=0.05)


def test_time_in_the_run_queue_comes_from_the_shared_cores_of_the_replay() -> None:
    # Three workers share the two cores of their host, so each is on a core for two thirds of its work.
    run = recorded(off_core(synthetic_run(hosts=ONE_HOST), 2 / 3, queued=1 / 3))
    assert run.scenario.host_cores == (2,)
    assert replay(run) == pytest.approx(run.measured, rel=0.02)
    assert replay(run, Variation(without=0)) > 1.3 * run.measured  # two workers, each with a core


def test_each_host_of_a_replay_has_its_own_number_of_cores() -> None:
    # The shards have a host with many cores. The workers share a host with two.
    hosts = {name: "h1" if name.startswith("shard") else "h2" for name in ONE_HOST}
    planted = off_core(synthetic_run(hosts=hosts), 2 / 3, queued=1 / 3)
    run = recorded([replace(each, cores=64 if each.host == "h1" else 2) for each in planted])
    assert run.scenario.host_cores == (64, 2)
    assert replay(run) == pytest.approx(run.measured, rel=0.02)
    assert replay(run, Variation(without=0)) > 1.3 * run.measured  # two workers, each with a core


def test_time_in_the_run_queue_that_the_run_does_not_explain_stays_in_the_replay() -> None:
    # Each worker has its own host, so other programs must have used the cores.
    run = recorded(off_core(synthetic_run(), 2 / 3, queued=1 / 3))
    assert replay(run) == pytest.approx(run.measured, rel=0.02)
    assert replay(run, Variation(without=0)) == pytest.approx(run.measured, rel=0.02)
    half = replay(run, Variation(spans=dict.fromkeys(("env_step", "act", "gradient"), 0.5)))
    assert half > 1.8 * run.measured


@pytest.mark.parametrize(("own", "others"), [(0.3, 0.7), (0.3, 0.4), (0.3, 1.5), (1.0, 0.5)])
def test_the_work_of_other_threads_takes_no_time_beyond_that_in_which_the_worker_was_blocked(
    own: float, others: float
) -> None:
    # The games have threads of their own, or torch computes with several threads.
    run = recorded(with_other_threads(off_core(synthetic_run(), own, queued=0.0), others * WORKED_S))
    assert replay(run) == pytest.approx(run.measured, rel=0.02)


def test_other_threads_for_which_a_worker_waits_need_a_core_like_its_own_thread() -> None:
    # Three workers share two cores. A worker computes for a third of its CPU time, and its games for the rest. Both
    # wait for a core for half a second per second of CPU time, but only the first wait is in the run queue of the
    # worker's own thread.
    cpu_s = WORKED_S / 1.5
    planted = off_core(synthetic_run(hosts=ONE_HOST), 2 / 9, queued=1 / 9)
    run = recorded(with_other_threads(planted, cpu_s * 2 / 3))
    assert replay(run) == pytest.approx(run.measured, rel=0.02)
    assert replay(run, Variation(without=0)) == pytest.approx(1 / (1 / run.measured - WORKED_S / 3), rel=0.02)


def test_threads_that_work_at_the_same_time_as_the_worker_take_cores_from_other_workers() -> None:
    # Each of the two workers keeps one core busy, and half of another one with other threads.
    hosts = dict.fromkeys(("worker-0", "worker-1", "shard-0", "shard-1"), "h1")
    planted = off_core(synthetic_run(workers=2, hosts=hosts), 1.0, queued=0.0)
    run = recorded(with_other_threads(planted, 0.5 * WORKED_S))
    assert replay(run) == pytest.approx(1 / (1 / run.measured + WORKED_S / 2), rel=0.02)


def test_older_profiles_without_the_run_queue_of_each_cycle_are_replayed_as_before() -> None:
    # The long wait in the run queue at the start makes it look as if the workers were in the run queue whenever they
    # were off their cores.
    run = recorded(off_core(synthetic_run(), 0.5, queued=None))
    (first, *_) = run.times(range(3), 40).gradient
    assert sum(first.cpu_s) == pytest.approx(0.5 * 40 * (USUAL_S["gradient"] + USUAL_S["encode"] + USUAL_S["push"]))
    assert first.idle_s == pytest.approx([2 * TRANSFER_S] * 40, rel=1e-3)
    assert replay(run) == pytest.approx(simulate(run.scenario, compute=run.times(range(3), 40)).updates_per_s)


@given(st.integers(1, 400), st.integers(1, 300))
def test_the_replayed_stretches_are_the_middles_of_equal_parts_of_a_long_profile(length: int, number: int) -> None:
    found = evenly_chosen(range(length), number)
    assert list(found) == sorted(set(found))
    if length <= number:
        assert len(found) == length
    else:
        parts = min(STRETCHES, number)
        assert len(found) == parts * (number // parts)
        for i, item in enumerate(found):
            part, place = divmod(i, number // parts)
            assert item == pytest.approx((part + 0.5) * length / parts + place - number // parts / 2, abs=1)


def test_a_slow_start_counts_no_more_in_the_simulation_than_in_the_run() -> None:
    run = recorded(synthetic_run(versions=400, stalls_s={(0, rank): 4.0 for rank in range(3)}))
    few = replace(run.scenario, updates=100)
    assert simulate(few, compute=run.times(range(3), 100)).updates_per_s > run.measured
    assert replay(run) == pytest.approx(run.measured, rel=0.02)


@pytest.mark.parametrize("versions", [160, 1440, 1600])
def test_the_replayed_stretches_are_whole_iterations(versions: int) -> None:
    plays_s = {("env_step", rank): 1.0 for rank in range(2)}
    planted = synthetic_run(workers=2, shards=1, versions=versions, worker_extra_s=plays_s, every=16, per_rollout=16)
    run = recorded(planted, updates_per_rollout=16)
    few = replace(run.scenario, updates=112)
    assert simulate(few, compute=run.times(range(2), 112)).updates_per_s == pytest.approx(run.measured, rel=0.02)


def test_a_long_run_is_replayed_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqrl.simulate.recorded.MOST_UPDATES", 40)
    fast = synthetic_run(versions=200)
    slow = synthetic_run(versions=200, worker_extra_s={("gradient", rank): 0.3 for rank in range(3)})
    for each, slower in zip(fast, slow, strict=True):  # the second half of the run is slow
        for name, (rows,) in each.tables.items():
            if name in ("cycles", "versions", "arrivals"):
                (others,) = slower.tables[name]
                late = others[others[:, 1] > 100].copy()
                times = [i for i, column in enumerate(COLUMNS[name]) if column.endswith("_at_us")]
                late[:, times] -= 100 * 300_000
                each.tables[name] = [np.concatenate([rows[rows[:, 1] <= 100], late])]
    run = recorded(fast)
    assert run.scenario.updates == 40
    assert replay(run) == pytest.approx(run.measured, rel=0.05)


def test_the_costs_of_a_shard_are_the_mean_durations_of_its_spans() -> None:
    costs = recorded(synthetic_run(versions=50)).scenario.costs
    mean = {name: 50 / 51 * s for name, s in SHARD_S.items()}  # version 0 takes no time
    assert (costs.optimize_s, costs.commit_s, costs.publish_s) == pytest.approx(tuple(mean.values()))
    assert (costs.receive_s, costs.accumulate_s, costs.send_s) == (0.0, 0.0, 0.0)


def test_a_shard_receives_every_arrival_but_accumulates_only_the_used_contributions() -> None:
    # Each version uses two of four contributions. All contributions of rank 0 arrive twice.
    planted = synthetic_run(workers=4, versions=50, quorum=2)
    for each in planted:
        if each.process.role == "shard":
            (made,), (arrived,) = each.tables["versions"], each.tables["arrivals"]
            again = arrived[arrived[:, COLUMNS["arrivals"].index("rank")] == 0]
            each.tables["arrivals"].append(again)
            made[1:, COLUMNS["versions"].index("receive")] = 200 * (len(arrived) + len(again)) / 50
            made[1:, COLUMNS["versions"].index("accumulate")] = 2 * 1000
    costs = recorded(planted, workers=2, backups=2).scenario.costs
    assert (costs.receive_s, costs.accumulate_s) == pytest.approx((0.0002, 0.001))


@pytest.mark.parametrize("after", [-1, 20])
def test_the_cpu_time_of_other_threads_is_that_of_the_replayed_updates(after: int) -> None:
    # The other threads use 60 s of CPU time before the first update, and a tenth of a core afterwards.
    run = synthetic_run(versions=40)
    for each in run:
        (columns,) = each.tables.get("cycles", [np.zeros((1, len(COLUMNS["cycles"])))])
        began_us, pushed_us = columns[0, 2], columns[-1, 4]
        machine = [
            [at_us, 0, 0, 60_000_000 + (at_us - began_us) // 10, 0, 0, 0]
            for at_us in (began_us, pushed_us, 2 * pushed_us)
        ]
        each.tables["machine"] = [np.array([[0] * 7, *machine], np.int64)]
    whole = recorded(run)
    part = recorded([each.after((1, after)) for each in run])
    of_whole, of_part = whole.times([0], 40), part.times([0], 40)
    own_s = USUAL_S["gradient"] + USUAL_S["encode"] + USUAL_S["push"]
    assert of_whole.gradient[0].cpu_s == pytest.approx([own_s] * 40, rel=1e-3)
    assert of_part.gradient[0].cpu_s == pytest.approx([own_s] * (39 - after), rel=1e-3)
    for times in (of_whole, of_part):
        assert times.beside[0] * WORKED_S == pytest.approx(0.1 / whole.measured, abs=2e-3)
