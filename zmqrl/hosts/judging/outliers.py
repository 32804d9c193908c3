"""Finds hosts and routes that are much slower than the others. Pure."""

from collections.abc import Iterator, Mapping
from statistics import median

from zmqrl.hosts.judging.speed import Pair, fastest

TIMES_SLOWER = 8.0  # equal hosts differ by less, even on a shared switch


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


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
