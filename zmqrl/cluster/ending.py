"""How a run ends: all shards at one version, and what is written of it."""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from zmqrl.agent.envs import describe_env
from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UnwritableError, refusal
from zmqrl.observe.metrics import Counters
from zmqrl.observe.provenance import provenance
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl, only
from zmqrl.rundir import write_json

Reason: TypeAlias = Literal["stop_score", "updates", "agent_steps", "minutes", "interrupted", "failed"]

LOOK_EVERY_S = 0.1


def stop_shards(
    control: ShardControl, shards: Iterable[int], within_s: float, meanwhile: Callable[[], None]
) -> tuple[int, dict[int, m.Stats]]:
    """Agree on a last version at or above every shard's own, and wait until all have ended with it.

    Where the workers are gone, the shards stay where they are, and the newest version that all of them still hold is
    the last. ``meanwhile`` is called again and again while that takes. Returns that version and where each shard
    stands; raises ClusterError when a shard does not answer.
    """
    shards = list(shards)

    def ask(asked: list[int], version: int) -> dict[int, m.Stats]:
        stop = m.Stop(run=control.run, version=version)
        return control.ask(
            asked, lambda _: stop, only(m.Stats), within_s=within_s, what="stopping the shards", meanwhile=meanwhile
        )

    deadline = time.monotonic() + within_s
    stats = control.stats(shards, within_s=within_s, what="stopping the shards", meanwhile=meanwhile)
    end, margin = max(s.version for s in stats.values()), 1
    while time.monotonic() < deadline:
        stats = ask(shards, end)
        newest = max(s.version for s in stats.values())
        if all(s.state == "ended" and s.version == end for s in stats.values()):
            return end, stats
        if newest > end:  # somebody was past it before it heard of it
            end, margin = newest + margin, 2 * margin
        meanwhile()
        time.sleep(LOOK_EVERY_S)
    while any(s.state != "ended" for s in stats.values()):
        if time.monotonic() >= deadline + within_s:
            raise ClusterError(f"the shards did not stop within {2 * within_s:g} s.")
        for shard in shards:
            stats |= ask([shard], stats[shard].version)
    return min(s.version for s in stats.values()), stats


def write_summary(path: Path, reason: Reason, config: Config, last: Checkpoint) -> None:
    """Write ``summary.json``. Raises UnwritableError."""
    try:
        write_json(path, summary(reason, config, last))
    except OSError as error:
        raise UnwritableError(refusal(error, path)) from error


def summary(reason: Reason, config: Config, last: Checkpoint) -> dict[str, Any]:
    """The contents of ``summary.json``: all sittings of the run together, up to its ``last`` checkpoint."""
    counters = Counters.from_json(last.counters) if last.counters else Counters()
    return {
        "exit_reason": reason,
        "updates": last.version,
        "agent_steps": counters.agent_steps,
        "abandoned_steps": counters.abandoned_steps,
        "wall_s": counters.wall_s,
        "agent_steps_per_s": counters.agent_steps / counters.wall_s if counters.wall_s else None,
        "episodes": counters.episodes,
        "score_mean_50": statistics.fmean(counters.scores) if counters.scores else None,
        "workers": config.workers,
        "backups": config.backups,
        "quorum": config.effective_quorum(),
        "shards": last.layout.shards,
        "contributions": dict(counters.contributions),
        "params_sha256": last.params_sha256(),
        "recipe": config.recipe,
        "env": config.env,
        "seed": config.seed,
        "flavour": describe_env(config.env, config.envs).flavour,
        "provenance": provenance(),
    }
