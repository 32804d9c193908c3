"""Recipes: functions with a name that return a complete configuration."""

from collections.abc import Callable

from zmqrl.config import Config, ScheduleConfig
from zmqrl.learner.envs import EnvConfig
from zmqrl.learner.losses import BA3CConfig, PPOConfig
from zmqrl.learner.networks import NetworkConfig
from zmqrl.ps.shard.optimizer import OptimizerConfig


def breakout() -> Config:
    """Breakout by PPO with the narrow network: two workers on two cores.

    The schedules end with the run, or after an hour if that has no end.
    """
    return Config(
        recipe="breakout",
        env="ALE/Breakout-v5",
        model="narrow",
        envs=EnvConfig(num_envs=16),
        ppo=PPOConfig(
            rollout_steps=128,
            epochs=4,
            minibatches=16,
            shuffle="samples",
            final_entropy_coefficient=0.002,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, final_learning_rate=5e-5, epsilon=1e-5),
        schedule=ScheduleConfig(default_minutes=60.0),
    )


def pong() -> Config:
    """Pong by PPO with the narrow network: two workers on two cores."""
    return Config(
        recipe="pong",
        env="ALE/Pong-v5",
        model="narrow",
        envs=EnvConfig(num_envs=16),
        ppo=PPOConfig(rollout_steps=128, epochs=4, minibatches=16, shuffle="samples"),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
    )


def cartpole() -> Config:
    """CartPole by PPO with two small layers: a run of seconds for experiments."""
    return Config(
        recipe="cartpole",
        env="CartPole-v1",
        model="mlp",
        envs=EnvConfig(num_envs=8),
        ppo=PPOConfig(rollout_steps=128, epochs=4, minibatches=4, shuffle="samples", clip=0.2, entropy_coefficient=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
    )


def dba3c_breakout() -> Config:
    """Breakout with the hyperparameters of DBA3C (Adamski et al. 2018), on two workers.

    Its best run had 64 training nodes, 60 of which made an update, and 4 parameter servers: ``zmqrl train
    dba3c-breakout --workers 60 --backups 4 --shards 4``.
    """
    return Config(
        recipe="dba3c-breakout",
        env="ALE/Breakout-v5",
        algo="ba3c",
        model="dba3c",
        # 128 hidden units, as in their best run. Theirs pads the input with zeros to 16 channels, for speed, and draws
        # weights from truncated normals (convolutions) and uniforms. Ours are orthogonal.
        network=NetworkConfig(compute="float32"),
        # Theirs learns from batches of 32 that mix pieces of 5 steps of 10 games in their order of arrival. The nearest
        # size with whole pieces is 6 games by 5 steps.
        envs=EnvConfig(
            num_envs=6,
            frame_skip=4,
            min_frame_skip=2,
            grayscale=False,
            sticky_actions=0.25,
            noop_max=0,
            life_loss=False,
            fire_reset=False,
            max_frames=30_000,  # theirs: 10 000 steps of 3 frames on average
        ),
        # Both bootstrap with values of the policy that acted. Theirs acts with the newest weights at every step, ours
        # with one version in a whole rollout. Theirs computes log(p + 1e-6).
        ba3c=BA3CConfig(
            rollout_steps=5,
            gamma=0.99,
            value_coefficient=0.5,  # theirs: 1/2 (V - R)^2
            entropy_coefficient=0.01,
            max_grad_norm=1e9,  # theirs clips a tensor of n numbers at a norm of 0.1 n, so only the heads' biases
        ),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, beta1=0.8, beta2=0.75, epsilon=1e-8),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "breakout": breakout,
    "pong": pong,
    "cartpole": cartpole,
    "dba3c-breakout": dba3c_breakout,
}
