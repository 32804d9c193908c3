"""The losses of the algorithms, and the learner that turns a rollout into gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from zmqrl.learner.heads import CATEGORICAL, Head
from zmqrl.learner.rollout import Rollout
from zmqrl.learner.settings import Algorithm, BA3CConfig, PPOConfig
from zmqrl.learner.statistics import statistics_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The M samples of one minibatch. Tensors are float32 (M,), except ``actions`` (M, *shape).

    ``log_probs`` are those of the policy that acted. ``advantages`` weight the actions, and ``returns`` are the targets
    of the values. ``head`` turns network outputs into log-probabilities.
    """

    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    head: Head = CATEGORICAL


# Metrics that the learner reports in addition to the statistics of the loss.
LEARNER_METRICS = ("loss", "grad_norm", "grad_norm_clipped", "explained_variance", "entropy_coefficient")

# A loss takes network outputs (M, A), values (M,), the batch, the settings of the algorithm, and the coefficient of the
# entropy bonus. It returns the loss, a scalar, and detached scalars to report.
Loss: TypeAlias = Callable[[Tensor, Tensor, Batch, Any, float], tuple[Tensor, dict[str, Tensor]]]


def ppo_loss(
    outputs: Tensor, values: Tensor, batch: Batch, config: PPOConfig, entropy_coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate, the value loss and the entropy bonus of network outputs (M, A) and values (M,).

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 9. The value loss is the mean of (V - R)^2, not
    clipped.
    """
    log_probs, entropy = batch.head.log_probs_and_entropy(outputs, batch.actions)
    log_ratio = log_probs - batch.log_probs
    ratio = log_ratio.exp()
    advantages = batch.advantages
    if config.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    clipped_ratio = ratio.clamp(1 - config.clip, 1 + config.clip)
    policy_loss = -torch.minimum(advantages * ratio, advantages * clipped_ratio).mean()
    value_loss = (values - batch.returns).square().mean()
    loss = policy_loss + config.value_coefficient * value_loss - entropy_coefficient * entropy
    with torch.no_grad():
        stats = _stats(policy_loss, value_loss, entropy, log_ratio, values, batch.advantages)
        stats["clip_fraction"] = ((ratio - 1).abs() > config.clip).float().mean()
    return loss, stats


def ba3c_loss(
    outputs: Tensor, values: Tensor, batch: Batch, config: BA3CConfig, entropy_coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient, value loss and entropy bonus of network outputs (M, A) and values (M,), as means over the batch.

    Mnih et al. 2016, section 4: -log pi(a) (R - V), with V held constant. The value loss is the mean of (V - R)^2.
    Nothing corrects for the lag between the policy that acted and the policy that learns.
    """
    log_probs, entropy = batch.head.log_probs_and_entropy(outputs, batch.actions)
    advantages = batch.returns - values.detach()
    policy_loss = -(log_probs * advantages).mean()
    value_loss = (values - batch.returns).square().mean()
    loss = policy_loss + config.value_coefficient * value_loss - entropy_coefficient * entropy
    with torch.no_grad():
        log_ratio = log_probs - batch.log_probs
        stats = _stats(policy_loss, value_loss, entropy, log_ratio, values, advantages)
    return loss, stats


def entropy_coefficient_at(config: Algorithm, version: int, elapsed: float) -> float:
    """The coefficient of the entropy bonus for the update of ``version``, at progress ``elapsed`` (0 to 1)."""
    if config.final_entropy_coefficient is None:
        return config.entropy_coefficient
    done = min(1.0, version / config.entropy_schedule_updates if config.entropy_schedule_updates else elapsed)
    return config.entropy_coefficient + done * (config.final_entropy_coefficient - config.entropy_coefficient)


class Learner:
    """Turns rollouts into gradients, one minibatch at a time. The shards take the optimizer step."""

    def __init__(self, model: nn.Module, config: Algorithm, *, seed: int, loss: Loss | None = None) -> None:
        """The order of the samples depends on ``seed``. ``loss`` replaces the loss of the algorithm."""
        self.model = model
        self.config = config
        self._loss = loss or config.loss
        self._seed = seed
        self._statistics = statistics_of(model)
        self._tensors = list(model.parameters())
        averaged = set() if self._statistics is None else set(self._statistics.parameters())
        self._parameters = [parameter for parameter in self._tensors if parameter not in averaged]

    def prepare(self, rollout: Rollout) -> None:
        """Compute ``advantages`` and ``returns`` of the rollout, once, before ``gradient``."""
        advantages, returns = self.config.advantages(rollout)
        rollout.advantages.copy_(advantages)
        rollout.returns.copy_(returns)
        unexplained = advantages.var(correction=0) / returns.var(correction=0)
        # Constant returns leave nothing to explain, and NaN is not valid JSON.
        rollout.explained_variance = (1 - unexplained).nan_to_num(0.0, 0.0, 0.0)

    def gradient(self, rollout: Rollout, index: int, version: int, elapsed: float = 0.0) -> dict[str, float]:
        """Write the gradient of minibatch ``index``, 0 to updates_per_rollout - 1, to the parameters' ``.grad``.

        An existing ``.grad`` is overwritten in place, so it may be a view of a longer vector. Each schedule follows
        ``version`` or ``elapsed``, the progress of the run from 0 to 1. The gradient of minibatch 0 includes that of
        the running statistics.

        Returns the metrics. Advantages and values are in units of the rewards that the policy learns from, which can be
        clipped or scaled. ``explained_variance`` covers the whole rollout, with the values of the policy that acted.
        """
        for parameter in self._tensors:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()
        if index == 0 and self._statistics is not None:
            self._statistics.set_gradients(rollout.moments)
        samples = self.config.samples(rollout, index, self._seed)
        indices = torch.from_numpy(samples).to(rollout.actions.device)
        batch = Batch(
            actions=rollout.actions.flatten(0, 1)[indices],
            log_probs=rollout.log_probs.flatten()[indices],
            advantages=rollout.advantages.flatten()[indices],
            returns=rollout.returns.flatten()[indices],
            head=rollout.head,
        )
        if rollout.activations is None:
            outputs, values = self.model(rollout.gather_observations(indices))
        else:
            rollout.activations.begin_learning()
            outputs, values = self.model(rollout.observations.flatten(0, 1), rollout.activations)
        entropy_coefficient = entropy_coefficient_at(self.config, version, elapsed)
        loss, stats = self._loss(outputs, values, batch, self.config.at(elapsed), entropy_coefficient)
        torch.autograd.backward(loss)
        grad_norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        whole = {"loss": loss.detach(), "grad_norm": grad_norm, "explained_variance": rollout.explained_variance}
        stats = {**stats, **whole}
        # Copy all metrics in one transfer, because each transfer waits for the device.
        metrics = dict(zip(stats, torch.stack(list(stats.values())).tolist(), strict=True))
        metrics["entropy_coefficient"] = entropy_coefficient
        metrics["grad_norm_clipped"] = min(metrics["grad_norm"], self.config.max_grad_norm)
        return metrics


class NoLearner:
    """Replaces ``Learner`` in a worker that only plays, to measure everything except learning. Gradients stay zero."""

    def prepare(self, rollout: Rollout) -> None:
        """Learn nothing."""

    def gradient(self, rollout: Rollout, index: int, version: int, elapsed: float = 0.0) -> dict[str, float]:
        return {}


def _stats(
    policy_loss: Tensor,
    value_loss: Tensor,
    entropy: Tensor,
    log_ratio: Tensor,
    values: Tensor,
    advantages: Tensor,
) -> dict[str, Tensor]:
    """The metrics of both algorithms. ``approx_kl``: mean of (r - 1) - log r (Schulman 2020, "Approximating KL")."""
    return {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": entropy.detach(),
        "approx_kl": (log_ratio.expm1() - log_ratio).mean(),
        "value_mean": values.mean(),
        "advantage_mean": advantages.mean(),
        "advantage_std": advantages.std(correction=0),
    }
