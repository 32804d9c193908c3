"""The decisions of a run's supervisor, as a state machine: events in, actions out. No sockets, clock or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from zmqrl.errors import USER_CODE_FAILED, ClusterError
from zmqrl.hosts.events import Exited, HostLost, HostUp, Inspected
from zmqrl.observe.folding import printable, quoted
from zmqrl.observe.live.presence import State
from zmqrl.observe.stalls import Awaited, Stalls
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.story import Story
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e
from zmqrl.supervisor.membership import Membership
from zmqrl.supervisor.processes import SPACE_WITHIN_S, Processes
from zmqrl.supervisor.shards import Shards

DISMISSED = (0, USER_CODE_FAILED)  # statuses of dismissed workers: closing their games may have raised an exception
ASK_EVERY_S = 0.2
ASK_AT_FIRST_EVERY_S = 0.05  # until the training time starts
GREET_AGAIN_S = 2.0
WANTED_AGAIN_S = 30.0  # for this long after a failed checkpoint, followers cannot request another
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that end a run. None means no limit."""

    updates: int | None = None
    agent_steps: int | None = None
    minutes: float | None = None
    stop_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEnd:
    """The end of schedules, in units that shards cannot measure.

    ``trained_s`` is the training time of earlier sessions, which counts as progress.
    """

    agent_steps: int | None = None
    minutes: float | None = None
    trained_s: float = 0.0


