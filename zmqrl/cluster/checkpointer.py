"""Takes checkpoints from the shards while they go on: one version, the same on all of them."""

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
        """Fetch what the shards have set aside for ``version`` and write it. Raises ClusterError, UnwritableError."""
        self.wanted, self.due_at = None, now + self.every_s
        states = tuple(self.control.fetch(shard, version) for shard in range(len(self.model.states)))
        checkpoint = Checkpoint(
            layout=self.model.layout,
            generation=generation,
            version=version,
            optimizer=self.model.optimizer,
            state_names=self.model.state_names,
            states=states,
            counters=counters,
        )
        try:
            with naming(self.directory.checkpoints):
                checkpoint.write(self.directory.checkpoints)
        except OSError as error:
            raise UnwritableError(refusal(error, self.directory.checkpoints)) from error
        with contextlib.suppress(OSError):  # an old one that stays does no harm
            prune(self.directory.checkpoints, self.keep)
        return checkpoint

    def take_now(
        self, version: int, generation: int, counters: dict[str, Any], now: float, meanwhile: Callable[[], None]
    ) -> Checkpoint:
        """The same for a version that every shard holds and will hold: the last one. Raises ClusterError."""
        request = m.Checkpoint(run=self.control.run, version=version)
        self.control.ask(
            range(len(self.model.states)),
            lambda _: request,
            lambda answer: answer if isinstance(answer, m.Stats) and answer.captured == version else None,
            within_s=FETCH_WITHIN_S,
            what=f"checkpoint of version {version}",
            meanwhile=meanwhile,
        )
        return self.take(version, generation, counters, now)
