"""Takes checkpoints from the shards."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zmqrl.checkpoint import Checkpoint, prune
from zmqrl.errors import UnwritableError, naming, refusal
from zmqrl.ps.control import ShardControl
from zmqrl.ps.wire import messages as m
from zmqrl.rundir import RunDirectory

FETCH_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointer:
    """Fetches the shards' copies of a version and writes them as a checkpoint.

    ``model`` is any checkpoint of the run: all have the same layout and optimizer. ``keep`` is the number of
    checkpoints to keep on disk.
    """

    control: ShardControl
    directory: RunDirectory
    model: Checkpoint
    keep: int

    def capture(self, versions: Mapping[int, int], meanwhile: Callable[[], None]) -> dict[int, m.Stats]:
        """Make each shard copy the version ``versions[shard]``. Returns the STATS after that. Raises ClusterError."""

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

    def write(self, versions: Mapping[int, int], generation: int, counters: dict[str, Any]) -> Checkpoint:
        """Fetch the copy of each shard and write a checkpoint. Raises ClusterError or UnwritableError."""
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
        with contextlib.suppress(OSError):  # an old checkpoint that cannot be removed does no harm
            prune(self.directory.checkpoints, self.keep)
        return checkpoint
