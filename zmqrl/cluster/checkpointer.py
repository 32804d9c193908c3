"""Takes checkpoints from the shards: while they go on of one version, the same on all of them."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zmqrl.checkpoint import Checkpoint, prune
from zmqrl.errors import UnwritableError, naming, refusal
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl
from zmqrl.rundir import RunDirectory

FETCH_WITHIN_S = 20.0


@dataclass(slots=True)
class Checkpointer:
    """Asks every shard to set a version aside when it is made, then fetches the copies and writes them.

    ``model`` is any checkpoint of the run: its layout and optimizer are those of all others.
    """

    control: ShardControl
    directory: RunDirectory
    model: Checkpoint
    every_s: float
    keep: int
    due_at: float
    wanted: int | None = None

    def step(self, stats: Mapping[int, m.Stats], updates_per_s: float, now: float) -> int | None:
        """Get on with the periodic checkpoint; the version that is ready to be fetched, if one is."""
        shards = range(len(self.model.states))
        if now < self.due_at or len(stats) < len(shards) or any(s.state != "open" for s in stats.values()):
            return None
        if self.wanted is not None and all(stats[shard].captured == self.wanted for shard in shards):
            return self.wanted
        if self.wanted is None or any(s.version > self.wanted and s.captured != self.wanted for s in stats.values()):
            # Far enough ahead that the request reaches every shard before it has made that version.
            self.wanted = max(s.version for s in stats.values()) + 2 + int(updates_per_s)
        for shard in shards:
            if stats[shard].captured != self.wanted:
                self.control.send(shard, m.Checkpoint(run=self.control.run, version=self.wanted))
        return None

    def take(self, version: int, generation: int, counters: dict[str, Any], now: float) -> Checkpoint:
        """Fetch what the shards have set aside for ``version`` and write it. Raises ClusterError."""
        return self.write(dict.fromkeys(range(len(self.model.states)), version), generation, counters, now)

    def set_aside(self, versions: Mapping[int, int], meanwhile: Callable[[], None]) -> dict[int, m.Stats]:
        """Let each shard set its version aside, which it holds; what each tells then. Raises ClusterError."""

        def answer(message: m.Message) -> m.Stats | None:
            if isinstance(message, m.Stats) and message.captured == versions[message.shard]:
                return message
            return None

        return self.control.ask(
            versions,
            lambda shard: m.Checkpoint(run=self.control.run, version=versions[shard]),
            answer,
            within_s=FETCH_WITHIN_S,
            what=f"checkpoint of version {min(versions.values())}",
            meanwhile=meanwhile,
        )

    def write(self, versions: Mapping[int, int], generation: int, counters: dict[str, Any], now: float) -> Checkpoint:
        """Fetch what each shard has set aside, of its version, and write it. Raises ClusterError, UnwritableError."""
        self.wanted, self.due_at = None, now + self.every_s
        each = tuple(versions[shard] for shard in sorted(versions))
        checkpoint = Checkpoint(
            layout=self.model.layout,
            generation=generation,
            version=min(each),
            optimizer=self.model.optimizer,
            state_names=self.model.state_names,
            states=tuple(self.control.fetch(shard, version) for shard, version in enumerate(each)),
            counters=counters,
            versions=each if min(each) < max(each) else (),
        )
        try:
            with naming(self.directory.checkpoints):
                checkpoint.write(self.directory.checkpoints)
        except OSError as error:
            raise UnwritableError(refusal(error, self.directory.checkpoints)) from error
        with contextlib.suppress(OSError):  # an old one that stays does no harm
            prune(self.directory.checkpoints, self.keep)
        return checkpoint
