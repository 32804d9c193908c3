"""Finds hosts and routes that are much slower, or much farther away, than the others. Pure."""

from collections.abc import Iterator, Mapping
from statistics import median, median_low

from zmqrl.hosts.judging.speed import Pair, fastest
from zmqrl.words import counted

TIMES_SLOWER = 8.0  # equal hosts differ by less, even on a shared switch
LONG_ROUND_TRIP_S = 0.010  # a shorter one hardly delays an update, and can be due to a busy host


def outliers(bytes_per_s: Mapping[Pair, float], judged: frozenset[str]) -> Iterator[str]:
    """A sentence for each outlier: one of the hosts ``judged``, or a route between hosts that are not outliers.

    The speed of a host in each direction is that of its fastest route, so that slow peers do not count.
    """
    sends, receives = fastest(bytes_per_s, 0), fastest(bytes_per_s, 1)
    slow: set[str] = set()
    for verb, speeds in (("sends", sends), ("receives", receives)):
        known = {host: rate for host, rate in speeds.items() if host in judged}
        for host, rate in known.items():
            typical = median(known.values())
            if rate * TIMES_SLOWER < typical:
                slow.add(host)
                yield (
                    f"{host}: it {verb} at most {_rate(rate)}, where {_rate(typical)} is usual among these hosts: "
                    f"check its link, or leave it out with --exclude {host}."
                )
    for (source, target), rate in bytes_per_s.items():
        least = min(sends[source], receives[target])
        if rate * TIMES_SLOWER < least and not slow & {source, target}:
            yield (
                f"{source} -> {target}: {_rate(rate)}, but other routes of these two hosts carry {_rate(least)}: check "
                "the path between them, or choose another network with --iface."
            )


def distant(round_trip_s: Mapping[Pair, float], judged: frozenset[str]) -> Iterator[str]:
    """A sentence for each of the hosts ``judged`` that is far from all others, and one for routes between the others.

    The round trip of a host is the shortest on its routes, so that distant peers do not count.
    """
    shortest: dict[str, float] = {}
    for pair, seconds in round_trip_s.items():
        for host in pair:
            shortest[host] = min(seconds, shortest.get(host, seconds))
    known = {host: seconds for host, seconds in shortest.items() if host in judged}
    usual_s = median_low(known.values()) if known else 0.0
    far = [host for host, seconds in known.items() if _is_longer(seconds, usual_s)]
    for host in far:
        yield (
            f"{host}: a round trip to it takes at least {_time(known[host])}, where {_time(usual_s)} is usual among "
            f"these hosts: check its link, or leave it out with --exclude {host}."
        )
    long = [
        (seconds, pair)
        for pair, seconds in round_trip_s.items()
        if _is_longer(seconds, max(shortest[host] for host in pair)) and not {*far} & {*pair}
    ]
    if long:
        seconds, (source, target) = max(long)
        others = f" (and {counted(len(long) - 1, 'other route')})" if len(long) > 1 else ""
        yield (
            f"{source} -> {target}{others}: a round trip takes {_time(seconds)}, but only "
            f"{_time(max(shortest[source], shortest[target]))} on other routes of these two hosts: check the path "
            "between them, or choose another network with --iface."
        )


def _is_longer(round_trip_s: float, usual_s: float) -> bool:
    return round_trip_s > max(TIMES_SLOWER * usual_s, LONG_ROUND_TRIP_S)


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
