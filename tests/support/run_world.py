"""A complete run on a simulated network. The state machines of shards, workers and the supervisor are the real ones.

Three other parts are real, too: the supervisor's questions to the shards (``ps/control.py``), the end of a run
(``supervisor/ending.py``), and the choice of the version to resume from (``supervisor/salvage.py``).
``support/hunt.py`` causes faults, from seeds.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast
from unittest.mock import patch

from support.protocol_journal import Journal
from support.protocol_model import LAYOUT, RUN, SECRET, SUPERVISOR, Link, ShardHost, WorkerHost
from support.protocol_world import World

from zmqrl.commands.inspect.check_history import disagreements
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.events import Exited
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps import control as control_module
from zmqrl.ps.control import NoAnswer, ShardControl
from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.shard.events import Totals
from zmqrl.ps.shard.history_rules import Line, broken_rules
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import ending
from zmqrl.supervisor import events as e
from zmqrl.supervisor.checkpointer import Checkpointer
from zmqrl.supervisor.ending import stop_shards
from zmqrl.supervisor.machine import Limits, ScheduleEnd, SupervisorMachine
from zmqrl.supervisor.salvage import Damaged, Gone, to_save

if TYPE_CHECKING:
    from zmqrl.checkpoint import Checkpoint

STOP_WITHIN_S = 30.0  # in virtual time, whatever a test sets for real runs
OUTCOMES = ("used", "late", "duplicate", "rejected")


class Killed(BaseException):
    """The supervisor was killed, and its host ends all processes that it started."""


class Failed(ClusterError):
    """The supervisor has decided that the run cannot continue."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint. ``totals`` counts the contributions of all shards up to this checkpoint."""

    version: int
    generation: int
    weights: tuple[int, ...]
    totals: Totals

    def version_of(self, shard: int) -> int:
        return self.version


class ControlPath:
    """The connection between the supervisor and one shard. This class replaces a DEALER socket.

    Messages arrive in order, or are lost with the connection. A new connection is a new peer for the shard.
    """

    def __init__(self, world: "RunWorld", shard: ShardHost) -> None:
        self.world, self.shard = world, shard
        self.cut = False
        self.peer = SUPERVISOR
        self.out: deque[tuple[m.FromSupervisor, bytes | None]] = deque()
        self.back: deque[tuple[m.ToSupervisor, bytes | None]] = deque()
        self.reconnect()

    def reconnect(self, *, arrived: bool = False) -> None:
        """Replace the connection. With ``arrived``, answers in transit still arrive."""
        self.peer = b"%s %d" % (SUPERVISOR, self.world.number())
        self.out.clear()
        if not arrived:
            self.back.clear()

    def deliver(self, queue: deque[tuple[m.FromSupervisor, bytes | None]]) -> None:
        """Deliver the oldest message to the shard."""
        message, payload = queue.popleft()
        self.shard.feed(shard_events.ControlArrived(self.peer, message, payload))

    def poll(self, milliseconds: int) -> bool:
        if not self.back:
            self.world.wait(milliseconds / 1000)
        return bool(self.back)


def _never(text: str) -> None:
    raise AssertionError(f"a message was ignored: {text}")


class SimulatedControl(ShardControl):
    """The supervisor's real questions and answers, on simulated connections."""

    def __init__(self, world: "RunWorld", other: Any) -> None:
        self.run, self.layout, self.secret, self.other = RUN, LAYOUT, SECRET, other
        self.warn, self._ignored = _never, framing.Ignored()
        self.incarnation = world.number()
        self.world = world
        self.sockets = cast(Any, world.paths)
        self.poller = cast(Any, self)

    def poll(self, milliseconds: int) -> list[tuple[ControlPath, int]]:
        """Stand in for a zmq.Poller: let the world continue until a message arrives or the time is over."""
        if milliseconds and not any(path.back for path in self.world.paths):
            self.world.wait(milliseconds / 1000)
        return [(path, 1) for path in self.world.paths if path.back]

    def send(self, shard: int, message: m.FromSupervisor, payload: bytes | None = None) -> bool:
        path = self.world.paths[shard]
        if path.cut or path.shard.machine is None:
            return False
        path.out.append((message, payload))
        return True

    def _read(self, socket: Any) -> Iterator[tuple[m.ToSupervisor, bytes | None]]:
        while socket.back:
            yield socket.back.popleft()


