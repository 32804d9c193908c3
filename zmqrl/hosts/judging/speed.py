"""How many updates per second the network allows, from the bytes of an update and measured rates. Pure."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from zmqrl.hosts.placement import Placement
from zmqrl.process_id import shard_id
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.ps.wire.messages import Codec

FEW_UPDATES_PER_S = 1.0  # most runs make several

Pair: TypeAlias = tuple[str, str]
"""The source and the target of a route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How long one route or host takes for its part of an update.

    ``what`` is ``gradients``, ``weights`` or ``round trip``. ``over`` is a route, or a host and direction, such as
    ``into h1``.
    """

    what: str
    over: str
    shards: tuple[int, ...]
    bytes_per_update: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The most updates per second that the network allows.

    ``unmeasured`` has the routes of the run without a known rate.
    """

    updates_per_s: float
    bytes_per_update: float
    limit: Limit
    unmeasured: tuple[Pair, ...] = ()

    def sentence(self) -> str:
        """The figures in words."""
        limit = self.limit
        shards = ", ".join(str(shard_id(shard)) for shard in limit.shards)
        if limit.what == "round trip":
            slowest = f"the round trip {limit.over}: {1000 * limit.seconds:.3g} ms"
        else:
            what = f"gradients for {shards}" if limit.what == "gradients" else f"weights from {shards}"
            slowest = (
                f"the traffic {limit.over}: {limit.bytes_per_update / 1e6:.3g} MB of {what} at "
                f"{limit.bytes_per_update / limit.seconds / 1e6:.3g} MB/s"
            )
        text = (
            f"the network allows at most {self.updates_per_s:.3g} updates/s: an update sends "
            f"{self.bytes_per_update / 1e6:.3g} MB; the slowest part is {slowest}"
        )
        missing = ", ".join(f"{source} -> {target}" for source, target in self.unmeasured)
        return f"{text}; unknown: the rate of {missing}" if missing else text

    def warnings(self) -> list[str]:
        """A sentence, with a remedy, if a run would mostly wait for the network."""
        if self.updates_per_s >= FEW_UPDATES_PER_S:
            return []
        remedy = "use a faster network (--iface), fewer workers, or --wire.codec bf16, which halves the bytes"
        if self.limit.what == "round trip":
            remedy = "use hosts that are closer to each other, or another network (--iface)"
        return [
            f"the network allows fewer than {FEW_UPDATES_PER_S:g} update/s, so the run would mostly wait for it: "
            f"{remedy}."
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        limit = {name: getattr(self.limit, name) for name in ("what", "over", "bytes_per_update", "seconds")}
        return {
            "updates_per_s": self.updates_per_s,
            "bytes_per_update": self.bytes_per_update,
            "limit": limit | {"shards": list(self.limit.shards)},
            "unmeasured": [{"from": source, "to": target} for source, target in self.unmeasured],
        }


def gradients(placement: Placement, layout: Layout, codec: Codec) -> dict[Pair, int]:
    """The bytes of gradients per update over each route between two hosts, without external workers.

    Weights take as many in the opposite direction.
    """
    workers = Counter(host for process, host in placement.host_of.items() if process.role == "worker")
    found: Counter[Pair] = Counter()
    for cut in layout.slices:
        target = placement.host_of[shard_id(cut.shard)]
        for source, count in workers.items():
            if source != target:
                found[source, target] += count * payload_bytes(codec, cut.count)
    return dict(found)


def expect(
    placement: Placement,
    layout: Layout,
    codec: Codec,
    bytes_per_s: Mapping[Pair, float],
    round_trip_s: Mapping[Pair, float],
    *,
    together: bool = True,
) -> Expectation | None:
    """The updates per second if computing took no time. None if no route of the run has a known rate.

    An update sends all gradients, then all weights, each over all routes at once. The longest round trip is added.
    In each direction, all routes of a host share its speed, which is that of its fastest measured route. Without
    ``together``, as in asynchronous mode, an update sends the gradient of one worker while others receive weights.
    """
    pushed = gradients(placement, layout, codec)
    published = {(target, source): count for (source, target), count in pushed.items()}
    if not any(pair in bytes_per_s for pair in (*pushed, *published)):
        return None
    share = 1.0 if together else 1 / sum(process.role == "worker" for process in placement.host_of)
    pushed_now = {pair: share * count for pair, count in pushed.items()}
    limits: list[Limit] = []
    for what, sent in (("gradients", pushed_now), ("weights", published)):
        if found := list(_limits(what, sent, placement, bytes_per_s)):
            limits.append(max(found, key=lambda each: each.seconds))
    if together:
        pair = max((*pushed, *published), key=lambda each: round_trip_s.get(each, 0.0))
        turn_s = round_trip_s.get(pair, 0.0)
        over = f"{pair[0]} -> {pair[1]}"
        limits.append(Limit(what="round trip", over=over, shards=(), bytes_per_update=0.0, seconds=turn_s))
    longest = max(limits, key=lambda each: each.seconds)
    update_s = sum(each.seconds for each in limits) if together else longest.seconds
    return Expectation(
        updates_per_s=1 / update_s if update_s else math.inf,
        bytes_per_update=sum(pushed_now.values()) + sum(published.values()),
        limit=longest,
        unmeasured=tuple(pair for pair in (*pushed, *published) if pair not in bytes_per_s),
    )


def fastest(bytes_per_s: Mapping[Pair, float], end: int) -> dict[str, float]:
    """The rate of the fastest route out of each host (``end`` 0), or into each host (``end`` 1)."""
    found: dict[str, float] = {}
    for pair, rate in bytes_per_s.items():
        found[pair[end]] = max(rate, found.get(pair[end], 0.0))
    return found


def _limits(
    what: str, sent: Mapping[Pair, float], placement: Placement, bytes_per_s: Mapping[Pair, float]
) -> Iterator[Limit]:
    """The time of each measured route, and each host, for the bytes of an update."""
    total: tuple[defaultdict[str, float], defaultdict[str, float]] = defaultdict(float), defaultdict(float)
    for pair, count in sent.items():
        if pair in bytes_per_s:
            shards = _shards_on(placement, pair[1] if what == "gradients" else pair[0])
            yield Limit(
                what=what,
                over=f"{pair[0]} -> {pair[1]}",
                shards=shards,
                bytes_per_update=count,
                seconds=count / bytes_per_s[pair],
            )
            for end in (0, 1):
                total[end][pair[end]] += count
    for end, way in ((0, "out of"), (1, "into")):
        of_shards = (what == "gradients") == (end == 1)
        speeds = fastest(bytes_per_s, end)
        for host, count in total[end].items():
            shards = _shards_on(placement, host) if of_shards else tuple(range(_shards(placement)))
            yield Limit(
                what=what,
                over=f"{way} {host}",
                shards=shards,
                bytes_per_update=count,
                seconds=count / speeds[host],
            )


def _shards_on(placement: Placement, host: str) -> tuple[int, ...]:
    return tuple(process.number for process in placement.processes_on(host) if process.role == "shard")


def _shards(placement: Placement) -> int:
    return sum(process.role == "shard" for process in placement.host_of)
