"""Hunts for faults in the protocol: runs in virtual time, with random failures of all parts.

``play`` makes one run. The same seed always gives the same run. From a shell:

    PYTHONPATH=tests python -m support.hunt --seeds 100000      # many runs, on all cores
    PYTHONPATH=tests python -m support.hunt --replay 4711       # one run, with everything that happens in it
"""

import argparse
import gc
import multiprocessing
import os
import random
import re
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from support.protocol_model import Link, ShardHost, WorkerHost
from support.run_world import ControlPath, Killed, RunWorld, virtual_time

from zmqrl.errors import ClusterError, UsageError
from zmqrl.supervisor.shards import LOAD_WITHIN_S

FAULTS_WITHIN_S = 45.0  # less than the time after which a supervisor gives up a shard that is down
CHUNK = 250
ROUNDS_TO_LOAD = 40
# How a run fails if faults keep the shards from loading a checkpoint for too long.
NOT_LOADED = re.compile(rf"(did not come up|did not load the checkpoint) within {LOAD_WITHIN_S:g} s[.:]")


class Schedule:
    """Chooses what happens next in a run, at random from a seed. ``tell`` gets a sentence about each event."""

    def __init__(self, seed: int, tell: Callable[[str], object] | None = None) -> None:
        chance = self.chance = random.Random(seed)
        self.tell = tell
        self.counts: Counter[str] = Counter()
        self.until = 0.0  # when the faults end
        self.again = False  # whether to damage the next version that a shard loads
        self.calm = chance.choice([4, 8, 16, 32])  # the number of ordinary events per fault
        self.steps = chance.choice([15, 30, 45, 80])
        workers = chance.choice([1, 1, 2, 2, 3])
        self.world = RunWorld(
            shards=chance.choice([1, 1, 2, 2, 3]),
            workers=workers,
            quorum=chance.randint(1, workers),
            on_loss=chance.choice(["wait", "wait", "shrink"]),
            external=[rank for rank in range(workers) if chance.random() < 0.25],
            updates=chance.choice([None, None, 3, 6]),
            checkpoint_every_s=chance.choice([0.5, 2.0, 20.0]),
            consistent=chance.random() < 0.2,
        )
        self.ordinary: list[Callable[[], None]] = [
            *[self.deliver] * 10,
            *[self.deliver_all] * 3,
            *[self.compute] * 4,
            *[self.pass_time] * 3,
            *[self.turn] * 4,
        ]
        self.waiting = [event for event in self.ordinary if event != self.turn]
        self.faults: list[Callable[[], None]] = [
            self.kill_worker,
            self.kill_shard,
            self.kill_shard_soon,
            self.kill_shard_before_its_history,
            self.cut_link,
            self.cut_link,
            self.mend_link,
            self.cut_control,
            self.mend_control,
            self.lose_publication,
            self.repeat_contribution,
            self.pause,
            self.resume,
            self.abandon,
            self.restart_external,
            self.step_clock,
            *([self.kill_supervisor, self.lose_state, self.damage_state] if chance.random() < 0.5 else []),
            *([self.misuse] * 4 if seed % 3 == 0 else []),  # these often end a run, so most runs have none
        ]

    def run(self) -> RunWorld:
        """Play the whole run: a calm start, the faults, progress after the faults, and the end."""
        world = self.world
        for _ in range(self.chance.choice([1, 2, 3, 5])):
            world.round()
        world.pulse, calm = self.pulse, world.pulse
        self.until = world.now + FAULTS_WITHIN_S
        while self.steps > 0 and world.now < self.until and not world.supervisor.over:
            try:
                self.step(self.ordinary)
            except Killed:
                self.say("the supervisor dies, and the run is resumed")
                world.kill_supervisor()
            except ClusterError as error:
                is_late = NOT_LOADED.search(str(error)) is not None
                self.fail(error, is_late or world.state_lost or world.supervisor.lacks_workers)
        world.pulse = calm
        self.say("the faults are over")
        try:
            self.finish()
        except ClusterError as error:
            self.fail(error, world.state_lost or world.supervisor.lacks_workers)
            self.finish()
        return world

    def fail(self, error: ClusterError, has_reason: bool) -> None:
        """The supervisor gives the run up. Like a user, resume the run."""
        if not has_reason:
            raise AssertionError(f"the run fails without a reason: {error}") from error
        self.say(f"the run fails: {error}; it is resumed")
        self.world.kill_supervisor()

    def finish(self) -> None:
        """Without faults, the run must make progress, and then end.

        Most shards that have lost their state load a checkpoint only now, and may lose their state again.
        """
        for _ in range(ROUNDS_TO_LOAD if self.again else 0):
            self.world.heal()
            self.world.supervisor.turn()
            self._damage_again()
            self.world.calm(0.25)
            if self.world.supervisor.over or not self.again:
                break
        self.world.must_get_on(versions=1)
        self.say("the run must end")
        self.world.must_end()

    def pulse(self, seconds: float) -> None:
        """What happens while the supervisor waits for an answer."""
        if self.steps <= 0 or self.world.now >= self.until:
            self.world.heal()
            self.world.calm(max(seconds, 0.25))
            return
        for _ in range(4):
            self.step(self.waiting)
        self.world.pass_time(seconds)

    def step(self, ordinary: Sequence[Callable[[], None]]) -> None:
        self.steps -= 1
        self._damage_again()
        if self.chance.random() * self.calm < 1:
            fault = self.chance.choice(self.faults)
            self.counts[fault.__name__] += 1
            fault()
        else:
            self.chance.choice(ordinary)()
        if self.tell is not None:
            self.world.judge()

    def say(self, words: str) -> None:
        if self.tell is not None:
            self.tell(f"{self.world.now:8.2f} s  {words}")

    # choices

    def any_shard(self) -> ShardHost:
        return self.chance.choice(self.world.shards)

    def any_worker(self) -> WorkerHost:
        return self.chance.choice(self.world.workers)

    # ordinary events

    def deliver(self) -> None:
        if queues := self.world.deliverable():
            link, queue = self.chance.choice(queues)
            self._deliver(link, queue)

    def deliver_all(self) -> None:
        for link, queue in self.world.deliverable():
            for _ in range(len(queue)):
                if queue:
                    self._deliver(link, queue)

    def _deliver(self, link: Link | ControlPath, queue: deque[Any]) -> None:
        if self.tell is not None:
            message = queue[0][0] if isinstance(link, ControlPath) else queue[0]
            who = "the supervisor" if isinstance(link, ControlPath) else f"worker {link.worker.rank}"
            self.say(f"between {who} and shard {link.shard.number}: {message}")
        link.deliver(queue)

    def compute(self) -> None:
        for worker in (*self.world.workers, *self.world.zombies):
            if not worker.paused and self.chance.random() < 0.7:
                worker.act()

    def pass_time(self) -> None:
        seconds = self.chance.choice([0.05, 0.05, 0.3, 0.3, 1.0, 2.5, 8.0])
        self.say(f"{seconds:g} s pass")
        self.world.pass_time(seconds)

    def turn(self) -> None:
        self.say("the supervisor looks at its shards")
        self.world.supervisor.turn()

    # faults

    def kill_worker(self) -> None:
        worker = self.any_worker()
        if worker.alive:
            self.say(f"worker {worker.rank} dies")
            worker.die()

    def misuse(self) -> None:
        worker = self.any_worker()
        if worker.alive:
            self.say(f"worker {worker.rank} ends with a usage error")
            worker.exit_status = UsageError.exit_status
            worker.die()

    def kill_shard(self) -> None:
        shard, arrived = self.any_shard(), self.chance.random() < 0.5
        self.say(f"shard {shard.number} dies{'' if arrived else ', and messages from it are lost'}")
        self.world.kill_shard(shard, arrived=arrived)

    def kill_shard_soon(self) -> None:
        shard, actions = self.any_shard(), self.chance.randrange(7)
        if shard.machine is not None:
            self.say(f"shard {shard.number} will die after {actions} actions")
            shard.crash_after = actions

    def kill_shard_before_its_history(self) -> None:
        shard = self.any_shard()
        if shard.machine is not None:
            self.say(f"shard {shard.number} will die between its next commit and the line in its history")
            shard.torn = True

    def lose_state(self) -> None:
        if self.chance.random() < 0.3:
            shard = self.any_shard()
            self.say(f"shard {shard.number} dies, and its state file is lost")
            self.world.lose_state(shard)

    def damage_state(self) -> None:
        if self.chance.random() < 0.3:
            self._damage(self.any_shard())

    def _damage(self, shard: ShardHost) -> None:
        self.say(f"shard {shard.number} dies, and its newest version is damaged")
        self.world.damage_state(shard)
        self.again = self.chance.random() < 0.5

    def _damage_again(self) -> None:
        """After earlier damage, also damage the version that a shard has just loaded. An older version may be left."""
        loaded = [shard for shard in self.world.shards if len(shard.slots) > 1 and not shard.slots[-1].record.ranks]
        if self.again and loaded and not self.world.supervisor.loading:
            self._damage(self.chance.choice(loaded))

    def kill_supervisor(self) -> None:
        if self.chance.random() < 0.5:
            raise Killed

    def cut_link(self) -> None:
        if self.world.links:
            link, arrived = self.chance.choice(self.world.links), self.chance.random() < 0.5
            self.say(f"the network between worker {link.worker.rank} and shard {link.shard.number} is cut")
            link.disconnect(arrived=arrived)
            link.cut = self.chance.random() < 0.7
            link.connect()

    def mend_link(self) -> None:
        for link in self.world.links:
            link.cut = False
            link.connect()

    def cut_control(self) -> None:
        path = self.chance.choice(self.world.paths)
        self.say(f"the network between the supervisor and shard {path.shard.number} is cut")
        path.reconnect(arrived=self.chance.random() < 0.5)
        path.cut = self.chance.random() < 0.7

    def mend_control(self) -> None:
        for path in self.world.paths:
            path.cut = False

    def lose_publication(self) -> None:
        if queues := [link.publications for link in self.world.links if link.publications]:
            self.say("a publication is lost")
            self.chance.choice(queues).popleft()

    def repeat_contribution(self) -> None:
        if queues := [link.gradients for link in self.world.links if link.gradients]:
            self.say("a contribution arrives twice")
            queue = self.chance.choice(queues)
            queue.append(queue[0])

    def pause(self) -> None:
        process = self.any_shard() if self.chance.random() < 0.5 else self.any_worker()
        self.say(f"{_name(process)} is stopped")
        process.paused = True

    def resume(self) -> None:
        self.world.resume()

    def abandon(self) -> None:
        self.any_worker().abandon()

    def restart_external(self) -> None:
        if self.world.external:
            rank = self.chance.choice(self.world.external)
            self.say(f"somebody starts another worker {rank}")
            self.world.start_worker(rank)

    def step_clock(self) -> None:
        self.world.clock_ms = self.chance.randrange(-5000, 5000)
        self.say(f"the wall clock is set to {self.world.clock_ms} ms")


