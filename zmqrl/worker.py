"""A worker: pull -> play -> gradient -> push. :func:`work` is the whole distributed algorithm."""

import logging
import signal
import sys
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from zmqrl.config import Config
from zmqrl.errors import USER_CODE_FAILED, ClusterError, UsageError, UserCodeError, ZmqrlError, closing
from zmqrl.learner.envs import make_envs
from zmqrl.learner.heads import head_of
from zmqrl.learner.losses import Learner, NoLearner
from zmqrl.learner.networks import ConvPolicy, compute_of, make_model
from zmqrl.learner.plugin import blaming_own, check_outputs, load_loss, seed_global_generators
from zmqrl.learner.rollout import Player, Rollout
from zmqrl.observe.provenance import code_id
from zmqrl.observe.spans import Spans
from zmqrl.process import bind_to_core, ended_by_sigterm, lived_s, log_to_stderr, read_job
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.flat import FlatParameters
from zmqrl.ps.worker.connection import Connection, NotFinite, PulledWeights
from zmqrl.reporter import Reporter
from zmqrl.start.jobs import WorkerJob


def work(connection: Connection, actor_learner: "ActorLearner", config: Config, log: logging.Logger) -> None:
    """Contribute to every version until the run ends.

    An iteration learns from one rollout in U updates: iteration i is versions i*U to (i+1)*U - 1. In asynchronous mode,
    U contributions of this worker make an iteration. If the run is more than one iteration ahead when a rollout is
    complete, the worker drops the rollout.
    """
    parameters, player, learner = actor_learner.parameters, actor_learner.player, actor_learner.learner
    rollout, spans = actor_learner.rollout, connection.spans
    pace = config.pace_of(connection.rank)
    contributed = 0

    def iteration_of(weights: PulledWeights) -> tuple[int, int]:
        """The iteration that ``weights`` belong to, and the index of the next update in that iteration."""
        updates = contributed if config.mode == "async" else weights.version
        return divmod(updates, config.algorithm.updates_per_rollout)

    def load(weights: PulledWeights) -> None:
        parameters.load(weights.vector)

    weights = connection.pull()
    if weights is None:
        return
    steps = rollout.steps * rollout.num_envs
    reporter = Reporter(connection, steps, weights.version, actor_learner.compute)
    while weights is not None:
        acted = weights
        load(acted)
        with blaming_own(config.model):
            games = player.play(rollout)
        reporter.played(games, player.first_games)
        weights = connection.pull(acted.version - 1)
        if weights is None:
            break
        iteration, _ = iteration_of(weights)
        if weights.generation != acted.generation or iteration > iteration_of(acted)[0] + 1:
            log.info("rollout of version %d dropped: the run is at version %d", acted.version, weights.version)
            reporter.abandoned()
            continue
        learner.prepare(rollout)
        while weights is not None and (weights.generation, iteration_of(weights)[0]) == (acted.generation, iteration):
            begun_at = time.monotonic()
            if weights.version != acted.version:
                rollout.activations = None
            load(weights)
            gradient = connection.gradient_buffer()
            with spans("gradient"), parameters.gradient_in(gradient), blaming_own(config.model, config.loss):
                losses = learner.gradient(rollout, iteration_of(weights)[1], weights.version, weights.elapsed)
            sleep_s = pace.sleep_s(weights.version, time.monotonic() - begun_at)
            if sleep_s:
                with spans("straggle"):
                    time.sleep(sleep_s)
            try:
                connection.push(weights, gradient)
            except NotFinite as error:
                raise ClusterError(f"{str(error).rstrip('.')} (loss {losses['loss']}).") from None
            contributed += 1
            reporter.learned(weights, losses, lag=weights.version - acted.version)
            weights = connection.pull(weights.version)
    reporter.send()


