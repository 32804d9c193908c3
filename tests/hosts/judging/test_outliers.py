"""Hosts and routes that are much slower than the others."""

from hypothesis import given
from hypothesis import strategies as st

from zmqrl.hosts.judging.outliers import LONG_ROUND_TRIP_S, TIMES_SLOWER, distant, outliers
from zmqrl.hosts.judging.speed import Pair

HOSTS = ("h1", "h2", "h3", "h4")
PAIRS: list[Pair] = [(a, b) for a in ("launcher", *HOSTS) for b in HOSTS if a != b]


def found(rates: dict[Pair, float]) -> list[str]:
    return list(outliers(rates, frozenset(HOSTS)))


def test_a_host_with_a_slow_link_is_named_once_per_direction_and_not_its_routes() -> None:
    rates = {pair: 125e3 if "h3" in pair else 118e6 for pair in PAIRS}
    assert found(rates) == [
        "h3: it sends at most 0.125 MB/s, where 118 MB/s is usual among these hosts: check its link, or leave it out "
        "with --exclude h3.",
        "h3: it receives at most 0.125 MB/s, where 118 MB/s is usual among these hosts: check its link, or leave it "
        "out with --exclude h3.",
    ]


def test_a_slow_route_between_fast_hosts_is_named() -> None:
    assert found(dict.fromkeys(PAIRS, 118e6) | {("h2", "h4"): 1e6}) == [
        "h2 -> h4: 1 MB/s, but other routes of these two hosts carry 118 MB/s: check the path between them, or choose "
        "another network with --iface."
    ]


def test_one_of_two_hosts_is_judged_by_its_route_from_the_launcher() -> None:
    slow: dict[Pair, float] = {("launcher", "h1"): 118e6, ("launcher", "h2"): 125e3, ("h1", "h2"): 125e3}
    assert [text.partition(":")[0] for text in outliers(slow, frozenset({"h1", "h2"}))] == ["h2"]


def test_a_slow_launcher_is_no_outlier() -> None:
    assert found({pair: 1e6 if pair[0] == "launcher" else 118e6 for pair in PAIRS}) == []


def far(round_trip_s: dict[Pair, float]) -> list[str]:
    return list(distant(round_trip_s, frozenset(HOSTS)))


def test_a_distant_host_is_named_once_and_not_its_routes() -> None:
    assert far({pair: 0.2 if "h3" in pair else 0.001 for pair in PAIRS}) == [
        "h3: a round trip to it takes at least 200 ms, where 1 ms is usual among these hosts: check its link, or leave "
        "it out with --exclude h3."
    ]


def test_a_long_route_between_near_hosts_is_named_and_others_are_counted() -> None:
    usual = dict.fromkeys(PAIRS, 0.001)
    sentence = (
        "h4 -> h2{}: a round trip takes 31 ms, but only 1 ms on other routes of these two hosts: check the path "
        "between them, or choose another network with --iface."
    )
    assert far(usual | {("h4", "h2"): 0.031}) == [sentence.format("")]
    assert far(usual | {("h2", "h4"): 0.03, ("h4", "h2"): 0.031}) == [sentence.format(" (and 1 other route)")]


def test_one_of_two_hosts_is_judged_by_its_distance_from_the_launcher() -> None:
    routes: dict[Pair, float] = {("launcher", "h1"): 0.001, ("launcher", "h2"): 0.2, ("h1", "h2"): 0.2}
    assert [text.partition(":")[0] for text in distant(routes, frozenset({"h1", "h2"}))] == ["h2"]


def test_a_distant_launcher_and_a_short_round_trip_are_not_reported() -> None:
    assert far({pair: 0.2 if pair[0] == "launcher" else 0.001 for pair in PAIRS}) == []
    assert far({pair: LONG_ROUND_TRIP_S if "h3" in pair else 1e-5 for pair in PAIRS}) == []
    assert far({}) == []


@given(st.fixed_dictionaries(dict.fromkeys(PAIRS, st.floats(1e6, TIMES_SLOWER * 1e6))))
def test_hosts_that_differ_by_less_are_no_outliers(rates: dict[Pair, float]) -> None:
    assert found(rates) == []
    assert far({pair: 1e4 / rate for pair, rate in rates.items()}) == []


@given(st.fixed_dictionaries(dict.fromkeys(PAIRS, st.floats(1e6, 1e9))), st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_verdict_does_not_depend_on_the_unit(rates: dict[Pair, float], times: float) -> None:
    assert len(found({pair: times * rate for pair, rate in rates.items()})) == len(found(rates))
