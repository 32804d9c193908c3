"""What became of every contribution that reached a shard: held for the open version, or counted by its outcome."""

from dataclasses import replace
from typing import Any

from zmqrl.ps import messages as m
from zmqrl.ps.shard_events import OUTCOMES, Accumulate, Action, Outcome, Record, Totals, View, added


class Contributions:
    """The open version's contributions, and the outcomes of all others: none is in both, none in neither.

    ``view`` says who may contribute to the open version. ``consistent``: contributions are summed in rank order.
    ``asynchronous``: they may be computed on older versions.
    """

    def __init__(self, *, consistent: bool, asynchronous: bool) -> None:
        self.consistent, self.asynchronous = consistent, asynchronous
        self.held: dict[int, tuple[Any, m.Codec] | None] = {}  # rank -> payload, None once it is accumulated
        self.computed_on: dict[int, int] = {}  # rank -> version its newest contribution that counts was computed on
        self.tallies: dict[int, list[int]] = {}  # rank -> totals, in the order of OUTCOMES
        self.unattributed = 0
        self.since_last = {"late": 0, "duplicate": 0, "rejected": 0}

    def ranks(self) -> tuple[int, ...]:
        """Who has contributed to the open version."""
        return tuple(sorted(self.held))

    def hold(self, header: m.Gradient, payload: Any) -> None:
        """Take in a contribution to the open version."""
        self.held[header.rank] = payload, header.codec
        self.computed_on[header.rank] = header.version

    def counts_already(self, rank: int, version: int) -> bool:
        """Whether what ``rank`` computed on ``version`` is held or was used."""
        return version <= self.computed_on.get(rank, -1)

    def accumulate(self, view: View) -> list[Action]:
        """Hand on payloads: as they come, or in consistent mode those whose lower ranks have all come."""
        actions: list[Action] = []
        for rank in self.ranks():
            if self.consistent and any(r not in self.held for r in view.members if r < rank):
                break
            actions += self._hand_on(rank)
        return actions

    def close(
        self, *, generation: int, version: int, view: View, stop: int | None, totals: Totals
    ) -> tuple[list[Action], Record]:
        """Use all that is held: what is still to be accumulated, and how ``version`` comes to be.

        ``totals`` are those of the version before.
        """
        ranks = self.ranks()
        actions = [action for rank in ranks for action in self._hand_on(rank)]
        assert ranks, "a version of nothing"
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
            staleness=tuple(version - 1 - self.computed_on[rank] for rank in ranks) if self.asynchronous else (),
            applied=dict(self.computed_on) if self.asynchronous else {},
            late=self.since_last["late"],
            duplicate=self.since_last["duplicate"],
            rejected=self.since_last["rejected"],
        )
        record = replace(record, totals=added(totals, record.counts()))
        self.since_last = dict.fromkeys(self.since_last, 0)
        self.held = {}
        return actions, record

    def drop(self, view: View) -> None:
        """The open version is given up: what is held comes too late for another."""
        for rank in self.held:
            self.count(rank, "late", view)
        self.held, self.computed_on = {}, {}

    def count(self, rank: int, outcome: Outcome, view: View) -> None:
        """Count a contribution under its rank, if that is a member or was one."""
        if rank in view.members or rank in self.tallies:
            self.tallies.setdefault(rank, [0, 0, 0, 0])[OUTCOMES.index(outcome)] += 1
        else:
            self.unattributed += 1
        if outcome != "used":
            self.since_last[outcome] += 1

    def reject(self) -> None:
        """Count a message that can be attributed to no rank."""
        self.unattributed += 1
        self.since_last["rejected"] += 1

    def recover(self, record: Record) -> None:
        """Go on with the totals of ``record``."""
        self.tallies = {rank: list(t) for rank, t in record.tallies.items()}
        self.unattributed = record.unattributed
        self.computed_on = dict(record.applied)

    def _hand_on(self, rank: int) -> list[Action]:
        waiting = self.held[rank]
        if waiting is None:
            return []
        payload, codec = waiting
        first = all(other is not None for other in self.held.values())
        self.held[rank] = None
        return [Accumulate(payload, codec, first)]
