"""A network and a loss of your own. From this directory:

zmqrl train cartpole --algo ba3c --ba3c.rollout-steps 32 --model own_learner:model --loss own_learner:loss
"""

from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import smooth_l1_loss


class TwoHeads(nn.Module):
    """One layer that actor and critic share."""

    def __init__(self, inputs, num_actions):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU())
        self.actor, self.critic = nn.Linear(128, num_actions), nn.Linear(128, 1)

    def forward(self, observations):
        """Logits (B, A) and values (B,)."""
        features = self.body(observations)
        return self.actor(features), self.critic(features).squeeze(-1)


def model(observation_shape, num_actions):
    """Called once in each process."""
    return TwoHeads(*observation_shape, num_actions)


def loss(logits, values, batch, config, entropy_coefficient):
    """Actor-critic, with Huber's loss for the critic: a scalar, and scalars to report."""
    policy = Categorical(logits=logits)
    policy_loss = -(policy.log_prob(batch.actions) * batch.advantages).mean()
    value_loss = smooth_l1_loss(values, batch.returns)
    entropy = policy.entropy().mean()
    total = policy_loss + config.value_coefficient * value_loss - entropy_coefficient * entropy
    return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
