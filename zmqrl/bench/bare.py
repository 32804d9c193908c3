"""The parts of ``zmqrl bench train``: each is one thing that a worker does, without everything around it.

``run(seconds)`` repeats the work for this time. It returns the ``seconds`` of the work, and the ``steps``: agent steps
or samples.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zmqrl.bench.crew import Part, PartFacts
from zmqrl.config import Config
from zmqrl.learner.envs import describe_env, make_envs
from zmqrl.learner.networks import ConvPolicy, make_model
from zmqrl.learner.rollout import Rollout, put_frames
from zmqrl.worker import keeps_activations

ACTIONS = 1024  # random actions of each game, drawn beforehand


class BareGames(Part):
    """Plays the games of a worker with random actions."""

    def __init__(self, *, config: dict[str, Any], rank: int, threads: int) -> None:
        settings = Config.from_json(config)
        self.envs = make_envs(settings.env, settings.envs, threads=threads)
        rng = np.random.default_rng(rank)
        self.actions = self.envs.spec.actions.drawn(rng, ACTIONS, self.envs.num_envs)
        self.played = 0
        self.envs.reset(rank)

    def run(self, seconds: float) -> PartFacts:
        return _repeated(self._step, seconds, self.envs.num_envs)

    def close(self) -> None:
        self.envs.close()

    def _step(self) -> float:
        begun = time.perf_counter()
        self.envs.step(self.actions[self.played % ACTIONS])
        self.played += 1
        return time.perf_counter() - begun


class _BareNetwork(Part):
    """The network of a worker, and a minibatch of random observations, stored as the learner stores rollouts.

    ``facts`` has ``compute`` (the number format), ``batch`` (the number of samples) and ``backward_only``: the learner
    keeps the activations of acting, so a gradient needs no forward pass.
    """

    def __init__(self, *, config: dict[str, Any], rank: int, threads: int) -> None:
        settings = Config.from_json(config)
        spec = describe_env(settings.env, settings.envs)
        torch.set_num_threads(threads)
        torch.manual_seed(rank)
        self.device = torch.device(settings.device)
        self.model = make_model(settings.model, spec, settings.network, device=self.device)
        self.samples = settings.algorithm.minibatch_samples(settings.envs.num_envs)
        rollout = Rollout(steps=1, num_envs=self.samples, spec=spec, device=self.device)
        rng, shape = np.random.default_rng(rank), (self.samples, *spec.observation_shape)
        is_image = spec.observation_dtype == np.uint8
        seen = rng.integers(256, size=shape) if is_image else rng.standard_normal(shape)
        self.observations = rollout.observations[0]
        put_frames(self.observations, seen.astype(spec.observation_dtype))
        is_ours = isinstance(self.model, ConvPolicy)
        self.facts = {
            "compute": str(self.model.dtype if is_ours else torch.float32).removeprefix("torch."),
            "batch": self.samples,
            "backward_only": keeps_activations(settings, self.model),
        }

    def run(self, seconds: float) -> PartFacts:
        return _repeated(self._pass, seconds, self.samples)

    def _pass(self) -> float:
        """Compute one minibatch. Returns the seconds of the measured work."""
        raise NotImplementedError

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class BareForward(_BareNetwork):
    """Computes logits and values of whole minibatches, without gradients."""

    @torch.inference_mode()
    def _pass(self) -> float:
        begun = self._now()
        self.model(self.observations)
        return self._now() - begun


class BareGradient(_BareNetwork):
    """Computes gradients of minibatches, without a loss: the gradients of logits and values are given.

    If ``backward_only``, the forward pass does not count.
    """

    def __init__(self, *, config: dict[str, Any], rank: int, threads: int) -> None:
        super().__init__(config=config, rank=rank, threads=threads)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.outputs = [torch.randn_like(output) for output in self.model(self.observations)]

    def _pass(self) -> float:
        begun = self._now()
        outputs = self.model(self.observations)
        if self.facts["backward_only"]:
            begun = self._now()
        torch.autograd.grad(outputs, self.parameters, self.outputs, allow_unused=True)
        return self._now() - begun


def _repeated(work: Callable[[], float], seconds: float, steps: int) -> PartFacts:
    """Call ``work`` until ``seconds`` have passed. Each call takes ``steps`` steps and returns their seconds."""
    work()  # does not count: the caches hold the data of another part
    end_at = time.monotonic() + seconds
    took, repeated = 0.0, 0
    while not repeated or time.monotonic() < end_at:
        took += work()
        repeated += 1
    return {"seconds": took, "steps": repeated * steps}
