"""Your own network and loss. Run this in the directory of this file:

zmqrl train cartpole --algo ba3c --ba3c.rollout-steps 32 --model own_learner:model --loss own_learner:loss
"""

from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import smooth_l1_loss

from zmqrl.learner.losses import Batch
from zmqrl.learner.settings import BA3CConfig


class TwoHeads(nn.Module):
    """Actor and critic share one layer."""

    def __init__(self, inputs: int, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU())
        self.actor, self.critic = nn.Linear(128, num_actions), nn.Linear(128, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,)."""
        features = self.body(observations)
        return self.actor(features), self.critic(features).squeeze(-1)


def model(observation_shape: tuple[int, ...], num_actions: int) -> nn.Module:
    """Make the network. zmqrl calls this once in each process."""
    (inputs,) = observation_shape
    return TwoHeads(inputs, num_actions)


def loss(
    logits: Tensor, values: Tensor, batch: Batch, config: BA3CConfig, entropy_coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Actor-critic with the Huber loss for the critic. Returns the loss and the scalars to report."""
    policy = Categorical(logits=logits)
    policy_loss = -(policy.log_prob(batch.actions) * batch.advantages).mean()
    value_loss = smooth_l1_loss(values, batch.returns)
    entropy = policy.entropy().mean()
    total = policy_loss + config.value_coefficient * value_loss - entropy_coefficient * entropy
    return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