class Session:
    """One session of the supervisor: it carries out the machine's decisions with simulated processes."""

    def __init__(self, world: "RunWorld", checkpoint: Saved) -> None:
        self.world, self.checkpoint = world, checkpoint
        shards = len(world.shards)
        self.machine = SupervisorMachine(
            run=RUN,
            checkpoint=(checkpoint.version,) * shards,
            generation=max(checkpoint.generation, *(shard.last_made()[0] for shard in world.shards)),
            ranks=world.ranks,
            quorum=world.quorum,
            on_loss=world.on_loss,
            limits=Limits(updates=world.updates),
            local_ranks=[rank for rank in range(world.ranks) if rank not in world.external],
            checkpoint_every_s=world.checkpoint_every_s,
            schedule_end=ScheduleEnd(minutes=1.0),
        )
        self.alive: set[ProcessId] = set()
        self.started: list[int] = []  # shards that have bound their sockets since the last turn
        self.misused: set[int] = set()  # ranks of workers that ended with a usage error
        self.loads = self.checkpoints = self.told = 0
        self.loading = True  # a rollback has begun and is not complete
        self.stop = False
        self.reason: e.Reason | None = None
        self.over = False
        self._actions: deque[e.Action] = deque()
        self.control = SimulatedControl(world, self._arrived)
        self._actions.extend(self.machine.begin(world.now))

    @property
    def lacks_workers(self) -> bool:
        """Whether usage errors may have left too few workers. Some of these workers may be back."""
        needed = self.world.quorum if self.world.on_loss == "wait" else 1
        return self.world.ranks - len(self.misused) < needed

    @property
    def view(self) -> shard_events.View:
        return self.machine.membership.view

    @property
    def generation(self) -> int:
        return self.machine.shards.generation

    def peer(self, shard: int) -> bytes:
        return self.world.paths[shard].peer

    def hear(self, shard: int, message: m.ToSupervisor, payload: bytes | None = None) -> None:
        if not self.world.paths[shard].cut:
            self.world.paths[shard].back.append((message, payload))

    def turn(self) -> None:
        """Stands in for ``Supervisor._turn``. Raises Failed if the machine gives the run up."""
        if self.machine.state != "starting":
            for shard, message in self.control.arrivals(0.0):
                self._arrived(shard, message)
        self.look_after()
        if self.reason is not None:
            self._finish()

    def look_after(self) -> None:
        """Report the work of workers and the processes that have died, give the machine a tick, and carry out its
        decisions.
        """
        living = {shard_id(shard.number) for shard in self.world.shards if shard.machine is not None}
        living |= {worker_id(worker.rank) for worker in self.world.workers if worker.alive}
        statuses = {
            worker_id(worker.rank): 0 if worker.state == "ended" else worker.exit_status
            for worker in self.world.workers
        }
        for shard in self.started:
            self._feed(e.ShardBound(shard))
        self.started = []
        for worker in self.world.workers:
            self._feed(e.WorkerReported(worker.rank, worker.incarnation, worker.done))
        for process in sorted(self.alive - living):
            self.alive.discard(process)
            exited = Exited(process, statuses.get(process, -9), "", 1.0)
            if exited.status == UsageError.exit_status:
                self.misused.add(process.number)
            self._feed(exited)
        self._feed(e.Tick())
        while self._actions:
            self._do(self._actions.popleft())

    def interrupt(self) -> None:
        self._feed(e.Interrupted())

    def _feed(self, event: e.Event) -> None:
        self._actions.extend(self.machine.handle(event, self.world.now))

    def _arrived(self, shard: int, message: m.Message) -> None:
        if isinstance(message, m.Welcome | m.Stats | m.Lost):
            self._feed(e.ShardSaid(shard, message))

    def _do(self, action: e.Action) -> None:
        match action:
            case e.StartProcess(process):
                self.alive.add(process)
                self._start(process)
            case e.KillProcess(ProcessId("shard", shard)):
                self.world.kill_shard(self.world.shards[shard], arrived=True)
            case e.KillProcess(ProcessId("worker", rank)):
                if self.world.workers[rank].alive and rank not in self.world.external:
                    self.world.workers[rank].die()
            case e.Connect():
                self._feed(e.Connected())
            case e.AskShard(shard, greet):
                self.control.send(shard, self.control.hello() if greet else m.StatsRequest(run=RUN))
            case e.TellShard(shard, m.Elapsed() as message):
                self.told += 1
                if self.told % 3:  # every third message is lost
                    self.control.send(shard, message)
            case e.TellShard(shard, message):
                self.control.send(shard, message)
            case e.LoadCheckpoint():
                self._load(action)
            case e.TakeCheckpoint(version):
                self._take_checkpoint(version)
            case e.EndRun(reason):
                self.reason = reason
            case e.Fail(why):
                raise Failed(why)

    def _start(self, process: ProcessId) -> None:
        if process.role == "worker":
            needs_all = self.world.on_loss == "wait" and self.world.quorum == self.world.ranks
            is_over = self.machine.state in ("stopping", "ending")
            assert is_over or not (needs_all and self.misused), "the run goes on after a usage error that must end it"
            return self.world.start_worker(process.number)
        self.world.shards[process.number].start()
        return self.started.append(process.number)

    def _load(self, load: e.LoadCheckpoint) -> None:
        self.loads += 1
        if not self.loading:
            assert self.world.state_lost, "a rollback although no shard has lost its state"
        self.loading, checkpoint, view = True, self.checkpoint, load.view
        self.world.judge()
        self.world.state_lost = False
        try:
            for shard, weights in enumerate(checkpoint.weights):
                about = (load.generation, checkpoint.version, view.id, view.quorum, view.members)
                self.control.load(shard, *about, b"%d" % weights, elapsed=load.elapsed)
        except ClusterError as error:
            return self._feed(e.CheckpointNotLoaded(str(error)))
        self.loading = False
        return self._feed(e.CheckpointLoaded())

    def _take_checkpoint(self, version: int) -> None:
        totals = [stats.captured_totals for stats in self.machine.shards.stats.values()]
        try:
            self._save(version, totals)
        except ClusterError as error:
            return self._feed(e.CheckpointFailed(version, str(error)))
        return self._feed(e.CheckpointWritten((version,) * len(self.world.shards)))

    def _save(self, version: int, totals: Sequence[tuple[int, ...]]) -> None:
        generation = self.machine.shards.generation
        weights = tuple(int(self.control.fetch(shard, version)) for shard in range(len(self.world.shards)))
        used, late, duplicate, rejected = map(sum, zip(*totals, strict=True))
        self.checkpoint = Saved(version, generation, weights, (used, late, duplicate, rejected))
        self.checkpoints += 1

    def _finish(self) -> None:
        """Stands in for ``Supervisor._finish``."""
        over = e.Fail | e.EndRun | e.LoadCheckpoint | e.TakeCheckpoint
        self._actions = deque(action for action in self._actions if not isinstance(action, over))
        self._feed(e.Ending())
        checkpointer = Checkpointer(control=self.control, directory=cast(Any, None), model=cast(Any, None), keep=1)
        give_up_at, numbers = self.world.now + 3 * STOP_WITHIN_S, self.machine.shards.numbers
        while True:
            try:
                limit = self.world.updates
                versions, stopped = stop_shards(self.control, numbers, STOP_WITHIN_S, self.look_after, limit=limit)
                for shard, stats in stopped.items():
                    self._feed(e.ShardSaid(shard, stats))
                held = checkpointer.capture(versions, self.look_after)
                self._save(versions[0], [held[shard].captured_totals for shard in numbers])
                break
            except ClusterError as error:
                if self.machine.shards.rollback is not None or self.world.now >= give_up_at:
                    raise
                for shard in error.shards if isinstance(error, NoAnswer) else ():
                    self.world.kill_shard(self.world.shards[shard], arrived=True)
        self.over = True


