"""Complete runs in virtual time, with random failures of all parts. No run breaks a rule, and every run ends.

``python -m support.hunt`` makes many more such runs: see CONTRIBUTING.md. Bugs that are planted in the state machines
show that the hunt finds bugs.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support import hunt, run_world

from zmqrl.hosts.events import Exited
from zmqrl.ps.control import ShardControl
from zmqrl.ps.shard import contributions
from zmqrl.ps.shard.events import Totals, View, added
from zmqrl.ps.shard.machine import Ruling, ShardMachine
from zmqrl.ps.shard.roster import Roster
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.known_shard import KnownShard
from zmqrl.supervisor import events as e
from zmqrl.supervisor.salvage import to_save
from zmqrl.supervisor.shards import LOAD_WITHIN_S, Shards

SEEDS = 2000
PARTS = 16
FOUND_WITHIN = 1000  # runs
FAILED_BEFORE = (10565, 17212, 33088)  # seeds that led to faults: each fault also has a shorter test


# `make check` makes only the runs of the first part.
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.processes) for part in range(1, PARTS))])
def test_no_schedule_of_faults_breaks_a_rule_or_stops_a_run_for_good(part: int) -> None:
    assert hunt.failures(range(part, SEEDS, PARTS)) == []


@pytest.mark.parametrize("seed", FAILED_BEFORE)
def test_a_run_that_failed_before_ends(seed: int) -> None:
    hunt.play(seed)


def test_a_seed_always_gives_the_same_run() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        hunt.play(4, story.append)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 10


def test_the_hunt_causes_every_fault() -> None:
    counts = sum((hunt.play(seed).counts for seed in range(60)), start=Counter[str]())
    assert len(counts) == 19
    assert min(counts.values()) >= 5


def test_a_failure_is_printed_with_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(KnownShard, "need", lambda *_, **__: False)
    seed = next(seed for seed in itertools.count() if hunt.failure(seed) is not None)
    (why,) = hunt.failures([seed])
    assert "AssertionError: stuck" in why
    assert why.endswith(f"seed {seed}; to replay it: {hunt.replay(seed)}")
    with pytest.raises(AssertionError, match="stuck"):
        hunt.main(["--replay", str(seed)])
    assert "s  the faults are over" in capsys.readouterr().out


@pytest.mark.parametrize("down", [{1}, set()])
def test_a_run_may_fail_if_faults_delay_a_rollback_for_too_long(down: set[int]) -> None:
    shards, view = Shards("run", (0, 0), 1, None), View(1, 1, (0,))
    shards.down = down
    shards.roll_back(view, 1.0)
    (fail,) = shards.roll_back(view, 1.1 + LOAD_WITHIN_S)
    assert isinstance(fail, e.Fail)
    assert hunt.NOT_LOADED.search(fail.why)


def judged(before: str, reason: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant a fault: shards use contributions whose correct outcome is ``before``, for ``reason``."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        judge = ShardMachine._judge

        def wrong(self: ShardMachine, event: Any) -> Any:
            right = judge(self, event)
            planted = right.outcome == before and reason in right.why and self.state == "open"
            return Ruling("used") if planted else right

        patch.setattr(ShardMachine, "_judge", wrong)

    return plant


def never_resends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KnownShard, "need", lambda *_, **__: False)


def keeps_what_a_rollback_undid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KnownShard, "roll_back", lambda self, generation: setattr(self, "generation", generation))


def serves_only_the_newest_version(patch: pytest.MonkeyPatch) -> None:
    def newest(self: ShardMachine, peer: bytes, request: m.SnapshotRequest) -> Any:
        self.previous = None
        return snapshot(self, peer, request)

    snapshot = ShardMachine._snapshot
    patch.setattr(ShardMachine, "_snapshot", newest)


def waits_for_the_dead_process_of_a_rank(patch: pytest.MonkeyPatch) -> None:
    def replaced(self: Roster, rank: int, incarnation: int, now: float) -> bool:
        worker = self.workers.get(rank)
        return worker is not None and worker.incarnation is not None and incarnation < worker.incarnation

    patch.setattr(Roster, "is_replaced", replaced)


def forgets_late_contributions(patch: pytest.MonkeyPatch) -> None:
    def without_late(totals: Totals, counts: Totals) -> Totals:
        return added(totals, (counts[0], 0, *counts[2:]))

    patch.setattr(contributions, "added", without_late)


def ignores_lost_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shards, "_must_roll_back", lambda self, why: None)


def takes_a_shard_of_an_older_generation(patch: pytest.MonkeyPatch) -> None:
    def welcomed(self: Shards, shard: int, welcome: m.Welcome, *arguments: Any) -> list[e.Action]:
        return on_welcome(self, shard, replace(welcome, generation=self.generation), *arguments)

    on_welcome = Shards.on_welcome
    patch.setattr(Shards, "on_welcome", welcomed)


def rolls_back_under_the_same_generation(patch: pytest.MonkeyPatch) -> None:
    roll_back = Shards.roll_back

    def same(self: Shards, *arguments: Any) -> list[e.Action]:
        before = max(self.generation, 1)
        actions = roll_back(self, *arguments)
        self.generation = before
        return [replace(each, generation=before) if isinstance(each, e.LoadCheckpoint) else each for each in actions]

    patch.setattr(Shards, "roll_back", same)


def loads_without_a_hello(patch: pytest.MonkeyPatch) -> None:
    exchange = ShardControl._exchange

    def without(self: ShardControl, *arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as during:
            send = self.send
            during.setattr(self, "send", lambda n, *sent: isinstance(sent[0], m.Hello) or send(n, *sent), raising=False)
            return exchange(self, *arguments, **options)

    patch.setattr(ShardControl, "_exchange", without)


def resumes_one_version_too_early(patch: pytest.MonkeyPatch) -> None:
    def early(*arguments: Any, **options: Any) -> Any:
        found = to_save(*arguments, **options)
        return None if found is None else {shard: version - 1 for shard, version in found.items()}

    patch.setattr(run_world, "to_save", early)


def restarts_after_every_usage_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exited, "is_misuse", False)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "uses a contribution twice": judged("duplicate", "already held"),
    "uses a contribution to the previous version": judged("late", "by 1 version"),
    "uses a contribution that was rolled back": judged("late", "rolled back"),
    "never resends": never_resends,
    "keeps what a rollback undid": keeps_what_a_rollback_undid,
    "serves only the newest version": serves_only_the_newest_version,
    "waits for the dead process of a rank": waits_for_the_dead_process_of_a_rank,
    "forgets late contributions": forgets_late_contributions,
    "ignores lost state": ignores_lost_state,
    "takes a shard of an older generation": takes_a_shard_of_an_older_generation,
    "rolls back under the same generation": rolls_back_under_the_same_generation,
    "loads without a HELLO": loads_without_a_hello,
    "resumes one version too early": resumes_one_version_too_early,
    "restarts after every usage error": restarts_after_every_usage_error,
}


IN_ALL = [pytest.param(plant, id=name, marks=pytest.mark.slow) for name, plant in [*PLANTED.items()][3:]]


@pytest.mark.processes
@pytest.mark.parametrize("plant", [*(pytest.param(PLANTED[name], id=name) for name in [*PLANTED][:3]), *IN_ALL])
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(breaks_a_rule(seed) for seed in range(FOUND_WITHIN)), "the bug was not found"


def breaks_a_rule(seed: int) -> bool:
    """Whether the run of a seed breaks a rule. Any other exception is a mistake in the planted bug."""
    try:
        hunt.play(seed)
    except AssertionError:
        return True
    return False
