"""Processes die in a simulated run and come back."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqrl.errors import ClusterError, UsageError
from zmqrl.simulate import Failure, Scenario, ShardCosts, Straggler, simulate

STEADY = Scenario(workers=4, shards=2, updates=100, compute="constant:0.1", bandwidth=1e8)


def failing(*failures: Failure, backups: int = 0, hosts: int | None = None) -> Scenario:
    return replace(STEADY, failures=failures, backups=backups, hosts=hosts)


def test_without_a_worker_the_run_waits_for_its_restart() -> None:
    result = simulate(failing(Failure(process="worker-1", at=2.05, restart_s=3.0)))
    slow = [step_s for step_s in result.step_s if step_s > 0.5]
    assert slow == [pytest.approx(3.2, abs=0.3)]
    assert result.used == 4 * 2 * 100


def test_with_a_backup_the_run_does_not_wait() -> None:
    result = simulate(failing(Failure(process="worker-1", at=2.05), backups=1))
    assert max(result.step_s) < 0.2


def test_a_shard_comes_back_with_its_last_version_and_asks_for_lost_contributions() -> None:
    """Versions take 0.3 s because of rank 0. When the shard dies, it has three contributions to the third version."""
    slow = failing(Failure(process="shard-1", at=2 * 0.3 + 0.2, restart_s=1.0))
    result = simulate(replace(slow, bandwidth=float("inf"), stragglers=(Straggler(rank=0, factor=3.0),)))
    assert len(result.step_s) == 100
    assert sorted(result.step_s)[:-1] == pytest.approx([0.3] * 99)
    assert 1.2 < max(result.step_s) < 3.0
    assert result.resent >= 3


@pytest.mark.parametrize("at", [0.0, 0.3, 1.02, 2.37])
def test_the_failure_of_a_host_ends_its_shard_and_its_workers(at: float) -> None:
    result = simulate(failing(Failure(process="host-0", at=at, restart_s=1.0), hosts=2))
    assert len(result.step_s) == 100
    assert max(result.step_s) > 1.0


def test_a_run_that_cannot_continue_names_the_process_that_is_gone() -> None:
    with pytest.raises(ClusterError, match=r"stuck at version \d+ .* needs 4 of 4 workers .* worker-2 is gone"):
        simulate(failing(Failure(process="worker-2", at=1.0)))


@pytest.mark.parametrize("process", ["worker-4", "shard-2", "host-9", "worker", "x-1", "worker--1"])
def test_a_failure_of_an_unknown_process_is_refused(process: str) -> None:
    with pytest.raises(UsageError, match="there is no process"):
        simulate(failing(Failure(process=process, at=1.0)))


def test_workers_that_give_up_on_a_silent_shard_are_restarted() -> None:
    result = simulate(failing(Failure(process="shard-0", at=1.0, restart_s=100.0)))
    assert len(result.step_s) == 100
    assert 100 < max(result.step_s) < 104


@pytest.mark.processes
@settings(max_examples=40, deadline=None)
@given(
    failures=st.lists(
        st.builds(
            Failure,
            process=st.sampled_from(["worker-0", "worker-2", "worker-4", "shard-0", "shard-1", "host-0", "host-2"]),
            at=st.floats(0.0, 3.0),
            restart_s=st.floats(0.0, 3.0),
        ),
        max_size=5,
    ),
    backups=st.sampled_from([0, 1]),
    bandwidth=st.sampled_from([math.inf, 1e6, 1e8]),
    latency=st.sampled_from([0.0, 0.02]),
    loss=st.sampled_from([0.0, 0.05]),
    compute=st.sampled_from(["constant:0.1", "exponential:0.1"]),
    costs=st.sampled_from([ShardCosts(), ShardCosts(receive_s=0.001, optimize_s=0.02, publish_s=0.05, send_s=0.01)]),
)
def test_a_run_ends_if_every_process_that_dies_is_restarted(failures: list[Failure], **values: object) -> None:
    scenario = Scenario(workers=4, updates=30, hosts=3, parameters=20_000, failures=tuple(failures))
    scenario = replace(scenario, **values)  # type: ignore[arg-type]
    known = [each for each in failures if each.process != "worker-4" or scenario.backups]
    result = simulate(replace(scenario, failures=tuple(known)))
    assert len(result.step_s) == 30
    assert sum(result.step_s) == pytest.approx(result.elapsed_s)
    assert result.used == 30 * 4 * 2
