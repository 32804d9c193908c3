import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.profiles import resumed, shard, synthetic_run, worker

from zmqrl.profile.clocks import Clock, Clocks, measure
from zmqrl.profile.run_tables import RunTables

AT = 5e9  # microseconds
clocks = st.builds(
    Clock,
    at_us=st.floats(0, 1e10),
    offset_us=st.floats(-1e12, 1e12),
    drift=st.floats(-1e-4, 1e-4),
    error_us=st.floats(0, 1e4),
)


@given(clocks, st.floats(0, 1e10))
def test_the_inverse_undoes_a_conversion(clock: Clock, time_us: float) -> None:
    there = clock.to_other(np.array([time_us]))
    assert clock.inverse().to_other(there)[0] == pytest.approx(time_us, abs=0.01)


@given(clocks, clocks, st.floats(0, 1e10))
def test_conversions_between_clocks_can_be_chained(one: Clock, other: Clock, time_us: float) -> None:
    steps = other.to_other(one.to_other(np.array([time_us])))[0]
    assert one.then(other).to_other(np.array([time_us]))[0] == pytest.approx(steps, abs=0.01)
    assert one.then(other).error_us == one.error_us + other.error_us


@given(
    offset_us=st.floats(-1e12, 1e12),
    drift=st.floats(-8e-5, 8e-5),
    seconds=st.integers(3, 400),
    seed=st.integers(0, 2**32 - 1),
    congestion_us=st.floats(0, 50_000),
)
def test_the_true_clock_is_within_the_bound(
    offset_us: float, drift: float, seconds: int, seed: int, congestion_us: float
) -> None:
    draw = np.random.default_rng(seed)
    sent = AT + 1e6 * np.arange(seconds, dtype=np.float64)
    there, back = 50 + congestion_us * draw.exponential(1.0, (2, seconds)) * (draw.random((2, seconds)) < 0.5)
    handling = 5.0
    received = sent + there
    returned = received + handling + back

    def other(times_us: np.ndarray) -> np.ndarray:
        return times_us + offset_us + drift * (times_us - AT)

    clock = measure(sent, other(received), other(received + handling), returned)
    away = np.abs(clock.to_other(sent) - other(sent)).max()
    assert away <= clock.error_us + 0.01
    assert clock.error_us < 2 * 100 + 2 * congestion_us + 100e-6 * 1e6 * 11


@given(
    seconds=st.integers(3, 900),
    quiet=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3)), max_size=3),
    drift=st.floats(-9e-5, 9e-5),
    one_way=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(seconds=60, quiet=[(0.0, 0.1)], drift=20e-6, one_way=False, seed=0)
@example(seconds=600, quiet=[(0.0, 0.02)], drift=20e-6, one_way=False, seed=1)
@example(seconds=600, quiet=[(0.0, 0.02)], drift=20e-6, one_way=True, seed=2)
@example(seconds=3600, quiet=[(0.0, 0.03)], drift=-50e-6, one_way=True, seed=3)
def test_the_bound_holds_even_if_the_network_is_congested_for_most_of_the_run(
    seconds: int, quiet: list[tuple[float, float]], drift: float, one_way: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    sent = AT + 1e6 * np.arange(seconds, dtype=np.float64)
    part = np.arange(seconds) / seconds
    busy = ~np.any([np.zeros(seconds, bool), *((part >= at) & (part < at + length) for at, length in quiet)], axis=0)
    there, back = 50 + np.where(busy, 20_000 * (0.5 + draw.random((2, seconds))), 400 * draw.random((2, seconds)))
    received = sent + there
    returned = received + 5.0 + (50.0 if one_way else back)

    def other(times_us: np.ndarray) -> np.ndarray:
        return times_us + 1e6 + drift * (times_us - AT)

    clock = measure(sent, other(received), other(received + 5.0), returned)
    assert np.abs(clock.to_other(sent) - other(sent)).max() <= clock.error_us + 0.01
    assert clock.error_us < 2 * 30_100


def test_times_of_a_shard_on_another_host_are_converted_to_the_clock_of_shard_0() -> None:
    trips = [
        (1, AT + 1e6 * i, AT + 1e6 * i + 7_000_100, AT + 1e6 * i + 7_000_110, AT + 1e6 * i + 210) for i in range(30)
    ]
    tables = RunTables(
        (
            shard(0, clock="a", host="h1"),
            shard(1, clock="b", host="h2"),
            worker(0, clock="a", host="h1", pings=trips),
            worker(1, clock="c", host="h3"),
        )
    )
    found = Clocks.of(tables)
    (by_clock,) = found.by_session.values()
    assert by_clock["a"] == Clock()
    assert by_clock["b"].offset_us == pytest.approx(-7_000_000, abs=0.1)
    assert by_clock["b"].error_us == pytest.approx(100, abs=1)
    assert "c" not in by_clock
    by_host = found.by_host(tables.processes)
    assert set(by_host) == {"h1", "h2"}
    assert by_host["h1"] == Clock()


def test_each_session_has_a_reference_clock_of_its_own() -> None:
    before = synthetic_run(workers=1, shards=1)
    before[1].clock = "b"
    later = resumed(synthetic_run(workers=1, shards=1), clock="b")
    later[1].clock = "c"
    found = Clocks.of(RunTables((*before, *later)))
    known = {(each.run, str(each.process)) for each in (*before, *later) if found.knows(each)}
    assert known == {("r", "shard-0"), ("resumed", "shard-0")}, "clock b is known only in the second session"
