"""The contributions to the open version of a shard, and the counts of all contributions by outcome."""

from dataclasses import replace
from typing import TYPE_CHECKING

from zmqrl.observe.metrics import SHARD_OUTCOMES, Outcome
from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.shard.events import Accumulate, Action, Record, View, added
from zmqrl.ps.wire import messages as m

if TYPE_CHECKING:
    from zmqrl.ps.shard.gradients import ReceivedSlice


class Contributions:
    """Holds the contributions to the open version, decides when each is added to the sum, and counts outcomes.

    If ``consistent``, contributions are summed in rank order. If ``asynchronous``, contributions may be computed on
    older versions.
    """

    def __init__(self, *, consistent: bool, asynchronous: bool) -> None:
        self.consistent, self.asynchronous = consistent, asynchronous
        self.held: dict[int, ReceivedSlice | None] = {}  # rank -> payload, or None once accumulated
        self.waiting: set[int] = set()  # ranks whose payload is not accumulated yet
        self.computed_on: dict[int, int] = {}  # rank -> version of its newest contribution, held or used
        self.elapsed = 0  # the greatest `elapsed` of the held contributions
        self.tallies: dict[int, list[int]] = {}  # rank -> totals, in the order of SHARD_OUTCOMES
        self.unattributed = 0
        self.since_last = {"late": 0, "duplicate": 0, "rejected": 0}

    def ranks(self) -> tuple[int, ...]:
        """The ranks that have contributed to the open version."""
        return tuple(sorted(self.held))

    def hold(self, header: m.Gradient, payload: "ReceivedSlice") -> None:
        self.held[header.rank] = payload
        self.waiting.add(header.rank)
        self.computed_on[header.rank] = header.version
        self.elapsed = max(self.elapsed, header.elapsed)

    def counts_already(self, rank: int, version: int) -> bool:
        """Whether the shard holds or has used a contribution of ``rank`` on ``version`` or a later version."""
        return version <= self.computed_on.get(rank, -1)

    def accumulate(self, view: View) -> list[Action]:
        """Accumulate waiting payloads. In consistent mode, a payload waits until all lower ranks have contributed."""
        actions: list[Action] = []
        for rank in sorted(self.waiting):
            if self.consistent and any(r not in self.held for r in view.members if r < rank):
                break
            actions += self._hand_on(rank)
        return actions

    def close(
        self, *, generation: int, version: int, view: View, stop: int | None, last: Record, elapsed: int
    ) -> tuple[list[Action], Record]:
        """Use all held contributions. Returns the remaining ``Accumulate`` actions, and the record of ``version``.

        ``last`` is the record of the previous version, and ``elapsed`` the progress to publish with ``version``.
        """
        ranks = self.ranks()
        actions = [action for rank in sorted(self.waiting) for action in self._hand_on(rank)]
        assert ranks, "a version without contributions"
        for rank in ranks:
            self.count(rank, "used", view)
        record = Record(
            generation=generation,
            version=version,
            view=view,
            quorum=len(ranks),
            ranks=ranks,
            tallies={rank: (t[0], t[1], t[2], t[3]) for rank, t in self.tallies.items()},
            unattributed=self.unattributed,
            stop=stop,
            made_at=min(WHOLE, max(last.elapsed, self.elapsed)),
            elapsed=elapsed,
            staleness=tuple(version - 1 - self.computed_on[rank] for rank in ranks) if self.asynchronous else (),
            applied=dict(self.computed_on) if self.asynchronous else {},
            late=self.since_last["late"],
            duplicate=self.since_last["duplicate"],
            rejected=self.since_last["rejected"],
        )
        record = replace(record, totals=added(last.totals, record.counts()))
        self.since_last = dict.fromkeys(self.since_last, 0)
        self.held, self.elapsed = {}, 0
        return actions, record

    def drop(self, view: View) -> None:
        """Abandon the open version, and count the held contributions as late."""
        for rank in self.held:
            self.count(rank, "late", view)
        self.held, self.waiting, self.computed_on, self.elapsed = {}, set(), {}, 0

    def count(self, rank: int, outcome: Outcome, view: View) -> None:
        """Count a contribution for ``rank``, or as unattributed if ``rank`` was never a member."""
        if rank in self.tallies or rank in view.members:
            self.tallies.setdefault(rank, [0, 0, 0, 0])[SHARD_OUTCOMES.index(outcome)] += 1
        else:
            self.unattributed += 1
        if outcome != "used":
            self.since_last[outcome] += 1

    def reject(self) -> None:
        """Count a rejected message that belongs to no rank."""
        self.unattributed += 1
        self.since_last["rejected"] += 1

    def recover(self, record: Record) -> None:
        """Continue with the totals of ``record``."""
        self.tallies = {rank: list(t) for rank, t in record.tallies.items()}
        self.unattributed = record.unattributed
        self.computed_on = dict(record.applied)

    def _hand_on(self, rank: int) -> list[Action]:
        payload = self.held[rank]
        assert payload is not None, "accumulated twice"
        first = len(self.waiting) == len(self.held)
        self.held[rank] = None
        self.waiting.remove(rank)
        return [Accumulate(payload, first)]
