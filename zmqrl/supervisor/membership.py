"""The view of a run: which ranks are members, and how missing workers change the view. No sockets, no clock."""

from collections.abc import Set
from typing import Literal

from zmqrl.ps.shard.events import View
from zmqrl.words import counted, numbered

NOTICE_EVERY_S = 5.0
SHRINK_AFTER_S = 10.0


class Membership:
    """Keeps the view up to date. With too few workers for the quorum, the run waits, or the quorum shrinks."""

    def __init__(self, ranks: int, quorum: int, on_loss: Literal["wait", "shrink"]) -> None:
        self.wanted = quorum
        self.on_loss = on_loss
        self.view = View(1, quorum, tuple(range(ranks)))
        self.complete_once = False
        self.short_since: float | None = None
        self.notice_at = float("-inf")

    def observe(self, alive: set[int], updated: bool, now: float, hopeless: Set[int] = frozenset()) -> str | None:
        """Change the view if necessary. Returns a notice or None.

        ``alive`` has the ranks that every shard sees now. ``updated``: whether versions were made, perhaps by workers
        that have left since. ``hopeless`` has the ranks whose workers keep dying without any work.
        """
        if self.on_loss == "shrink":  # a worker that only comes and dies must not raise the quorum again
            alive = alive - hopeless
        absent = set(self.view.members) - alive
        here = len(self.view.members) - len(absent)
        self.complete_once = self.complete_once or updated or here >= self.wanted
        if here >= self.view.quorum:
            self.short_since = None
            if self.view.quorum < min(here, self.wanted):
                self._change(min(here, self.wanted))
                return f"workers present again: {here}"
            return None
        if self.short_since is None:
            self.short_since = self.notice_at = now
        short_s = now - self.short_since
        may_shrink = self.on_loss == "shrink" and (self.complete_once or absent <= hopeless)
        if may_shrink and here >= 1 and short_s >= SHRINK_AFTER_S:
            self.complete_once, self.short_since = True, None
            self._change(here)
            return f"continuing with {here} of {counted(self.wanted, 'worker')}"
        if now - self.notice_at >= NOTICE_EVERY_S:
            self.notice_at = now
            missing = numbered("worker", absent)
            return f"waiting for {missing}: {here} of {self.view.quorum} required workers are present"
        return None

    def _change(self, quorum: int) -> None:
        self.view = View(self.view.id + 1, quorum, self.view.members)