class SupervisorMachine:
    """One session of a run, from its first checkpoint to its end.

    The session is ``starting`` until the supervisor has connected to all shards, then ``running``. It is ``stopping``
    while it has a reason to stop, but cannot stop every shard yet, and ``ending`` while the shards stop. ``checkpoint``
    has the version of each shard in the first checkpoint. All times are seconds on one clock.
    """

    def __init__(
        self,
        *,
        run: str,
        checkpoint: tuple[int, ...],
        generation: int,
        ranks: int,
        quorum: int,
        on_loss: Literal["wait", "shrink"],
        limits: Limits,
        local_ranks: Sequence[int],
        checkpoint_every_s: float,
        updates_per_rollout: int = 1,
        schedule_end: ScheduleEnd | None = None,
    ) -> None:
        self.state: Literal["starting", "running", "stopping", "ending"] = "starting"
        self.run, self.limits, self.on_loss, self.ranks = run, limits, on_loss, ranks
        self.schedule_end = schedule_end or ScheduleEnd()
        self.membership = Membership(ranks, quorum, on_loss)
        self.shards = Shards(run, checkpoint, generation, limits.updates)
        self.processes = Processes()
        self.stalls = Stalls(updates_per_rollout)
        self.local_ranks = local_ranks
        self.bound: set[int] = set()
        self.figures = e.RunFigures(0, float("-inf"), 0.0)
        self.began_at: float | None = None
        self.interrupted = False
        self.checkpoint_every_s = checkpoint_every_s
        self.checkpoint_due_at = float("inf")
        self.checkpoint_version: int | None = None  # the version that shards must copy
        self._checkpoint_failed_at: float | None = None  # None once a checkpoint has been written
        self._left_at: dict[ProcessId, float] = {}  # by worker: its last exit with status 0
        self._open_at = 0.0  # when a shard last reported that it makes versions
        self._start_by: float | None = None
        self._stop_by = float("inf")
        self._asked_at = 0.0
        self._story = Story()

    @property
    def out_of_space(self) -> list[ProcessId]:
        return [process for process in map(shard_id, sorted(self.shards.down)) if self.processes.was_full(process)]

    def begin(self, now: float) -> list[e.Action]:
        """Start all shards and workers at once: the workers import their modules while the shards come up."""
        self._start_by = now + START_WITHIN_S
        self.stalls.made(min(self.shards.checkpoint), now)
        first = [*map(shard_id, self.shards.numbers), *map(worker_id, self.local_ranks)]
        return [self.processes.start(process, now) for process in first]

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Handle one event. If an invariant breaks, raises BrokenInvariant, which lists the last events."""
        if not isinstance(event, e.Tick | e.RunFigures | e.CheckpointWanted | e.WorkerReported):
            self._story.add(now, type(event), event)
        actions = self._handle(event, now)
        try:
            self.check()
        except AssertionError as error:
            raise self._story.broken("supervisor", error) from error
        return actions

    def check(self) -> None:
        """Assert the invariants that hold after every event."""
        shards = self.shards
        assert len(shards.checkpoint) == len(shards.numbers)
        assert all(shards.seen[shard] >= version for shard, version in enumerate(shards.checkpoint)), "seen goes back"
        assert not (shards.down & shards.stats.keys()), "a shard that is down has reported its state"
        assert all(stats.generation == shards.generation for stats in shards.stats.values()), "another generation"
        assert 1 <= self.membership.view.quorum <= self.ranks, "the quorum"

    def _handle(self, event: e.Event, now: float) -> list[e.Action]:
        match event:
            case e.ShardBound(shard):
                self.processes.heard(shard_id(shard), now)
                was_up = len(self.bound) == len(self.shards.numbers)
                self.bound.add(shard)
                is_up = len(self.bound) == len(self.shards.numbers)
                return [e.Connect()] if is_up and not was_up else []
            case e.Connected():
                self.state = "running"
                for shard in self.shards.numbers:  # nobody has asked them before
                    self.processes.heard(shard_id(shard), now)
                self.checkpoint_due_at = now + self.checkpoint_every_s
                return []
            case e.ShardSaid(shard, message):
                return self._on_message(shard, message, now)
            case Exited():
                return self._on_death(event, now)
            case HostLost() | HostUp():
                return self.processes.host_changed(event, now)
            case Inspected(process, doing):
                self.stalls.answered(process, doing)
                return []
            case e.WorkerReported(rank, incarnation, done):
                self.processes.reported(rank, incarnation, done)
                return []
            case e.CheckpointLoaded():
                self.checkpoint_version = None
                return [*self.shards.loaded(), e.UndoRows(self.shards.generation)]
            case e.CheckpointNotLoaded(why):
                self.shards.not_loaded = why
                return [e.Notice(f"cannot roll back yet: {why}")]
            case e.CheckpointWanted():
                failed_at = self._checkpoint_failed_at
                if failed_at is None or now - failed_at >= WANTED_AGAIN_S:
                    self.checkpoint_due_at = min(self.checkpoint_due_at, now)
                return []
            case e.CheckpointWritten(versions):
                self._checkpoint_failed_at = None
                self.shards.checkpointed(versions)
                self._next_checkpoint(now)
                return []
            case e.CheckpointFailed(version, why):
                is_first, self._checkpoint_failed_at = self._checkpoint_failed_at is None, now
                self._next_checkpoint(now)
                return [e.Notice(f"checkpoint of version {version} postponed: {why}")] if is_first else []
            case e.RunFigures():
                self.figures = event
                return []
            case e.Interrupted():
                self.interrupted = True
                return []
            case e.Ending():
                self.state = "ending"
                self.shards.stop_at = None
                return self._watch_version(now)
            case e.Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def presence(self, process: ProcessId, missing_s: Mapping[int, float], now: float) -> tuple[State, float]:
        """The state of a process, and the seconds that it has been in that state.

        ``missing_s`` has, for each rank that the open version waits for, the seconds since its last contribution.
        """
        is_worker = process.role == "worker"
        outside = is_worker and process.number not in self.local_ranks
        state, for_s = self.processes.presence(process, now, outside=outside)
        if state in ("present", "silent") and self.stalls.is_stopped(process):
            return "stopped", max(self.processes.silent_s(process, now), self.stalls.waited_s(now))
        missed_s = missing_s.get(process.number, 0.0) if is_worker else 0.0
        is_late = state == "present" and missed_s >= self.stalls.patience_s()
        return ("awaited", missed_s) if is_late else (state, for_s)

    # messages and deaths

    def _on_message(self, shard: int, message: m.Welcome | m.Stats | m.Lost, now: float) -> list[e.Action]:
        match message:
            case m.Lost():
                if self.state != "ending":
                    self.shards.on_lost(shard, message, self.membership.view.quorum)
                return []
            case m.Welcome():
                self.processes.heard(shard_id(shard), now)
                return self.shards.on_welcome(shard, message, self.membership.view)
            case m.Stats():
                self.processes.heard(shard_id(shard), now)
                self.processes.hear_workers(message, now)
                if message.state == "open":
                    self._open_at = now
                if self.shards.on_stats(shard, message):
                    self.processes.worked(shard_id(shard))
                return []
            case _:
                assert_never(message)

    def _on_death(self, exited: Exited, now: float) -> list[e.Action]:
        process = exited.process
        self.stalls.forget(process)
        if process.role not in ("shard", "worker"):  # a follower: the run continues without it
            actions = self.processes.died(exited, now)
            if process in self.processes.hopeless:
                self.processes.give_up(process)
                actions.append(e.GiveUp(process, self._hopelessness(exited, now)))
            return actions
        if process.role == "shard":
            self.shards.on_exit(process.number)
        elif self.state == "ending" and (exited.status in DISMISSED or exited.is_misuse):
            return []
        is_full = exited.is_full and self.state != "starting"
        if is_full:
            self.shards.rollback_at = None  # a rollback waits for space, too
        excused = process.role == "worker" and self._may_leave(process, exited.status, now)
        actions = self.processes.died(exited, now, excused=excused, is_full=is_full)
        hopeless = self.processes.hopeless
        workers_left = self.ranks - sum(each.role == "worker" for each in hopeless)
        needed = self.membership.view.quorum if self.on_loss == "wait" else 1
        makes_versions = self.state in ("starting", "running")  # otherwise, the run needs no worker any more
        if process in hopeless and (process.role == "shard" or (makes_versions and workers_left < needed)):
            if exited.is_misuse:
                complaint = printable(exited.complaint()) or f"{process} ended with {exited.how()}."
                return [e.Fail(complaint, misused=process)]
            if is_full:
                why = f"the disk of {process} was full for {SPACE_WITHIN_S:g} s: free some space, then use --resume."
            else:
                last_line = quoted(exited.log_tail.splitlines()[-1:])
                why = f"{process} {self._hopelessness(exited, now)} ({exited.how()}){last_line or '.'}"
            actions.append(e.Fail(why))
        return actions

    def _may_leave(self, worker: ProcessId, status: int, now: float) -> bool:
        """Whether a worker that ended with ``status`` may have had a good reason to end."""
        if status in DISMISSED and self.shards.stop_at is not None:
            # Shards dismiss workers after the last version, perhaps before the supervisor knows, so the first exit is
            # excused. If a shard reports afterwards that it is open, the worker was not dismissed, and its next exit
            # counts as a death.
            left_at, self._left_at[worker] = self._left_at.get(worker, now), now
            return self._open_at <= left_at
        # A shard can be down for longer than a worker waits for it.
        return status == ClusterError.exit_status and bool(self.shards.down)

    def _hopelessness(self, exited: Exited, now: float) -> str:
        """Why a process is no longer restarted, as a verb phrase."""
        unreachable_s = self.processes.unreachable_s(exited.process, now)
        if unreachable_s is not None:
            return f"cannot run, because its host has been unreachable for {unreachable_s:.0f} s"
        if exited.is_misuse:
            return f"ended with {exited.how()}"
        return f"died {self.processes.deaths(exited.process)} times in a row"

    # time

    def _tick(self, now: float) -> list[e.Action]:
        actions = self.processes.due(now)
        if self.state == "ending":
            rollback = self.shards.rollback
            lost = f"{rollback}, so the run cannot write its last checkpoint: use --resume."
            return actions if rollback is None else [*actions, e.Fail(lost)]
        if self.state == "starting":
            return actions + self._watch_version(now) + self._late_start(now)
        if why := self.shards.failure():
            return [*actions, e.Fail(why)]
        if now - self._asked_at >= (ASK_AT_FIRST_EVERY_S if self.began_at is None else ASK_EVERY_S):
            actions += self._look(now)
        reason = self._reason_to_stop(now)
        if reason is not None and self.state == "running":
            self.state, self._stop_by = "stopping", now + STOP_WITHIN_S
        in_vain = self.interrupted if self.out_of_space else now >= self._stop_by
        if reason is not None and (self.shards.ready or in_vain):
            actions.append(e.EndRun(reason))
        return actions

    def _late_start(self, now: float) -> list[e.Action]:
        if self._start_by is None or now < self._start_by or len(self.bound) == len(self.shards.numbers):
            return []
        missing = ", ".join(f"shard {shard}" for shard in self.shards.numbers if shard not in self.bound)
        return [e.Fail(f"{missing} did not come up within {START_WITHIN_S:g} s", see_logs=True)]

    def _look(self, now: float) -> list[e.Action]:
        """Ask the shards for their state, restart hanging processes, roll back, and decide which ranks are members."""
        shards, processes = self.shards, self.processes
        since_s = now - self._asked_at if self._asked_at else 0.0
        if since_s > GREET_AGAIN_S:  # this process was suspended, so it received no messages
            processes.pardon(since_s, now)
            self.stalls.pardon(since_s)
        elif not any(processes.silent_s(shard_id(shard), now) <= GREET_AGAIN_S for shard in shards.stats):
            processes.pardon(since_s, now, "worker")  # only shards hear workers, and none has answered
        self._asked_at = now
        processes.made(min(shards.seen.values()), now)
        self.stalls.made(min(shards.seen.values()), now)
        actions: list[e.Action] = []
        for shard in shards.numbers:
            # After a reconnect, a shard does not recognize the supervisor before HELLO.
            greet = shard in shards.down or processes.silent_s(shard_id(shard), now) > GREET_AGAIN_S
            actions.append(e.AskShard(shard, greet))
        silent, told = processes.watch_silence(now)
        for process in silent:
            if process.role == "shard":
                shards.stats.pop(process.number, None)
        if any(processes.unreachable_s(shard_id(shard), now) is not None for shard in shards.down):
            shards.rollback_at = None  # a rollback waits for lost hosts, too
        actions += told + shards.roll_back(self.membership.view, now, self.elapsed(now))
        if shards.rollback is None and shards.all_told:
            actions += self._observe_members(now) + self._checkpoint_step(now) + self._tell_elapsed(now)
        return actions + self._watch_version(now)

    def _watch_version(self, now: float) -> list[e.Action]:
        """Report the processes that a late version waits for, and ask their hosts what the processes do."""
        news = self.stalls.look(self._awaited(now), now)
        actions: list[e.Action] = [e.InspectProcess(process) for process in news.ask]
        if news.stall is not None:
            actions.append(e.ShowStall(news.stall, news.tell))
        if news.over is not None:
            actions.append(e.EndStall(news.over, news.tell))
        return actions

    def _awaited(self, now: float) -> list[Awaited]:
        """The processes that the open version waits for: shards, or workers if it waits for no shard."""
        processes = self.processes
        if self.state == "ending":
            return []
        if self.state == "starting":
            return [processes.awaited(shard_id(shard), now) for shard in self.shards.numbers if shard not in self.bound]
        if silent := [shard for shard in self.shards.numbers if shard not in self.shards.stats]:
            return [processes.awaited(shard_id(shard), now) for shard in silent]
        awaited = []
        for worker in self.shards.missing(self.membership.view.members):
            if worker.process.number not in self.local_ranks:
                awaited.append(replace(worker, is_external=True))
            else:
                known = processes.awaited(worker.process, now)
                awaited.append(worker if worker.is_there and known.unreachable_s is None else known)
        return awaited

    def _observe_members(self, now: float) -> list[e.Action]:
        stats = self.shards.stats
        alive = set.intersection(*(set(each.present) for each in stats.values()))
        updated = any(each.version > self.shards.checkpoint[shard] for shard, each in stats.items())
        self.processes.see_outside((worker_id(rank) for rank in alive if rank not in self.local_ranks), now)
        hopeless = {process.number for process in self.processes.hopeless if process.role == "worker"}
        text = self.membership.observe(alive, updated, now, hopeless)
        actions: list[e.Action] = []
        if self.began_at is None and self.membership.complete_once:
            self.began_at = now
            actions.append(e.BeginTime())
        if text is not None:
            actions.append(e.Notice(text))
        return actions + self.shards.repeat(self.membership.view)

    def elapsed(self, now: float) -> int:
        """The progress of the run in millionths, by training time or by agent steps: the greater one."""
        end, fraction = self.schedule_end, 0.0
        if end.minutes is not None:
            session_s = 0.0 if self.began_at is None else now - self.began_at
            fraction = (end.trained_s + session_s) / (60 * end.minutes)
        if end.agent_steps is not None:
            fraction = max(fraction, self.figures.agent_steps / end.agent_steps)
        return int(WHOLE * min(1.0, fraction))

    def _tell_elapsed(self, now: float) -> list[e.Action]:
        """Send the progress to every shard, repeatedly, because messages can be lost."""
        elapsed = self.elapsed(now)
        message = m.Elapsed(run=self.run, elapsed=elapsed)
        return [e.TellShard(shard, message) for shard in self.shards.numbers] if elapsed else []

    def _checkpoint_step(self, now: float) -> list[e.Action]:
        """Ask every shard to copy the same version. Fetch the copies once all shards have made them."""
        stats, wanted = self.shards.stats, self.checkpoint_version
        if now < self.checkpoint_due_at or any(each.state != "open" for each in stats.values()):
            return []
        if wanted is not None and all(each.captured == wanted for each in stats.values()):
            return [e.TakeCheckpoint(wanted)]
        if wanted is None or any(each.version > wanted and each.captured != wanted for each in stats.values()):
            # Choose a version so far ahead that the request reaches every shard in time.
            newest = max(each.version for each in stats.values())
            wanted = self.checkpoint_version = self._soon_after(newest)
        message = m.Checkpoint(run=self.run, version=wanted)
        return [e.TellShard(shard, message) for shard, each in stats.items() if each.captured != wanted]

    def _soon_after(self, version: int) -> int:
        """The version that the run will make about a second after ``version``."""
        return version + 2 + int(self.figures.updates_per_s)

    def _next_checkpoint(self, now: float) -> None:
        self.checkpoint_version, self.checkpoint_due_at = None, now + self.checkpoint_every_s

    def _reason_to_stop(self, now: float) -> e.Reason | None:
        limits, figures = self.limits, self.figures
        if self.interrupted:
            return "interrupted"
        if self.shards.all_at_stop:
            return "updates"
        if limits.stop_score is not None and figures.confirmed_score >= limits.stop_score:
            return "stop_score"
        if limits.agent_steps is not None and figures.agent_steps >= limits.agent_steps:
            return "agent_steps"
        if limits.minutes is not None and self.began_at is not None and now - self.began_at >= 60 * limits.minutes:
            return "minutes"
        return None
