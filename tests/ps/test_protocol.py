"""Complete runs under faults: the guarantees of the protocol hold at every step, and afterwards the run continues.

The guarantees:
- A version is made of contributions of a quorum of distinct ranks, all computed on the previous version.
- No contribution is used twice.
- The weights can be recomputed from the records.
- Workers never go back to older versions and never mix versions.
- Every sent slice is accounted for.
- No version is ever published with two different contents.
- All workers compute on a version, and all shards make the next one, for the same progress of the run.
``protocol_model.py`` asserts each guarantee at the step that could break the guarantee.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.messages import gradient_header
from support.protocol_model import LAYOUT, RUN, Link, ShardHost, WorkerHost
from support.protocol_world import MOST_ROUNDS, World

from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker import events as worker_events

which = st.integers(0, 2**16)
few = st.integers(1, 12)


class RunUnderFaults(RuleBasedStateMachine):
    """Everything that can happen to a run, one event at a time. At the end, the faults stop."""

    world: World

    @initialize(
        shards=st.integers(1, 4),
        workers=st.integers(1, 5),
        backups=st.integers(0, 4),
        calm_rounds=st.integers(0, 6),
        horizon=st.none() | st.integers(1, 50),
    )
    def start(self, shards: int, workers: int, backups: int, calm_rounds: int, horizon: int | None) -> None:
        self.world = World(shards=shards, workers=workers, quorum=max(1, workers - backups), horizon=horizon)
        for _ in range(calm_rounds):
            self.world.round()

    def worker(self, n: int) -> WorkerHost:
        return self.world.workers[n % len(self.world.workers)]

    def shard(self, n: int) -> ShardHost:
        return self.world.shards[n % len(self.world.shards)]

    def link(self, n: int) -> Link:
        return self.world.links[n % len(self.world.links)]

    # events without a fault

    @rule(n=which, count=few)
    def a_message_arrives(self, n: int, count: int) -> None:
        for i in range(count):
            if queues := self.world.queues():
                link, queue = queues[(n + i * 7) % len(queues)]
                link.deliver(queue)

    @rule()
    def all_that_is_under_way_arrives(self) -> None:
        for link, queue in self.world.queues():
            for _ in range(len(queue)):
                if queue:
                    link.deliver(queue)

    @rule(n=which)
    def a_worker_gets_on(self, n: int) -> None:
        self.worker(n).act()

    @rule()
    def all_workers_get_on(self) -> None:
        for worker in self.world.workers:
            worker.act()

    @rule(n=which)
    def a_worker_drops_its_work(self, n: int) -> None:
        self.worker(n).abandon()

    @rule(n=which)
    def the_supervisor_looks_at_a_shard(self, n: int) -> None:
        self.world.supervisor.visit(self.shard(n))

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 2.5, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(rounds=st.integers(1, 5))
    def everybody_gets_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.round()

    @rule(quorum=st.integers(1, 5))
    def the_quorum_changes(self, quorum: int) -> None:
        self.world.supervisor.change_quorum(min(quorum, len(self.world.workers)))

    @rule(more=st.integers(0, 300_000))
    def more_of_the_run_has_passed(self, more: int) -> None:
        """The supervisor tells each shard at its next visit to that shard, so the shards learn it at different
        times.
        """
        self.world.supervisor.elapsed = min(WHOLE, self.world.supervisor.elapsed + more)

    @rule(ahead=st.integers(0, 2))
    def a_checkpoint_is_due(self, ahead: int) -> None:
        self.world.supervisor.wanted = max(shard.at()[1] for shard in self.world.shards) + ahead

    @rule(stop=st.sampled_from([True, False, False]))
    def the_run_is_to_stop_or_not(self, stop: bool) -> None:
        self.world.supervisor.stop = stop

    # faults of processes

    @rule(n=which)
    def a_worker_dies(self, n: int) -> None:
        if self.worker(n).alive:
            self.worker(n).die()

    @rule(n=which)
    def a_worker_leaves(self, n: int) -> None:
        if self.worker(n).alive:
            self.worker(n).feed(worker_events.Leaving())
            self.worker(n).die()

    @rule(n=which)
    def a_worker_is_started_again(self, n: int) -> None:
        self.world.restart_worker(self.worker(n).rank)

    @rule(n=which, arrived=st.booleans())
    def a_shard_dies(self, n: int, arrived: bool) -> None:
        self.shard(n).crash(arrived=arrived)

    @rule(n=which, actions=st.integers(0, 6))
    def a_shard_will_die_in_the_middle_of_its_work(self, n: int, actions: int) -> None:
        if self.shard(n).machine is not None:
            self.shard(n).crash_after = actions

    @rule(n=which)
    def a_shard_is_started_again(self, n: int) -> None:
        self.shard(n).start()

    @rule(n=which, sure=st.sampled_from([True, False, False, False]))
    def a_shard_dies_with_its_state(self, n: int, sure: bool) -> None:
        if sure:
            self.shard(n).crash()
            self.shard(n).slots = []

    # faults of the network

    @rule(n=which, arrived=st.booleans())
    def a_worker_is_cut_off_from_a_shard(self, n: int, arrived: bool) -> None:
        if self.world.links:
            self.link(n).cut = True
            self.link(n).disconnect(arrived=arrived)

    @rule(n=which)
    def a_connection_is_made_again(self, n: int) -> None:
        if self.world.links:
            self.link(n).cut = False
            self.link(n).connect()

    @rule(n=which)
    def a_publication_is_lost(self, n: int) -> None:
        if queues := [link.publications for link in self.world.links if link.publications]:
            queues[n % len(queues)].popleft()

    @rule(n=which)
    def a_contribution_arrives_twice(self, n: int) -> None:
        if queues := [link.gradients for link in self.world.links if link.gradients]:
            queue = queues[n % len(queues)]
            queue.append(queue[0])

    @rule(
        n=which,
        wrong=st.sampled_from(
            [
                {"run": "other"},
                {"layout": "other"},
                {"generation": 1000},
                {"version": 10**6},
                {"view": 1000},
                {"incarnation": 10**6},
                {"rank": 5},
                {"rank": 65_535},
                {"payload_bytes": 5},
                {"finite": False},
            ]
        ),
    )
    def a_contribution_arrives_that_nobody_may_use(self, n: int, wrong: dict[str, Any]) -> None:
        wrong = dict(wrong)
        payload_bytes, finite = wrong.pop("payload_bytes", 4), wrong.pop("finite", True)
        shard, worker = self.shard(n), self.worker(n)
        generation, version = shard.at()
        header = gradient_header(
            run=RUN,
            layout=LAYOUT,
            generation=generation,
            view=self.world.supervisor.view.id,
            shard=shard.number,
            version=version,
            rank=worker.rank,
            incarnation=worker.incarnation,
        )
        self.world.forge(replace(header, **wrong), payload_bytes, finite=finite)

    @rule(seed=which, count=st.integers(5, 60), calm=st.sampled_from([4, 10, 30]))
    def many_things_happen(self, seed: int, count: int, calm: int) -> None:
        """Many events in one step. ``calm`` is the number of ordinary events per fault."""
        chance = random.Random(seed)

        def n() -> int:
            return chance.randrange(2**16)

        def ordinary() -> None:
            event = chance.choices(["message", "worker", "supervisor", "time", "progress"], [12, 5, 2, 2, 1])[0]
            match event:
                case "message":
                    self.a_message_arrives(n(), 1)
                case "worker":
                    self.a_worker_gets_on(n())
                case "supervisor":
                    self.the_supervisor_looks_at_a_shard(n())
                case "time":
                    self.time_passes(chance.choice([0.05, 0.3, 1.0, 2.5]))
                case "progress":
                    self.more_of_the_run_has_passed(chance.randrange(5000))

        faults: list[Callable[[], None]] = [
            lambda: self.a_worker_dies(n()),
            lambda: self.a_worker_is_started_again(n()),
            lambda: self.a_worker_drops_its_work(n()),
            lambda: self.a_shard_dies(n(), chance.random() < 0.5),
            lambda: self.a_shard_will_die_in_the_middle_of_its_work(n(), chance.randrange(7)),
            lambda: self.a_shard_is_started_again(n()),
            lambda: self.a_shard_is_started_again(n()),
            lambda: self.a_shard_dies_with_its_state(n(), chance.random() < 0.3),
            lambda: self.a_worker_is_cut_off_from_a_shard(n(), chance.random() < 0.5),
            lambda: self.a_connection_is_made_again(n()),
            lambda: self.a_publication_is_lost(n()),
            lambda: self.a_contribution_arrives_twice(n()),
        ]
        for _ in range(count):
            for _ in range(calm):
                ordinary()
            chance.choice(faults)()
            self.shards_are_at_most_one_version_apart()

    # what must hold

    @invariant()
    def shards_are_at_most_one_version_apart(self) -> None:
        at = [shard.at() for shard in self.world.shards if shard.slots]
        for generation in {generation for generation, _ in at}:
            versions = [version for g, version in at if g == generation]
            assert max(versions) - min(versions) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if not self.world.supervisor.stop:
            self.world.must_get_on(versions=2)
        self.world.must_end()
        self.world.journal.check()


TestRunUnderFaults = RunUnderFaults.TestCase


def reach(world: World, links: list[Link]) -> None:
    """Deliver the contributions of ``links`` and nothing else."""
    for link in links:
        while link.gradients:
            link.deliver(link.gradients)


def computed(shards: int, workers: int, quorum: int) -> World:
    """A run in which every worker has pushed a contribution to the open version, but none has arrived yet."""
    world = World(shards=shards, workers=workers, quorum=quorum)
    for _ in range(2000):
        for shard in world.shards:
            world.supervisor.visit(shard)
        for link, queue in world.queues():
            if queue is not link.gradients:
                link.deliver(queue)
        for worker in world.workers:
            if all(len(link.gradients) == 1 for link in worker.links):
                continue
            worker.act()
        if all(len(link.gradients) == 1 for worker in world.workers for link in worker.links):
            return world
        world.pass_time(0.05)
    raise AssertionError(world.where())


def roll_back(world: World) -> None:
    """Let the run continue until all shards have loaded the checkpoint again."""
    for _ in range(MOST_ROUNDS):
        world.heal()
        world.round()
        if all(shard.at()[0] == 2 for shard in world.shards):
            return
    raise AssertionError(world.where())


@pytest.mark.parametrize("dead", [1, 2])
def test_contributors_that_died_after_reaching_one_shard_do_not_block_the_others(dead: int) -> None:
    world = computed(shards=2, workers=2, quorum=2)
    for worker in world.workers:
        reach(world, [worker.links[1]])
    for worker in world.workers[:dead]:
        for link in worker.links:
            link.gradients.clear()
        worker.die()
    assert [shard.at() for shard in world.shards] == [(1, 0), (1, 1)]
    world.must_get_on(versions=3)


def test_workers_help_two_stuck_shards_that_hold_different_ranks() -> None:
    world = computed(shards=3, workers=2, quorum=2)
    first, second = world.workers
    reach(world, [first.links[0], second.links[1], first.links[2], second.links[2]])
    for worker in (first, second):
        for link in worker.links:
            link.gradients.clear()
        worker.die()
    assert [shard.at() for shard in world.shards] == [(1, 0), (1, 0), (1, 1)]
    world.must_get_on(versions=3)


def test_a_shard_that_dies_between_commit_and_publication_publishes_the_committed_version() -> None:
    for actions in range(6):
        world = computed(shards=2, workers=2, quorum=2)
        shard = world.shards[0]
        for worker in world.workers:
            shard.crash_after = actions
            reach(world, [worker.links[0]])
        shard.crash()
        world.must_get_on(versions=3)
        world.journal.check()


def test_a_worker_that_missed_a_publication_gets_it_over_its_next_connection() -> None:
    world = computed(shards=2, workers=2, quorum=2)
    reach(world, [link for worker in world.workers for link in worker.links])
    link = world.workers[0].links[0]
    assert any(isinstance(event.message, m.Weights) for event in link.publications)
    link.disconnect(arrived=False)
    link.connect()
    world.must_get_on(versions=3)


def test_a_welcome_from_before_a_rollback_does_not_take_a_worker_back() -> None:
    world = computed(shards=2, workers=1, quorum=1)
    worker = world.workers[0]
    world.must_get_on(versions=6)
    world.shards[0].feed(shard_events.PresenceChanged(worker.rank, worker.incarnation, here=True))
    stale = worker.links[0].answers.pop()
    assert isinstance(stale.message, m.Welcome)
    world.shards[1].crash()
    world.shards[1].slots = []
    roll_back(world)
    worker.feed(stale)
    world.must_get_on(versions=3)


def test_a_contribution_in_transit_during_a_rollback_is_not_used_afterwards() -> None:
    world = computed(shards=2, workers=2, quorum=2)
    late = [(link.shard, link.gradients.popleft()) for worker in world.workers for link in worker.links]
    world.shards[0].crash()
    world.shards[0].slots = []
    roll_back(world)
    for shard, event in late:
        shard.feed(event)
    world.must_get_on(versions=2)
    assert world.supervisor.generation == 2
    world.must_end()
    world.journal.check()


@pytest.mark.parametrize("quorum", [1, 2, 3])
def test_without_faults_all_shards_end_at_the_same_version(quorum: int) -> None:
    world = World(shards=4, workers=3, quorum=quorum)
    world.must_get_on(versions=30)
    world.must_end()
    world.journal.check()
    assert len(world.ends) == 1
    assert all(not worker.alive for worker in world.workers)