class RunWorld(World):
    """Shards and workers as in :class:`World`, under the real supervisor's decisions.

    ``external`` ranks belong to workers that the supervisor does not start. ``updates`` is the version at which the run
    ends.
    """

    def __init__(
        self,
        *,
        shards: int,
        workers: int,
        quorum: int,
        on_loss: Literal["wait", "shrink"] = "wait",
        external: Sequence[int] = (),
        updates: int | None = None,
        checkpoint_every_s: float = 20.0,
        consistent: bool = False,
    ) -> None:
        self.ranks, self.quorum, self.on_loss, self.external = workers, quorum, on_loss, external
        self.updates, self.checkpoint_every_s = updates, checkpoint_every_s
        self.clock_ms = 0  # how far the wall clock has been set forward
        self.zombies: list[WorkerHost] = []  # external workers whose rank was given to another process
        self.state_lost = False  # since the last rollback
        self.pulse: Callable[[float], None] = lambda seconds: self.calm(max(seconds, 0.25))
        super().__init__(shards=shards, workers=workers, quorum=quorum, consistent=consistent)
        for worker in self.workers:
            worker.die()
        for shard in self.shards:
            shard.crash()
        self.links = []
        self.paths = [ControlPath(self, shard) for shard in self.shards]
        self._begin(Saved(0, 0, tuple(100 + shard.number for shard in self.shards), (0, 0, 0, 0)))

    def _begin(self, checkpoint: Saved) -> None:
        self.journal = Journal()
        for path in self.paths:
            path.cut = False
            path.reconnect()
        self.supervisor: Session = Session(self, checkpoint)  # type: ignore[assignment]
        for rank in self.external:
            self.start_worker(rank)

    # what can happen

    def wait(self, seconds: float) -> None:
        """Something happens while the supervisor waits for an answer."""
        self.pulse(seconds)

    def calm(self, seconds: float) -> None:
        """All messages arrive, all workers compute, and time passes. The supervisor does nothing."""
        for place, queue in self.deliverable():
            for _ in range(len(queue)):
                if queue:
                    place.deliver(queue)
        for worker in self.workers:
            if not worker.paused:
                worker.act()
        self.pass_time(seconds if self.is_moving() else max(seconds, 1.0))
        self.links = [link for link in self.links if link.worker.alive or any(link.queues())]

    def deliverable(self) -> list[tuple[Link | ControlPath, deque[Any]]]:
        """The messages in transit to processes that are not stopped, by connection and direction."""
        found: list[tuple[Link | ControlPath, deque[Any]]] = [
            (path, path.out) for path in self.paths if path.out and not path.shard.paused
        ]
        for link, queue in self.queues():
            to_worker = queue is link.publications or queue is link.answers
            if not (link.worker.paused if to_worker else link.shard.paused):
                found.append((link, queue))
        return found

    def is_moving(self) -> bool:
        """Whether messages are in transit, or workers compute."""
        return bool(self.deliverable()) or any(worker.state == "computing" for worker in self.workers)

    def round(self) -> None:
        """The supervisor checks the shards, messages arrive, workers compute."""
        self.supervisor.turn()
        self.calm(0.25)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for shard in self.shards:
            if not shard.paused:
                shard.feed(shard_events.Tick())
        for worker in (*self.workers, *self.zombies):
            if not worker.paused:
                worker.tick()

    def start_worker(self, rank: int) -> None:
        """Start a process with this rank. An external worker gets its incarnation from the wall clock."""
        old = next((worker for worker in self.workers if worker.rank == rank), None)
        if old is not None and old.alive:
            if rank not in self.external:
                return
            self.zombies.append(old)
        incarnation = 10**6 + self.number() + (self.clock_ms if rank in self.external else 0)
        self.workers[rank] = WorkerHost(self, rank, incarnation)

    def may_be_refused(self, worker: WorkerHost) -> bool:
        return worker.rank in self.external

    def kill_shard(self, shard: ShardHost, *, arrived: bool) -> None:
        shard.crash(arrived=arrived)
        self.paths[shard.number].reconnect(arrived=arrived)

    def lose_state(self, shard: ShardHost) -> None:
        """The shard dies and its disk is lost."""
        self.kill_shard(shard, arrived=True)
        shard.slots, shard.captured = [], None
        self.state_lost = True

    def damage_state(self, shard: ShardHost) -> None:
        """The shard dies, and its newest version is damaged."""
        self.kill_shard(shard, arrived=True)
        if shard.slots:
            self.state_lost = True
            lost = shard.slots.pop().record
            if lost.ranks and (
                not shard.history or shard.history[-1]["version"] < lost.version
            ):  # it was not published
                del self.journal.committed[lost.generation, shard.number, lost.version]

    def kill_supervisor(self) -> None:
        """The supervisor and all its processes die. A new session resumes the run from what the shards have left."""
        for worker in (*self.workers, *self.zombies):
            if worker.alive:
                worker.die()
        for shard in self.shards:
            shard.crash()
        self.links, self.zombies = [], []
        self.judge()
        self.journal.check()
        checkpoint = self._salvaged(self.supervisor.checkpoint)
        for shard in self.shards:
            shard.crash()
            shard.slots = []
        self.state_lost = False
        self._begin(checkpoint)

    def _salvaged(self, checkpoint: Saved) -> Saved:
        """Stands in for ``supervisor/salvage.py``, and makes the same decision."""
        if any(not shard.slots for shard in self.shards):  # a state file is missing, or was never written
            assert self.state_lost or self.supervisor.loading
            return checkpoint
        stood = min(shard.at()[1] for shard in self.shards)
        for shard in self.shards:
            shard.start(frozen=True)
        machines = {shard.number: shard.machine for shard in self.shards if shard.machine is not None}
        welcomes = {number: machine._welcome() for number, machine in machines.items()}
        made = {shard.number: shard.history[-1]["version"] if shard.history else 0 for shard in self.shards}
        try:
            versions = to_save(welcomes, made, cast("Checkpoint", checkpoint), together=True)
        except (Gone, Damaged):
            assert self.state_lost or self.supervisor.loading, "nobody lost the state that cannot be saved"
            return checkpoint
        assert self.state_lost or self.supervisor.loading or (versions or {0: checkpoint.version})[0] >= stood
        if versions is None:
            return checkpoint
        version, totals = versions[0], []
        for shard in self.shards:
            machines[shard.number]._checkpoint(version)
            totals.append(machines[shard.number].captured_totals)
        weights = [
            next(s.weights for s in reversed(shard.slots) if s.record.version == version) for shard in self.shards
        ]
        used, late, duplicate, rejected = map(sum, zip(*totals, strict=True))
        return Saved(version, welcomes[0].generation, tuple(weights), (used, late, duplicate, rejected))

    # what must hold

    def lines(self) -> dict[int, list[Line]]:
        """The histories of the shards, as ``zmqrl check-history`` reads them."""
        found = {}
        for shard in self.shards:
            read = [Line.of(number, line) for number, line in enumerate(shard.history, start=1)]
            assert None not in read
            found[shard.number] = cast("list[Line]", read)
        return found

    def judge(self, *, ended: bool = False) -> None:
        """Apply the rules of ``zmqrl check-history``. If the run has ``ended``, also check its last checkpoint."""
        histories = self.lines()
        assert list(broken_rules(histories, together=True)) == []
        if ended:
            last = self.supervisor.checkpoint
            summary = {"updates": last.version, "contributions": dict(zip(OUTCOMES, last.totals, strict=True))}
            assert list(disagreements(histories, summary, together=True)) == []
            for shard, lines in histories.items():
                if lines and last.weights:
                    assert lines[-1].crc32 == last.weights[shard], "the checkpoint has other weights"
            self.journal.check()

    def heal(self) -> None:
        """End all faults. The supervisor restarts its processes, and users restart external workers."""
        for link in self.links:
            link.cut = False
        for path in self.paths:
            if path.cut:
                path.cut = False
                path.reconnect()
        self.resume()
        for shard in self.shards:
            shard.crash_after, shard.torn = None, False
        for zombie in self.zombies:
            if zombie.alive:
                zombie.die()
        for rank in self.external:
            if not self.workers[rank].alive and not self.supervisor.over:
                self.start_worker(rank)
        for link in self.links:
            link.connect()

    def resume(self) -> None:
        """Continue all processes that are stopped."""
        for shard in self.shards:
            shard.paused = False
        for worker in (*self.workers, *self.zombies):
            worker.paused = False

    def must_get_on(self, versions: int = 2, within_s: float = 150.0) -> None:
        """Assert that every shard makes more versions, or that the run ends, soon after the faults.

        Loading a checkpoint does not count.
        """
        before, until = [shard.updates for shard in self.shards], self.now + within_s
        while self.now < until:
            self.heal()
            self.round()
            made = [shard.updates - earlier for shard, earlier in zip(self.shards, before, strict=True)]
            if min(made) >= versions or self.supervisor.over:
                return
        raise AssertionError(f"stuck: {self.where()}")

    def must_end(self, within_s: float = 150.0) -> None:
        """Assert that the run ends after Ctrl-C, with a checkpoint and a summary that agree with the histories."""
        until = self.now + within_s
        if not self.supervisor.over:
            self.supervisor.interrupt()
        while not self.supervisor.over:
            assert self.now < until, f"does not end: {self.where()}"
            self.heal()
            self.round()
        for shard in self.shards:
            shard.rewind(self.supervisor.checkpoint.version, self.supervisor.generation + 1)
        self.judge(ended=True)

    def where(self) -> str:
        machine = self.supervisor.machine
        known = f"supervisor: {machine.state}, {machine.shards.rollback}, {sorted(machine.shards.down)} down"
        return f"{super().where()}\n{known}, {sorted(map(str, machine.processes.running))}"


@contextlib.contextmanager
def virtual_time(world: RunWorld) -> Iterator[None]:
    """Make the supervisor's waits take virtual time, during which the world continues."""
    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=world.wait)
    with patch.object(control_module, "time", clock), patch.object(ending, "time", clock):
        yield