def keeps_activations(config: Config, model: nn.Module) -> bool:
    """Whether a worker keeps the activations from acting, and learns with them.

    Not in asynchronous mode: pulled weights join slices of several versions, so two pulls of the same version can
    differ. Not with a subclass of our network, which may call its layers in another way. Not on a GPU, because the
    activations would be in the memory of the CPU.
    """
    uses_them = config.algorithm.uses_whole_rollouts and not config.act_only
    return uses_them and type(model) is ConvPolicy and config.mode == "sync" and config.device == "cpu"


class ActorLearner:
    """The games, network, loss and rollout memory of a worker. Creating them takes seconds."""

    def __init__(
        self, config: Config, rank: int, version: int, *, threads: int, spans: Spans, generation: int = 0
    ) -> None:
        """``version`` and ``generation`` seed the games, together with the seed of the run and the rank."""
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no CUDA device on this machine.")
        torch.set_num_threads(threads)
        device = torch.device(config.device)
        # The global generators have seeds of their own: torch's would otherwise draw the noise of the actions again.
        seeds = np.random.SeedSequence((config.seed, rank, version, generation)).generate_state(3).tolist()
        seed, while_made, while_working = seeds
        seed_global_generators(while_made)
        self.envs = make_envs(config.env, config.envs, threads=threads)
        spec = self.envs.spec
        # Shards send no buffers of a user's own model. The seed makes them equal on all workers.
        seed_global_generators(config.seed)
        model = make_model(config.model, spec, config.network, device=device)
        seed_global_generators(while_working)
        self.parameters, self.compute = FlatParameters(model), compute_of(model)
        loss = load_loss(config.loss, config.algorithm, spec.actions) if config.loss is not None else None
        self.learner = NoLearner() if config.act_only else Learner(model, config.algorithm, seed=seed, loss=loss)
        self.player = Player(
            model,
            self.envs,
            seed,
            device,
            spans,
            keeps_activations=keeps_activations(config, model),
            gamma=config.algorithm.gamma,
            check=partial(check_outputs, config.model, head_of(spec.actions)) if ":" in config.model else None,
        )
        self.rollout = Rollout(
            steps=config.algorithm.rollout_steps,
            num_envs=self.envs.num_envs,
            spec=spec,
            device=device,
        )


def join(
    cluster: Cluster,
    config: Config,
    rank: int,
    *,
    version: int,
    threads: int,
    log: logging.Logger,
    generation: int = 0,
    profiler: ProfilerJob | None = None,
    incarnation: int | None = None,
    code: str = "",
) -> None:
    """Connect to the shards as ``rank``, work until the run ends, and leave. Raises ZmqrlError.

    Shards refuse a worker whose ``code`` differs from theirs. An empty ``code`` is not checked. With ``profiler``, the
    worker records how it spends its time.
    """
    spans, begun_s = Spans(), lived_s()
    actor_learner = ActorLearner(config, rank, version, threads=threads, spans=spans, generation=generation)
    log.info("games and network made in %.1f s", lived_s() - begun_s)
    with (
        closing(actor_learner.envs),
        # Connect last, because the run waits for every worker that has connected.
        Connection(
            cluster, rank, incarnation=incarnation, code=code, spans=spans, profiler=profiler, log=log
        ) as connection,
    ):
        work(connection, actor_learner, config, log)


def main() -> None:
    imported_s = lived_s()
    data = read_job(signal.SIGKILL)
    log = log_to_stderr("zmqrl.worker")
    log.info("started and imported in %.1f s", imported_s)
    try:
        with ended_by_sigterm():
            job = WorkerJob.from_json(data)
            if job.core is not None and (core := bind_to_core(*job.core)) is not None:
                log.info("bound to core %d", core)
            join(
                job.cluster,
                job.config,
                job.rank,
                version=job.version,
                threads=job.threads,
                log=log,
                generation=job.generation,
                profiler=job.profiler,
                incarnation=job.incarnation,
                code=code_id(),
            )
    except ZmqrlError as error:
        if error.__cause__ is not None:
            log.error("caused by", exc_info=error.__cause__)
        log.error("%s", error)  # logged last, because users see the end of the log
        sys.exit(USER_CODE_FAILED if isinstance(error, UserCodeError) else error.exit_status)


if __name__ == "__main__":
    main()
