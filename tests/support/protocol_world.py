"""A complete run with a supervisor, on a simulated network that loses, delays and repeats messages."""

from collections import deque
from typing import Any

from support.protocol_journal import Journal, Slice
from support.protocol_model import LAYOUT, RUN, SECRET, SUPERVISOR, Link, ShardHost, WorkerHost
from support.stand_ins import received

from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.wire import messages as m

ROUND_S = 0.25
MOST_ROUNDS = 600
HELLO = m.Hello(run=RUN, layout=LAYOUT, role="supervisor", rank=0, incarnation=1, host="host", pid=1, secret=SECRET)


class Supervisor:
    """Stands in for ``supervisor/supervisor.py``: sends its messages to one shard at a time."""

    def __init__(self, world: "World", workers: int, quorum: int) -> None:
        self.world = world
        self.view = shard_events.View(1, quorum, tuple(range(workers)))
        self.generation = 1
        self.checkpoint = (0, [100 + shard.number for shard in world.shards])
        self.loaded: set[int] = set()
        self.seen = dict.fromkeys(range(len(world.shards)), 0)
        self.stats: dict[int, m.Stats] = {}
        self.stop = False
        self.elapsed = 0
        self.wanted: int | None = None

    def peer(self, shard: int) -> bytes:
        return SUPERVISOR

    def hear(self, shard: int, message: m.ToSupervisor, payload: bytes | None = None) -> None:
        if isinstance(message, m.Stats):
            self.stats[shard] = message

    def visit(self, shard: ShardHost) -> None:
        """Ask one shard for its state, and send the messages that it lacks."""
        n = shard.number
        if shard.machine is None:
            return
        if shard.machine.roster.supervisor is None:
            self._tell(shard, HELLO)
        self._tell(shard, m.Elapsed(run=RUN, elapsed=self.elapsed))
        stats = self._tell(shard, m.StatsRequest(run=RUN))
        if stats is None:
            return
        if stats.state == "empty" or stats.generation != self.generation or stats.version < self.seen[n]:
            self._load(shard)
            return
        self.seen[n] = stats.version
        if stats.view != self.view.id:
            view = self.view
            self._tell(shard, m.ViewChange(run=RUN, view=view.id, quorum=view.quorum, members=view.members))
        if self.stop or stats.state == "ended":
            self._tell(shard, m.Stop(run=RUN, version=max(self.seen.values()) if self.stop else None))
        self._take_checkpoint(shard, stats)

    def change_quorum(self, quorum: int) -> None:
        self.view = shard_events.View(self.view.id + 1, quorum, self.view.members)

    def _tell(self, shard: ShardHost, message: m.FromSupervisor, payload: bytes | None = None) -> m.Stats | None:
        self.stats.pop(shard.number, None)
        shard.feed(shard_events.ControlArrived(SUPERVISOR, message, payload))
        return self.stats.get(shard.number)

    def _load(self, shard: ShardHost) -> None:
        if shard.number in self.loaded:  # the shard has lost the state of this generation, so all shards roll back
            self.generation += 1
            self.loaded.clear()
            self.seen = dict.fromkeys(self.seen, self.checkpoint[0])
            self.wanted = None
        version, weights = self.checkpoint
        load = m.Load(
            run=RUN,
            generation=self.generation,
            version=version,
            view=self.view.id,
            quorum=self.view.quorum,
            members=self.view.members,
            offset=0,
            total=1,
            elapsed=self.elapsed,
        )
        self.loaded.add(shard.number)
        self._tell(shard, load, b"%d" % weights[shard.number])

    def _take_checkpoint(self, shard: ShardHost, stats: m.Stats) -> None:
        if self.wanted is None:
            return
        if stats.version > self.wanted and stats.captured != self.wanted:
            self.wanted = None
            return
        if stats.captured != self.wanted:
            self._tell(shard, m.Checkpoint(run=RUN, version=self.wanted))
        due = self.generation, self.wanted
        copies = [shard.captured for shard in self.world.shards if shard.captured is not None]
        if [(copy.record.generation, copy.record.version) for copy in copies] == [due] * len(self.world.shards):
            self.checkpoint = self.wanted, [copy.weights for copy in copies]
            self.wanted = None


