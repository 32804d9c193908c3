"""Named runs: each recipe is a function that returns a whole configuration."""

from collections.abc import Callable

from zmqrl.agent.envs import EnvConfig
from zmqrl.agent.losses import PPOConfig
from zmqrl.config import Config
from zmqrl.ps.optimizer import OptimizerConfig


def breakout() -> Config:
    """Breakout by PPO with the small network: two workers on two cores."""
    return Config(
        recipe="breakout",
        env="ALE/Breakout-v5",
        envs=EnvConfig(num_envs=32),
        ppo=PPOConfig(rollout_steps=64, epochs=3, minibatches=8),
        optimizer=OptimizerConfig(learning_rate=5e-4, epsilon=1e-5),
    )


def pong() -> Config:
    """Pong by PPO with the small network: two workers on two cores."""
    return Config(
        recipe="pong",
        env="ALE/Pong-v5",
        envs=EnvConfig(num_envs=16),
        ppo=PPOConfig(rollout_steps=64, epochs=3, minibatches=8, clip=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
    )


def cartpole() -> Config:
    """CartPole by PPO with two small layers: a run of seconds to try things with."""
    return Config(
        recipe="cartpole",
        env="CartPole-v1",
        model="mlp",
        envs=EnvConfig(num_envs=8),
        ppo=PPOConfig(rollout_steps=128, epochs=4, minibatches=4, shuffle="samples", clip=0.2, entropy_coefficient=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
    )


RECIPES: dict[str, Callable[[], Config]] = {"breakout": breakout, "pong": pong, "cartpole": cartpole}
