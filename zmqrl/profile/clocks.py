"""Converts the clocks of all hosts to one clock, with a limit for the error, from round trips of PING and PONG."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zmqrl.profile.run_tables import ProcessTables, RunTables

WINDOWS = 64
FEWEST_WINDOWS = 4
DRIFT_FROM_S = 10.0  # round trips over a shorter period do not show the drift
MOST_DRIFT = 100e-6  # assumed between two clocks without a measured drift: each crystal is accurate to 50 ppm

Times = NDArray[np.float64]
_Steps: TypeAlias = "defaultdict[str, list[tuple[str, Clock]]]"
"""By clock: the clocks with which round trips connect it, and the conversions from them."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Converts times of one clock to another: ``time + offset_us + drift * (time - at_us)``, within ``error_us``."""

    at_us: float = 0.0
    offset_us: float = 0.0
    drift: float = 0.0
    error_us: float = 0.0

    def to_other(self, times_us: Times) -> Times:
        """The times of the other clock, in microseconds."""
        return times_us + self.offset_us + self.drift * (times_us - self.at_us)

    def inverse(self) -> "Clock":
        """The conversion back."""
        slope = 1 + self.drift
        return Clock(self.at_us + self.offset_us, -self.offset_us, 1 / slope - 1, self.error_us)

    def then(self, other: "Clock") -> "Clock":
        """This conversion followed by ``other``."""
        middle = self.at_us + self.offset_us
        offset = float(other.to_other(np.array([middle]))[0]) - self.at_us
        slope = (1 + self.drift) * (1 + other.drift)
        return Clock(self.at_us, offset, slope - 1, self.error_us + other.error_us)


def measure(sent: Times, received: Times, answered: Times, returned: Times) -> Clock:
    """Measure, with round trips, the conversion from the asking process's clock to the answering process's clock.

    Times are in microseconds. A round trip gives the offset ``((received - sent) + (answered - returned)) / 2``. Its
    error is at most half of ``(returned - sent) - (answered - received)`` (Mills, RFC 5905 §8). Offset and drift are
    fitted to the shortest round trip of each time window. ``error_us`` holds from the first to the last round trip.
    """
    at = (sent + returned) / 2
    offsets = ((received - sent) + (answered - returned)) / 2
    halves = ((returned - sent) - (answered - received)) / 2
    halves = np.maximum(halves, 0.0) + MOST_DRIFT * (returned - sent)  # the clocks drift during the round trip, too
    ends = np.array([sent.min(), returned.max()])
    middle = float(ends.mean())
    best = _shortest(at, halves)
    at, offsets, halves = at[best] - middle, offsets[best], halves[best]
    lines = [(0.0, float(offsets[np.argmin(halves)]))]
    if len(at) >= FEWEST_WINDOWS and at.max() - at.min() >= DRIFT_FROM_S * 1e6:
        drift, offset = np.polyfit(at, offsets, 1, w=1 / np.maximum(halves, 1.0))
        lines.append((float(drift), float(offset)))
    clocks = [
        Clock(middle, offset, drift, _error_us(drift, offset, at, offsets, halves, ends - middle))
        for drift, offset in lines
    ]
    return min(clocks, key=lambda clock: clock.error_us)


def _shortest(at: Times, halves: Times) -> NDArray[np.intp]:
    """The shortest round trip of each time window."""
    window = np.clip((at - at.min()) / max(np.ptp(at), 1.0) * WINDOWS, 0, WINDOWS - 1).astype(int)
    order = np.lexsort((halves, window))
    kept: NDArray[np.intp] = order[np.unique(window[order], return_index=True)[1]]
    return kept


