"""The end of a run: the last version of each shard, the summary, and the explanation of a failure."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.errors import INTERRUPTED, USER_CODE_FAILED, ClusterError, UnwritableError, UsageError, ZmqrlError, refusal
from zmqrl.hosts.events import Exited
from zmqrl.json_lines import read_json
from zmqrl.observe.folding import quoted
from zmqrl.observe.metrics import Counters
from zmqrl.observe.provenance import provenance
from zmqrl.observe.records import hosts_of
from zmqrl.ps.control import ShardControl, only
from zmqrl.ps.wire import messages as m
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.supervisor.events import Reason
from zmqrl.words import numbered

LOOK_EVERY_S = 0.1
ALONE_WITHIN_S = 3.0  # in asynchronous mode: the wait ends after this time without a new version


def stop_shards(
    control: ShardControl,
    shards: Iterable[int],
    within_s: float,
    meanwhile: Callable[[], None],
    *,
    together: bool = True,
    limit: int | None = None,
) -> tuple[dict[int, int], dict[int, m.Stats]]:
    """Stop all shards at the same version, which no shard has passed yet, and which is at most ``limit``.

    If the workers are gone, or a shard can make no more versions, each shard stops at its current version. The last
    version of the run is then the newest that all shards hold. Without ``together`` (asynchronous mode), each shard has
    its own last version.

    Calls ``meanwhile`` repeatedly while waiting. Returns the last version and the STATS of each shard. Raises
    ClusterError if a shard does not answer or does not stop.
    """

    def ask(ends: Mapping[int, int]) -> dict[int, m.Stats]:
        return control.ask(
            ends,
            lambda shard: m.Stop(run=control.run, version=ends[shard]),
            only(m.Stats),
            within_s=within_s,
            what="stopping the shards",
            meanwhile=meanwhile,
        )

    def after(newest: int, margin: int) -> int:
        """An end that a shard at version ``newest`` has not passed."""
        return newest + margin if limit is None else min(newest + margin, max(limit, newest))

    began_at = time.monotonic()
    stats = control.stats(shards, within_s=within_s, what="stopping the shards", meanwhile=meanwhile)
    ends, margin = dict.fromkeys(stats, max(s.version for s in stats.values())), 1
    versions, moved_at = {shard: s.version for shard, s in stats.items()}, began_at
    while time.monotonic() < began_at + within_s and not any(s.failure for s in stats.values()):
        stats = ask(ends)
        if all(s.state == "ended" and s.version == ends[shard] for shard, s in stats.items()):
            return ends, stats
        before, versions = versions, {shard: s.version for shard, s in stats.items()}
        if versions != before:
            moved_at = time.monotonic()
        elif not together and time.monotonic() - moved_at >= ALONE_WITHIN_S:
            break
        if (newest := max(versions.values())) > max(ends.values()):  # a shard has passed this end
            ends, margin = dict.fromkeys(ends, after(newest, margin)), 2 * margin
        meanwhile()
        time.sleep(LOOK_EVERY_S)
    growth = dict.fromkeys(stats, 0)
    while any(s.state != "ended" for s in stats.values()):
        if time.monotonic() >= began_at + 2 * within_s:
            late = numbered("shard", (shard for shard, s in stats.items() if s.state != "ended"))
            raise ClusterError(f"{late} did not stop within {2 * within_s:g} s.")
        for shard, known in list(stats.items()):
            # If a shard still makes versions, move its end ahead by twice what it has made since the last request.
            stats |= ask({shard: after(known.version, 2 * growth[shard])})
            growth[shard] = stats[shard].version - known.version
    ends = {shard: s.version for shard, s in stats.items()}
    return dict.fromkeys(ends, min(ends.values())) if together else ends, stats


def exit_status(reason: Reason, error: BaseException | None) -> int:
    """The exit status of a run. ``error`` is what ended it, or None."""
    if isinstance(error, ZmqrlError):
        return error.exit_status
    if reason == "interrupted":
        return INTERRUPTED
    return 0 if error is None else ClusterError.exit_status


def write_summary(path: Path, reason: Reason, status: int, config: Config, last: Checkpoint, flavour: str) -> None:
    """Write ``summary.json``. ``flavour`` is the line to print with the scores. Raises UnwritableError."""
    try:
        hosts = hosts_of(RunDirectory(path.parent))
        write_json(path, summary(reason, status, config, last, flavour) | {"hosts": hosts})
    except OSError as error:
        raise UnwritableError(refusal(error, path)) from error


@contextlib.contextmanager
def correcting(path: Path, is_ours: Callable[[], bool]) -> Iterator[None]:
    """Correct the exit status in the summary at ``path`` if an error ends the block after the summary was written.

    ``is_ours``: whether the summary is from this session. On a full disk, the exit status may stay wrong.
    """
    try:
        yield
    except BaseException as error:
        reason: Reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(OSError):
            if is_ours() and path.exists():
                written = read_json(path)
                write_json(path, written | {"exit_status": exit_status(reason, error)})
        raise


def summary(reason: Reason, status: int, config: Config, last: Checkpoint, flavour: str) -> dict[str, Any]:
    """The contents of ``summary.json``: totals over all sessions of the run, up to its ``last`` checkpoint."""
    counters = Counters.from_json(last.counters)
    return {
        "exit_reason": reason,
        "exit_status": status,
        "updates": last.version,
        "agent_steps": counters.agent_steps,
        "abandoned_steps": counters.abandoned_steps,
        "wall_s": counters.wall_s,
        "agent_steps_per_s": counters.agent_steps / counters.wall_s if counters.wall_s else None,
        "episodes": counters.episodes,
        "score_mean_50": statistics.fmean(counters.scores) if counters.scores else None,
        "workers": config.workers,
        "backups": config.backups,
        "quorum": config.effective_quorum,
        "shards": last.layout.shards,
        "contributions": dict(counters.contributions),
        "params_sha256": last.params_sha256(),
        "recipe": config.recipe,
        "env": config.env,
        "seed": config.seed,
        "flavour": flavour,
        "compute": list(counters.compute),
        "provenance": provenance(),
    }


def explained(error: ClusterError, first: Exited, host: str, log: Path, *, begun: bool) -> ZmqrlError:
    """Add the ``first`` death in a failed run to its ``error``: the host, the cause and the end of the log.

    Returns a UsageError if the dead process ended with one. If the run had not ``begun``, a ClusterError or a full disk
    also becomes a UsageError.
    """
    is_misuse = first.status in (UsageError.exit_status, USER_CODE_FAILED)
    at_start = not begun and (first.is_full or first.status == ClusterError.exit_status)
    kind = UsageError if at_start or is_misuse else ClusterError
    tail = quoted(first.log_tail.splitlines())
    end = f"ended with{tail}" if tail else "was empty."
    return kind(f"{error}\nThe first to fail was {first.process} on {host} ({first.how()}); its log {log} {end}")