class World:
    """Shards, workers, a supervisor, and all messages in transit between them."""

    def __init__(
        self, *, shards: int, workers: int, quorum: int, consistent: bool = False, horizon: float | None = None
    ) -> None:
        self.now = 0.0
        self.horizon = horizon
        self.consistent = consistent
        self.journal = Journal()
        self.numbers = 0
        self.ends: set[int] = set()
        self.links: list[Link] = []
        self.shards = [ShardHost(self, number) for number in range(shards)]
        self.supervisor = Supervisor(self, workers, quorum)
        for shard in self.shards:
            shard.start()
        self.workers = [WorkerHost(self, rank) for rank in range(workers)]

    def may_be_refused(self, worker: WorkerHost) -> bool:
        """Whether the shards have a reason to refuse this worker."""
        return False

    def number(self) -> int:
        """A new, larger number for an incarnation or a connection."""
        self.numbers += 1
        return self.numbers

    # what can happen

    def queues(self) -> list[tuple[Link, "deque[Any]"]]:
        """The messages in transit, by link and direction."""
        return [(link, queue) for link in self.links for queue in link.queues() if queue]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for shard in self.shards:
            shard.feed(shard_events.Tick())
        for worker in self.workers:
            worker.tick()

    def restart_worker(self, rank: int) -> None:
        """Replace the process of a worker that died, or that ended before a STOP was cancelled."""
        if not self.workers[rank].alive and (self.workers[rank].state == "dead" or not self.supervisor.stop):
            self.workers[rank] = WorkerHost(self, rank)

    def forge(self, header: m.Gradient, payload_bytes: int = 4, *, finite: bool = True) -> None:
        """Deliver an unusable contribution to the shard that the contribution names."""
        payload = Slice(header.rank, header.generation, header.version, header.shard, forged=True)
        shard = self.shards[header.shard % len(self.shards)]
        shard.feed(shard_events.GradientArrived(header, received(payload), payload_bytes, lambda: finite))

    def round(self) -> None:
        """One step for all processes: the supervisor asks each shard, messages arrive, workers compute."""
        for shard in self.shards:
            self.supervisor.visit(shard)
        for link, queue in self.queues():
            for _ in range(len(queue)):
                if queue:
                    link.deliver(queue)
        for worker in self.workers:
            worker.act()
        self.pass_time(ROUND_S)
        self.links = [link for link in self.links if link.worker.alive or any(link.queues())]

    # what must hold at the end

    def heal(self) -> None:
        """End all faults: restart dead processes, and restore broken connections."""
        for link in self.links:
            link.cut = False
        for shard in self.shards:
            shard.crash_after = None
            shard.start()
        for worker in self.workers:
            self.restart_worker(worker.rank)
        for link in self.links:
            link.connect()

    def must_get_on(self, versions: int = 2) -> None:
        """Assert that every shard makes more versions after the faults. Loading a checkpoint does not count."""
        before = [shard.updates for shard in self.shards]
        for _ in range(MOST_ROUNDS):
            self.heal()
            self.round()
            if all(shard.updates - made >= versions for shard, made in zip(self.shards, before, strict=True)):
                return
        raise AssertionError(f"stuck: {self.where()}")

    def ended(self) -> bool:
        """Whether all shards have ended at the same version."""
        machines = [shard.machine for shard in self.shards]
        ends = {(machine.generation, machine.version) for machine in machines if machine is not None}
        return all(machine is not None and machine.state == "ended" for machine in machines) and len(ends) == 1

    def must_end(self) -> None:
        """Assert that all shards end at the same version after STOP, and that every worker learns of the end."""
        self.supervisor.stop = True
        for _ in range(MOST_ROUNDS):
            self.heal()
            self.round()
            if self.ended() and not any(worker.alive for worker in self.workers):
                return
        raise AssertionError(f"does not end: {self.where()}")

    def where(self) -> str:
        """The state of all processes as text for a failed assertion."""
        lines = [f"{self.now:.2f} s, supervisor: {self.supervisor.view}, generation {self.supervisor.generation}"]
        for shard in self.shards:
            if shard.machine is not None:
                machine, held = shard.machine, sorted(shard.machine.contributions.held)
                lines.append(f"shard {shard.number}: {machine.state} {shard.at()} {machine.view} {held} {machine.stop}")
        for worker in self.workers:
            lines.append(f"worker {worker.rank}.{worker.incarnation}: {worker.state} above {worker.above}")
            lines += [f"    {shard}" for shard in worker.machine.shards if worker.alive]
        return "\n".join(lines)
