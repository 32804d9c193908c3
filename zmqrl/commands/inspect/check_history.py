"""``zmqrl check-history``: check that the histories of a run agree with each other, its checkpoints and its summary."""

import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.commands.options import RunPath
from zmqrl.commands.output import print_json
from zmqrl.errors import UsageError
from zmqrl.json_lines import newest_rollback, read_file, read_json
from zmqrl.observe.forms import SETTINGS, SUMMARY, read_object
from zmqrl.observe.metrics import summed
from zmqrl.process import interruptible
from zmqrl.ps.layout import MAX_SHARDS
from zmqrl.ps.shard.history import damaged_originals, removed_lines
from zmqrl.ps.shard.history_rules import Line, broken_rules, newest, total
from zmqrl.ps.wire.codec import CODECS, codec_named
from zmqrl.ps.wire.messages import Codec
from zmqrl.rundir import RunDirectory, not_a_run
from zmqrl.words import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check that the histories of a run are complete and agree with its checkpoints and its summary.

    Exit status: 0 without violations, 1 with violations.
    """

    run: RunPath
    """The run directory."""
    json: bool = False
    """Print one JSON object."""


@interruptible()
def run(options: Options) -> int:
    """Print the violations in the histories of a run."""
    found = check(options.run)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(_report(found) + "\n")
    return 1 if found["violations"] else 0


def check(path: Path) -> dict[str, Any]:
    """Plain data: the number of ``shards``, the number of ``versions`` that every shard made, and the ``violations``, a
    sentence each.

    Raises UsageError if ``path`` is not a run directory, or if the run used an unknown codec.
    """
    directory = RunDirectory(path)
    settings = read_object(directory.config, SETTINGS, "restore the file, or use another run")
    if settings is None:
        raise not_a_run(path)
    shards = settings.get("shards")
    if type(shards) is not int or not 1 <= shards <= MAX_SHARDS:
        problem = f"shards is not a number from 1 to {MAX_SHARDS}"
        raise UsageError(f"{directory.config} is damaged: {problem}; restore the file, or use another run.")
    codec = _codec(settings, directory.config)
    # If there is a left.json, shards may have made versions after the checkpoint that the summary describes.
    ended = None if directory.left.exists() else read_object(directory.summary, SUMMARY, "remove the file")
    # A live run may write checkpoints and lines at any time, so look for checkpoints first.
    kept, is_whole = checkpoints(directory.checkpoints), _has_all_lines(directory)
    histories: dict[int, list[Line]] = {}
    violations: list[str] = []
    for shard in range(shards):
        history = directory.history(shard)
        histories[shard], unreadable = _read(history)
        found = [
            *([] if history.exists() or directory.in_use() else ["there is no history"]),
            *(f"line {number} cannot be read" for number in unreadable),
            *map(removed_lines, sorted(damaged_originals(history))),
        ]
        violations += [f"shard {shard}: {sentence}" for sentence in found]
    together = settings.get("mode") != "async"
    violations += broken_rules(histories, together=together)
    if is_whole and together:
        violations += _far_apart(directory, histories)
    if ended is not None:
        violations += disagreements(histories, ended, together=together)
    for path_of_checkpoint in kept:
        violations += _unlike_checkpoint(path_of_checkpoint, histories, codec, ended, is_whole=is_whole)
    return {
        "shards": len(histories),
        "versions": min((newest(lines) for lines in histories.values()), default=0),
        "violations": violations,
    }


def _codec(settings: Mapping[str, Any], path: Path) -> Codec:
    """The codec of publications: always float32 in runs of an older zmqrl. Raises UsageError if it is unknown."""
    wire = settings.get("wire")
    return codec_named(wire.get("codec", "f32") if isinstance(wire, dict) else "f32", path)


def _read(path: Path) -> tuple[list[Line], list[int]]:
    """The valid lines, and the numbers of the invalid ones. An unfinished last line is ignored."""
    try:
        whole = read_file(path).split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        whole = []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    read = [(number, Line.read(number, raw)) for number, raw in enumerate(whole, start=1)]
    return [line for _, line in read if line is not None], [number for number, line in read if line is None]


def _has_all_lines(directory: RunDirectory) -> bool:
    """Whether the run directory has every line of the histories.

    In a live or killed run, the newest may be on other hosts.
    """
    if directory.in_use():
        return False
    try:
        return all(host["lease_s"] is None for host in read_json(directory.left)["hosts"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _far_apart(directory: RunDirectory, histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Shards that are more than one version behind another shard.

    A shard that went back in a rollback does not count: the run may have been killed before the others went back.
    """
    ahead = max(histories, key=lambda shard: newest(histories[shard]))
    most = newest(histories[ahead])
    generation = max((line.generation for line in histories[ahead]), default=0)
    for shard, lines in histories.items():
        went_back = newest_rollback(directory.history(shard)) > generation
        if (last := newest(lines)) + 1 < most and not went_back:
            yield f"shard {shard}: the history ends at version {last}, but shard {ahead} made version {most}"


