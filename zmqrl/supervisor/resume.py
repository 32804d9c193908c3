"""Prepares to resume a run: chooses the checkpoint, and checks which settings have changed."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from zmqrl.checkpoint import Checkpoint, newest
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.json_lines import newest_rollback
from zmqrl.observe.forms import EVALUATION, SUMMARY, read_object, readable_lines
from zmqrl.observe.metrics import Counters
from zmqrl.observe.records import PLACE, flat, is_for_stop_score
from zmqrl.ps.shard.history import History, missing_lines
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.events import Reason
from zmqrl.words import as_word, counted


def newest_checkpoint(directory: RunDirectory, initial: Checkpoint) -> Checkpoint:
    """The checkpoint to resume from.

    Raises UsageError if there is none, or if its layout or optimizer differs from ``initial``.
    """
    checkpoint = read_newest(directory)
    if checkpoint is None:
        raise UsageError(f"there is no checkpoint in {directory.checkpoints} to resume from.")
    path = directory.checkpoints / checkpoint.name
    if checkpoint.layout.hash != initial.layout.hash:
        theirs, ours = checkpoint.layout, initial.layout
        what = (
            f"{counted(theirs.shards, 'shard')}, not {ours.shards}"
            if theirs.tensors == ours.tensors
            else f"a network of {theirs.count} parameters, not of {ours.count}"
        )
        raise UsageError(f"{path} has {what}: resume with the settings of the run that wrote it.")
    if (checkpoint.optimizer, checkpoint.state_names) != (initial.optimizer, initial.state_names):
        raise UsageError(
            f"{path} has the state of optimizer {checkpoint.optimizer} ({', '.join(checkpoint.state_names)}), "
            f"not of {initial.optimizer} ({', '.join(initial.state_names)}): "
            "resume with the settings of the run that wrote it."
        )
    return checkpoint


def read_newest(directory: RunDirectory) -> Checkpoint | None:
    """Read the newest checkpoint, or return None if there is none.

    If it is damaged, raises a UsageError with the command that uses an older one.
    """

    def advice(whole: Path, damaged: Sequence[Path]) -> str:
        moves = [["mv", str(path), str(path.with_name(f"damaged-{path.name}"))] for path in damaged]
        commands = [*moves, ["zmqrl", "train", "--resume", "--run-dir", str(directory.path)]]
        line = " && ".join(" ".join(map(as_word, command)) for command in commands)
        return (
            f"To resume from {whole.name}, which is intact: `{line}` "
            "(or `zmqrl launch` with its options, for a run on hosts)."
        )

    return newest(directory.checkpoints, Checkpoint.read, advice)


def check_task(stored: Config, config: Config, flavour: str, path: Path) -> None:
    """Raise UsageError if the stored run has another environment or flavour: scores would not be comparable.

    ``flavour`` is that of ``config``.
    """
    if config.env != stored.env:
        raise UsageError(f"{path} was trained on {stored.env}, not on {config.env}: start a new run for {config.env}.")
    now, then = config.envs, stored.envs  # both are Atari games, or both are other environments
    kinds = {now.flavour(): then.flavour(), now.gymnasium_flavour(): then.gymnasium_flavour()}
    if (before := kinds.get(flavour, flavour)) != flavour:
        raise UsageError(
            f"{path} was trained on games of another flavour: start a new run. Before: {before}. Now: {flavour}."
        )


def mend_histories(directory: RunDirectory, checkpoint: Checkpoint) -> tuple[int, list[str]]:
    """Remove unreadable lines from the histories before the run continues from ``checkpoint``. Raises ClusterError.

    Returns the newest generation of the run, and sentences about problems in the histories. The run must continue in a
    generation above all generations of the histories and of their rollbacks. Otherwise, a shard could believe that it
    has lost the versions whose lines this resume undoes, or that an earlier rollback has undone its new versions.
    """
    generation, news = checkpoint.generation, []
    for shard in range(checkpoint.layout.shards):
        path, version = directory.history(shard), checkpoint.version_of(shard)
        generation = max(generation, newest_rollback(path))
        with contextlib.closing(History(path)) as history:
            if history.last is not None:
                generation = max(generation, history.last.get("generation", 0))
            news += history.news
            if (last := history.last_version or 0) < version:
                news.append(f"{path}: {missing_lines(last + 1, version)}")
    return generation, news


def end_of(config: Config, checkpoint: Checkpoint, path: Path, *, in_total: bool = False) -> tuple[Reason, str] | None:
    """The limit of ``config`` that the run at ``path`` has already reached, and a sentence about it, or None.

    ``in_total``: whether ``config.minutes`` limits all sessions of the run together.
    """
    counters = Counters.from_json(checkpoint.counters)
    evaluations = readable_lines(RunDirectory(path).evaluations, EVALUATION, lambda _: None)
    kept = (each for each in evaluations if each["version"] <= checkpoint.version)  # this resume undoes later ones
    scores = [each["mean"] for each in kept if is_for_stop_score(each)]
    score = scores[-1] if scores else None
    limits: tuple[tuple[Reason, float | None, float | None], ...] = (
        ("updates", config.updates, checkpoint.version),
        ("agent_steps", config.agent_steps, counters.agent_steps),
        ("minutes", config.minutes if in_total else None, counters.wall_s / 60),
        ("stop_score", config.stop_score, score),
    )
    for reason, limit, reached in limits:
        if limit is not None and reached is not None and reached >= limit:
            option = f"--{reason.replace('_', '-')} {limit:g}"
            return reason, f"{option}: {path} has already reached {reached:g}: set a higher limit to resume."
    return None


def is_summarized(directory: RunDirectory, checkpoint: Checkpoint) -> bool:
    """Whether ``summary.json`` describes the run up to ``checkpoint`` or further.

    It does not if the session could not write its last checkpoint, and a resume has found the version elsewhere.
    """
    try:
        summary = read_object(directory.summary, SUMMARY, "remove the file")
    except UsageError:
        return False
    return summary is not None and summary["updates"] >= checkpoint.version


def check_mode(config: Config, checkpoint: Checkpoint, path: Path) -> None:
    """Raise UsageError if the run is synchronous, but the shards have different versions in ``checkpoint``."""
    if checkpoint.versions and config.mode == "sync":
        first, last = min(checkpoint.versions), max(checkpoint.versions)
        raise UsageError(f"the shards of {path} are at versions {first} to {last}: resume with --mode async.")


def changed_settings(stored: Config, config: Config) -> list[str]:
    """The settings that differ, as texts such as ``ppo.clip 0.1 -> 0.2``."""
    before, now = (dict(flat(each.to_json())) for each in (stored, config))
    return [f"{name} {before[name]} -> {now[name]}" for name in now if name not in PLACE and now[name] != before[name]]
