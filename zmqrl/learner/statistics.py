"""Running means and variances of observations and returns, to scale what a policy sees and learns from.

They are tensors of the network and travel with its weights. All workers scale the observations of a version with the
same statistics, and checkpoints contain them. To scale rewards, each worker adds those of its own rollout.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zmqrl.errors import UsageError, require
from zmqrl.learner.games import EnvSpec

NAME = "running_statistics"  # the module's name in a network. Shards average its tensors: see zmqrl.ps.layout
LIMIT = 10.0  # scaled numbers are clipped to [-LIMIT, LIMIT]
EPSILON = 1e-8
LARGEST_VARIANCE = float(np.finfo(np.float32).max) / 2**16  # so that the sum of all gradients is finite

MeanAndVariance: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


class Moments(nn.Module):
    """The ``mean`` (n,) and ``variance`` (n,) of n numbers over all rollouts so far.

    ``count`` (1,) is the number of rollouts of each worker. The gradient of each tensor is its value minus the value
    after one more rollout. A shard subtracts the mean of K gradients, so the new value is the mean of these K values.
    This is exact for K = 1. With K > 1, the variance is too small: update n omits 1 / n^2 of the variance between the
    means of its K rollouts. If these means always differ as much, (1 + 1/2 + ... + 1/n) / n of this variance is missing
    after n updates: all of it for n = 1, and 5 % for n = 100.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1))
        self.mean = nn.Parameter(torch.zeros(length))
        self.variance = nn.Parameter(torch.ones(length))

    def scaled(self, numbers: Tensor) -> Tensor:
        """``numbers`` (..., n) with mean 0 and variance 1, clipped."""
        return ((numbers - self.mean) / (self.variance + EPSILON).sqrt()).clamp(-LIMIT, LIMIT)

    def scaled_rewards(self, rewards: Tensor, rollout: MeanAndVariance) -> Tensor:
        """``rewards`` divided by the standard deviation of returns, including those of ``rollout``, and clipped."""
        _, _, variance = self.merged(rollout)
        return (rewards / (variance + EPSILON).sqrt()).clamp(-LIMIT, LIMIT)

    def merged(self, rollout: MeanAndVariance) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and variance in float64, with one more ``rollout``. All rollouts have the same weight.

        Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", eq. 2.1.
        """
        mean, variance = (torch.from_numpy(moment).to(self.mean.device) for moment in rollout)
        weight, distance = 1 / (self.count.double() + 1), mean - self.mean
        spread = variance + (1 - weight) * distance.square()
        return self.count.double() + 1, self.mean + weight * distance, (1 - weight) * self.variance + weight * spread

    @torch.no_grad()
    def set_gradient(self, rollout: MeanAndVariance) -> None:
        """Write the gradient for ``rollout`` to ``.grad`` of each tensor, in place."""
        for tensor, merged in zip((self.count, self.mean, self.variance), self.merged(rollout), strict=True):
            assert tensor.grad is not None
            tensor.grad.copy_(tensor - merged)


class Statistics(nn.Module):
    """The moments of the ``observations`` and of the discounted ``returns`` of games, as far as ``spec`` uses them."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.observations = Moments(*spec.observation_shape) if spec.normalizes_observations else None
        self.returns = Moments(1) if spec.normalizes_rewards else None

    def forward(self, features: Any) -> Any:
        """Return ``features``: a network that is an ``nn.Sequential`` also calls this module."""
        return features

    def set_gradients(self, rollout: Mapping[str, MeanAndVariance]) -> None:
        """Write the gradients for ``rollout``. Raises UsageError if observations or returns vary too much."""
        for name, moments in self.named_children():
            assert isinstance(moments, Moments)
            _, _, variance = moments.merged(rollout[name])
            if variance.max() > LARGEST_VARIANCE:
                index, std = int(variance.argmax()), variance.max().sqrt().item()
                what, option = (
                    (f"observation[{index}]", "observations")
                    if moments is self.observations
                    else ("the return of a game", "rewards")
                )
                raise UsageError(
                    f"--envs.normalize-{option}: the standard deviation of {what} is {std:.1g}, which is too large: "
                    f"scale the {option} in your environment."
                )
            moments.set_gradient(rollout[name])


def add_statistics(model: nn.Module, spec: EnvSpec) -> None:
    """Add the statistics that ``spec`` uses to ``model``. Raises UsageError if ``model`` has an attribute ``NAME``."""
    require(not hasattr(model, NAME), f"the network already has an attribute {NAME}: rename the attribute.")
    if spec.normalizes_observations or spec.normalizes_rewards:
        model.add_module(NAME, Statistics(spec))


def statistics_of(model: nn.Module) -> Statistics | None:
    return getattr(model, NAME, None)


def scaled_observations(model: nn.Module, observations: Tensor) -> Tensor:
    """``observations`` (B, *shape) as the network reads them: scaled if ``model`` has their statistics."""
    statistics = statistics_of(model)
    moments = None if statistics is None else statistics.observations
    return observations if moments is None else moments.scaled(observations)


def moments_of(numbers: np.ndarray) -> MeanAndVariance:
    """Mean and variance (n,) of ``numbers`` (M, n). numpy's results do not depend on the number of threads."""
    return numbers.mean(0, dtype=np.float64), numbers.var(0, dtype=np.float64)


def discounted_returns(
    rewards: np.ndarray, over: npt.NDArray[np.bool_], gamma: float, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Discounted sums (T, B) of ``rewards`` (T, B) up to each step, and the sums (B,) to continue with.

    ``over`` (T, B): where a game ended. ``before`` (B,): the sums before the first step. The standard deviation of the
    sums is the scale of rewards in Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", algorithm
    1.
    """
    sums = np.empty(rewards.shape)
    for t, (reward, ended) in enumerate(zip(rewards, over, strict=True)):
        sums[t] = gamma * before + reward
        before = np.where(ended, 0.0, sums[t])
    return sums, before
