"""The launcher notices when it did not run itself: it was stopped, or its machine was asleep."""

import pytest

from zmqrl.hosts.daemons import BLAMED_FOR_S, Pulse
from zmqrl.hosts.events import Paused

LEASE_S = 8.0


class Clocks:
    """Two clocks: one stops while the machine sleeps, and the other goes on."""

    def __init__(self) -> None:
        self.awake_s, self.real_s = 1000.0, 5000.0

    def __call__(self) -> tuple[float, float]:
        return self.awake_s, self.real_s

    def pass_s(self, seconds: float, *, asleep_s: float = 0.0) -> None:
        self.awake_s += seconds
        self.real_s += seconds + asleep_s


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_a_process_that_runs_was_not_paused(clocks: Clocks) -> None:
    pulse = Pulse(clocks)
    for _ in range(100):
        clocks.pass_s(1.5)
        pulse.beat()
    assert pulse.take_news() == []
    assert pulse.blamed(LEASE_S) is None


def test_a_stopped_process_and_a_sleeping_machine_are_told_apart_and_each_is_reported_once(clocks: Clocks) -> None:
    pulse = Pulse(clocks)
    clocks.pass_s(40.0)
    pulse.beat()
    pulse.beat()
    clocks.pass_s(1.0, asleep_s=3600.0)
    pulse.beat()
    news = pulse.take_news()
    assert news == [Paused(40.0), Paused(3601.0, asleep=True)]
    assert [pause.sentence() for pause in news] == [
        "this launcher was stopped for 40 s",
        "this machine was asleep for 3601 s",
    ]
    assert pulse.take_news() == []


def test_a_pause_is_blamed_for_hosts_that_are_lost_after_it_if_their_leases_ran_out(clocks: Clocks) -> None:
    pulse = Pulse(clocks)
    clocks.pass_s(LEASE_S)
    pulse.beat()
    assert pulse.blamed(LEASE_S) == "this launcher was stopped for 8 s"
    assert pulse.blamed(2 * LEASE_S) is None
    assert pulse.blamed(None) is None
    clocks.pass_s(BLAMED_FOR_S + 1.0)
    assert pulse.blamed(LEASE_S) is None