def _name(process: ShardHost | WorkerHost) -> str:
    return f"shard {process.number}" if isinstance(process, ShardHost) else f"worker {process.rank}"


def play(seed: int, tell: Callable[[str], object] | None = None) -> Schedule:
    """Make the run of one seed. Raises AssertionError, or BrokenInvariant, if the run breaks a rule."""
    schedule = Schedule(seed, tell)
    with virtual_time(schedule.world):
        schedule.run()
    return schedule


def failure(seed: int) -> str | None:
    """What went wrong in the run of a seed, with the command that replays it. None if nothing did."""
    try:
        play(seed)
    except Exception:
        return f"{traceback.format_exc()}\nseed {seed}; to replay it: {replay(seed)}"
    return None


def replay(seed: int) -> str:
    return f"PYTHONPATH=tests {os.path.relpath(sys.executable)} -m support.hunt --replay {seed}"


def failures(seeds: Iterable[int]) -> list[str]:
    gc.collect()
    gc.freeze()  # the collector need not look at existing objects again
    gc.disable()  # explicit collections, below, take less time than automatic ones
    found = []
    for number, seed in enumerate(seeds):
        if (why := failure(seed)) is not None:
            found.append(why)
        if number % 50 == 49:
            gc.collect()
    gc.enable()
    gc.unfreeze()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m support.hunt", description="Hunt for faults in simulated runs.")
    parser.add_argument("--seeds", type=int, default=100_000, help="number of runs (default: 100000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes (default: cores)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="make one run, and print everything that happens")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        play(options.replay, lambda text: sys.stdout.write(f"{text}\n"))
        sys.stdout.write("no rule was broken\n")
        return 0
    begun_at, done, found = time.monotonic(), 0, 0
    last = options.first + options.seeds
    chunks = [range(first, min(first + CHUNK, last)) for first in range(options.first, last, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for chunk, whys in zip(chunks, pool.imap(failures, chunks), strict=True):
            done += len(chunk)
            found += len(whys)
            for why in whys:
                sys.stdout.write(f"{why}\n\n")
                sys.stdout.flush()
    seconds = time.monotonic() - begun_at
    sys.stdout.write(
        f"{done} runs in {seconds:.0f} s ({done / seconds:.0f}/s on {options.jobs} cores): {found} failed\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
