"""The supervisor of a run: starts shards and workers, watches them, decides membership, checkpoints and the end."""

import dataclasses
import signal
import time
from typing import Any

import msgpack

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.checkpointer import Checkpointer
from zmqrl.cluster.ending import Reason, stop_shards, summary
from zmqrl.cluster.local import Exited, LocalLauncher, Ready, Task
from zmqrl.cluster.membership import Membership
from zmqrl.cluster.plan import Plan
from zmqrl.cluster.restarts import Restarts
from zmqrl.config import Config
from zmqrl.errors import ClusterError
from zmqrl.observe.console import Console, View
from zmqrl.observe.metrics import Counters, JsonLines, RunMetrics, ShardStats
from zmqrl.observe.tensorboard import TensorBoard
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl
from zmqrl.ps.history import History
from zmqrl.ps.sockets import Role
from zmqrl.rundir import RunDirectory, write_json

ASK_EVERY_S = 0.2
ASK_AT_FIRST_EVERY_S = 0.05  # until the first version, from which the time of the run counts
ROW_EVERY_S = 1.0
START_WITHIN_S = 60.0
GREET_AGAIN_S = 2.0
SILENCE_S = 5.0
HUNG_S = 30.0
STOP_WITHIN_S = 30.0
LEAVE_WITHIN_S = 5.0
SCORES_FOR_STOP = 50