def disagreements(
    histories: Mapping[int, Sequence[Line]], ended: Mapping[str, Any], *, together: bool
) -> Iterator[str]:
    """Contradictions between the histories and the summary.

    ``together``: all shards ended at the same version.
    """
    for shard, lines in histories.items():
        last, end = newest(lines), ended["updates"]
        if together and last != end:
            yield f"shard {shard}: the history ends at version {last}, but the run ended at {end}"
    yield from _other_counts("summary.json", ended["contributions"], histories)


def _other_counts(name: str, told: Mapping[str, Any], histories: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """Contributions that ``name`` counts differently than the histories.

    An older zmqrl wrote no totals, and also counted contributions that came after the last version.
    """
    is_old = any(lines and lines[-1].totals is None for lines in histories.values())
    for outcome, count in summed(list(total(lines)) for lines in histories.values()).items():
        if told.get(outcome) != count and (outcome == "used" or not is_old):
            noun = "contribution" if told.get(outcome) == 1 else "contributions"
            yield f"{name} counts {told.get(outcome)} {noun} as {outcome}, but the histories count {count}"


def _unlike_checkpoint(
    path: Path,
    histories: Mapping[int, Sequence[Line]],
    codec: Codec,
    ended: Mapping[str, Any] | None,
    *,
    is_whole: bool,
) -> Iterator[str]:
    """Report a checkpoint that cannot be read, or differs from what the shards made.

    Histories that are not whole may end before the checkpoint.
    """
    try:
        checkpoint = Checkpoint.read(path)
    except UsageError as error:
        if path.exists():  # otherwise, the run has just replaced it
            yield str(error).rstrip(".")
        return
    led_to: dict[int, list[Line]] = {}
    for shard, (cut, state) in enumerate(zip(checkpoint.layout.slices, checkpoint.states, strict=True)):
        version, lines = checkpoint.version_of(shard), histories.get(shard, [])
        led_to[shard] = [line for line in lines if line.version <= version]
        crc32 = zlib.crc32(CODECS[codec].encode(np.frombuffer(state, "<f4", cut.count)).data)
        if is_whole and newest(lines) < version:
            yield f"shard {shard}: the history ends at version {newest(lines)}, before the checkpoint {path.name}"
        elif any(line.crc32 != crc32 for line in lines if line.version == version):
            yield f"shard {shard}: {path.name} does not hold the weights that were published as version {version}"
    told = checkpoint.counters.get("contributions")
    is_complete = all(newest(lines) == checkpoint.version_of(shard) for shard, lines in led_to.items())
    if is_complete and isinstance(told, Mapping):
        yield from _other_counts(path.name, told, led_to)
    if ended is not None and checkpoint.version == ended["updates"]:
        named, sha256 = ended.get("params_sha256"), checkpoint.params_sha256()
        if named not in (None, sha256):
            yield f"summary.json names parameters with the hash {named}, but those of {path.name} have {sha256}"


def _report(found: Mapping[str, Any]) -> str:
    violations = found["violations"]
    numbers = counted(found["shards"], "shard"), counted(found["versions"], "version")
    last = counted(len(violations), "violation") if violations else "no violations"
    return "\n".join([*violations, ", ".join([*numbers, last])])
