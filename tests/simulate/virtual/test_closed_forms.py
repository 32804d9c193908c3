"""Simulated runs whose results can be computed by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqrl.simulate import ComputeTimes, Scenario, ShardCosts, Straggler, Work, simulate

FREE = Scenario(workers=4, shards=2, updates=20, compute="constant:0.1")
UPDATES = 1500  # enough updates for a mean
BYTES = 4 * 4096  # of each slice, with two shards
WIRED = replace(FREE, parameters=8192, bandwidth=1e6, compute="constant:0")


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def test_a_step_without_a_network_takes_as_long_as_the_work() -> None:
    result = simulate(FREE)
    assert result.step_s == pytest.approx([0.1] * 20)
    assert (result.used, result.late, result.skipped) == (4 * 2 * 20, 0, 0)
    assert result.agent_steps_per_s == pytest.approx(4 * 30 / 0.1)


@pytest.mark.processes
@pytest.mark.parametrize(("workers", "backups"), [(1, 0), (8, 0), (6, 2), (5, 5), (1, 7)])
def test_the_mean_step_is_the_kth_order_statistic(workers: int, backups: int) -> None:
    """For exponential times, this is the mean times the sum of 1/i for i = b + 1 ... N + b."""
    ranks = workers + backups
    result = simulate(
        Scenario(
            workers=workers,
            backups=backups,
            shards=1,
            updates=UPDATES,
            compute="exponential:0.2",
            abandon="immediately",
        )
    )
    expected = 0.2 * sum(1 / i for i in range(backups + 1, ranks + 1))
    deviation = 0.2 * sum(1 / i**2 for i in range(backups + 1, ranks + 1)) ** 0.5
    assert mean(result.step_s) == pytest.approx(expected, abs=4 * deviation / UPDATES**0.5)
    assert result.used == UPDATES * workers
    assert result.abandoned == result.skipped == (UPDATES - 1) * backups


def test_a_straggler_misses_versions_if_it_finishes_late_work_instead_of_abandoning_it() -> None:
    """Rank 0 needs 0.25 s, the others 0.1 s."""
    slow = replace(FREE, workers=3, backups=1, updates=30, stragglers=(Straggler(rank=0, factor=2.5),))
    finishing = simulate(slow)
    assert finishing.step_s == pytest.approx([0.1] * 30)
    assert finishing.skipped in (2 * 11, 2 * 12)  # one gradient for both shards every 0.25 s
    giving_up = simulate(replace(slow, abandon="immediately"))
    assert giving_up.step_s == pytest.approx([0.1] * 30)
    assert giving_up.abandoned in (29, 30)
    assert giving_up.agent_steps < finishing.agent_steps


def test_a_step_limited_by_a_network_card_takes_the_bytes_divided_by_the_rate() -> None:
    """All slices arrive through one network card at the same time, and all publications leave through it."""
    result = simulate(WIRED)
    assert result.step_s == pytest.approx([2 * 4 * BYTES / 1e6] * 20)
    card = result.nics[4]
    assert (card.incoming, card.outgoing) == pytest.approx((0.5, 0.5))


def test_twice_as_many_shards_need_half_the_time() -> None:
    one, two, four = (simulate(replace(WIRED, shards=shards)).step_s[5] for shards in (1, 2, 4))
    assert (one / two, two / four) == pytest.approx((2, 2))


def test_a_backup_that_pushes_at_the_same_time_delays_the_others() -> None:
    """Slices share the network card of a shard evenly."""
    alone = simulate(replace(WIRED, workers=2)).step_s[5]
    with_backups = simulate(replace(WIRED, workers=2, backups=2)).step_s[5]
    assert with_backups == pytest.approx(2 * alone)


def test_a_step_pays_the_latency_twice() -> None:
    assert simulate(replace(FREE, latency=0.03)).step_s == pytest.approx([0.1 + 2 * 0.03] * 20)


def test_processes_on_one_host_share_its_cores() -> None:
    """Four workers on two cores take twice as long. Workers that sleep do not take longer."""
    shared = replace(FREE, hosts=1, cores=2)
    assert simulate(shared).step_s == pytest.approx([0.2] * 20)
    assert simulate(replace(shared, busy=0.0)).step_s == pytest.approx([0.1] * 20)


@pytest.mark.parametrize(("cores", "step_s"), [(None, 0.1), (4, 0.1), (2, 0.15), (1, 0.3)])
def test_other_threads_of_a_worker_share_the_cores_but_the_worker_does_not_wait_for_them(
    cores: int | None, step_s: float
) -> None:
    times = ComputeTimes((Work([0.1]),) * 2, beside=(0.5, 0.5))
    result = simulate(replace(FREE, workers=2, hosts=1, cores=cores), compute=times)
    assert result.step_s == pytest.approx([step_s] * 20)


def test_a_shard_handles_contributions_one_after_the_other() -> None:
    costs = ShardCosts(receive_s=0.001, accumulate_s=0.002, optimize_s=0.01, commit_s=0.02, publish_s=0.03)
    result = simulate(replace(FREE, costs=costs))
    assert result.step_s == pytest.approx([0.1 + 4 * 0.003 + 0.06] * 20)
    assert result.shards_busy == pytest.approx([0.072 / 0.172] * 2)


def test_a_shard_sends_a_version_to_one_subscriber_after_the_other() -> None:
    result = simulate(replace(FREE, costs=ShardCosts(send_s=0.01)))
    assert result.step_s[1:] == pytest.approx([0.1 + 4 * 0.01] * 19)


def test_a_rollout_is_played_once_per_iteration() -> None:
    result = simulate(replace(FREE, rollout="constant:1", updates_per_rollout=4))
    assert result.step_s == pytest.approx([1.1, 0.1, 0.1, 0.1] * 5)
    assert result.agent_steps == 4 * 5 * 30


def test_recorded_times_replace_the_law() -> None:
    """The workers share the host's core for their CPU time, but are idle in parallel."""
    times = ComputeTimes(tuple(Work([0.1], [0.05]) for _ in range(4)))
    assert simulate(replace(FREE, hosts=1, cores=1), compute=times).step_s == pytest.approx([0.45] * 20)


def test_a_lost_packet_costs_a_timeout() -> None:
    result = simulate(replace(FREE, loss=0.02, updates=200))
    assert {round(step_s, 3) for step_s in result.step_s} <= {0.1, 0.3, 0.5, 0.7}
    assert result.step_s.count(max(result.step_s)) < 200


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 6),
    backups=st.integers(0, 3),
    shards=st.integers(1, 3),
    compute=st.sampled_from(["constant:0.1", "exponential:0.1", "lognormal:0.1:1", "constant:0.05+0.1*exponential:3"]),
    abandon=st.sampled_from(["immediately", "after-compute"]),
    bandwidth=st.sampled_from([float("inf"), 1e6, 1e8]),
    latency=st.sampled_from([0.0, 0.01]),
    hosts=st.sampled_from([None, 1, 3]),
    cores=st.sampled_from([None, 1, 2]),
    loss=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 1000),
)
def test_every_version_is_made_of_a_quorum_whatever_the_scenario(**values: object) -> None:
    scenario = replace(Scenario(updates=15, parameters=10_000), **values)  # type: ignore[arg-type]
    result = simulate(scenario)
    assert len(result.step_s) == 15
    assert all(step_s >= 0 for step_s in result.step_s)
    assert result.used == 15 * scenario.effective_quorum * scenario.shards
    assert sum(result.step_s) == pytest.approx(result.elapsed_s)
    assert simulate(scenario) == result
