"""The supervisor of a run: starts shards and workers, watches them, decides membership, checkpoints and the end."""

import dataclasses
import os
import secrets
import socket as host_socket
import time
from typing import Any, Literal, TypeAlias

import msgpack

from zmqrl import __version__
from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.checkpointer import Checkpointer
from zmqrl.cluster.local import Exited, LocalLauncher, Ready, Task
from zmqrl.cluster.membership import Membership
from zmqrl.cluster.restarts import Restarts
from zmqrl.config import Config
from zmqrl.errors import ClusterError
from zmqrl.observe.console import Console, View
from zmqrl.observe.metrics import Counters, JsonLines, RunMetrics, ShardStats
from zmqrl.observe.tensorboard import TensorBoard
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl, only
from zmqrl.ps.job import ShardJob
from zmqrl.ps.shard import Timing
from zmqrl.ps.sockets import Role
from zmqrl.rundir import RunDirectory, write_json

Reason: TypeAlias = Literal["stop_score", "updates", "agent_steps", "minutes", "interrupted", "failed"]

ASK_EVERY_S = 0.2
ROW_EVERY_S = 1.0
START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
LEAVE_WITHIN_S = 5.0
SCORES_FOR_STOP = 50


class Supervisor:
    """One run on this host, from a checkpoint to the next. ``interrupts`` counts the user's wishes to end it."""

    def __init__(self, config: Config, directory: RunDirectory, checkpoint: Checkpoint, console: Console) -> None:
        self.config, self.directory, self.checkpoint, self.console = config, directory, checkpoint, console
        self.run_id = secrets.token_hex(8)
        self.secret = secrets.token_hex(16)
        self.layout = checkpoint.layout
        self.shards = range(self.layout.shards)
        self.local_ranks = range(config.ranks - config.external_workers)
        self.generation = checkpoint.generation
        self.membership = Membership(config.ranks, config.effective_quorum(), config.on_loss)
        counters = Counters.from_json(checkpoint.counters) if checkpoint.counters else Counters()
        self.metrics = RunMetrics(start=counters)
        self.rows = JsonLines(directory.metrics)
        self.tensorboard = TensorBoard(directory.tensorboard, resumed_at=checkpoint.version or None)
        self.launcher = LocalLauncher()
        self.restarts = Restarts()
        self.tasks: dict[str, Task] = {}
        self.start_at: dict[str, float] = {}  # processes that died, and when they are started again
        self.endpoints: dict[int, dict[Role, str]] = {}
        self.stats: dict[int, m.Stats] = {}
        self.seen = dict.fromkeys(self.shards, 0)  # the newest version each shard is known to have made
        self.greeting: set[int] = set()  # shards that came up and have not welcomed us
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
            self._start()
            reason = self._watch()
            self._finish(reason)
        finally:
            self._end_processes(graceful=reason != "failed" and self.interrupts < 2)
            self._write_summary(reason)
            self.rows.close()
            self.tensorboard.close()
        return reason

    def kill(self) -> None:
        """End every process of the run at once."""
        self.launcher.stop(self.launcher.names(), grace_s=0)

    def _start(self) -> None:
        for shard in self.shards:
            self._start_task(self._shard_task(shard))
        self._wait_until(lambda: len(self.endpoints) == len(self.shards), START_WITHIN_S, "the shards to come up")
        endpoints = [self.endpoints[shard]["control"] for shard in self.shards]
        self.control = ShardControl(self.run_id, self.layout.hash, self.secret, endpoints)
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
        self.greeting.clear()
        self._load(self.checkpoint)
        for rank in self.local_ranks:
            self._start_task(self._worker_task(rank))
        self._write_cluster()
        if self.config.external_workers:
            ranks = ", ".join(str(rank) for rank in range(len(self.local_ranks), self.config.ranks))
            self.console.notice(f"ranks {ranks} are open: zmqrl worker {self.directory.cluster}")

    def _watch(self) -> Reason:
        while True:
            self._turn()
            reason = self._reason_to_stop()
            if reason is not None:
                return reason

    def _turn(self) -> None:
        """One round: what arrived, who died, who is missing, what is due."""
        for shard, message, _ in self.control.arrivals(0.05):
            self._arrived(shard, message)
        self._check_processes()
        now = time.monotonic()
        if now - self.asked_at < ASK_EVERY_S:
            return
        self.asked_at = now
        for shard in self.shards:
            question = self.control.hello() if shard in self.greeting else m.StatsRequest(run=self.run_id)
            self.control.send(shard, question)
        if self.rollback is not None and not self.greeting and not self.start_at:
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
        score, episodes = self.row["score_mean_50"], len(self.metrics.counters().scores)
        if config.stop_score is not None and episodes >= SCORES_FOR_STOP and score >= config.stop_score:
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
            case m.Stats():
                if message.state == "empty" or message.generation != self.generation:
                    return  # its WELCOME tells the same, and what is to be done
                self.stats[shard] = message
                self.seen[shard] = max(self.seen[shard], message.version)
                if message.version > self.checkpoint.version:
                    self.restarts.worked(f"shard-{shard}")
            case m.Welcome():
                self._welcomed(shard, message)
            case m.Report():
                figures = _unpack(message.figures) | {"rank": message.rank, "incarnation": message.incarnation}
                if self.metrics.on_report(figures):
                    self.restarts.worked(f"worker-{message.rank}")
            case m.Lost() if shard in self.stats and self.seen[shard] > self.stats[shard].version:
                self.rollback = (
                    f"shard {shard} is at version {self.stats[shard].version} but had made {message.version}"
                )

    def _welcomed(self, shard: int, welcome: m.Welcome) -> None:
        """A shard has come up: with its state, or without."""
        self.greeting.discard(shard)
        if welcome.state == "empty" or welcome.generation != self.generation or welcome.version < self.seen[shard]:
            self.rollback = f"shard {shard} came back without the newest state"
            return
        self.console.notice(f"shard {shard} is back at version {welcome.version}")
        self._tell_view(shard)
        self._tell_end(shard)

    # processes

    def _shard_task(self, shard: int) -> Task:
        name = f"shard-{shard}"
        wire = self.config.wire
        job = ShardJob(
            run=self.run_id,
            layout=self.layout,
            shard=shard,
            codec=wire.codec,
            optimizer=self.config.optimizer,
            bind=self.endpoints.get(shard) or self._addresses(shard),
            secret=self.secret,
            state_path=self.directory.state(shard),
            history_path=self.directory.history(shard),
            consistent=self.config.consistent,
            timing=Timing(need_s=wire.need_s),
            trace_path=self.directory.trace_of(name) if self.config.profile else None,
            trace_versions=self.config.profile or 0,
        )
        return Task(
            name=name, module="zmqrl.ps.server", job=job.to_json(), log_path=self.directory.log(name), threads=1
        )

    def _addresses(self, shard: int) -> dict[Role, str]:
        roles: tuple[Role, ...] = ("grad", "weights", "control")
        wire, ports = self.config.wire, self.config.ports()
        if ports is None and wire.transport == "ipc":
            return {role: f"ipc://{self.directory.sockets()}/{shard}-{role}" for role in roles}
        port = [0] * 3 if ports is None else ports[3 * shard : 3 * shard + 3]
        return {role: f"tcp://{wire.address}:{n}" for role, n in zip(roles, port, strict=True)}

    def _worker_task(self, rank: int) -> Task:
        name = f"worker-{rank}"
        threads = max(1, len(os.sched_getaffinity(0)) // max(1, len(self.local_ranks)))
        job = {
            "cluster": self._cluster(),
            "rank": rank,
            "config": self.config.to_json(),
            "threads": threads,
            "trace_path": str(self.directory.trace_of(name)) if self.config.profile else None,
        }
        return Task(name=name, module="zmqrl.worker", job=job, log_path=self.directory.log(name), threads=threads)

    def _start_task(self, task: Task) -> None:
        self.start_at.pop(task.name, None)
        self.tasks[task.name] = task
        self.launcher.start(task)

    def _check_processes(self) -> None:
        for event in self.launcher.poll():
            match event:
                case Ready() if event.name.startswith("shard-"):
                    shard = int(event.name.removeprefix("shard-"))
                    if shard in self.endpoints:
                        self.greeting.add(shard)
                    self.endpoints[shard] = event.facts["endpoints"]
                    self._write_cluster()
                case Exited():
                    self._exited(event)
        now = time.monotonic()
        for name in [name for name, at in self.start_at.items() if now >= at]:
            role, _, number = name.partition("-")
            task = self._shard_task(int(number)) if role == "shard" else self._worker_task(int(number))
            self._start_task(task)
            self._write_cluster()

    def _exited(self, exited: Exited) -> None:
        if exited.name.startswith("shard-"):
            self.stats.pop(int(exited.name.removeprefix("shard-")), None)
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
        view = self.membership.view
        for shard in self.shards:
            state = checkpoint.states[shard]
            self.control.load(shard, self.generation, checkpoint.version, view.id, view.quorum, view.members, state)
            self.seen[shard] = checkpoint.version
            self._tell_end(shard)
        self.checkpoint = checkpoint
        self.stats.clear()
        self.checkpointer.wanted = None

    def _roll_back(self, why: str) -> None:
        self.console.notice(f"{why}: all shards go back to the checkpoint of version {self.checkpoint.version}")
        self._load(self.checkpoint)
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
            counters = self.metrics.counters().to_json()
            self.checkpoint = self.checkpointer.take(version, self.generation, counters, now)
            self.console.notice(f"checkpoint of version {version} written")
        except ClusterError as error:
            self.console.notice(f"checkpoint of version {version} put off: {error}")

    # showing

    def _show(self, now: float) -> None:
        if self.first_version_at is None or now - self.row_at < ROW_EVERY_S:
            return
        self.row_at = now
        version = self.row["version"]
        stats = [_shard_stats(self.stats[shard]) if shard in self.stats else None for shard in self.shards]
        self.metrics.on_shards(stats, self.membership.view.members)
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
        host = host_socket.gethostname()
        return {
            "protocol": m.PROTOCOL,
            "zmqrl": __version__,
            "run": self.run_id,
            "host": host,
            "supervisor": {"pid": os.getpid(), "host": host},
            "shards": [
                {"shard": shard, "host": host, "pid": self.launcher.pid(f"shard-{shard}"), **self.endpoints[shard]}
                for shard in sorted(self.endpoints)
            ],
            "workers": [
                {"rank": rank, "host": host, "pid": self.launcher.pid(f"worker-{rank}")} for rank in self.local_ranks
            ],
            "open_ranks": list(range(len(self.local_ranks), self.config.ranks)),
            "codec": self.config.wire.codec,
            "layout": self.layout.to_json(),
            "keys": None,
            "config": self.config.to_json(),
        }

    def _write_cluster(self) -> None:
        if len(self.endpoints) == len(self.shards):
            write_json(self.directory.cluster, self._cluster(), mode=0o600)

    # the end

    def _finish(self, reason: Reason) -> None:
        """Let all shards end at one version and write it as the last checkpoint."""
        self.console.notice(f"stopping ({reason}): writing a checkpoint")
        version = self._stop_shards()
        self.metrics.on_shards([_shard_stats(s) for _, s in sorted(self.stats.items())], self.membership.view.members)
        self.row = self.metrics.row(self._trained_s())
        counters = dataclasses.replace(self.metrics.counters(), version=version).to_json()
        self.checkpoint = self.checkpointer.take_now(version, self.generation, counters, time.monotonic())
        self.rows.write(self.row | {"version": version})
        self.tensorboard.log(self.row, version)

    def _stop_shards(self) -> int:
        """Agree on a last version at or above every shard's own; the version that all of them ended with.

        Where the workers are gone, the shards stay where they are, and the newest version that all hold is the last.
        """
        deadline = time.monotonic() + STOP_WITHIN_S
        self.stats = self.control.stats(self.shards, within_s=STOP_WITHIN_S, what="stopping the shards")
        end = max(s.version for s in self.stats.values())
        while time.monotonic() < deadline:
            stop = m.Stop(run=self.run_id, version=end)
            self.stats = self.control.ask(
                self.shards,
                lambda _, stop=stop: stop,
                only(m.Stats),
                within_s=STOP_WITHIN_S,
                what="stopping the shards",
            )
            if all(s.state == "ended" and s.version == end for s in self.stats.values()):
                return end
            end = max(end, *(s.version for s in self.stats.values()))
            self._pump(0.1)
        for shard in self.shards:
            while self.stats[shard].state != "ended":
                stop = m.Stop(run=self.run_id, version=self.stats[shard].version)
                self.stats |= self.control.ask(
                    [shard],
                    lambda _, stop=stop: stop,
                    only(m.Stats),
                    within_s=STOP_WITHIN_S,
                    what="stopping the shards",
                )
        return min(s.version for s in self.stats.values())

    def _pump(self, wait_s: float) -> None:
        """Take in reports while waiting; deaths no longer matter."""
        for shard, message, _ in self.control.arrivals(wait_s):
            if isinstance(message, m.Report):
                self._arrived(shard, message)
        self.launcher.poll()

    def _end_processes(self, *, graceful: bool) -> None:
        workers = [name for name in self.launcher.names() if name.startswith("worker-")]
        if graceful:
            self.launcher.wait(workers, within_s=LEAVE_WITHIN_S)  # they have heard BYE
        self.launcher.stop(workers, grace_s=0)
        self.launcher.stop(self.launcher.names(), grace_s=LEAVE_WITHIN_S if graceful else 0)
        if hasattr(self, "control"):
            self.control.close()

    def _write_summary(self, reason: Reason) -> None:
        counters = self.metrics.counters()
        write_json(
            self.directory.summary,
            {
                "exit_reason": reason,
                "updates": self.checkpoint.version,
                "agent_steps": counters.agent_steps,
                "abandoned_steps": counters.abandoned_steps,
                "wall_s": counters.wall_s,
                "agent_steps_per_s": counters.agent_steps / counters.wall_s if counters.wall_s else None,
                "episodes": counters.episodes,
                "score_mean_50": self.row["score_mean_50"],
                "workers": self.config.workers,
                "backups": self.config.backups,
                "quorum": self.config.effective_quorum(),
                "shards": self.layout.shards,
                "contributions": dict(counters.contributions),
                "params_sha256": self.checkpoint.params_sha256(),
            },
        )


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
