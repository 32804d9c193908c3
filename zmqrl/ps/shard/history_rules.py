"""The rules that the histories of a run must keep. ``zmqrl check-history`` and the simulated runs use these rules."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from zmqrl.ps.shard.events import Totals, added
from zmqrl.ps.shard.history import counts_of, parse_line
from zmqrl.words import counted

COUNTED = {"late", "duplicate", "rejected", "crc32"}  # other checks cover the other keys


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a history, as a record of the making of one version.

    ``number`` is the number of the line, from 1. ``totals`` counts the contributions up to this version, or is None in
    a line that an older zmqrl wrote. ``made_at`` is the progress of the run that the update to this version used. In
    asynchronous mode, ``staleness`` has the age of each contribution in versions.
    """

    number: int
    version: int
    generation: int
    view: int
    quorum: int
    ranks: list[int]
    counts: Totals
    crc32: int
    totals: Totals | None
    made_at: int
    staleness: list[int]

    @classmethod
    def read(cls, number: int, raw: bytes) -> Self | None:
        """Parse ``raw``. Returns None if ``raw`` is not a valid line."""
        found = parse_line(raw)
        return None if found is None else cls.of(number, found)

    @classmethod
    def of(cls, number: int, found: Mapping[str, Any]) -> Self | None:
        """Build a line from the parsed fields ``found``. Returns None if a field is missing or not valid."""
        if not found.keys() >= COUNTED:
            return None
        version, view, quorum, ranks = (found.get(name, -1) for name in ("version", "view", "quorum", "ranks"))
        generation, totals = found.get("generation", 0), found.get("totals")  # missing in lines of an older zmqrl
        made_at = found.get("made_at", 0)  # missing unless schedules follow the progress of the run
        staleness = found.get("staleness", [])
        if not isinstance(ranks, list) or not isinstance(staleness, list) or not version:
            return None
        numbers = (version, generation, view, quorum, made_at, found["crc32"], *ranks, *staleness, *(totals or ()))
        if any(type(each) is not int or each < 0 for each in numbers):
            return None
        return cls(
            number=number,
            version=version,
            generation=generation,
            view=view,
            quorum=quorum,
            ranks=ranks,
            counts=counts_of(dict(found)),
            crc32=found["crc32"],
            totals=None if totals is None else (totals[0], totals[1], totals[2], totals[3]),
            made_at=made_at,
            staleness=staleness,
        )


def newest(lines: Iterable[Line]) -> int:
    """The newest version of a history, or 0 if the history is empty."""
    return max((line.version for line in lines), default=0)


def total(lines: Iterable[Line]) -> Totals:
    """The number of contributions that a history counts, by outcome."""
    used, late, duplicate, rejected = map(sum, zip((0, 0, 0, 0), *(line.counts for line in lines), strict=True))
    return used, late, duplicate, rejected


def broken_rules(histories: Mapping[int, Sequence[Line]], *, together: bool) -> Iterator[str]:
    """Each broken rule, as one sentence. ``histories`` holds the lines of each shard.

    ``together``: whether all shards make the same versions, which is False only in asynchronous mode.
    """
    for shard, lines in histories.items():
        for sentence in (*_faults(lines), *_miscounts(lines), *_used_again(lines)):
            yield f"shard {shard}: {sentence}"
    yield from _too_few(histories)
    if together:
        yield from _unequal(histories)


def _faults(lines: Sequence[Line]) -> Iterator[str]:
    """Report versions that are missing, listed twice, out of order, or not made by a quorum of distinct ranks."""
    listed: dict[int, int] = {}
    newest = generation = 0
    for line in lines:
        version, ranks = f"version {line.version}", ", ".join(map(str, line.ranks))
        if line.version in listed:
            yield f"{version} is listed twice, in lines {listed[line.version]} and {line.number}"
        elif line.version < newest:
            yield f"{version} in line {line.number} comes after version {newest}"
        if line.generation < generation:
            yield f"{version} of generation {line.generation} comes after generation {generation}"
        if len(set(line.ranks)) < len(line.ranks):
            yield f"{version} used a rank twice: {ranks}"
        elif line.ranks != sorted(line.ranks):
            yield f"{version} has unsorted ranks: {ranks}"
        if len(line.ranks) != line.quorum:
            yield f"{version} used {counted(len(line.ranks), 'contribution')}, but its quorum is {line.quorum}"
        listed.setdefault(line.version, line.number)
        newest, generation = max(newest, line.version), max(generation, line.generation)
    for before, after in itertools.pairwise([0, *sorted(listed)]):
        if after == before + 2:
            yield f"version {before + 1} is missing"
        elif after > before + 2:
            yield f"versions {before + 1} to {after - 1} are missing"


def _miscounts(lines: Sequence[Line]) -> Iterator[str]:
    """Report lines with wrong totals.

    The totals of a line must be the totals of the previous line plus the contributions that the line counts.
    """
    for before, line in itertools.pairwise(lines):
        if line.version != before.version + 1 or line.totals is None or before.totals is None:
            continue
        if line.totals != (right := added(before.totals, line.counts)):
            yield f"version {line.version} has the totals {_listed(line.totals)} instead of {_listed(right)}"


def _used_again(lines: Sequence[Line]) -> Iterator[str]:
    """In asynchronous mode, report contributions that were computed on old weights.

    A rank must compute each contribution on a newer version than the rank's previous contribution.
    """
    computed_on: dict[tuple[int, int], tuple[int, int]] = {}
    for line in lines:
        if line.staleness and len(line.staleness) != len(line.ranks):
            contributions = counted(len(line.ranks), "contribution")
            yield f"version {line.version} lists {counted(len(line.staleness), 'staleness value')} for {contributions}"
            continue
        for rank, age in zip(line.ranks, line.staleness, strict=False):
            on = line.version - 1 - age
            before, by = computed_on.get((line.generation, rank), (-1, 0))
            if on <= before:
                yield f"version {line.version} used a contribution of rank {rank} that version {by} had already used"
            computed_on[line.generation, rank] = on, line.version


def _too_few(histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Report versions with fewer contributions than the view requires.

    The required number is the most frequent number of contributions among the versions of the view. The first version
    of a view on each shard is left out. If that view lowers the quorum, more contributions than the quorum may already
    have arrived.
    """
    counts: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for lines in histories.values():
        seen = set()
        for line in lines:
            view = line.generation, line.view
            if view in seen:
                counts[view][line.quorum] += 1
            seen.add(view)
    required = {view: max(found, key=lambda quorum: (found[quorum], -quorum)) for view, found in counts.items()}
    for shard, lines in histories.items():
        for line in lines:
            quorum = required.get((line.generation, line.view), 0)
            if line.quorum < quorum:
                yield (
                    f"shard {shard}: version {line.version} used {line.quorum} of the {quorum} contributions "
                    f"that view {line.view} of generation {line.generation} requires"
                )


def _unequal(histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Report versions whose generation or progress of the run differs between shards."""
    seen: dict[int, tuple[int, Line]] = {}
    for shard, lines in histories.items():
        for line in lines:
            other, first = seen.setdefault(line.version, (shard, line))
            if line.generation != first.generation:
                yield (
                    f"version {line.version} is of generation {first.generation} on shard {other}, "
                    f"but of generation {line.generation} on shard {shard}"
                )
            elif line.made_at != first.made_at:
                yield (
                    f"the progress of version {line.version} is {first.made_at} on shard {other}, "
                    f"but {line.made_at} on shard {shard}"
                )


def _listed(totals: Totals) -> str:
    return ", ".join(map(str, totals))
