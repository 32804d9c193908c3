"""The supervisor of a run: carries out the decisions of the state machine, with processes, sockets and files."""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import assert_never

from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.errors import ClusterError, FullDiskError, UnwritableError, UsageError, ZmqrlError, refusal
from zmqrl.hosts.deployment import Deployment
from zmqrl.hosts.events import Exited, HostLost, HostUp, Inspected, Paused, Said, Task
from zmqrl.hosts.faults import Faults
from zmqrl.hosts.mirror import COPY_WITHIN_S
from zmqrl.observe.console import Console
from zmqrl.observe.exporter import Exporter
from zmqrl.observe.folding import Folded, Folding
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import EXTERNAL, Presence
from zmqrl.observe.metrics import Counters
from zmqrl.observe.stalls import Stall
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.control import NoAnswer, ShardControl
from zmqrl.ps.shard.history import History
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.sockets import ShardUp, SocketRole
from zmqrl.rundir import RunDirectory, reserve, write_json
from zmqrl.start.jobs import FollowerRequest, WorkerJob
from zmqrl.start.stages import Stages
from zmqrl.supervisor import events as e
from zmqrl.supervisor.checkpointer import Checkpointer
from zmqrl.supervisor.ending import exit_status, explained, stop_shards, write_summary
from zmqrl.supervisor.followers import SCORES_TO_CONFIRM, Followers
from zmqrl.supervisor.machine import STOP_WITHIN_S, Limits, ScheduleEnd, SupervisorMachine
from zmqrl.supervisor.processes import SPACE_WITHIN_S
from zmqrl.supervisor.progress import Progress
from zmqrl.supervisor.resume import mend_histories
from zmqrl.supervisor.tasks import RunTasks
from zmqrl.words import as_word, counted

TURN_S = 0.05
SHOW_EVERY_S = 1.0
LEAVE_WITHIN_S = 5.0
HURRIED_COPY_WITHIN_S = 5.0  # for the files on hosts, after a second Ctrl-C
HOSTS_LOST_S = 10.0  # after an interrupt, the run ends if no host has been reachable for this long
WRITE_AGAIN_S = 1.0  # time between two tries to write cluster.json
LATE_S = 3.0  # a turn that begins this long after the previous one is late
SUMMARY_BYTES = 1 << 18  # the summary of a run on hundreds of hosts
MOST_REFUSED = 100  # number of notices about refusals: more would flood the screen


