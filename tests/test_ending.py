"""How shards agree on a last version, with shards that answer late and never stand still."""

from collections.abc import Callable, Iterable
from typing import Any

from zmqrl.cluster.ending import stop_shards
from zmqrl.ps import messages as m


class LateControl:
    """Shards that make ``pace`` versions between two questions, and whose answers are ``late`` questions old."""

    run = "0" * 16

    def __init__(self, shards: int, *, pace: int, late: int) -> None:
        self.versions = [100 + shard % 2 for shard in range(shards)]
        self.stop: int | None = None
        self.pace = pace
        self.answers: list[dict[int, m.Stats]] = [self._stats() for _ in range(late + 1)]

    def stats(
        self, shards: Iterable[int], *, within_s: float, what: str, meanwhile: Callable[[], None]
    ) -> dict[int, m.Stats]:
        meanwhile()
        return self._answer(shards)

    def ask(
        self,
        shards: Iterable[int],
        question: Callable[[int], m.Message],
        answer: Callable[[m.Message], Any],
        *,
        within_s: float,
        what: str,
        meanwhile: Callable[[], None],
    ) -> dict[int, m.Stats]:
        meanwhile()
        stop = question(0)
        assert isinstance(stop, m.Stop)
        if stop.version is not None and stop.version >= max(self.versions):
            self.stop = stop.version
        return self._answer(shards)

    def _answer(self, shards: Iterable[int]) -> dict[int, m.Stats]:
        end = self.stop if self.stop is not None else 10**9
        self.versions = [min(version + self.pace, end) for version in self.versions]
        self.answers.append(self._stats())
        old = self.answers.pop(0)
        return {shard: old[shard] for shard in shards}

    def _stats(self) -> dict[int, m.Stats]:
        return {
            shard: m.Stats(
                run=self.run,
                shard=shard,
                incarnation=1,
                generation=1,
                version=version,
                view=1,
                quorum=1,
                state="ended" if version == self.stop else "open",
                held=(),
                present=(),
                silent_ms=(),
                tallies=(),
                unattributed=0,
                captured=None,
                totals=(0, 0, 0, 0),
                captured_totals=(),
                stop=self.stop,
                failure="",
            )
            for shard, version in enumerate(self.versions)
        }


def test_shards_that_never_stand_still_are_stopped_though_their_answers_are_old() -> None:
    for pace, late in ((1, 0), (7, 1), (50, 3)):
        control: Any = LateControl(3, pace=pace, late=late)
        rounds: list[int] = []
        version, stats = stop_shards(control, range(3), 20.0, lambda rounds=rounds: rounds.append(1))
        assert len(rounds) < 50
        assert {(s.version, s.state) for s in stats.values()} == {(version, "ended")}


def test_a_standing_run_is_stopped_at_the_version_it_has() -> None:
    control: Any = LateControl(1, pace=0, late=0)
    assert stop_shards(control, [0], 5.0, lambda: None)[0] == 100
