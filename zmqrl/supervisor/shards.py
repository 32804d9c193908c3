"""What the supervisor knows about each shard, and which messages it sends to the shards. No sockets, no clock."""

from collections.abc import Iterable

from zmqrl.observe.stalls import Awaited
from zmqrl.process_id import worker_id
from zmqrl.ps.shard.events import View
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e

LOAD_WITHIN_S = 60.0
START = "the shards have not loaded the newest checkpoint"


class Shards:
    """The shards of a run. Shard numbers are the keys of dictionaries.

    - ``checkpoint``: the version of each shard in the newest checkpoint.
    - ``seen``: the newest version that each shard is known to have made.
    - ``stats``: the last STATS of each shard since it started or loaded a checkpoint.
    - ``down``: the shards that have not sent WELCOME since they started.
    - ``rollback``: why all shards must load the checkpoint, or None. At first: ``START``.
    - ``not_loaded``: why the last attempt to load it failed, as a sentence.
    """

    def __init__(self, run: str, checkpoint: tuple[int, ...], generation: int, stop_at: int | None) -> None:
        self.run, self.checkpoint, self.generation, self.stop_at = run, checkpoint, generation, stop_at
        self.numbers = range(len(checkpoint))
        self.stats: dict[int, m.Stats] = {}
        self.seen = dict(enumerate(checkpoint))
        self.down = set(self.numbers)
        self.rollback: str | None = START
        self.not_loaded = "no shard was asked."
        self.rollback_at: float | None = None
        self._welcomed: dict[int, int] = {}  # by shard: the incarnation in its last WELCOME
        self._claims: dict[int, dict[int, int]] = {}  # by shard and rank: versions that workers claim to have seen

    @property
    def all_told(self) -> bool:
        """Whether every shard has reported its state."""
        return len(self.stats) == len(self.numbers)

    @property
    def all_at_stop(self) -> bool:
        at_stop = self.stop_at is not None and all(s.version >= self.stop_at for s in self.stats.values())
        return self.all_told and at_stop

    @property
    def ready(self) -> bool:
        """Whether every shard is up and holds the state of a version."""
        return not self.down and self.rollback is None

    def failure(self) -> str | None:
        """Why a shard can make no more versions, or None if all shards can."""
        for shard, stats in sorted(self.stats.items()):
            if stats.failure:
                return (
                    f"shard {shard} stays at version {stats.version}: {stats.failure}; lower the learning rate or clip "
                    "the gradients of these workers, then continue with --resume."
                )
        return None

    def missing(self, members: Iterable[int]) -> list[Awaited]:
        """The workers that have not contributed to the open version. Empty if no version is open.

        Every shard must have reported its state.
        """
        lowest = min(each.version for each in self.stats.values())
        waiting = [each for each in self.stats.values() if each.version == lowest]
        if any(each.state != "open" for each in waiting):
            return []
        held = set.intersection(*(set(each.held) for each in waiting))
        found = {rank: Awaited(process=worker_id(rank), is_there=False) for rank in members if rank not in held}
        for each in waiting:
            doing = dict(zip(each.span_ranks, zip(each.spans, each.span_ms, strict=False), strict=False))
            for rank, silent_ms in zip(each.present, each.silent_ms, strict=False):
                if rank in found:
                    span, span_ms = doing.get(rank, ("", 0))
                    found[rank] = Awaited(
                        process=worker_id(rank), silent_s=silent_ms / 1000, span=span, span_s=span_ms / 1000
                    )
        return list(found.values())

    def on_stats(self, shard: int, stats: m.Stats) -> bool:
        """A shard reports its state. Returns whether the shard has made a new version."""
        if shard in self.down or stats.state == "empty" or stats.generation != self.generation:
            return False  # the shard's WELCOME decides whether to roll back
        known = self.stats.get(shard)
        if known is not None and (stats.incarnation, stats.version) < (known.incarnation, known.version):
            return False  # a newer report has arrived before this report
        self.stats[shard] = stats
        grown = stats.version > self.seen[shard]
        self.seen[shard] = max(self.seen[shard], stats.version)
        return grown

    def on_lost(self, shard: int, lost: m.Lost, quorum: int) -> None:
        """A worker reports that it has seen a newer version of a shard than the shard now has.

        Roll back if a quorum of workers agree, or if the supervisor itself has seen a newer version.
        """
        if shard not in self.stats:
            return
        version = self.stats[shard].version
        claims = self._claims.setdefault(shard, {})
        claims[lost.rank] = lost.version
        claimants = sum(claimed > version for claimed in claims.values())
        if self.seen[shard] > version or claimants >= quorum:
            self._must_roll_back(f"shard {shard} is at version {version} but had already made version {lost.version}")

    def on_welcome(self, shard: int, welcome: m.Welcome, view: View) -> list[e.Action]:
        """A shard has come up, with or without its state."""
        if shard not in self.down and self._welcomed.get(shard) == welcome.incarnation:
            return []
        self._welcomed[shard] = welcome.incarnation
        self.down.discard(shard)
        if welcome.state == "empty" or welcome.generation != self.generation or welcome.version < self.seen[shard]:
            self._must_roll_back(f"shard {shard} came back without the newest state")
            return []
        notice = e.Notice(f"shard {shard} is back at version {welcome.version}")
        actions: list[e.Action] = [notice, self._tell_view(shard, view)]
        return actions if self.stop_at is None else [*actions, self._tell_stop(shard)]

    def on_exit(self, shard: int) -> None:
        self.down.add(shard)
        self.stats.pop(shard, None)

    def roll_back(self, view: View, now: float, elapsed: int = 0) -> list[e.Action]:
        """If a rollback is due and all shards are up, make them load the checkpoint under a new generation.

        They also load ``elapsed``, the progress of the run in millionths.
        """
        if self.rollback is None:
            return []
        self.rollback_at = self.rollback_at or now
        if now - self.rollback_at > LOAD_WITHIN_S:
            if not self.down:
                return [e.Fail(f"the shards did not load the checkpoint within {LOAD_WITHIN_S:g} s: {self.not_loaded}")]
            down = ", ".join(f"shard {shard}" for shard in sorted(self.down))
            return [e.Fail(f"{down} did not come up within {LOAD_WITHIN_S:g} s.")]
        if self.down:
            return []
        self.generation += 1
        self.stats.clear()
        notice = e.Notice(f"{self.rollback}: all shards go back to {self._checkpoint_in_words()}")
        return [*([] if self.rollback == START else [notice]), e.LoadCheckpoint(self.generation, view, elapsed)]

    def loaded(self) -> list[e.Action]:
        self._claims.clear()
        self.seen = dict(enumerate(self.checkpoint))
        self.rollback = self.rollback_at = None
        return [] if self.stop_at is None else [self._tell_stop(shard) for shard in self.numbers]

    def repeat(self, view: View) -> list[e.Action]:
        """Resend the view or the end version to each shard that reports another: a message may have been lost."""
        actions: list[e.Action] = []
        for shard, stats in self.stats.items():
            if stats.view != view.id:
                actions.append(self._tell_view(shard, view))
            if stats.stop != self._end_of(shard):
                actions.append(self._tell_stop(shard))
        return actions

    def checkpointed(self, versions: tuple[int, ...]) -> None:
        """Note a newer checkpoint, with these ``versions`` of the shards."""
        self.checkpoint = versions
        self.seen = {shard: max(seen, versions[shard]) for shard, seen in self.seen.items()}

    def _tell_view(self, shard: int, view: View) -> e.Action:
        change = m.ViewChange(run=self.run, view=view.id, quorum=view.quorum, members=view.members)
        return e.TellShard(shard, change)

    def _tell_stop(self, shard: int) -> e.Action:
        return e.TellShard(shard, m.Stop(run=self.run, version=self._end_of(shard)))

    def _checkpoint_in_words(self) -> str:
        return f"the checkpoint of version {min(self.checkpoint)}"

    def _must_roll_back(self, why: str) -> None:
        if self.rollback is None:
            self.rollback = why

    def _end_of(self, shard: int) -> int | None:
        """The version at which the shard ends: ``stop_at``, or the shard's newest version if that is greater."""
        return None if self.stop_at is None else max(self.stop_at, self.seen[shard])
