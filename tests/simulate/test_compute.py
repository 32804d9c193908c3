"""Scenarios slow down real workers."""

import re

import pytest

from zmqrl.errors import UsageError
from zmqrl.simulate import Scenario, simulate
from zmqrl.simulate.compute import Pace
from zmqrl.simulate.times import times_of


def test_a_straggler_takes_a_multiple_of_its_work_plus_some_seconds() -> None:
    pace = Pace(law=None, seed=1, rank=0, factor=3.0, seconds=0.5)
    assert pace.sleep_s(7, worked_s=0.2) == pytest.approx(2 * 0.2 + 0.5)


def test_work_takes_at_least_the_time_of_the_law() -> None:
    pace = Pace(law="constant:0.3", seed=1, rank=0)
    assert pace.sleep_s(0, worked_s=0.1) == pytest.approx(0.2)
    assert pace.sleep_s(0, worked_s=0.4) == 0.0


@pytest.mark.parametrize("law", ["exponential:1e308", "constant:1e308+constant:1e308", "constant:36001"])
@pytest.mark.parametrize("busy", [0.0, 1.0])
def test_a_scenario_whose_work_takes_too_long_is_refused(law: str, busy: float) -> None:
    with pytest.raises(UsageError, match=f"^--compute {re.escape(law)}: some times are above the limit of 36,000 s"):
        simulate(Scenario(compute=law, busy=busy))
    with pytest.raises(UsageError, match=f"^--rollout {re.escape(law)}: some times are above the limit of 36,000 s"):
        simulate(Scenario(rollout=law, busy=busy))


def test_a_network_that_is_too_slow_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^no contribution arrived in 36,000 s of virtual time: choose "):
        simulate(Scenario(workers=1, shards=1, bandwidth=1e-9))
    with pytest.raises(UsageError, match=r"^--latency 1000000000\.0: must be from 0 to 10 s\.$"):
        simulate(Scenario(latency=1e9))


def test_a_real_worker_draws_the_same_times_as_a_simulated_one() -> None:
    law = "lognormal:0.1:0.5+0.1*exponential:1"
    times = times_of(Scenario(workers=3, updates=1500, compute=law, seed=5))
    pace = Pace(law=law, seed=5, rank=2)
    for version in (0, 1, 1023, 1024, 1499):
        assert pace.sleep_s(version, 0.0) == pytest.approx(sum(times.gradient_s(2, version)))
