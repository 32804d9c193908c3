"""Returns and advantages of one rollout.

- ``rewards``, ``values``, float32 (T, B), and ``terminated``, ``truncated``, bool (T, B). A step that is both
  terminated and truncated counts as terminated.
- ``bootstrap_values``, float32 (T, B): V(final observation) where truncated.
- ``last_values``, float32 (B,): V(observation after the last step).
"""

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    bootstrap_values: Tensor,
    last_values: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalized advantages and the returns they imply (advantages + values), both float32 (T, B).

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16, cut
    where a game ends.
    """
    next_values = torch.cat((values[1:], last_values[None])).where(~truncated, bootstrap_values)
    deltas = rewards + gamma * next_values * ~terminated - values
    advantages = _discounted(deltas, gamma * lam * ~(terminated | truncated), torch.zeros_like(last_values))
    return advantages, advantages + values


def n_step_returns(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    bootstrap_values: Tensor,
    last_values: Tensor,
    gamma: float,
) -> Tensor:
    """Discounted rewards up to the end of the rollout, plus the discounted value of the next state: float32 (T, B).

    Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", algorithm S3: R <- r_t + gamma R.
    """
    ended = terminated | truncated
    rewards = rewards + gamma * bootstrap_values * (truncated & ~terminated)
    return _discounted(rewards, gamma * ~ended, last_values)


def _discounted(terms: Tensor, discounts: Tensor, after: Tensor) -> Tensor:
    """x_t = terms_t + discounts_t x_{t+1} with x_T = ``after``, from the last step to the first."""
    sums = torch.empty_like(terms)
    for t in reversed(range(len(terms))):
        after = torch.addcmul(terms[t], discounts[t], after, out=sums[t])
    return sums
