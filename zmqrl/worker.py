"""A worker: pull -> play -> gradient -> push. The whole distributed algorithm is in ``work``."""

import logging
import math
import os
import signal
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zmqrl.agent.envs import Game, make_envs
from zmqrl.agent.losses import Learner, NoLearner
from zmqrl.agent.model import make_model
from zmqrl.agent.plugin import load_loss
from zmqrl.agent.rollout import Player, Rollout
from zmqrl.child import lived_s, log_to_stderr, read_job
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError, ZmqrlError
from zmqrl.observe.provenance import code_id
from zmqrl.observe.spans import Spans, chrome_events, write_trace
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.codec import is_finite
from zmqrl.ps.connection import Connection, Weights
from zmqrl.ps.flat import FlatParameters
from zmqrl.ps.security import ClientKeys

REPORT_EVERY_S = 0.2
GAMES_IN_A_REPORT = 32


def work(connection: Connection, agent: "Agent", config: Config, log: logging.Logger) -> None:
    """Contribute to every version until the run ends.

    Versions i*U to (i+1)*U - 1 are learned from one rollout (iteration i). A rollout that took so long that the run
    is more than one iteration further is dropped. In asynchronous mode U contributions of this worker are an iteration.
    """
    spans, parameters, rollout, learner = connection.spans, agent.parameters, agent.rollout, agent.learner
    delay_s = config.straggle_s().get(connection.rank, 0.0)
    per_rollout = config.algorithm.updates_per_rollout
    iteration, acted_at, generation, contributed = -1, 0, 0, 0

    def position(weights: Weights) -> int:
        return contributed if config.mode == "async" else weights.version

    weights = connection.pull()
    if weights is None:
        return
    reporter = Reporter(connection, rollout.steps * rollout.num_envs, weights.version)
    profile_until = weights.version + (config.profile or 0)
    while weights is not None:
        spans.recording = weights.version < profile_until
        parameters.load(weights.vector)
        if (weights.generation, position(weights) // per_rollout) != (generation, iteration):
            generation, acted_at, begun_at = weights.generation, weights.version, position(weights)
            reporter.played(agent.player.play(rollout))
            weights = connection.pull(weights.version - 1)
            if weights is None:
                break
            parameters.load(weights.vector)
            iteration = position(weights) // per_rollout
            if weights.generation != generation or iteration - begun_at // per_rollout > 1:
                log.info("rollout of version %d dropped: the run is at version %d", acted_at, weights.version)
                reporter.abandoned()
                iteration = -1
                continue
            learner.prepare(rollout)
        gradient = connection.gradient_buffer()
        with spans("gradient"), parameters.gradient_in(gradient):
            losses = learner.gradient(rollout, position(weights) % per_rollout, weights.version)
        if not is_finite(gradient):
            raise ClusterError(f"the gradient of version {weights.version} is not finite (loss {losses['loss']}).")
        time.sleep(delay_s)
        connection.push(weights, gradient)
        contributed += 1
        reporter.learned(weights, losses, lag=weights.version - acted_at)
        weights = connection.pull(weights.version)
    reporter.send()


class Agent:
    """What a worker computes with: games, network, memory. Making it takes seconds."""

    def __init__(self, config: Config, rank: int, version: int, *, threads: int, spans: Spans) -> None:
        """``version`` is about where the run is: a worker that is started again does not play the same games."""
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("the run computes on CUDA devices, but torch sees none on this machine.")
        torch.set_num_threads(threads)
        device = torch.device(config.device)
        seed = int(np.random.SeedSequence((config.seed, rank, version)).generate_state(1)[0])
        self.envs = make_envs(config.env, config.envs, threads=threads)
        shape, num_actions = self.envs.observation_shape, self.envs.num_actions
        # The weights come from the shards; what a model of the user's own does not train is drawn alike everywhere.
        torch.manual_seed(config.seed)
        model = make_model(config.model, shape, num_actions, config.network, device=device)
        self.parameters = FlatParameters(model)
        loss = load_loss(config.loss, config.algorithm) if config.loss is not None else None
        self.learner = NoLearner() if config.act_only else Learner(model, config.algorithm, seed=seed, loss=loss)
        self.player = Player(model, self.envs, seed, device, spans)
        self.rollout = Rollout(
            steps=config.algorithm.rollout_steps,
            num_envs=self.envs.num_envs,
            observation_shape=self.envs.observation_shape,
            observation_dtype=self.envs.observation_dtype,
            device=device,
        )


class Reporter:
    """Tells the supervisor this worker's figures: counts are cumulative, so that a lost report costs none of them."""

    def __init__(self, connection: Connection, steps_per_rollout: int, version: int) -> None:
        """``version`` is the first that is played."""
        self.connection = connection
        self.steps_per_rollout = steps_per_rollout
        self.agent_steps = self.abandoned_steps = self.games_played = 0
        self.games: deque[tuple[int, float, int]] = deque(maxlen=GAMES_IN_A_REPORT)
        self.version = version
        self.losses: defaultdict[str, float] = defaultdict(float)  # sums since the last report, as many as lags
        self.lags: list[int] = []
        self.sent_at = 0.0

    def played(self, games: list[Game]) -> None:
        """A rollout is complete, and these games ended in it."""
        self.agent_steps += self.steps_per_rollout
        for game in games:
            self.games_played += 1
            self.games.append((self.games_played, game.score, game.agent_steps))
            if self.games_played % GAMES_IN_A_REPORT == 0:
                self.send()
        self.send()  # before any contribution that was learned from it, so that a version is never ahead of its steps

    def abandoned(self) -> None:
        """The last rollout came too late to learn from."""
        self.abandoned_steps += self.steps_per_rollout

    def learned(self, weights: Weights, losses: dict[str, float], *, lag: int) -> None:
        """A gradient was pushed; report if the last report is a while ago."""
        self.version = weights.version
        self.lags.append(lag)
        for name, value in losses.items():
            self.losses[name] += value
        if time.monotonic() - self.sent_at >= REPORT_EVERY_S:
            self.send()

    def send(self) -> None:
        """Report now."""
        self.sent_at = time.monotonic()
        self.connection.report(
            self._learned()
            | {
                "version": self.version,
                "agent_steps": self.agent_steps,
                "abandoned_steps": self.abandoned_steps,
                "skipped": self.connection.tally().skipped,
                "games": list(self.games),
                "spans": self.connection.spans.take(),
            }
        )
        self.losses.clear()
        self.lags.clear()

    def _learned(self) -> dict[str, Any]:
        """Means over the gradients since the last report. One that is not finite would void the whole report."""
        if not self.lags:
            return {}
        means = {name: total / len(self.lags) for name, total in self.losses.items()}
        return {
            "losses": {name: mean for name, mean in means.items() if math.isfinite(mean)},
            "policy_lag": sum(self.lags) / len(self.lags),
            "policy_lag_min": min(self.lags),
            "policy_lag_max": max(self.lags),
        }


def join(
    cluster: Cluster,
    config: Config,
    rank: int,
    *,
    version: int,
    threads: int,
    trace_path: Path | None,
    log: logging.Logger,
    incarnation: int | None = None,
    code: str = "",
) -> None:
    """Connect to the shards as ``rank``, work until the run ends, leave. Raises ZmqrlError.

    Shards of another zmqrl than ``code`` refuse it, unless that is empty.
    """
    spans, begun_s = Spans(), lived_s()
    agent = Agent(config, rank, version, threads=threads, spans=spans)
    log.info("games and network made in %.1f s", lived_s() - begun_s)
    try:
        # Only now: to be connected means to be ready to play.
        with Connection(cluster, rank, incarnation=incarnation, code=code, spans=spans, log=log) as connection:
            work(connection, agent, config, log)
    finally:
        agent.envs.close()
        if trace_path is not None:
            write_trace(trace_path, chrome_events(spans.events, os.getpid(), f"worker {rank}"))


def main() -> None:
    """Run one worker, as told on standard input."""
    imported_s = lived_s()
    job = read_job(signal.SIGKILL)
    log = log_to_stderr("zmqrl.worker")
    log.info("started and imported in %.1f s", imported_s)
    keys = ClientKeys.from_json(job["keys"]) if job["keys"] else None
    trace_path = Path(job["trace_path"]) if job["trace_path"] else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        join(
            Cluster.from_json(job["cluster"], keys),
            Config.from_json(job["config"]),
            job["rank"],
            version=job["version"],
            threads=job["threads"],
            trace_path=trace_path,
            log=log,
            incarnation=job["incarnation"],
            code=code_id(),
        )
    except ZmqrlError as error:
        log.error("%s", error)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
