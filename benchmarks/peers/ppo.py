"""PPO in plain PyTorch: rollout, advantages and updates. The trainings without an RL library use this module.

The network is the "nature" net (Mnih et al. 2015), in float32. The settings are those of Schulman et al. 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

GAMMA, GAE_LAMBDA = 0.99, 0.95
CLIP, VALUE_COEFFICIENT, ENTROPY_COEFFICIENT, MAX_GRAD_NORM = 0.1, 0.5, 0.01, 0.5
EPOCHS, MINIBATCHES, STEPS = 4, 4, 128

Step = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Plays actions (B,) and returns observations uint8 (B, 4, 84, 84), clipped rewards (B,) and ends of lives (B,)."""


def layer(made: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Initialize a layer with orthogonal weights and zero biases."""
    nn.init.orthogonal_(made.weight, gain)  # type: ignore[arg-type]
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class Network(nn.Module):
    """Logits (B, A) and values (B,) of observations uint8 (B, 4, 84, 84)."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(layer(nn.Conv2d(4, 32, 8, 4)), nn.ReLU(), layer(nn.Conv2d(32, 64, 4, 2)), nn.ReLU()),
            *(layer(nn.Conv2d(64, 64, 3)), nn.ReLU(), nn.Flatten(), layer(nn.Linear(3136, 512)), nn.ReLU()),
        )
        self.actor, self.critic = layer(nn.Linear(512, actions), 0.01), layer(nn.Linear(512, 1), 1.0)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(observations / 255.0)
        return self.actor(features), self.critic(features).squeeze(-1)


@dataclass
class Rollout:
    """The data of one rollout: (T, B) each."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    ends: Tensor
    values: Tensor


class Player:
    """Plays rollouts with the newest network."""

    def __init__(self, network: Network, step: Step, first: np.ndarray) -> None:
        self.network, self.step, self.observations = network, step, torch.as_tensor(first)

    @torch.no_grad()
    def play(self) -> tuple[Rollout, Tensor]:
        """A rollout, and the values (B,) of the observations after the rollout."""
        kept: list[tuple[Tensor, ...]] = []
        for _ in range(STEPS):
            logits, values = self.network(self.observations)
            policy = Categorical(logits=logits)
            actions = policy.sample()
            seen, rewards, ends = self.step(actions.numpy())
            played = (
                actions,
                policy.log_prob(actions),
                torch.as_tensor(rewards).float(),
                torch.as_tensor(ends).float(),
            )
            kept.append((self.observations, *played, values))
            self.observations = torch.as_tensor(seen)
        rollout = Rollout(*(torch.stack(each) for each in zip(*kept, strict=True)))
        return rollout, self.network(self.observations)[1]


def advantages(rollout: Rollout, last_values: Tensor) -> Tensor:
    """Generalized advantage estimates (T, B) (Schulman et al. 2016)."""
    found, carried, following = torch.zeros_like(rollout.rewards), torch.zeros_like(last_values), last_values
    for t in reversed(range(len(rollout.rewards))):
        goes_on = 1.0 - rollout.ends[t]
        delta = rollout.rewards[t] + GAMMA * goes_on * following - rollout.values[t]
        carried = delta + GAMMA * GAE_LAMBDA * goes_on * carried
        found[t], following = carried, rollout.values[t]
    return found


def learn(
    network: Network,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    last_values: Tensor,
    average: Callable[[], None] = lambda: None,
) -> None:
    """Four epochs of four minibatches. ``average`` is called between each gradient and its clipping."""
    found = advantages(rollout, last_values)
    targets = (found + rollout.values).flatten()
    flat = {name: getattr(rollout, name).flatten(0, 1) for name in ("observations", "actions", "log_probs")}
    gains = found.flatten()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(gains)).chunk(MINIBATCHES):
            logits, values = network(flat["observations"][chosen])
            policy = Categorical(logits=logits)
            ratio = (policy.log_prob(flat["actions"][chosen]) - flat["log_probs"][chosen]).exp()
            gain = gains[chosen]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
            value_loss = 0.5 * (values - targets[chosen]).square().mean()
            loss = -surrogate + VALUE_COEFFICIENT * value_loss - ENTROPY_COEFFICIENT * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            average()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimizer.step()