class Supervisor:
    """One session of a run, from its first to its last checkpoint.

    ``interrupts`` counts the user's requests to end the run. ``on_up`` is called when the training time begins or, in a
    run with external workers, once the shards are up.
    """

    control: ShardControl  # exists once the shards are up

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        checkpoint: Checkpoint,
        flavour: str,
        console: Console,
        deployment: Deployment,
        exporter: Exporter | None,
        on_up: Callable[[], None],
        stages: Stages,
    ) -> None:
        self.config, self.directory, self.console, self.checkpoint = config, directory, console, checkpoint
        self.flavour, self.stages = flavour, stages
        counters = Counters.from_json(checkpoint.counters)
        self.tasks = RunTasks(
            config,
            directory,
            checkpoint.layout,
            deployment,
            version=checkpoint.version,
            trained_before_s=counters.wall_s,
        )
        self.machine = SupervisorMachine(
            run=self.tasks.run,
            checkpoint=tuple(map(checkpoint.version_of, range(checkpoint.layout.shards))),
            generation=checkpoint.generation,
            ranks=config.ranks,
            quorum=config.effective_quorum,
            on_loss=config.on_loss,
            limits=Limits(
                updates=config.updates,
                agent_steps=config.agent_steps,
                minutes=config.minutes,
                stop_score=config.stop_score,
            ),
            local_ranks=self.tasks.local_ranks,
            checkpoint_every_s=60 * config.checkpoint.every_minutes,
            updates_per_rollout=config.algorithm.updates_per_rollout,
            schedule_end=ScheduleEnd(
                agent_steps=None if config.consistent else config.schedule.agent_steps,
                minutes=config.schedule.minutes,
                trained_s=counters.wall_s,
            ),
        )
        self.shards = self.machine.shards
        self.progress = Progress(config, directory, counters, console)
        self.launcher, self.files, self.sites = deployment.launcher, deployment.files, deployment.sites
        self.followers = Followers(config, directory, self, console, self.files)
        self.faults = Faults(config.failures, self.launcher, self.sites, console.notice)
        self.endpoints: dict[int, dict[SocketRole, str]] = {}
        self.exporter, self.shown_at, self.on_up = exporter, 0.0, on_up
        self.reports_closed = self.saved = False
        self.refused: set[str] = set()  # the refusals that the user has seen
        self.interrupts = 0
        self.asked_to_end: set[int] = set()  # the signals that requested the end
        self.reason: e.Reason | None = None
        self._actions: deque[e.Action] = deque()
        self._lines = Folding()
        self._turned_at = time.monotonic()
        self._write_cluster_at = 0.0  # after a failure, the time of the next try

    # the run

    def run(self) -> e.Reason:
        """Run until there is a reason to stop, and end with a checkpoint. Raises ClusterError if the run fails."""
        reason: e.Reason = "failed"
        with contextlib.ExitStack() as at_the_end:  # closes all parts in reverse order, even if one fails to close
            closers: tuple[Callable[[BaseException | None], None], ...] = (
                lambda _: self._keep_cluster_as_left(),
                lambda _: self.followers.close(),
                lambda _: self.progress.close(hurried=self.interrupts > 1),
                lambda first: self._write_summary(reason, first),
                lambda _: self._end_histories(),
                lambda _: self.control.close() if self.is_connected else None,
                lambda _: self.launcher.close(),
                self._collect_files,
                lambda _: self._tell(self._lines.take_all()),
            )
            for close in closers:
                at_the_end.push(partial(self._close, close))
            try:
                self._bring_up()
                while self.reason is None:
                    self._turn()
                self._finish(self.reason)
                if why := self.shards.failure():  # a shard can fail at the very last version
                    raise ClusterError(why)
                reason = self.reason
                self._let_leave()
                if reason != "interrupted":
                    trained_s = self.checkpoint.counters["wall_s"]
                    self.followers.finish(self.checkpoint.version, trained_s, self._look_after, self._interrupted)
            except KeyboardInterrupt:
                reason = "interrupted"
                raise
            except Exception as error:
                self._save_what_is_left()
                first = self.machine.processes.first_death
                if first is None or not isinstance(error, ClusterError) or isinstance(error, UnwritableError):
                    raise
                host, log = self.sites[first.process].host, self.directory.log(first.process)
                raise explained(error, first, host, log, begun=self.is_up) from error
        return reason

    def _close(
        self,
        close: Callable[[BaseException | None], None],
        kind: object,
        first: BaseException | None,
        trace: object,
    ) -> None:
        """Call ``close(first)``. ``first`` is the error that ends the run, or None.

        If ``first`` is an error, an error of ``close`` becomes a notice.
        """
        try:
            close(first)
        except (ZmqrlError, OSError) as error:
            if first is None:
                raise
            self.console.notice(str(error))

    @property
    def is_up(self) -> bool:
        return len(self.endpoints) == len(self.shards.numbers)

    @property
    def is_connected(self) -> bool:
        return self.machine.state != "starting"

    @property
    def is_safe(self) -> bool:
        """Whether the newest checkpoint has everything that the shards have made."""
        return self.saved or not self.is_connected

    def _bring_up(self) -> None:
        self._bring_histories()
        self._actions.extend(self.machine.begin(time.monotonic()))
        while not self.is_connected:
            if self.interrupts:
                raise KeyboardInterrupt
            self._look_after()
            time.sleep(0.01)

    def _connect(self) -> None:
        """Connect to the shards. Send each worker and each follower its job."""
        for old in (self.directory.summary, self.directory.trace):  # out of date from here on
            old.unlink(missing_ok=True)
        reserve(self.directory.summary, SUMMARY_BYTES)
        endpoints = [self.endpoints[shard]["control"] for shard in self.shards.numbers]
        self.control = self.tasks.control(endpoints, self.console.notice, self._arrived)
        self.checkpointer = Checkpointer(
            control=self.control, directory=self.directory, model=self.checkpoint, keep=self.config.checkpoint.keep
        )
        self._feed(e.Connected())
        for rank in self.tasks.local_ranks:
            self.launcher.tell(worker_id(rank), self._worker_job(rank).to_json())
        trained_s = self.progress.metrics.counters().wall_s
        self.followers.start(trained_s)
        self.followers.on_checkpoint(self.checkpoint.version, trained_s)
        if self.config.external_workers:
            for rank in self.tasks.open_ranks:
                self.console.notice(
                    f"rank {rank} is open: zmqrl worker {as_word(self.directory.cluster)} --rank {rank}"
                )
            self.on_up()  # the user may start these workers only after the run has left the terminal

    def _bring_histories(self) -> None:
        """Copy each history to the host of its shard, which can differ from that of an earlier session."""
        if self.config.resume:
            if away := self.files.copy_back(self.launcher.receive):
                raise ClusterError(f"cannot copy the histories of the run from {', '.join(away)}.")
            self.shards.generation, news = mend_histories(self.directory, self.checkpoint)
            self.tasks.generation = max(1, self.shards.generation)  # the first session may have made no version
            self.followers.undo_rows(self.checkpoint.version, self.shards.generation + 1)
            for text in news:
                self.console.notice(text)
        for shard in self.shards.numbers:
            self.files.put_history(shard)

    def _turn(self) -> None:
        for shard, message in self.control.arrivals(TURN_S):
            self._arrived(shard, message)
        row = self.progress.row
        self.followers.on_scores(self.progress.metrics.mean_score(SCORES_TO_CONFIRM), row["episodes"])
        self._feed(e.RunFigures(row["agent_steps"], self.followers.confirmed_score, row["updates_per_s"] or 0.0))
        if self.followers.wants_checkpoint(row["wall_s"]):
            self._feed(e.CheckpointWanted())
        if self.interrupts and not self.machine.interrupted:
            self._feed(e.Interrupted())
        self._look_after()
        now = time.monotonic()
        self.faults.step(now)
        self.files.step(now)
        for text in self.files.take_news():
            self.console.notice(text)
        if now - self._turned_at >= LATE_S:  # this process was suspended, so messages of the shards are old
            self.progress.put_off(now)
        elif self.progress.due(now):
            self._take_in_stats()
            self.progress.show(now)
        self._turned_at = now

    def _look_after(self) -> None:
        """Handle the events of processes and the timers, and carry out actions."""
        self._check_processes()
        self._tell(self._lines.take(time.monotonic()))
        self._feed(e.Tick())
        while self._actions:
            self._do(self._actions.popleft())
        if self.progress.began_at is None:
            self._show_stage()
        if time.monotonic() - self.shown_at >= SHOW_EVERY_S:
            self.shown_at = time.monotonic()
            self._show(self._live_metrics(self.shown_at))

    def _show_stage(self) -> None:
        """Show how many shards are up, and then how many workers are present at all shards."""
        shards = len(self.shards.numbers)
        if not self.is_connected:
            self.stages.at("shards", f"starting {counted(shards, 'shard')}", len(self.endpoints), shards)
            return
        stats = self.shards.stats.values()
        present = set.intersection(*(set(each.present) for each in stats)) if len(stats) == shards else set[int]()
        ranks = self.config.ranks
        self.stages.at("workers", f"waiting for {counted(ranks, 'worker')}", len(present), ranks)

    def _live_metrics(self, now: float) -> LiveMetrics:
        """The figures of the run for Prometheus, the screen and other terminals."""
        stats, view = self.shards.stats, self.machine.membership.view
        heard = {
            rank: silent_ms / 1000
            for each in stats.values()
            for rank, silent_ms in zip(each.present, each.silent_ms, strict=False)
        }
        return LiveMetrics(
            row=self.progress.row,
            about={"name": self.directory.path.name, "recipe": self.config.recipe, "env": self.config.env},
            processes=self._presences(now),
            shard_versions=dict(self.shards.seen),  # a copy, because another thread reads it
            shard_held={shard: len(each.held) for shard, each in stats.items()},
            silent_s=heard,
            quorum=view.quorum,
            stalled_s=self.machine.stalls.waited_s(now),
            checkpoint=self.checkpoint.version,
        )

    def _presences(self, now: float) -> list[Presence]:
        """The state of each process that was started, and of the rank of each external worker."""
        missing_s = {int(rank): seconds for rank, seconds in self.progress.row["missing_s"].items()}
        starts = self.machine.processes.starts
        hosts = {process: self.sites[process].host for process in sorted(starts)}
        found = []
        for process, host in [*hosts.items(), *((worker_id(rank), EXTERNAL) for rank in self.tasks.open_ranks)]:
            state, for_s = self.machine.presence(process, missing_s, now)
            restarts = max(0, starts[process] - 1)
            found.append(Presence(process=process, host=host, state=state, for_s=for_s, restarts=restarts))
        return found

    def _show(self, snapshot: LiveMetrics) -> None:
        self.progress.processes = snapshot.processes
        with contextlib.suppress(OSError):  # another part reports a full disk
            write_json(self.directory.live, snapshot.to_json(), lasting=False)
        if self.exporter is not None:
            self.exporter.show(snapshot)

    def _interrupted(self) -> bool:
        return self.interrupts > 0

    # events and actions

    def _feed(self, event: e.Event) -> None:
        self._actions.extend(self.machine.handle(event, time.monotonic()))

    def _do(self, action: e.Action) -> None:
        match action:
            case e.StartProcess(process):
                self.launcher.start(self._task(process))
            case e.KillProcess(process, silent_s):
                self.console.notice(f"{process} has not answered for {silent_s:.0f} s and is being restarted")
                self.launcher.signal(process, signal.SIGKILL)
            case e.TellSilence(process, silent_s):
                pid = self.launcher.pids().get(process)
                name = f"{process} (process {pid})" if pid is not None else process
                self.console.notice(f"{name} has not answered for {silent_s:.0f} s")
            case e.InspectProcess(process):
                self.launcher.inspect(process)
            case e.ShowStall(stall, tell):
                self._show_stall(stall.placed(lambda process: self.sites[process].host), tell)
            case e.EndStall(stall, tell):
                with contextlib.suppress(OSError):
                    self.directory.stalled.unlink()
                if tell:
                    self.console.notice(f"version {stall.version} is no longer stalled, after {stall.waited_s:.0f} s")
            case e.GiveUp(process, why):
                self.console.notice(f"{process} {why}: the run continues without it")
                self.followers.give_up(process)
            case e.Connect():
                self._connect()
            case e.AskShard(shard, greet):
                self.control.send(shard, self.control.hello() if greet else m.StatsRequest(run=self.tasks.run))
            case e.TellShard(shard, message):
                self.control.send(shard, message)
            case e.LoadCheckpoint():
                self._load(action)
            case e.TakeCheckpoint(version):
                self._take_checkpoint(version)
            case e.UndoRows(generation):
                self.progress.undo_rows(self.checkpoint.version, generation)
                self.files.rewind(self.checkpoint.version_of, generation)
            case e.BeginTime():
                self.stages.close()
                self.progress.begin(time.monotonic())
                self.faults.begin(time.monotonic())
                if not self.config.external_workers:
                    self.on_up()
            case e.Notice(text):
                self.console.notice(text)
            case e.TellDeath(process, lines):
                for line in lines:
                    self._lines.add((self.sites[process].host, str(process)), line, time.monotonic())
            case e.EndRun(reason):
                self.reason = reason
            case e.Fail(why, misused=ProcessId() as process):
                host, log = self.sites[process].host, self.directory.log(process)
                raise UsageError(f"{why}\nThis ended {process} on {host}: see {log}.")
            case e.Fail(why, see_logs):
                raise ClusterError(f"{why}: see {self.directory.path / 'logs'}." if see_logs else why)
            case _:
                assert_never(action)

    def _arrived(self, shard: int, message: m.ToSupervisor) -> None:
        match message:
            case m.Welcome() | m.Stats() | m.Lost():
                self._feed(e.ShardSaid(shard, message))
            case m.Report():
                if not self.reports_closed and (report := self.progress.on_report(message)) is not None:
                    self._feed(e.WorkerReported(report.rank, report.incarnation, report.done))
            case m.Refused():
                self._tell_refusal(f"refused: {message.reason}")
            case m.Refuse():
                self._tell_refusal(f"shard {shard} refuses the supervisor: {message.reason}")
            case m.Chunk() | m.Loaded() | m.Missing():
                pass  # a late answer
            case _:
                assert_never(message)

    def _tell_refusal(self, text: str) -> None:
        """Show a refusal, unless the user has seen it or has seen very many."""
        if text not in self.refused and len(self.refused) < MOST_REFUSED:
            self.refused.add(text)
            self.console.notice(text)

    def _check_processes(self) -> None:
        events = self.launcher.poll()
        if self.interrupts and self.launcher.unreachable_s() > HOSTS_LOST_S:
            self.console.notice("every host is lost, so no newer checkpoint can be written")
            raise KeyboardInterrupt
        for event in events:
            match event:
                case Said(ProcessId("shard", shard), facts):
                    self.endpoints[shard] = ShardUp.from_json(facts).endpoints
                    self._feed(e.ShardBound(shard))
                case Said() if event.process in self.followers.pending:
                    self.followers.on_answer(event)
                case Exited() | HostLost() | HostUp() | Inspected():
                    self._feed(event)
                case Paused():
                    self.console.notice(event.sentence())
        if self.is_up and time.monotonic() >= self._write_cluster_at:
            try:
                lost_at = {host: lost.since for host, lost in self.machine.processes.lost_hosts.items()}
                self.tasks.write_cluster(self.endpoints, self.launcher.pids(), lost_at)
                self._write_cluster_at = 0.0
            except OSError as error:
                if not self._write_cluster_at:
                    self.console.notice(refusal(error, self.directory.cluster))
                self._write_cluster_at = time.monotonic() + WRITE_AGAIN_S

    def _show_stall(self, stall: Stall, tell: bool) -> None:
        with contextlib.suppress(OSError):  # another part reports a full disk
            write_json(self.directory.stalled, stall.to_json(), lasting=False)
        if tell:
            self.console.notice(stall.sentence())

    def _tell(self, lines: list[Folded]) -> None:
        for line in lines:
            self.console.notice(str(line))

    # processes: start, tell and worked are for the followers (Runner)

    def start(self, process: ProcessId) -> None:
        self._actions.append(self.machine.processes.start(process, time.monotonic()))

    def tell(self, process: ProcessId, message: FollowerRequest) -> None:
        self.launcher.tell(process, message.to_json())

    def worked(self, process: ProcessId) -> None:
        self.machine.processes.worked(process)

    def _task(self, process: ProcessId) -> Task:
        match process:
            case ProcessId("shard", shard):
                return self.tasks.shard_task(shard, self.endpoints.get(shard))
            case ProcessId("worker", rank):
                return self.tasks.worker_task(rank, self._worker_job(rank) if self.is_up else None)
            case _:
                return self.tasks.follower_task(process, self.followers.pending[process])

    def _worker_job(self, rank: int) -> WorkerJob:
        return self.tasks.worker_job(rank, max(self.shards.seen.values()), self.endpoints)

    # checkpoints

    def _load(self, load: e.LoadCheckpoint) -> None:
        """Make all shards load the newest checkpoint: at the start, and after a shard has lost its state."""
        checkpoint, view = self.checkpoint, load.view
        try:
            for shard in self.shards.numbers:
                version, state = checkpoint.version_of(shard), checkpoint.states[shard]
                about = (load.generation, version, view.id, view.quorum, view.members)
                self.control.load(shard, *about, state, elapsed=load.elapsed)
        except ClusterError as error:  # a shard died: once it is back, all shards load the checkpoint again
            return self._feed(e.CheckpointNotLoaded(str(error)))
        return self._feed(e.CheckpointLoaded())

    def _take_checkpoint(self, version: int) -> None:
        self._take_in_stats()
        counters = self.progress.counters_at(version, self.shards.stats)
        versions = dict.fromkeys(self.shards.numbers, version)
        try:
            self.checkpoint = self.checkpointer.write(versions, self.shards.generation, counters)
        except ClusterError as error:
            return self._feed(e.CheckpointFailed(version, str(error)))
        self._feed(e.CheckpointWritten(tuple(versions.values())))
        self.console.notice(f"checkpoint of version {version} written")
        return self.followers.on_checkpoint(version, self.checkpoint.counters["wall_s"])

    def _take_in_stats(self) -> None:
        self.progress.on_stats(self.shards.stats, self.shards.numbers, self.machine.membership.view.members)

    # the end

    def _finish(self, reason: e.Reason) -> None:
        """Stop all shards, restarting those that die meanwhile, and write a checkpoint of their last versions."""
        self.console.notice(f"stopping ({reason}): writing a checkpoint")
        self.reports_closed = reason == "stop_score"  # games that end from now on do not count
        # Actions of these types in the queue are out of date.
        over = e.Fail | e.EndRun | e.LoadCheckpoint | e.TakeCheckpoint
        self._actions = deque(action for action in self._actions if not isinstance(action, over))
        self._feed(e.Ending())
        members, together = self.machine.membership.view.members, self.config.mode == "sync"
        space_by, give_up_at = time.monotonic() + SPACE_WITHIN_S, time.monotonic() + 3 * STOP_WITHIN_S
        while True:
            if full := self.machine.out_of_space:
                if self.interrupts or time.monotonic() >= space_by:
                    names = " and ".join(map(str, full))
                    disks = f"the disk of {names} is full" if len(full) == 1 else f"the disks of {names} are full"
                    raise FullDiskError(f"cannot write a checkpoint: {disks}: free some space, then use --resume.")
                give_up_at = time.monotonic() + 3 * STOP_WITHIN_S
            try:
                versions, stopped = stop_shards(
                    self.control,
                    self.shards.numbers,
                    STOP_WITHIN_S,
                    self._look_after,
                    together=together,
                    limit=self.config.updates,
                )
                for shard, stats in stopped.items():
                    self._feed(e.ShardSaid(shard, stats))
                stats_then = self.checkpointer.capture(versions, self._look_after)
                counters = self.progress.end(min(versions.values()), stats_then, members, time.monotonic())
                self.checkpoint = self.checkpointer.write(versions, self.shards.generation, counters)
                self._feed(e.CheckpointWritten(tuple(versions[shard] for shard in self.shards.numbers)))
                break
            except UnwritableError:
                raise
            except ClusterError as error:
                if self.shards.rollback is not None or time.monotonic() >= give_up_at:
                    raise
                self.console.notice(f"cannot write the last checkpoint yet: {error}")
                for shard in error.shards if isinstance(error, NoAnswer) else ():  # hung: its successor may answer
                    self.launcher.signal(shard_id(shard), signal.SIGKILL)
        for shard in self.shards.numbers:
            self.directory.state(shard).unlink(missing_ok=True)  # the checkpoint is complete
        self.directory.left.unlink(missing_ok=True)
        self.saved = True

    def _write_summary(self, reason: e.Reason, error: BaseException | None) -> None:
        if not self.is_connected and self.directory.summary.exists():
            return  # nothing is new since the earlier session, which wrote the summary
        status = exit_status(reason, error)
        write_summary(self.directory.summary, reason, status, self.config, self.checkpoint, self.flavour)

    def _collect_files(self, first: BaseException | None) -> None:
        """Copy the files of the run from its hosts. If the state of the shards is not needed, remove them there.

        ``first`` is the error that ends the run, or None.
        """
        if self.is_safe:
            try:
                self._empty_hosts(COPY_WITHIN_S if self.interrupts < 2 else HURRIED_COPY_WITHIN_S)
            except KeyboardInterrupt:  # the second Ctrl-C, and the last one that interrupts
                self._empty_hosts(HURRIED_COPY_WITHIN_S)
                raise
        elif isinstance(first, Exception):
            with contextlib.suppress(ZmqrlError, OSError):  # the run has already failed for another reason
                self.files.copy_back(self.launcher.receive)

    def _empty_hosts(self, within_s: float) -> None:
        self.launcher.stop(self.launcher.running(), grace_s=0)
        away = list(self.files.links)
        with contextlib.suppress(ZmqrlError, OSError):  # the files stay there
            away = self.files.copy_back(self.launcher.receive, within_s=within_s)
        self.files.clean(whole=True, but=away)
        for text in self.files.take_news():
            self.console.notice(text)
        directories = {site.host: site.directory.path for site in self.sites.values()}
        for host in away:
            if host in directories:
                self.console.notice(f"some files of the run are still on {host}, in {directories[host]}")

    def _keep_cluster_as_left(self) -> None:
        """If the state of the shards is not saved, rename cluster.json to left.json, which --resume reads."""
        try:
            if not self.is_safe:
                self.directory.keep_cluster_as_left()
        except OSError as error:
            self.console.notice(
                f"--resume will not find the state of the shards: {refusal(error, self.directory.left)}"
            )

    def _save_what_is_left(self) -> None:
        """After a failure, write a checkpoint of the version that the shards still hold, if they answer."""
        if self.saved or self.machine.state == "ending":  # the known STATS of the shards are out of date
            return
        with contextlib.suppress(ClusterError, AssertionError):  # the known state may be out of date
            if self.shards.ready:
                for shard, stats in self.control.stats(self.shards.numbers, within_s=2.0, what="a final check").items():
                    self._feed(e.ShardSaid(shard, stats))
        if all(seen == self.checkpoint.version_of(shard) for shard, seen in self.shards.seen.items()):
            self.saved = True
        if self.saved or not self.shards.ready:
            return
        try:
            self._finish("failed")
        except Exception as error:  # this error must not hide the first error
            self.console.notice(f"no checkpoint could be written: {error}")

    def _end_histories(self) -> None:
        """Cut off the histories after the last checkpoint: a shard may have made one more version."""
        for shard in self.shards.numbers if self.saved else ():
            path = self.directory.history(shard)
            with contextlib.suppress(ClusterError, OSError):  # a longer history does no harm
                if path.exists():
                    history = History(path)
                    history.rewind(self.checkpoint.version_of(shard), self.shards.generation + 1)
                    history.close()

    def _let_leave(self) -> None:
        """Give the workers, which have received BYE, time to leave. Then end the shards and remaining workers."""
        shards = list(map(shard_id, self.shards.numbers))
        for process in (*map(worker_id, self.tasks.local_ranks), *shards):
            self.machine.processes.give_up(process)
        workers = [process for process in self.launcher.running() if process.role == "worker"]
        self.launcher.wait(workers, within_s=LEAVE_WITHIN_S)
        self.launcher.stop(workers, grace_s=0)
        self.launcher.stop(shards, grace_s=LEAVE_WITHIN_S)