class Supervisor:
    """One run on this host, from a checkpoint to the next. ``interrupts`` counts the user's wishes to end it."""

    def __init__(self, config: Config, directory: RunDirectory, checkpoint: Checkpoint, console: Console) -> None:
        self.config, self.directory, self.checkpoint, self.console = config, directory, checkpoint, console
        self.layout = checkpoint.layout
        self.shards = range(self.layout.shards)
        self.plan = Plan(config, directory, self.layout)
        self.run_id = self.plan.run
        self.generation = checkpoint.generation
        self.membership = Membership(config.ranks, config.effective_quorum(), config.on_loss)
        counters = Counters.from_json(checkpoint.counters) if checkpoint.counters else Counters()
        self.metrics = RunMetrics(start=counters)
        self.rows = JsonLines(directory.metrics)
        self.tensorboard = TensorBoard(directory.tensorboard, resumed_at=checkpoint.version or None)
        self.launcher = LocalLauncher()
        self.restarts = Restarts()
        self.start_at: dict[str, float] = {}  # processes that died, and when they are started again
        self.endpoints: dict[int, dict[Role, str]] = {}
        self.stats: dict[int, m.Stats] = {}
        self.heard_at: dict[int, float] = {}
        self.silence_told_at = 0.0
        self.reports_closed = False
        self.seen = dict.fromkeys(self.shards, 0)  # the newest version each shard is known to have made
        self.down: set[int] = set()  # shards that died and have not welcomed us since
        self.claims: dict[int, dict[int, int]] = {}  # versions that workers say to have seen of a shard, above its own
        self.rollback: str | None = None
        self.interrupts = 0
        self.first_version_at: float | None = None
        self.asked_at = self.row_at = 0.0
        self.row: dict[str, Any] = self.metrics.row(0.0)

    # the run

    def run(self) -> Reason:
        """Run until there is a reason to stop, and end with a checkpoint. Raises ClusterError when it failed."""
        reason: Reason = "failed"
        try:
            self._bring_up()
            reason = self._watch()
            self._finish(reason)
            self._let_leave()
        except KeyboardInterrupt:
            reason = "interrupted"
            raise
        except BaseException:
            reason = "failed"
            raise
        finally:
            self.launcher.stop(self.launcher.names(), grace_s=0)
            if hasattr(self, "control"):
                self.control.close()
            self._write_summary(reason)
            self.rows.close()
            self.tensorboard.close()
        return reason

    def _bring_up(self) -> None:
        for shard in self.shards:
            self._start(self.plan.shard_task(shard, None))
        self._wait_until(lambda: len(self.endpoints) == len(self.shards), START_WITHIN_S, "the shards to come up")
        endpoints = [self.endpoints[shard]["control"] for shard in self.shards]
        self.control = ShardControl(self.run_id, self.layout.hash, self.plan.secret, endpoints)
        now = time.monotonic()
        every_s = 60 * self.config.checkpoint.every_minutes
        self.checkpointer = Checkpointer(
            control=self.control,
            directory=self.directory,
            model=self.checkpoint,
            every_s=every_s,
            keep=self.config.checkpoint.keep,
            due_at=now + every_s,
        )
        self.control.greet(self.shards, within_s=START_WITHIN_S)
        self.down.clear()
        self._load(self.checkpoint)
        for rank in self.plan.local_ranks:
            self._start(self._worker_task(rank))
        self._write_cluster()
        if self.config.external_workers:
            for rank in self.plan.open_ranks:
                self.console.notice(f"rank {rank} is open: zmqrl worker {self.directory.cluster} --rank {rank}")

    def _watch(self) -> Reason:
        """Until there is a reason to stop, and every shard is there to hear of it."""
        give_up_at: float | None = None
        while True:
            self._turn()
            reason = self._reason_to_stop()
            if reason is None:
                continue
            give_up_at = give_up_at or time.monotonic() + STOP_WITHIN_S
            if (not self.down and self.rollback is None) or time.monotonic() >= give_up_at:
                return reason

    def _turn(self) -> None:
        """One round: what arrived, who died, who is missing, what is due."""
        for shard, message, _ in self.control.arrivals(0.05):
            self._arrived(shard, message)
        self._check_processes()
        now = time.monotonic()
        if now - self.asked_at < (ASK_AT_FIRST_EVERY_S if self.first_version_at is None else ASK_EVERY_S):
            return
        # What was not asked could not be answered: time that this process itself was stopped is not silence.
        paused_s = now - self.asked_at if now - self.asked_at > GREET_AGAIN_S else 0.0
        self.heard_at = {shard: heard_at + paused_s for shard, heard_at in self.heard_at.items()}
        self.asked_at = now
        for shard in self.shards:
            # After its connection was cut and made again, a shard knows us by HELLO only.
            stranger = shard in self.down or now - self.heard_at.get(shard, now) > GREET_AGAIN_S
            self.control.send(shard, self.control.hello() if stranger else m.StatsRequest(run=self.run_id))
        self._watch_silence(now)
        if self.rollback is not None and not self.down:
            self._roll_back(self.rollback)
        if len(self.stats) == len(self.shards):
            self._observe_members(now)
            self._checkpoint_if_due(now)
        self._show(now)

    def _reason_to_stop(self) -> Reason | None:
        config = self.config
        if self.interrupts:
            return "interrupted"
        if self.stats and all(s.state == "ended" for s in self.stats.values()) and len(self.stats) == len(self.shards):
            return "updates"
        score = self.row["score_mean_50"] if len(self.metrics.counters().scores) >= SCORES_FOR_STOP else None
        if config.stop_score is not None and score is not None and score >= config.stop_score:
            return "stop_score"
        if config.agent_steps is not None and self.row["agent_steps"] >= config.agent_steps:
            return "agent_steps"
        if config.minutes is not None and self._trained_s() >= 60 * config.minutes:
            return "minutes"
        return None

    def _trained_s(self) -> float:
        """Seconds of this sitting, counted from its first version."""
        return 0.0 if self.first_version_at is None else time.monotonic() - self.first_version_at

    # arrivals

    def _arrived(self, shard: int, message: m.Message) -> None:
        match message:
            case m.Welcome():
                self.heard_at[shard] = time.monotonic()
                if shard in self.down:
                    self._welcomed(shard, message)
            case m.Stats():
                self.heard_at[shard] = time.monotonic()
                if message.state == "empty" or message.generation != self.generation:
                    return  # its WELCOME tells the same, and what is to be done
                self.stats[shard] = message
                if message.version > self.seen[shard]:
                    self.seen[shard] = message.version
                    self.restarts.worked(f"shard-{shard}")
            case m.Report() if not self.reports_closed:
                figures = _unpack(message.figures) | {"rank": message.rank, "incarnation": message.incarnation}
                if self.metrics.on_report(figures):
                    self.restarts.worked(f"worker-{message.rank}")
            case m.Lost() if shard in self.stats:
                self._claimed_lost(shard, message)

    def _claimed_lost(self, shard: int, lost: m.Lost) -> None:
        """A worker has seen more of a shard than it has. Believed if we have too, or if a quorum of workers say so."""
        version = self.stats[shard].version
        claims = self.claims.setdefault(shard, {})
        claims[lost.rank] = lost.version
        confirmed = sum(claimed > version for claimed in claims.values()) >= self.membership.view.quorum
        if self.seen[shard] > version or (confirmed and lost.version > version):
            self.rollback = f"shard {shard} is at version {version} but had made {lost.version}"

    def _welcomed(self, shard: int, welcome: m.Welcome) -> None:
        """A shard has come up: with its state, or without."""
        self.down.discard(shard)
        if welcome.state == "empty" or welcome.generation != self.generation or welcome.version < self.seen[shard]:
            self.rollback = f"shard {shard} came back without the newest state"
            return
        self.console.notice(f"shard {shard} is back at version {welcome.version}")
        self._tell_view(shard)
        self._tell_end(shard)

    # processes

    def _start(self, task: Task) -> None:
        self.start_at.pop(task.name, None)
        self.launcher.start(task)

    def _check_processes(self) -> None:
        for event in self.launcher.poll():
            match event:
                case Ready() if event.name.startswith("shard-"):
                    self.endpoints[int(event.name.removeprefix("shard-"))] = event.facts["endpoints"]
                    self._write_cluster()
                case Exited():
                    self._exited(event)
        now = time.monotonic()
        for name in [name for name, at in self.start_at.items() if now >= at]:
            role, _, number = name.partition("-")
            if role == "shard":
                self._start(self.plan.shard_task(int(number), self.endpoints.get(int(number))))
            else:
                self._start(self._worker_task(int(number)))
            self._write_cluster()

    def _watch_silence(self, now: float) -> None:
        """Name a shard that lives but does not answer, and start it again when that lasts."""
        for shard, heard_at in list(self.heard_at.items()):
            silent_s = now - heard_at
            if shard in self.down or silent_s < SILENCE_S:
                continue
            self.stats.pop(shard, None)
            if silent_s >= HUNG_S:
                self.console.notice(f"shard {shard} has not answered for {silent_s:.0f} s and is started again")
                self.launcher.signal(f"shard-{shard}", signal.SIGKILL)
                self.heard_at[shard] = now
            elif now - self.silence_told_at >= SILENCE_S:
                self.silence_told_at = now
                pid = self.launcher.pid(f"shard-{shard}")
                self.console.notice(f"shard {shard} (process {pid}) has not answered for {silent_s:.0f} s")

    def _worker_task(self, rank: int) -> Task:
        return self.plan.worker_task(rank, max(self.seen.values()), self._cluster())

    def _exited(self, exited: Exited) -> None:
        if exited.name.startswith("shard-"):
            shard = int(exited.name.removeprefix("shard-"))
            self.down.add(shard)
            self.stats.pop(shard, None)
        delay_s = self.restarts.delay_s(exited)
        self.start_at[exited.name] = time.monotonic() + delay_s
        words = exited.log_tail.splitlines()[-1:] if exited.status in (-9, -15, 0) else exited.log_tail.splitlines()
        tail = "".join(f"\n  | {line}" for line in words)
        self.console.notice(f"{exited.name} died ({exited.how()}) and is started again; its log ends:{tail}")

    def _wait_until(self, condition: Any, within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() >= deadline:
                raise ClusterError(f"waited {within_s:g} s for {what}: see {self.directory.path / 'logs'}.")
            self._check_processes()
            time.sleep(0.01)

    # state of the shards

    def _load(self, checkpoint: Checkpoint) -> None:
        """Start, resume and rollback: all shards take over ``checkpoint`` under a new generation."""
        self.generation += 1
        rows = History(self.directory.metrics)
        rows.rewind(checkpoint.version, self.generation)
        rows.close()
        view = self.membership.view
        for shard in self.shards:
            state = checkpoint.states[shard]
            self.control.load(shard, self.generation, checkpoint.version, view.id, view.quorum, view.members, state)
            self.seen[shard] = checkpoint.version
            self._tell_end(shard)
        self.checkpoint = checkpoint
        self.stats.clear()
        self.claims.clear()
        self.checkpointer.wanted = None

    def _roll_back(self, why: str) -> None:
        self.console.notice(f"{why}: all shards go back to the checkpoint of version {self.checkpoint.version}")
        try:
            self._load(self.checkpoint)
        except ClusterError as error:  # another shard died: once it is back, all are loaded anew
            self.console.notice(f"going back has to wait: {error}")
        else:
            self.rollback = None

    def _tell_view(self, shard: int) -> None:
        view = self.membership.view
        self.control.send(shard, m.ViewChange(run=self.run_id, view=view.id, quorum=view.quorum, members=view.members))

    def _tell_end(self, shard: int) -> None:
        if self.config.updates is not None:
            self.control.send(shard, m.Stop(run=self.run_id, version=self.config.updates))

    def _observe_members(self, now: float) -> None:
        alive = set.intersection(*(set(s.present) for s in self.stats.values()))
        if self.first_version_at is None and len(alive) >= self.membership.view.quorum:
            self.first_version_at = self.row_at = now
        view, notice = self.membership.observe(alive, now)
        if notice is not None:
            self.console.notice(notice)
        if view is not None or any(s.view != self.membership.view.id for s in self.stats.values()):
            for shard in self.shards:
                self._tell_view(shard)

    def _checkpoint_if_due(self, now: float) -> None:
        version = self.checkpointer.step(self.stats, self.row["updates_per_s"] or 0.0, now)
        if version is None:
            return
        try:
            self.checkpoint = self.checkpointer.take(version, self.generation, self._counters_of(version), now)
            self.console.notice(f"checkpoint of version {version} written")
        except ClusterError as error:
            self.console.notice(f"checkpoint of version {version} put off: {error}")

    def _counters_of(self, version: int) -> dict[str, Any]:
        """The run's figures at ``version``, which every shard has reached: what is used since then is not counted."""
        self._take_in_stats()
        counters = self.metrics.counters()
        since = sum((s.version - version) * s.quorum for s in self.stats.values())
        contributions = {**counters.contributions, "used": counters.contributions["used"] - since}
        return dataclasses.replace(counters, version=version, contributions=contributions).to_json()

    # showing

    def _show(self, now: float) -> None:
        if self.first_version_at is None or now - self.row_at < ROW_EVERY_S:
            return
        self.row_at = now
        self._take_in_stats()
        self._show_row()

    def _take_in_stats(self) -> None:
        stats = [_shard_stats(self.stats[shard]) if shard in self.stats else None for shard in self.shards]
        self.metrics.on_shards(stats, self.membership.view.members)

    def _show_row(self) -> None:
        version = self.row["version"]
        self.row = self.metrics.row(self._trained_s())
        if self.row["version"] != version:
            self.rows.write(self.row)
            self.tensorboard.log(self.row, self.row["version"])
        minutes = self.config.minutes
        self.console.update(
            View(
                title=f"{self.config.recipe} · {self.config.env} · {self.directory.path.name}",
                row=self.row,
                frames_per_agent_step=self.config.envs.frame_skip if self.config.env.startswith("ALE/") else None,
                left_s=None if minutes is None else max(0.0, 60 * minutes - self._trained_s()),
            )
        )

    def _cluster(self) -> dict[str, Any]:
        pids = {name: self.launcher.pid(name) for name in self.launcher.names()}
        return self.plan.cluster(self.endpoints, pids)

    def _write_cluster(self) -> None:
        if len(self.endpoints) == len(self.shards):
            write_json(self.directory.cluster, self._cluster(), mode=0o600)

    # the end

    def _finish(self, reason: Reason) -> None:
        """Let all shards end at one version and write it as the last checkpoint."""
        self.console.notice(f"stopping ({reason}): writing a checkpoint")
        self.reports_closed = reason == "stop_score"  # games that end from now on do not undo the reason
        version, self.stats = stop_shards(self.control, self.shards, STOP_WITHIN_S, lambda: self._pump(0.1))
        self._take_in_stats()
        self._show_row()
        counters = self._counters_of(version)
        self.checkpoint = self.checkpointer.take_now(version, self.generation, counters, time.monotonic())
        for shard in self.shards:
            self.directory.state(shard).unlink(missing_ok=True)  # the checkpoint has it all

    def _pump(self, wait_s: float) -> None:
        """Take in reports while waiting; deaths no longer matter."""
        for shard, message, _ in self.control.arrivals(wait_s):
            if isinstance(message, m.Report):
                self._arrived(shard, message)
        self.launcher.poll()

    def _let_leave(self) -> None:
        """Workers end because they have heard BYE, then shards with their standard input."""
        workers = [name for name in self.launcher.names() if name.startswith("worker-")]
        self.launcher.wait(workers, within_s=LEAVE_WITHIN_S)
        self.launcher.stop(workers, grace_s=0)
        self.launcher.stop(self.launcher.names(), grace_s=LEAVE_WITHIN_S)

    def _write_summary(self, reason: Reason) -> None:
        figures = summary(reason, self.config, self.checkpoint, self.metrics.counters())
        write_json(self.directory.summary, figures)


def _shard_stats(stats: m.Stats) -> ShardStats:
    return {
        "version": stats.version,
        "quorum": stats.quorum,
        "held": stats.held,
        "present": stats.present,
        "outcomes": {tally[0]: tally[1:] for tally in stats.tallies if len(tally) == 5},
        "unattributed": stats.unattributed,
    }


def _unpack(figures: bytes) -> dict[str, Any]:
    try:
        unpacked = msgpack.unpackb(figures, strict_map_key=True)
    except Exception:  # msgpack raises a dozen kinds of errors on hostile bytes
        return {}
    return unpacked if isinstance(unpacked, dict) else {}
