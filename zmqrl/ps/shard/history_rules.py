"""The rules that the histories of a run must keep, for ``zmqrl check-history``."""

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
    """A line of a history: how one version was made.

    ``number`` is the number of the line, from 1. ``quorum`` is K of ``view``. In the first line of a view that lowers
    K, an older zmqrl wrote the number of ``ranks`` instead. ``totals`` counts the contributions up to this version. An
    older zmqrl wrote no totals (None). The update to this version used ``made_at``, the progress of the run. In
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
        """Parse ``raw``. Returns None if it is not a valid line."""
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
        if not isinstance(ranks, list) or not isinstance(staleness, list) or not version or not quorum:
            return None
        counts = (found[name] for name in COUNTED)
        numbers = (version, generation, view, quorum, made_at, *counts, *ranks, *staleness, *(totals or ()))
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
    """The newest version of a history, or 0."""
    return max((line.version for line in lines), default=0)


def total(lines: Iterable[Line]) -> Totals:
    """The number of contributions that a history counts, by outcome."""
    used, late, duplicate, rejected = map(sum, zip((0, 0, 0, 0), *(line.counts for line in lines), strict=True))
    return used, late, duplicate, rejected


def broken_rules(histories: Mapping[int, Sequence[Line]], *, together: bool) -> Iterator[str]:
    """Each broken rule, as one sentence. ``histories`` holds the lines of each shard.

    ``together``: whether all shards make the same versions. False only in asynchronous mode.
    """
    for shard, lines in histories.items():
        for sentence in (*_faults(lines), *_miscounts(lines), *_used_again(lines)):
            yield f"shard {shard}: {sentence}"
    yield from _other_quorums(histories)
    if together:
        yield from _unequal(histories)


def _faults(lines: Sequence[Line]) -> Iterator[str]:
    """Report versions that are missing, listed twice, out of order, or not made by a quorum of distinct ranks."""
    listed: dict[int, int] = {}
    newest = generation = view = made_at = 0
    for line in lines:
        version, ranks = f"version {line.version}", ", ".join(map(str, line.ranks))
        if line.version in listed:
            yield f"{version} is listed twice, in lines {listed[line.version]} and {line.number}"
        elif line.version < newest:
            yield f"{version} in line {line.number} comes after version {newest}"
        if line.generation < generation:
            yield f"{version} of generation {line.generation} comes after generation {generation}"
        is_first = line.generation > generation or line.view > view
        if line.generation > generation:  # a new session begins with view 1, and perhaps with less progress
            generation, view, made_at = line.generation, 0, 0
        if line.view < view:
            yield f"{version} of view {line.view} comes after view {view}"
        if line.made_at < made_at:
            yield f"{version} was made at progress {line.made_at}, but an earlier version at {made_at}"
        if len(set(line.ranks)) < len(line.ranks):
            yield f"{version} used a rank twice: {ranks}"
        elif line.ranks != sorted(line.ranks):
            yield f"{version} has unsorted ranks: {ranks}"
        # When a view lowers the quorum, more contributions than the new quorum may already have arrived.
        if len(line.ranks) < line.quorum or (len(line.ranks) > line.quorum and not is_first):
            yield f"{version} used {counted(len(line.ranks), 'contribution')}, but its quorum is {line.quorum}"
        listed.setdefault(line.version, line.number)
        newest, view, made_at = max(newest, line.version), max(view, line.view), max(made_at, line.made_at)
    for before, after in itertools.pairwise([0, *sorted(listed)]):
        if after == before + 2:
            yield f"version {before + 1} is missing"
        elif after > before + 2:
            yield f"versions {before + 1} to {after - 1} are missing"


def _miscounts(lines: Sequence[Line]) -> Iterator[str]:
    """Report lines whose totals are missing, or are not those of the previous line plus the line's own counts."""
    before, known = 0, (0, 0, 0, 0)  # type: int, Totals | None
    has_totals = False
    for line in lines:
        if line.totals is None and has_totals:  # only the first lines, from an older zmqrl, may lack totals
            yield f"version {line.version} has no totals, but an earlier version has"
        has_totals = has_totals or line.totals is not None
        right = added(known, line.counts) if line.version == before + 1 and known is not None else None
        if line.totals is not None and right is not None and line.totals != right:
            yield f"version {line.version} has the totals {_listed(line.totals)} instead of {_listed(right)}"
        before, known = line.version, line.totals or right


def _used_again(lines: Sequence[Line]) -> Iterator[str]:
    """In asynchronous mode, report contributions that were computed on old weights.

    A rank must compute each contribution on a newer version than its previous one.
    """
    computed_on: dict[tuple[int, int], tuple[int, int]] = {}
    begins_at: dict[int, int] = {}  # by generation: the version that all shards loaded
    before, lists = 0, False
    for line in lines:
        if line.version == before + 1 and line.generation not in begins_at:
            begins_at[line.generation] = before
        before, lists = line.version, lists or bool(line.staleness)
        if lists and len(line.staleness) != len(line.ranks):  # an older zmqrl listed no staleness
            contributions = counted(len(line.ranks), "contribution")
            yield f"version {line.version} lists {counted(len(line.staleness), 'staleness value')} for {contributions}"
            continue
        for rank, age in zip(line.ranks, line.staleness, strict=False):
            on = line.version - 1 - age
            last, by = computed_on.get((line.generation, rank), (-1, 0))
            if on < (begin := begins_at.get(line.generation, 0)):
                yield (
                    f"version {line.version} used a contribution of rank {rank} that was computed on version {on}, "
                    f"but generation {line.generation} began at version {begin}"
                )
            elif on <= last:
                yield f"version {line.version} used a contribution of rank {rank} that version {by} had already used"
            computed_on[line.generation, rank] = on, line.version


def _other_quorums(histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Report versions whose quorum differs from that of their view.

    The quorum of a view is the most frequent quorum among its versions. The first version of a view on each shard may
    have a higher quorum, because an older zmqrl wrote the number of contributions instead.
    """
    counts: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    first: set[tuple[int, int]] = set()  # shard and line number
    for shard, lines in histories.items():
        seen = set()
        for line in lines:
            view = line.generation, line.view
            if view in seen:
                counts[view][line.quorum] += 1
            else:
                first.add((shard, line.number))
            seen.add(view)
    required = {view: max(found, key=lambda quorum: (found[quorum], -quorum)) for view, found in counts.items()}
    for shard, lines in histories.items():
        for line in lines:
            quorum = required.get((line.generation, line.view), line.quorum)
            if line.quorum < quorum or (line.quorum > quorum and (shard, line.number) not in first):
                yield (
                    f"shard {shard}: version {line.version} has the quorum {line.quorum}, but view {line.view} of "
                    f"generation {line.generation} requires {quorum}"
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
