"""``zmqrl check-history``: check that a run's histories are complete, and agree with each other and the summary."""

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from zmqrl.commands.options import RunPath, parse
from zmqrl.commands.output import print_json
from zmqrl.errors import UsageError
from zmqrl.observe.forms import SETTINGS, SUMMARY, read_object
from zmqrl.observe.metrics import summed
from zmqrl.process import interruptible
from zmqrl.ps.shard.events import Totals
from zmqrl.ps.shard.history import counts_of, parse_line
from zmqrl.rundir import RunDirectory, not_a_run
from zmqrl.words import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check that the histories of a run are complete and agree with its summary.

    Exit status: 0 without violations, 1 with violations.
    """

    run: RunPath
    """The run directory."""
    json: bool = False
    """Print one JSON object."""


COUNTED = {"late", "duplicate", "rejected", "crc32"}  # other methods check the other keys


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a history, which tells how one version was made.

    ``number`` is the number of the line, from 1. ``made_at`` is the progress of the run at that version.
    """

    number: int
    version: int
    generation: int
    view: int
    quorum: int
    ranks: list[int]
    counts: Totals
    made_at: int

    @classmethod
    def read(cls, number: int, raw: bytes) -> Self | None:
        """Parse ``raw``. Returns None if ``raw`` is not a valid line."""
        found = parse_line(raw)
        if found is None or not found.keys() >= COUNTED:
            return None
        version, view, quorum, ranks = (found.get(name, -1) for name in ("version", "view", "quorum", "ranks"))
        generation = found.get("generation", 0)  # lines that an older zmqrl wrote lack this key
        made_at = found.get("made_at", 0)  # missing unless schedules follow the progress of the run
        if not isinstance(ranks, list) or not version:
            return None
        if any(type(each) is not int or each < 0 for each in (version, generation, view, quorum, made_at, *ranks)):
            return None
        return cls(number, version, generation, view, quorum, ranks, counts_of(found), made_at)


def command(arguments: list[str]) -> int:
    """Run ``zmqrl check-history``. Raises ZmqrlError."""
    return run(parse(Options, arguments, "zmqrl check-history"))


@interruptible()
def run(options: Options) -> int:
    """Print the violations in the histories of a run. Raises UsageError."""
    found = check(options.run)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(_report(found) + "\n")
    return 1 if found["violations"] else 0


def check(path: Path) -> dict[str, Any]:
    """Plain data: the number of ``shards``, the number of ``versions`` that every shard made, and the ``violations``.

    Each violation is one sentence.

    Raises UsageError if ``path`` is not a run directory.
    """
    directory = RunDirectory(path)
    settings = read_object(directory.config, SETTINGS, "restore it, or use another run")
    if settings is None:
        raise not_a_run(path)
    if type(settings.get("shards")) is not int:
        raise UsageError(f"{directory.config} is damaged: shards is not a number; restore it, or use another run.")
    # If a run did not end properly, its summary describes its last checkpoint, but its shards had made later versions.
    ended = None if directory.left.exists() else read_object(directory.summary, SUMMARY, "remove it")
    histories: dict[int, list[Line]] = {}
    violations: list[str] = []
    for shard in range(settings["shards"]):
        history = directory.history(shard)
        histories[shard], unreadable = _read(history)
        found = [
            *([] if history.exists() or directory.in_use() else ["there is no history"]),
            *(f"line {number} cannot be read" for number in unreadable),
            *_faults(histories[shard]),
            *(
                f"lines that could not be read were removed; the original file is kept as {aside.name}"
                for aside in sorted(history.parent.glob(f"{history.stem}.damaged-*.jsonl"))
            ),
        ]
        violations += [f"shard {shard}: {sentence}" for sentence in found]
    violations += _too_few(histories)
    together = settings.get("mode") != "async"
    if together:
        violations += _unequal_progress(histories)
    if ended is not None:
        violations += _disagreements(histories, ended, together=together)
    return {
        "shards": len(histories),
        "versions": min((_newest(lines) for lines in histories.values()), default=0),
        "violations": violations,
    }


def _read(path: Path) -> tuple[list[Line], list[int]]:
    """The valid lines, and the line numbers of the invalid lines. An unfinished last line is ignored."""
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        whole = []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    read = [(number, Line.read(number, raw)) for number, raw in enumerate(whole, start=1)]
    return [line for _, line in read if line is not None], [number for number, line in read if line is None]


def _newest(lines: Sequence[Line]) -> int:
    return max((line.version for line in lines), default=0)


def _faults(lines: Sequence[Line]) -> Iterator[str]:
    """The violations in the history of one shard."""
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


def _too_few(histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Report versions with fewer contributions than their view requires.

    The required number is the most frequent number of contributions among the versions of the view. The count omits the
    first version of a view on each shard: more contributions than a lower quorum needs may already have arrived.
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


def _unequal_progress(histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Report versions for which the histories of the shards state different progress of the run."""
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    for shard, lines in histories.items():
        for line in lines:
            first, made_at = seen.setdefault((line.generation, line.version), (shard, line.made_at))
            if line.made_at != made_at:
                yield (
                    f"the progress of version {line.version} is {made_at} on shard {first}, "
                    f"but {line.made_at} on shard {shard}"
                )


def _disagreements(
    histories: Mapping[int, Sequence[Line]], ended: Mapping[str, Any], *, together: bool
) -> Iterator[str]:
    """Contradictions between the histories and the summary. ``together``: all shards ended at the same version."""
    for shard, lines in histories.items():
        if together and _newest(lines) != ended["updates"]:
            newest, end = _newest(lines), ended["updates"]
            yield f"shard {shard}: the history ends at version {newest}, but the run ended at {end}"
    for outcome, count in summed(_total(lines) for lines in histories.values()).items():
        told = ended["contributions"].get(outcome)
        if told != count:
            yield f"summary.json counts {told} contributions as {outcome}, but the histories count {count}"


def _total(lines: Iterable[Line]) -> list[int]:
    return [sum(column) for column in zip((0, 0, 0, 0), *(line.counts for line in lines), strict=True)]


def _report(found: Mapping[str, Any]) -> str:
    violations = found["violations"]
    numbers = counted(found["shards"], "shard"), counted(found["versions"], "version")
    last = counted(len(violations), "violation") if violations else "no violations"
    return "\n".join([*violations, ", ".join([*numbers, last])])
