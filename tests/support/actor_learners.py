"""The games, network and learner of a worker, in the process of a test."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from zmqrl.config import Config
from zmqrl.observe.spans import Spans
from zmqrl.worker import ActorLearner


@contextmanager
def actor_learner_of(config: Config, rank: int = 0, version: int = 0, generation: int = 0) -> Iterator[ActorLearner]:
    """An actor-learner with one thread. The end of the block closes its games."""
    made = ActorLearner(config, rank, version, threads=1, spans=Spans(), generation=generation)
    with closing(made.envs):
        yield made
