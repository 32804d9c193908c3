"""The supervisor of a run: starts shards and workers, watches them, decides membership, checkpoints and the end."""

import contextlib
import time
from pathlib import Path
from typing import Any

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.checkpointer import Checkpointer
from zmqrl.cluster.deployment import Deployment
from zmqrl.cluster.ending import Reason, stop_shards, write_summary
from zmqrl.cluster.failures import Failures, explained, quoted
from zmqrl.cluster.followers import Followers
from zmqrl.cluster.keeper import Keeper
from zmqrl.cluster.launcher import Exited, Said, Task
from zmqrl.cluster.membership import Membership
from zmqrl.cluster.plan import Plan
from zmqrl.cluster.progress import Progress
from zmqrl.cluster.shards import Shards
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UnwritableError, refusal
from zmqrl.observe.console import Console
from zmqrl.observe.metrics import Counters
from zmqrl.ps import messages as m
from zmqrl.ps.history import History
from zmqrl.ps.sockets import Role
from zmqrl.rundir import RunDirectory

ASK_EVERY_S = 0.2
ASK_AT_FIRST_EVERY_S = 0.05  # until the first version, from which the time of the run counts
START_WITHIN_S = 60.0
GREET_AGAIN_S = 2.0
STOP_WITHIN_S = 30.0
LEAVE_WITHIN_S = 5.0
HOME_WITHIN_S = 30.0
ALONE_WITHIN_S = 10.0
SCORES_FOR_STOP = 50
MOST_REFUSED = 100  # sentences about workers of another zmqrl: nobody can flood the screen


