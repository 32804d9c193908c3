"""How a run ends: all shards at one version."""

import time
from collections.abc import Callable, Iterable

from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl, only


def stop_shards(
    control: ShardControl, shards: Iterable[int], within_s: float, wait: Callable[[], None]
) -> tuple[int, dict[int, m.Stats]]:
    """Agree on a last version at or above every shard's own, and wait until all have ended with it.

    Where the workers are gone, the shards stay where they are, and the newest version that all of them still hold is
    the last. ``wait`` passes the time between two looks. Returns that version and where each shard stands; raises
    ClusterError when a shard does not answer.
    """
    shards = list(shards)

    def ask(asked: list[int], version: int) -> dict[int, m.Stats]:
        stop = m.Stop(run=control.run, version=version)
        return control.ask(asked, lambda _: stop, only(m.Stats), within_s=within_s, what="stopping the shards")

    deadline = time.monotonic() + within_s
    stats = control.stats(shards, within_s=within_s, what="stopping the shards")
    while time.monotonic() < deadline:
        end = max(s.version for s in stats.values())
        stats = ask(shards, end)
        if all(s.state == "ended" and s.version == end for s in stats.values()):
            return end, stats
        wait()
    for shard in shards:
        while stats[shard].state != "ended":
            stats |= ask([shard], stats[shard].version)
    return min(s.version for s in stats.values()), stats
