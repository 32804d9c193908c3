"""Where the shards of a run stand, and how all of them are brought to one state: at the start, and after a loss."""

from collections.abc import Callable

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.membership import Membership
from zmqrl.errors import ClusterError
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl

LOAD_WITHIN_S = 60.0
START = "the run starts"


class Shards:
    """What is known of each shard, by its number.

    ``checkpoint`` is the newest one. ``stop_at`` is the version to end at, if the run has one. ``control`` is set once
    all shards are bound.
    """

    control: ShardControl

    def __init__(
        self, checkpoint: Checkpoint, membership: Membership, stop_at: int | None, notice: Callable[[str], None]
    ) -> None:
        self.checkpoint, self.membership, self.stop_at, self.notice = checkpoint, membership, stop_at, notice
        self.numbers = range(checkpoint.layout.shards)
        self.generation = checkpoint.generation
        self.stats: dict[int, m.Stats] = {}  # what each has told last, since it was started or loaded
        # The newest version that each is known to have made.
        self.seen = {shard: checkpoint.version_of(shard) for shard in self.numbers}
        self.down = set(self.numbers)  # those that have not welcomed us since they were started
        # Why all are to take over the checkpoint as soon as all are up, and since when: at first for the start.
        self.rollback: str | None = START
        self.rollback_at: float | None = None
        self._welcomed: dict[int, int] = {}  # the incarnation of each that has welcomed us last
        self._claims: dict[int, dict[int, int]] = {}  # versions that workers say to have seen of a shard, above its own

    @property
    def all_told(self) -> bool:
        """Whether every shard has told where it stands."""
        return len(self.stats) == len(self.numbers)

    @property
    def ready(self) -> bool:
        """Whether every shard is there, with the state that it is to have."""
        return not self.down and self.rollback is None

    def on_stats(self, shard: int, stats: m.Stats) -> bool:
        """A shard tells where it stands; whether it has made a version since the last time."""
        if stats.state == "empty" or stats.generation != self.generation:
            return False  # its WELCOME tells the same, and what is to be done
        self.stats[shard] = stats
        grown = stats.version > self.seen[shard]
        self.seen[shard] = max(self.seen[shard], stats.version)
        return grown

    def on_lost(self, shard: int, lost: m.Lost) -> None:
        """A worker has seen more of a shard than it has. Believed if we have too, or if a quorum of workers say so."""
        if shard not in self.stats:
            return
        version = self.stats[shard].version
        claims = self._claims.setdefault(shard, {})
        claims[lost.rank] = lost.version
        claimants = sum(claimed > version for claimed in claims.values())
        if self.seen[shard] > version or claimants >= self.membership.view.quorum:
            self._must_roll_back(f"shard {shard} is at version {version} but had made {lost.version}")

    def on_welcome(self, shard: int, welcome: m.Welcome) -> None:
        """A shard has come up: with its state, or without. One that welcomes us again says nothing new."""
        if shard not in self.down and self._welcomed.get(shard) == welcome.incarnation:
            return None
        self._welcomed[shard] = welcome.incarnation
        self.down.discard(shard)
        if welcome.state == "empty" or welcome.generation != self.generation or welcome.version < self.seen[shard]:
            return self._must_roll_back(f"shard {shard} came back without the newest state")
        self.notice(f"shard {shard} is back at version {welcome.version}")
        self.tell_view(shard)
        return self._tell_end(shard)

    def on_exit(self, shard: int) -> None:
        """A shard has died."""
        self.down.add(shard)
        self.stats.pop(shard, None)

    def roll_back(self, now: float) -> bool:
        """Let all shards take over the checkpoint, if they are to and all are up; whether they have.

        Raises ClusterError when that has been waited for too long.
        """
        if self.rollback is None:
            return False
        self.rollback_at = self.rollback_at or now
        if now - self.rollback_at > LOAD_WITHIN_S:
            down = ", ".join(f"shard {shard}" for shard in sorted(self.down)) or "all shards at once"
            raise ClusterError(f"waited {LOAD_WITHIN_S:g} s for {down}.")
        if self.down:
            return False
        if self.rollback != START:
            self.notice(f"{self.rollback}: all shards go back to the checkpoint of version {self.checkpoint.version}")
        try:
            self._load()
        except ClusterError as error:  # another shard died: once it is back, all are loaded anew
            self.notice(f"going back has to wait: {error}")
            return False
        self.rollback = self.rollback_at = None
        return True

    def tell_view(self, shard: int) -> None:
        """Tell a shard who counts."""
        view = self.membership.view
        change = m.ViewChange(run=self.control.run, view=view.id, quorum=view.quorum, members=view.members)
        self.control.send(shard, change)

    def _load(self) -> None:
        """Start, resume and rollback: all shards take over the checkpoint under a new generation."""
        self.generation += 1
        view = self.membership.view
        for shard in self.numbers:
            version, state = self.checkpoint.version_of(shard), self.checkpoint.states[shard]
            self.control.load(shard, self.generation, version, view.id, view.quorum, view.members, state)
            self.seen[shard] = version
            self._tell_end(shard)
        self.stats.clear()
        self._claims.clear()

    def _must_roll_back(self, why: str) -> None:
        if self.rollback is None:
            self.rollback = why

    def _tell_end(self, shard: int) -> None:
        if self.stop_at is not None:
            self.control.send(shard, m.Stop(run=self.control.run, version=self._end_of(shard)))

    def _end_of(self, shard: int) -> int | None:
        """Where a shard is to end: at ``stop_at``, or where it is, if it was past that before it heard of it."""
        return None if self.stop_at is None else max(self.stop_at, self.seen[shard])