def _error_us(drift: float, offset: float, at: Times, offsets: Times, halves: Times, ends: Times) -> float:
    """The largest possible deviation of a fitted line from the true clock, between the two times in ``ends``.

    The drift is assumed constant, so the deviation is largest at one of the ends. Each round trip limits the deviation
    at its own time. From there to an end, the deviation grows by at most the possible difference of the drifts. Two
    round trips together also limit the deviation, by extrapolation.
    """
    misfits = np.abs(offset + drift * at - offsets)
    near = misfits + halves
    bounds = [float(np.maximum(misfits - halves, 0.0).max())]  # at least this much, as round trips prove
    for end in ends:
        away = np.abs(end - at)
        one = near + (MOST_DRIFT + abs(drift)) * away
        nearer, farther = np.nonzero(away[:, None] < away[None, :])
        tilt = (near[nearer] + near[farther]) / (away[farther] - away[nearer])
        both = near[nearer] + tilt * away[nearer]
        bounds.append(float(min(one.min(), both.min(initial=np.inf))))
    return max(bounds)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The conversions from all clocks, by run id of the session and clock id, to the session's reference clock.

    After a reboot, or on other hosts, a session can have other clocks than the one before.
    """

    by_session: Mapping[str, Mapping[str, Clock]]

    @classmethod
    def of(cls, tables: RunTables) -> Self:
        """Measure the clocks of each session against that of its shard with the lowest number.

        A clock that no chain of round trips connects to this reference is left out.
        """
        references: dict[str, str] = {}
        for each in sorted(tables.processes, key=lambda each: each.process):
            references.setdefault(each.run, each.clock)
        steps: _Steps = defaultdict(list)
        for (asking, answering), clock in _pairs(tables).items():
            steps[asking].append((answering, clock.inverse()))
            steps[answering].append((asking, clock))
        return cls({run: _connected(reference, steps) for run, reference in references.items()})

    def knows(self, tables: ProcessTables) -> bool:
        """Whether the clock of a process can be converted."""
        return tables.clock in self.by_session[tables.run]

    def times_us(self, tables: ProcessTables, times_us: NDArray[np.int64]) -> Times:
        """Times of a process on the reference clock, in microseconds. Raises KeyError if its clock is not known."""
        return self.by_session[tables.run][tables.clock].to_other(times_us.astype(np.float64))

    def by_host(self, processes: Iterable[ProcessTables]) -> dict[str, Clock]:
        """The clock of each host. ``h (2)`` is a second clock of host h."""
        named: defaultdict[str, dict[str, Clock]] = defaultdict(dict)
        for each in processes:
            if self.knows(each):
                named[each.host][each.clock] = self.by_session[each.run][each.clock]
        return {
            host if i == 0 else f"{host} ({i + 1})": clock
            for host, clocks in sorted(named.items())
            for i, clock in enumerate(clocks.values())
        }


def _connected(reference: str, steps: _Steps) -> dict[str, Clock]:
    """The conversions to ``reference`` from all clocks that round trips connect to it, with the smallest errors."""
    known = {reference: Clock()}
    waiting = [(0.0, reference)]
    while waiting:  # Dijkstra, by error
        error_us, here = heapq.heappop(waiting)
        if error_us > known[here].error_us:
            continue
        for there, to_here in steps[here]:
            clock = to_here.then(known[here])
            if there not in known or clock.error_us < known[there].error_us:
                known[there] = clock
                heapq.heappush(waiting, (clock.error_us, there))
    return known


def _pairs(tables: RunTables) -> dict[tuple[str, str], Clock]:
    """The measured conversions, by asking clock and answering clock."""
    shards: defaultdict[tuple[str, int], list[ProcessTables]] = defaultdict(list)
    for shard in tables.of_role("shard"):
        shards[shard.run, shard.process.number].append(shard)
    trips: defaultdict[tuple[str, str], list[NDArray[np.int64]]] = defaultdict(list)
    for worker in tables.of_role("worker"):
        pings = worker.table("pings")
        for number in np.unique(pings["shard"]):
            clocks = {shard.clock for shard in shards[worker.run, int(number)]}
            if len(clocks) == 1 and (clock := clocks.pop()) != worker.clock:
                mine = pings["shard"] == number
                names = ("sent_at_us", "received_at_us", "answered_at_us", "returned_at_us")
                trips[worker.clock, clock].append(np.stack([pings[name][mine] for name in names]))
    return {pair: measure(*np.concatenate(each, axis=1).astype(np.float64)) for pair, each in trips.items()}
