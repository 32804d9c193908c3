"""A complete run on a simulated network, controlled by the state machine of the real supervisor."""

from typing import Literal

from support.protocol_model import RUN, SUPERVISOR, ShardHost
from support.protocol_world import HELLO, World

from zmqrl.hosts.launcher import Exited
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e
from zmqrl.supervisor.machine import Limits, ScheduleEnd, SupervisorMachine


class Decided:
    """Carries out the machine's decisions with simulated processes, and reports every death to the machine."""

    def __init__(self, world: World, workers: int, quorum: int, on_loss: Literal["wait", "shrink"]) -> None:
        self.world = world
        shards = len(world.shards)
        self.machine = SupervisorMachine(
            checkpoint=(0,) * shards,
            generation=0,
            ranks=workers,
            quorum=quorum,
            on_loss=on_loss,
            limits=Limits(),
            local_ranks=range(workers),
            checkpoint_every_s=20.0,
            schedule_end=ScheduleEnd(minutes=1.0),
        )
        self.told = 0  # how often progress was sent
        self.checkpoint = [100 + shard.number for shard in world.shards]
        self.alive: set[ProcessId] = set()
        self.failed: list[str] = []
        self.loads = self.checkpoints = 0
        self._take(self.machine.begin(world.now))
        for shard in range(shards):
            self.feed(e.ShardBound(shard))

    @property
    def stop(self) -> bool:
        return self.machine.shards.stop_at is not None

    @stop.setter
    def stop(self, stop: bool) -> None:
        self.machine.shards.stop_at = max(self.machine.shards.seen.values()) + 2 if stop else None

    def feed(self, event: e.Event) -> None:
        self._take(self.machine.handle(event, self.world.now))

    def hear(self, shard: int, message: m.Message) -> None:
        if isinstance(message, m.Welcome | m.Stats | m.Lost):
            self.feed(e.ShardSaid(shard, message))

    def tick(self) -> None:
        """Report the processes that have died, then give the machine a tick."""
        living = {shard_id(shard.number) for shard in self.world.shards if shard.machine is not None}
        living |= {worker_id(worker.rank) for worker in self.world.workers if worker.alive}
        for process in sorted(self.alive - living):
            self.alive.discard(process)
            self.feed(e.ProcessDied(Exited(process, -9, "", 1.0)))
        self.feed(e.Tick())

    def _take(self, actions: list[e.Action]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: e.Action) -> None:
        match action:
            case e.StartProcess(process):
                self.alive.add(process)
                if process.role == "shard":
                    self.world.shards[process.number].start()
                elif process.number < len(getattr(self.world, "workers", ())):
                    self.world.restart_worker(process.number)
            case e.KillProcess(ProcessId("shard", shard)):
                self.world.shards[shard].crash(arrived=True)
            case e.Connect():
                self.feed(e.Connected())
            case e.AskShard(shard, greet):
                self._tell(shard, HELLO if greet else m.StatsRequest(run=RUN))
            case e.TellView(shard, view):
                self._tell(shard, m.ViewChange(run=RUN, view=view.id, quorum=view.quorum, members=view.members))
            case e.TellStop(shard, version):
                self._tell(shard, m.Stop(run=RUN, version=version))
            case e.TellElapsed(shard, elapsed):
                self.told += 1
                if self.told % 3:  # every third message is lost
                    self._tell(shard, m.Elapsed(run=RUN, elapsed=elapsed))
            case e.SetAside(shard, version):
                self._tell(shard, m.Checkpoint(run=RUN, version=version))
            case e.Load():
                self._load(action)
            case e.TakeCheckpoint(version):
                self._take_checkpoint(version)
            case e.Fail(why):
                self.failed.append(why)

    def _tell(self, shard: int, message: m.Message, payload: bytes | None = None) -> None:
        self.world.shards[shard].feed(shard_events.ControlArrived(SUPERVISOR, message, payload))

    def _load(self, load: e.Load) -> None:
        self.loads += 1
        for shard, weights in zip(self.world.shards, self.checkpoint, strict=True):
            if shard.machine is None:
                return self.feed(e.NotLoaded(f"shard {shard.number} is down"))
            message = m.Load(
                run=RUN,
                generation=load.generation,
                version=self.machine.shards.checkpoint[shard.number],
                view=load.view.id,
                quorum=load.view.quorum,
                members=load.view.members,
                offset=0,
                total=1,
                elapsed=load.elapsed,
            )
            self._tell(shard.number, HELLO)
            self._tell(shard.number, message, b"%d" % weights)
            if shard.at()[0] != load.generation:
                return self.feed(e.NotLoaded(f"shard {shard.number} did not answer"))
        return self.feed(e.Loaded())

    def _take_checkpoint(self, version: int) -> None:
        copies = [shard.captured for shard in self.world.shards]
        if any(copy is None or copy.record.version != version for copy in copies):
            return self.feed(e.CheckpointFailed(version, "a shard has no copy"))
        self.checkpoints += 1
        self.checkpoint = [copy.weights for copy in copies if copy is not None]
        return self.feed(e.CheckpointWritten((version,) * len(copies)))


class RunWorld(World):
    """Shards and workers as in :class:`World`. The machine alone restarts processes."""

    def __init__(self, *, shards: int, workers: int, quorum: int, on_loss: Literal["wait", "shrink"] = "wait") -> None:
        super().__init__(shards=shards, workers=workers, quorum=quorum)
        self.supervisor: Decided = Decided(self, workers, quorum, on_loss)  # type: ignore[assignment]
        self.supervisor.alive |= {worker_id(rank) for rank in range(workers)}

    def round(self) -> None:
        """The supervisor checks the shards, messages arrive, workers compute."""
        self.supervisor.tick()
        for link, queue in self.queues():
            for _ in range(len(queue)):
                if queue:
                    link.deliver(queue)
        for worker in self.workers:
            worker.act()
        self.pass_time(0.25)
        self.links = [link for link in self.links if link.worker.alive or any(link.queues())]

    def heal(self) -> None:
        """End all faults by restoring connections. The supervisor restarts processes."""
        for link in self.links:
            link.cut = False
        for shard in self.shards:
            shard.crash_after = None
        for link in self.links:
            link.connect()

    def lose_state(self, shard: ShardHost) -> None:
        """The shard dies and its disk is lost."""
        shard.crash(arrived=True)
        shard.slots, shard.captured = [], None
