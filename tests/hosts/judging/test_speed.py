"""The updates per second that the network allows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.hosts.inventory import Host
from zmqrl.hosts.judging.speed import Expectation, Pair, expect, gradients
from zmqrl.hosts.placement import Placement, place
from zmqrl.ps.layout import Layout

HOSTS = ("h1", "h2", "h3")
LAYOUT = Layout.of([("vector", (1_000_000,))], 2)  # two slices of 2 MB as float32
PAIRS: list[Pair] = [(a, b) for a in HOSTS for b in HOSTS if a != b]


def placed(*workers: int, shards: tuple[int, ...] = (1, 1)) -> Placement:
    hosts = [
        Host(name=name, workers=count, shards=shards[number] if number < len(shards) else 0)
        for number, (name, count) in enumerate(zip(HOSTS, workers, strict=False))
    ]
    cores = {host.name: 4 for host in hosts}
    return place(hosts, cores, shards=sum(shards), workers=sum(workers), evaluator=False, recorder=False)


def expected(placement: Placement, rates: dict[Pair, float], turn_s: float = 0.0, **options: bool) -> Expectation:
    found = expect(placement, LAYOUT, "f32", rates, dict.fromkeys(rates, turn_s), **options)
    assert found is not None
    return found


def test_each_worker_sends_each_slice_to_its_shard_and_nothing_within_a_host() -> None:
    assert gradients(placed(3, 2, 1), LAYOUT, "f32") == {
        ("h2", "h1"): 2 * 2_000_000,
        ("h3", "h1"): 2_000_000,
        ("h1", "h2"): 3 * 2_000_000,
        ("h3", "h2"): 2_000_000,
    }
    assert gradients(placed(0, 1), LAYOUT, "bf16") == {("h2", "h1"): 1_000_000}
    assert gradients(placed(4, shards=(2,)), LAYOUT, "f32") == {}


def test_the_gradients_and_then_the_weights_of_an_update_cross_the_network() -> None:
    found = expected(placed(1, 1), dict.fromkeys(PAIRS, 100e6))
    # 2 MB of gradients and 2 MB of weights at 100 MB/s in each direction: 20 ms and 20 ms.
    assert found.updates_per_s == pytest.approx(25.0)
    assert found.bytes_per_update == 8e6
    assert expected(placed(1, 1), dict.fromkeys(PAIRS, 100e6), 0.010).updates_per_s == pytest.approx(20.0)


def test_workers_on_several_hosts_share_the_link_of_a_shard() -> None:
    found = expected(placed(0, 2, 2, shards=(2,)), dict.fromkeys(PAIRS, 100e6))
    # 16 MB into h1, then 16 MB out of h1, though each route carries only 8 MB.
    assert found.updates_per_s == pytest.approx(1 / 0.32)
    assert (found.limit.over, found.limit.what, found.limit.shards) == ("into h1", "gradients", (0, 1))
    assert found.sentence() == (
        "the network allows at most 3.12 updates/s: an update sends 32 MB; the slowest part is the traffic into h1: "
        "16 MB of gradients for shard-0, shard-1 at 100 MB/s"
    )


def test_the_slowest_route_is_named_with_its_shard() -> None:
    found = expected(placed(1, 1), dict.fromkeys(PAIRS, 100e6) | {("h2", "h1"): 1e6, ("h3", "h1"): 100e6})
    assert (found.limit.over, found.limit.what, found.limit.shards) == ("h2 -> h1", "gradients", (0,))
    assert found.updates_per_s == pytest.approx(1 / (2.0 + 2.0))  # the weights of shard 1 take this route, too


def test_the_only_route_of_two_hosts_is_named_rather_than_one_of_its_ends() -> None:
    found = expected(placed(0, 1, shards=(2,)), {("h2", "h1"): 1e6, ("h1", "h2"): 100e6})
    assert (found.limit.over, found.limit.what) == ("h2 -> h1", "gradients")


def test_a_round_trip_that_takes_longer_than_the_traffic_is_named_as_the_slowest_part() -> None:
    found = expected(placed(0, 1, shards=(2,)), dict.fromkeys(PAIRS, 400e6) | {("h1", "h2"): 200e6}, 0.2)
    # 4 MB of gradients take 10 ms, 4 MB of weights take 20 ms, and the round trip takes 200 ms.
    assert found.updates_per_s == pytest.approx(1 / 0.23)
    assert found.sentence() == (
        "the network allows at most 4.35 updates/s: an update sends 8 MB; the slowest part is the round trip "
        "h2 -> h1: 200 ms"
    )
    assert found.to_json()["limit"] == {
        "what": "round trip",
        "over": "h2 -> h1",
        "bytes_per_update": 0,
        "seconds": 0.2,
        "shards": [],
    }


def test_fewer_than_one_update_per_second_is_a_warning_with_a_remedy() -> None:
    begin = "the network allows fewer than 1 update/s, so the run would mostly wait for it: "
    slow = expected(placed(1, 1), dict.fromkeys(PAIRS, 125e3))
    assert slow.warnings() == [
        f"{begin}use a faster network (--iface), fewer workers, or --wire.codec bf16, which halves the bytes."
    ]
    far = expected(placed(1, 1), dict.fromkeys(PAIRS, 100e6), 1.5)
    assert far.warnings() == [f"{begin}use hosts that are closer to each other, or another network (--iface)."]
    assert expected(placed(1, 1), dict.fromkeys(PAIRS, 4e6)).warnings() == []  # exactly one


def test_asynchronous_updates_overlap_and_carry_one_gradient() -> None:
    found = expected(placed(0, 4, shards=(2,)), dict.fromkeys(PAIRS, 100e6), 0.5, together=False)
    # One gradient of 4 MB takes 40 ms while the weights for four workers, 16 MB, take 160 ms.
    assert found.updates_per_s == pytest.approx(1 / 0.16)
    assert found.bytes_per_update == 4e6 + 16e6
    assert (found.limit.what, found.limit.bytes_per_update) == ("weights", 16e6)


def test_an_unmeasured_route_is_named_and_without_any_nothing_is_expected() -> None:
    rates = {("h2", "h1"): 100e6, ("h1", "h2"): 100e6}
    found = expected(placed(0, 1, 1), rates)
    assert found.unmeasured == (("h3", "h1"), ("h3", "h2"), ("h1", "h3"), ("h2", "h3"))
    assert "; unknown: the rate of h3 -> h1, h3 -> h2, h1 -> h3, h2 -> h3" in found.sentence()
    assert json.loads(json.dumps(found.to_json()))["unmeasured"][0] == {"from": "h3", "to": "h1"}
    assert expect(placed(1, 1), LAYOUT, "f32", {}, {}) is None
    assert expect(placed(0, 0), LAYOUT, "f32", dict.fromkeys(PAIRS, 1e6), {}, together=False) is None
    assert expect(placed(4, shards=(2,)), LAYOUT, "f32", dict.fromkeys(PAIRS, 1e6), {}) is None


RATES = st.fixed_dictionaries(dict.fromkeys(PAIRS, st.floats(1e3, 1e10)))
WORKERS = st.tuples(*[st.integers(0, 5)] * 3).filter(lambda each: sum(each[1:]) > 0)


@given(RATES, WORKERS, st.sampled_from(PAIRS), st.floats(1, 1000), st.booleans())
def test_a_faster_route_never_lowers_the_expectation(
    rates: dict[Pair, float], workers: tuple[int, ...], pair: Pair, times: float, together: bool
) -> None:
    before = expected(placed(*workers), rates, 1e-3, together=together)
    after = expected(placed(*workers), rates | {pair: rates[pair] * times}, 1e-3, together=together)
    assert after.updates_per_s >= before.updates_per_s


@given(RATES, WORKERS, st.integers(0, 2))
def test_another_worker_never_raises_the_expectation(
    rates: dict[Pair, float], workers: tuple[int, ...], host: int
) -> None:
    more = tuple(count + (number == host) for number, count in enumerate(workers))
    assert expected(placed(*more), rates).updates_per_s <= expected(placed(*workers), rates).updates_per_s


@given(RATES, WORKERS)
def test_half_the_bytes_double_the_expectation(rates: dict[Pair, float], workers: tuple[int, ...]) -> None:
    half = expect(placed(*workers), LAYOUT, "bf16", rates, {})
    assert half is not None
    assert half.updates_per_s == pytest.approx(2 * expected(placed(*workers), rates).updates_per_s)
