"""Virtual time, and jobs that share a resource."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.simulate.virtual.clock import Shared, VirtualClock


def test_calls_are_ordered_by_time_and_then_by_scheduling() -> None:
    clock, seen = VirtualClock(), list[tuple[float, str]]()
    for delay_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.after(delay_s, lambda name: seen.append((clock.now, name)), name)
    clock.run()
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]


def test_jobs_that_start_together_share_the_capacity() -> None:
    assert ends([(0.0, 2.0)] * 4, capacity=2.0, each=1.0) == pytest.approx([4.0] * 4)


def test_a_single_job_gets_at_most_one_core() -> None:
    assert ends([(0.0, 2.0)], capacity=8.0, each=1.0) == pytest.approx([2.0])


def test_a_job_that_starts_later_slows_the_first_one_down() -> None:
    # The first job runs alone until t = 1, then does its remaining 1 unit at half rate. From t = 3 on, the second job
    # runs alone.
    assert ends([(0.0, 2.0), (1.0, 2.0)], capacity=1.0, each=1.0) == pytest.approx([3.0, 4.0])


def test_a_cancelled_job_frees_its_share() -> None:
    clock, done = VirtualClock(), list[float]()
    shared = Shared(clock, 1.0, 1.0)
    shared.start(4.0, lambda: done.append(clock.now))
    other = shared.start(4.0, lambda: done.append(-1.0))
    clock.after(2.0, shared.cancel, other)
    clock.run()
    assert done == pytest.approx([5.0])


@given(
    jobs=st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=1, max_size=20),
    capacity=st.floats(0.5, 8.0),
)
def test_no_work_is_lost_and_no_job_is_faster_than_alone(jobs: list[tuple[float, float]], capacity: float) -> None:
    each = min(1.0, capacity)
    found = ends(jobs, capacity=capacity, each=each)
    assert all(end >= start + amount / each - 1e-6 for end, (start, amount) in zip(found, jobs, strict=True))
    first, total = min(start for start, _ in jobs), sum(amount for _, amount in jobs)
    assert max(found) >= first + total / capacity - 1e-6
    # At least one core is busy while there is work. So, counted from the last start, all jobs end within the time that
    # one core needs for all of the work.
    assert max(found) <= max(start for start, _ in jobs) + total / each + 1e-6


def ends(jobs: list[tuple[float, float]], *, capacity: float, each: float) -> list[float]:
    """The time at which each job ends, given its start time and its amount of work."""
    clock, found = VirtualClock(), [math.nan] * len(jobs)
    shared = Shared(clock, capacity, each)

    def note(number: int) -> None:
        found[number] = clock.now

    def begin(amount: float, number: int) -> None:
        shared.start(amount, note, number)

    for number, (start, amount) in enumerate(jobs):
        clock.at(start, begin, amount, number)
    clock.run()
    return found
