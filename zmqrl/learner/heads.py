"""Policies over actions: what the outputs of a network mean, for each space of actions.

``outputs`` are float (B, ActionSpace.outputs). ``actions`` (B, *ActionSpace.shape) have the units of the policy.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from zmqrl.learner.games import ActionSpace, BoxActions, DiscreteActions, FactoredActions

LOG_SQRT_2PI = math.log(2 * math.pi) / 2


class Head(Protocol):
    """A probability distribution of actions for each row of outputs."""

    def sample(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random actions (B, *shape), and their log-probabilities (B,)."""

    def log_probs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B,) of ``actions`` (B, *shape), and the mean entropy of the distributions."""

    def accepts(self, outputs: Tensor) -> bool:
        """Whether each row of ``outputs`` is a distribution, without NaN, inf or logits that are all -inf."""

    def best(self, outputs: Tensor) -> np.ndarray:
        """The most probable actions (B, *shape)."""

    def drawn(self, outputs: Tensor, rng: np.random.Generator) -> np.ndarray:
        """Random actions (B, *shape), computed in float64. Draws once from ``rng`` for each component of an action."""


class Categorical:
    """The :class:`Head` for one choice. Outputs are logits (B, A), and actions are int64 (B,).

    An action whose logit is -inf is never chosen.
    """

    def sample(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        log_probs = outputs.log_softmax(-1)
        actions = torch.multinomial(log_probs.exp(), 1, generator=generator)
        return actions.squeeze(1), log_probs.gather(1, actions).squeeze(1)

    def log_probs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = outputs.log_softmax(-1)
        finite = torch.finfo(log_probs.dtype).min  # 0 * -inf would be NaN
        entropy = -(log_probs.exp() * log_probs.clamp(min=finite)).sum(-1).mean()
        return log_probs.gather(1, actions[:, None]).squeeze(1), entropy

    def accepts(self, outputs: Tensor) -> bool:
        return bool(outputs.amax(-1).isfinite().all())

    def best(self, outputs: Tensor) -> np.ndarray:
        return outputs.argmax(-1).numpy()

    def drawn(self, outputs: Tensor, rng: np.random.Generator) -> np.ndarray:
        """In each row, take the first action whose cumulative probability exceeds a random number."""
        numbers = rng.random(len(outputs))
        # Leave out the last sum: rounding can make it smaller than the random number.
        sums = outputs.double().softmax(-1).numpy().cumsum(1)[:, :-1]
        actions: np.ndarray = (sums <= numbers[:, np.newaxis]).sum(1)
        return actions


CATEGORICAL = Categorical()


class Factored:
    """The :class:`Head` for independent choices. Outputs are logits (B, sum of ``counts``), actions int64 (B, k)."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self._counts = counts

    def sample(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        actions, log_probs = zip(*(CATEGORICAL.sample(part, generator) for part in self._parts(outputs)), strict=True)
        return torch.stack(actions, 1), torch.stack(log_probs).sum(0)

    def log_probs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies add up, because the choices are independent."""
        pairs = zip(self._parts(outputs), actions.unbind(1), strict=True)
        log_probs, entropies = zip(*(CATEGORICAL.log_probs_and_entropy(*pair) for pair in pairs), strict=True)
        return torch.stack(log_probs).sum(0), torch.stack(entropies).sum()

    def accepts(self, outputs: Tensor) -> bool:
        return all(CATEGORICAL.accepts(part) for part in self._parts(outputs))

    def best(self, outputs: Tensor) -> np.ndarray:
        return np.stack([CATEGORICAL.best(part) for part in self._parts(outputs)], 1)

    def drawn(self, outputs: Tensor, rng: np.random.Generator) -> np.ndarray:
        return np.stack([CATEGORICAL.drawn(part, rng) for part in self._parts(outputs)], 1)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return torch.split(outputs, list(self._counts), -1)


class Gaussian:
    """The :class:`Head` of independent normal distributions.

    Outputs are D means, then D log standard deviations. Actions are float (B, D).
    """

    def sample(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        actions = mean + log_std.exp() * noise
        return actions, self._log_probs(mean, log_std, actions)

    def log_probs_and_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The entropy of a normal distribution is ln(std) + (1 + ln(2 pi)) / 2."""
        mean, log_std = outputs.chunk(2, -1)
        return self._log_probs(mean, log_std, actions), (log_std + 0.5 + LOG_SQRT_2PI).sum(-1).mean()

    def accepts(self, outputs: Tensor) -> bool:
        return bool(outputs.isfinite().all())

    def best(self, outputs: Tensor) -> np.ndarray:
        return outputs.chunk(2, -1)[0].numpy()

    def drawn(self, outputs: Tensor, rng: np.random.Generator) -> np.ndarray:
        mean, log_std = outputs.double().numpy().reshape(len(outputs), 2, -1).swapaxes(0, 1)
        actions: np.ndarray = mean + np.exp(log_std) * rng.standard_normal(mean.shape)
        return actions

    def _log_probs(self, mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        return (-(((actions - mean) / log_std.exp()) ** 2) / 2 - log_std - LOG_SQRT_2PI).sum(-1)


def head_of(actions: ActionSpace) -> Head:
    match actions:
        case DiscreteActions():
            return CATEGORICAL
        case FactoredActions(counts):
            return Factored(counts)
        case BoxActions():
            return Gaussian()