class Supervisor:
    """One run on this host, from a checkpoint to the next. ``interrupts`` counts the user's wishes to end it."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        checkpoint: Checkpoint,
        console: Console,
        deployment: Deployment,
    ) -> None:
        self.config, self.directory, self.console = config, directory, console
        self.layout = checkpoint.layout
        self.plan = Plan(config, directory, self.layout, deployment)
        self.membership = Membership(config.ranks, config.effective_quorum(), config.on_loss)
        self.shards = Shards(checkpoint, self.membership, config.updates, console.notice)
        counters = Counters.from_json(checkpoint.counters) if checkpoint.counters else Counters()
        self.progress = Progress(config, directory, counters, console)
        self.launcher, self.files, self.sites = deployment.launcher, deployment.files, deployment.sites
        self.keeper = Keeper(self.launcher, self._task, console.notice, lambda name: self.sites[name].host)
        self.failures = Failures()
        self.followers = Followers(config, directory, self.keeper, console, self.files)
        self.endpoints: dict[int, dict[Role, str]] = {}
        self.reports_closed = self.ending = self.saved = False
        self.refused: set[str] = set()  # what was said of workers that are of another zmqrl
        self.interrupts = 0
        self.asked_to_end: set[int] = set()  # the signals by which somebody did
        self.asked_at = 0.0

    # the run

    def run(self) -> Reason:
        """Run until there is a reason to stop, and end with a checkpoint. Raises ClusterError when it failed."""
        reason: Reason = "failed"
        with contextlib.ExitStack() as at_the_end:  # all of it, whatever happens to one part; in the reverse order
            at_the_end.callback(self._set_aside)
            at_the_end.callback(self.followers.close)
            at_the_end.callback(lambda: self.progress.close(hurried=self.interrupts > 1))
            at_the_end.callback(lambda: self._write_summary(reason))
            at_the_end.callback(self._end_histories)
            at_the_end.callback(lambda: self.control.close() if hasattr(self, "control") else None)
            at_the_end.callback(self.launcher.close)
            at_the_end.callback(self.keeper.tell_all)
            try:
                self._bring_up()
                wish = self._watch()
                self._finish(wish)
                self.shards.check()  # the version that was to be the last may be the one that fails
                reason = wish
                self._let_leave()
                if reason != "interrupted":
                    trained_s = self.shards.checkpoint.counters["wall_s"]
                    self.followers.finish(
                        self.shards.checkpoint.version, trained_s, self._check_processes, self._interrupted
                    )
            except KeyboardInterrupt:
                reason = "interrupted"
                raise
            except Exception as error:
                self._save_what_is_left()
                with contextlib.suppress(ClusterError):  # the run has failed already, and for another reason
                    self.files.bring_home(self.launcher.take_in, within_s=HOME_WITHIN_S)
                first = self.failures.first
                if first is None or not isinstance(error, ClusterError):
                    raise
                host, log = self.sites[first.name].host, self.directory.log(first.name)
                raise explained(error, first, host, log, begun=self.is_up) from error
            away = self.files.bring_home(self.launcher.take_in, within_s=HOME_WITHIN_S)
            self.files.clean(whole=True, but=away)
            if away:
                self.console.notice(f"not everything came home: what is missing is still on {', '.join(away)}")
        return reason

    def _bring_up(self) -> None:
        self._bring_histories()
        for shard in self.shards.numbers:
            self.keeper.start(f"shard-{shard}")
        for rank in self.plan.local_ranks:  # they import while the shards come up
            self.keeper.start(f"worker-{rank}")
        deadline = time.monotonic() + START_WITHIN_S
        while not self.is_up:
            if self.interrupts:
                raise KeyboardInterrupt
            if time.monotonic() >= deadline:
                missing = ", ".join(f"shard {shard}" for shard in self.shards.numbers if shard not in self.endpoints)
                logs = self.directory.path / "logs"
                raise ClusterError(f"{missing} did not come up within {START_WITHIN_S:g} s: see {logs}.")
            self._check_processes()
            time.sleep(0.01)
        endpoints = [self.endpoints[shard]["control"] for shard in self.shards.numbers]
        self.control = self.shards.control = self.plan.control(endpoints)
        now = time.monotonic()
        every_s = 60 * self.config.checkpoint.every_minutes
        self.checkpointer = Checkpointer(
            control=self.control,
            directory=self.directory,
            model=self.shards.checkpoint,
            every_s=every_s,
            keep=self.config.checkpoint.keep,
            due_at=now + every_s,
        )
        for rank in self.plan.local_ranks:
            self.launcher.tell(f"worker-{rank}", self._worker_job(rank))
        trained_s = self.progress.metrics.counters().wall_s
        self.followers.start(trained_s)
        self.followers.on_checkpoint(self.shards.checkpoint.version, trained_s)
        if self.config.external_workers:
            for rank in self.plan.open_ranks:
                self.console.notice(f"rank {rank} is open: zmqrl worker {self.directory.cluster} --rank {rank}")

    def _bring_histories(self) -> None:
        """Let every shard find its history, whoever had it last: a host of an earlier sitting, or this one."""
        begun = self.shards.checkpoint.version > 0
        if begun and (away := self.files.bring_home(self.launcher.take_in, within_s=HOME_WITHIN_S)):
            raise ClusterError(f"the histories of the run cannot be brought home from {', '.join(away)}.")
        for shard in self.shards.numbers:
            if begun:
                self._mend_history(self.directory.history(shard), self.shards.checkpoint.version_of(shard))
            self.files.put_history(f"shard-{shard}")

    def _mend_history(self, path: Path, version: int) -> None:
        """Tell what is wrong with a history before its shard has it: that host and this one must have the same."""
        history = History(path)
        if (last := history.last_version or 0) < version:
            history.news.append(f"{path}: the lines of versions {last + 1} to {version} are missing")
        for text in history.news:
            self.console.notice(text)
        history.close()

    def _watch(self) -> Reason:
        """Until there is a reason to stop, and every shard is there to hear of it."""
        give_up_at: float | None = None
        while True:
            self._turn()
            reason = self._reason_to_stop()
            if reason is None:
                continue
            give_up_at = give_up_at or time.monotonic() + STOP_WITHIN_S
            if self.shards.ready or time.monotonic() >= give_up_at:
                return reason

    def _turn(self) -> None:
        """One round: what arrived, who died, who is missing, what is due."""
        for shard, message, _ in self.control.arrivals(0.05):
            self._arrived(shard, message)
        self._check_processes()
        self.shards.check()
        now = time.monotonic()
        if now - self.asked_at < (ASK_AT_FIRST_EVERY_S if self.progress.began_at is None else ASK_EVERY_S):
            return
        self._ask_shards(now)
        for name in self.keeper.watch_silence(now):
            self.shards.stats.pop(_number(name) if name.startswith("shard-") else -1, None)
        if self.shards.roll_back(now):
            self._undo_rows()
        self.keeper.hear_workers(self.shards.stats.values(), now)
        if self.shards.all_told:
            self._observe_members(now)
            self._checkpoint_if_due(now)
        self.files.step(now)
        if self.progress.due(now):
            self._take_in_stats()
            self.progress.show(now)

    def _ask_shards(self, now: float) -> None:
        # What was not asked could not be answered: time that this process itself was stopped is not silence.
        if now - self.asked_at > GREET_AGAIN_S:
            self.keeper.pardon(now - self.asked_at)
        self.asked_at = now
        self.failures.made(min(self.shards.seen.values()), now)
        for shard in self.shards.numbers:
            # After its connection was cut and made again, a shard knows us by HELLO only.
            stranger = shard in self.shards.down or self.keeper.silent_s(f"shard-{shard}", now) > GREET_AGAIN_S
            self.control.send(shard, self.control.hello() if stranger else m.StatsRequest(run=self.plan.run))

    def _interrupted(self) -> bool:
        return self.interrupts > 0

    def _reason_to_stop(self) -> Reason | None:
        config, progress = self.config, self.progress
        if self.interrupts:
            return "interrupted"
        if self.shards.all_at_stop:
            return "updates"
        if config.stop_score is not None and progress.metrics.mean_score(SCORES_FOR_STOP) >= config.stop_score:
            return "stop_score"
        if config.agent_steps is not None and progress.row["agent_steps"] >= config.agent_steps:
            return "agent_steps"
        if config.minutes is not None and progress.trained_s() >= 60 * config.minutes:
            return "minutes"
        return None

    # arrivals

    def _arrived(self, shard: int, message: m.Message) -> None:
        match message:
            case m.Welcome():
                self.keeper.heard(f"shard-{shard}", time.monotonic())
                self.shards.on_welcome(shard, message)
            case m.Stats():
                self.keeper.heard(f"shard-{shard}", time.monotonic())
                if self.shards.on_stats(shard, message):
                    self.keeper.restarts.worked(f"shard-{shard}")
                self.keeper.contributed(message.tallies)
            case m.Report() if not self.reports_closed:
                self.progress.on_report(message)
            case m.Lost():
                self.shards.on_lost(shard, message)
            case m.Refused() if message.reason not in self.refused and len(self.refused) < MOST_REFUSED:
                self.refused.add(message.reason)
                self.console.notice(f"refused: {message.reason}")

    # processes

    @property
    def is_up(self) -> bool:
        """Whether it is known where every shard can be reached."""
        return len(self.endpoints) == len(self.shards.numbers)

    def _task(self, name: str) -> Task:
        number = _number(name)
        if name.startswith("shard-"):
            return self.plan.shard_task(number, self.endpoints.get(number))
        if name.startswith("worker-"):
            return self.plan.worker_task(number, self._worker_job(number) if self.is_up else None)
        return self.plan.follower_task(name, self.followers.pending[name])

    def _worker_job(self, rank: int) -> dict[str, Any]:
        return self.plan.worker_job(rank, max(self.shards.seen.values()), self.plan.cluster(self.endpoints, {}))

    def _check_processes(self) -> None:
        events = self.keeper.poll()
        if self.interrupts and self.launcher.alone_s() > ALONE_WITHIN_S:
            self.console.notice("every host is lost, as when a job is cancelled: the newest checkpoint is the last")
            raise KeyboardInterrupt
        for event in events:
            match event:
                case Said() if event.name.startswith("shard-") and "endpoints" in event.facts:
                    self.endpoints[_number(event.name)] = event.facts["endpoints"]
                case Said() if event.name in self.followers.pending:
                    self.followers.on_answer(event)
                case Exited() if event.name in self.followers.pending:
                    self.followers.on_exit(event)
                case Exited():
                    self._exited(event)
        if self.is_up:
            try:
                self.plan.write_cluster(self.endpoints, self.launcher.pids())
            except OSError as error:
                self.console.notice(refusal(error, self.directory.cluster))

    def _exited(self, exited: Exited) -> None:
        if exited.name.startswith("shard-"):
            self.shards.on_exit(_number(exited.name))
        elif self.ending and exited.status == 0:
            return
        self.failures.died(exited, time.monotonic())
        self.keeper.start_again(exited)
        hopeless = self.keeper.restarts.hopeless
        workers_left = self.config.ranks - sum(name.startswith("worker-") for name in hopeless)
        needed = self.membership.view.quorum if self.config.on_loss == "wait" else 1
        if exited.name in hopeless and (exited.name.startswith("shard-") or workers_left < needed):
            deaths = self.keeper.restarts.deaths(exited.name)
            last_words = quoted(exited.log_tail.splitlines()[-1:])
            raise ClusterError(f"{exited.name} died {deaths} times in a row ({exited.how()}){last_words or '.'}")

    def _undo_rows(self) -> None:
        """All shards have taken over the checkpoint: what was made after it has not been."""
        self.progress.undo_rows(self.shards.checkpoint.version, self.shards.generation)
        self.files.rewind(self.shards.checkpoint.version_of, self.shards.generation)
        self.keeper.count_anew()
        self.checkpointer.wanted = None

    def _observe_members(self, now: float) -> None:
        alive = set.intersection(*(set(s.present) for s in self.shards.stats.values()))
        updated = any(s.version > self.shards.checkpoint.version_of(s.shard) for s in self.shards.stats.values())
        _, notice = self.membership.observe(alive, updated, now)
        if self.progress.began_at is None and self.membership.complete_once:
            self.progress.begin(now)
        if notice is not None:
            self.console.notice(notice)
        self.shards.say_again()

    def _checkpoint_if_due(self, now: float) -> None:
        if self.followers.wants_checkpoint(self.progress.row["wall_s"]):
            self.checkpointer.due_at = min(self.checkpointer.due_at, now)
        version = self.checkpointer.step(self.shards.stats, self.progress.row["updates_per_s"] or 0.0, now)
        if version is None:
            return
        self._take_in_stats()
        counters = self.progress.counters_at(version, self.shards.stats)
        try:
            self.shards.checkpoint = self.checkpointer.take(version, self.shards.generation, counters, now)
            self.console.notice(f"checkpoint of version {version} written")
            self.followers.on_checkpoint(version, self.shards.checkpoint.counters["wall_s"])
        except ClusterError as error:
            self.console.notice(f"checkpoint of version {version} put off: {error}")

    def _take_in_stats(self) -> None:
        self.progress.on_stats(self.shards.stats, self.shards.numbers, self.membership.view.members)

    # the end

    def _finish(self, reason: Reason) -> None:
        """Let all shards end and write their last versions as a checkpoint. One that dies meanwhile comes back."""
        self.console.notice(f"stopping ({reason}): writing a checkpoint")
        self.reports_closed = reason == "stop_score"  # games that end from now on do not undo the reason
        self.ending, self.shards.stop_at = True, None
        give_up_at = time.monotonic() + 3 * STOP_WITHIN_S
        while True:
            try:
                versions, self.shards.stats = stop_shards(
                    self.control, self.shards.numbers, STOP_WITHIN_S, self._pump, together=self.config.mode == "sync"
                )
                stats = self.checkpointer.set_aside(versions, self._pump)
                now = time.monotonic()
                counters = self.progress.end(min(versions.values()), stats, self.membership.view.members, now)
                self.shards.checkpoint = self.checkpointer.write(versions, self.shards.generation, counters, now)
                break
            except UnwritableError:
                raise
            except ClusterError as error:
                if self.shards.rollback is not None or time.monotonic() >= give_up_at:
                    raise
                self.console.notice(f"the last checkpoint has to wait: {error}")
        for shard in self.shards.numbers:
            self.directory.state(shard).unlink(missing_ok=True)  # the checkpoint has it all
        self.directory.left.unlink(missing_ok=True)
        self.saved = True

    def _write_summary(self, reason: Reason) -> None:
        try:
            write_summary(self.directory.summary, reason, self.config, self.shards.checkpoint)
        except UnwritableError as error:
            if reason != "failed":
                raise
            self.console.notice(str(error))  # the last words are for what failed first

    def _set_aside(self) -> None:
        """Keep what leads to the state of the shards, unless the last checkpoint has it."""
        try:
            if not self.saved:
                self.directory.set_aside()
        except OSError as error:
            self.console.notice(
                f"--resume will not find the state of the shards: {refusal(error, self.directory.left)}"
            )

    def _pump(self) -> None:
        """Take in what arrives while the run ends; shards that die are started again, workers have done their work."""
        for shard, message, payload in list(self.control.arrivals(0.0)):
            if isinstance(message, m.Report | m.Welcome):
                self._arrived(shard, message)
            else:
                self.control.backlog.append((shard, message, payload))
        self._check_processes()
        if self.shards.rollback is not None:
            raise ClusterError(f"{self.shards.rollback}, and the run ends.")

    def _save_what_is_left(self) -> None:
        """After a failure: the version that the shards still hold is worth a checkpoint, if they can be asked."""
        if self.saved or self.ending:  # while they end, shards make versions that were not told of yet
            return
        with contextlib.suppress(ClusterError):  # what is known may be out of date
            if self.shards.ready:
                for shard, stats in self.control.stats(self.shards.numbers, within_s=2.0, what="a last look").items():
                    self.shards.on_stats(shard, stats)
        if all(seen == self.shards.checkpoint.version_of(shard) for shard, seen in self.shards.seen.items()):
            self.saved = True
        if self.saved or not self.shards.ready:
            return
        try:
            self._finish("failed")
        except Exception as error:  # it must not hide what went wrong first
            self.console.notice(f"no checkpoint could be written: {error}")

    def _end_histories(self) -> None:
        """End them with the last checkpoint. A shard may have made one version more, which none goes on from."""
        for shard in self.shards.numbers if self.saved else ():
            path = self.directory.history(shard)
            with contextlib.suppress(ClusterError, OSError):  # the run has ended; what there is stays
                if path.exists():
                    history = History(path)
                    history.rewind(self.shards.checkpoint.version_of(shard), self.shards.generation + 1)
                    history.close()

    def _let_leave(self) -> None:
        """Workers end because they have heard BYE, then shards with their standard input."""
        for name in (
            *(f"worker-{rank}" for rank in self.plan.local_ranks),
            *(f"shard-{i}" for i in self.shards.numbers),
        ):
            self.keeper.give_up(name)
        workers = [name for name in self.launcher.names() if name.startswith("worker-")]
        self.launcher.wait(workers, within_s=LEAVE_WITHIN_S)
        self.launcher.stop(workers, grace_s=0)
        self.launcher.stop([f"shard-{shard}" for shard in self.shards.numbers], grace_s=LEAVE_WITHIN_S)


def _number(name: str) -> int:
    """The number in the name of a process, such as 3 in ``worker-3``."""
    return int(name.rpartition("-")[2])
