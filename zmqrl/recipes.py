"""Recipes: named functions that return a complete configuration."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from zmqrl.config import Config, ScheduleConfig
from zmqrl.errors import did_you_mean, require
from zmqrl.learner.games import EnvConfig
from zmqrl.learner.settings import BA3CConfig, NetworkConfig, PPOConfig
from zmqrl.ps.shard.optimizer import OptimizerConfig

OF_ANY: Final = "gymnasium"  # the recipe of environments that have none of their own


def breakout() -> Config:
    """Breakout with A2C and the narrow network: two workers on two cores. A2C learns once from each rollout.

    Mnih et al. 2016 and OpenAI Baselines use RMSProp. Updates of Baselines have 80 samples and the learning rate 7e-4.
    Here, an update has 160 samples, because larger batches are faster, and the learning rate is sqrt(2) times as high.
    RMSProp begins with steps that are ten times as large as later ones, after which a network can be dead: see
    ``benchmarks/results/breakout-start``. Adam without momentum (``beta1`` = 0) is RMSProp with a correction of these
    steps. The schedules end with the run, or after an hour if the run has no end.
    """
    return Config(
        recipe="breakout",
        env="ALE/Breakout-v5",
        algo="ba3c",
        model="narrow",
        envs=EnvConfig(num_envs=16),
        ba3c=BA3CConfig(rollout_steps=5, final_entropy_coefficient=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, final_learning_rate=5e-5, beta1=0.0, beta2=0.99, epsilon=1e-5),
        schedule=ScheduleConfig(default_minutes=60.0),
    )


def breakout_ppo() -> Config:
    """Breakout with PPO and the narrow network: two workers on two cores.

    The schedules end with the run, or after an hour if the run has no end.
    """
    return Config(
        recipe="breakout-ppo",
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
    """Pong with PPO and the small network: two workers on two cores.

    With two convolutions instead of three, a gradient takes less time. The schedules end with the run, or after 12
    minutes if the run has no end. For a run of that length, a final learning rate of 5e-5 is too low. In
    ``benchmarks/results/pong-long``, a constant entropy coefficient of 0.01 seems too high for the end of training.
    """
    return Config(
        recipe="pong",
        env="ALE/Pong-v5",
        model="small",
        envs=EnvConfig(num_envs=16),
        ppo=PPOConfig(
            rollout_steps=128,
            epochs=4,
            minibatches=16,
            shuffle="samples",
            final_entropy_coefficient=0.0,
        ),
        optimizer=OptimizerConfig(learning_rate=1.3e-3, final_learning_rate=4e-4, epsilon=1e-5),
        schedule=ScheduleConfig(default_minutes=12.0),
    )


def cartpole() -> Config:
    """CartPole with PPO and two small layers, for experiments of a few seconds."""
    return Config(
        recipe="cartpole",
        env="CartPole-v1",
        model="mlp",
        envs=EnvConfig(num_envs=8),
        ppo=PPOConfig(rollout_steps=128, epochs=4, minibatches=4, shuffle="samples", clip=0.2, entropy_coefficient=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
    )


def gymnasium() -> Config:
    """Any Gymnasium environment: PPO with two small layers, on two workers. Choose the environment with --env.

    The settings are those of CleanRL for continuous control, but each worker plays 8 games, with rollouts of 128 steps.
    """
    config = _continuous(OF_ANY, "CartPole-v1")
    return replace(config, envs=replace(config.envs, num_envs=8), ppo=replace(config.ppo, rollout_steps=128))


def pendulum() -> Config:
    """Pendulum with PPO: two workers, for experiments of a few minutes.

    The discount is that of Raffin 2020, "RL Baselines3 Zoo". The schedule ends with the run, or after 5 minutes if the
    run has no end.
    """
    config = _continuous("pendulum", "Pendulum-v1")
    return replace(
        config,
        envs=replace(config.envs, num_envs=4),
        ppo=replace(config.ppo, rollout_steps=256, minibatches=16, gamma=0.9),
        optimizer=replace(config.optimizer, learning_rate=1e-3),
        schedule=ScheduleConfig(default_minutes=5.0),
    )


def bipedalwalker() -> Config:
    """BipedalWalker with PPO and the settings of CleanRL for continuous control. Needs the extra box2d."""
    return _continuous("bipedalwalker", "BipedalWalker-v3")


def hopper() -> Config:
    """Hopper of MuJoCo with PPO and the settings of CleanRL for continuous control. Needs the extra mujoco."""
    return _continuous("hopper", "Hopper-v5")


def _continuous(name: str, env: str) -> Config:
    """PPO for box actions, with the published settings of CleanRL's ``ppo_continuous_action``, on two workers.

    An update learns from 64 samples, 32 from each worker. The rollouts of both workers together have 2048 steps. Unlike
    zmqrl, CleanRL clips values, and treats a time limit as the end of a game. benchmarks/results/continuous/README.md
    has all differences. The schedule ends with the run, or after an hour if the run has no end.
    """
    return Config(
        recipe=name,
        env=env,
        model="mlp",
        envs=EnvConfig(num_envs=1, normalize_observations=True, normalize_rewards=True),
        ppo=PPOConfig(
            rollout_steps=1024,
            epochs=10,
            minibatches=32,
            shuffle="samples",
            clip=0.2,
            value_coefficient=0.25,  # CleanRL: 0.5, for a value loss with a factor of 1/2
            entropy_coefficient=0.0,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, final_learning_rate=0.0, epsilon=1e-5),
        schedule=ScheduleConfig(default_minutes=60.0),
    )


def dba3c_breakout() -> Config:
    """Breakout with the hyperparameters of DBA3C (Adamski et al. 2018), on two workers.

    The best run of that paper had 4 parameter servers and 64 training nodes, of which 60 were needed for an update:
    ``zmqrl train dba3c-breakout --workers 60 --backups 4 --shards 4``.
    """
    return Config(
        recipe="dba3c-breakout",
        env="ALE/Breakout-v5",
        algo="ba3c",
        model="dba3c",
        # 128 hidden units, as in the paper's best run. The paper pads the input with zeros to 16 channels, for speed,
        # and draws weights from truncated normals (convolutions) and uniforms. Our weights are orthogonal.
        network=NetworkConfig(compute="float32"),
        # The paper learns from batches of 32 steps: pieces of 5 steps from 10 games, in order of arrival. The nearest
        # batch of whole pieces is 6 games by 5 steps.
        envs=EnvConfig(
            num_envs=6,
            frame_skip=4,
            min_frame_skip=2,
            grayscale=False,
            sticky_actions=0.25,
            noop_max=0,
            life_loss=False,
            fire_reset=False,
            max_frames=30_000,  # in the paper: 10 000 steps of 3 frames on average
        ),
        # The paper and zmqrl bootstrap with values of the policy that acted. The paper acts with the newest weights at
        # every step, but zmqrl acts with one version per rollout. The paper computes log(p + 1e-6), zmqrl log(p).
        ba3c=BA3CConfig(
            rollout_steps=5,
            gamma=0.99,
            value_coefficient=0.5,  # in the paper: 1/2 (V - R)^2
            entropy_coefficient=0.01,
            max_grad_norm=1e9,  # the paper's limit, 0.1 n for a tensor of n numbers, affects only the heads' biases
        ),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, beta1=0.8, beta2=0.75, epsilon=1e-8),
    )


DBA3C_SAMPLES = 60 * 32  # samples per update in the best run of the paper


def remarks(config: Config) -> Iterator[str]:
    """Notices about the recipe of a run, and about what it means for a user's own network.

    The run may not be comparable with the recipe's paper.
    """
    if config.recipe == OF_ANY:
        yield f"the recipe is {OF_ANY}, which fits most environments; `zmqrl recipes` lists the others"
    samples = config.effective_quorum * config.algorithm.minibatch_samples(config.envs.num_envs)
    if config.recipe == "dba3c-breakout" and samples <= DBA3C_SAMPLES - 200:  # 60 workers give 60 * 30: close enough
        yield (
            f"an update learns from {samples} samples, but from {DBA3C_SAMPLES:,} in the paper: "
            "results are not comparable"
        )
    if ":" in config.model and config.envs.normalize_observations:
        yield (
            f"--model {config.model} gets observations scaled to mean 0 and variance 1: if it needs the numbers of the "
            "environment, such as masks, use --envs.no-normalize-observations"
        )


def require_recipe(name: str) -> None:
    """Raise UsageError if there is no recipe ``name``."""
    require(
        name in RECIPES, f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; choose one of {', '.join(RECIPES)}."
    )


def run_name(config: Config) -> str:
    """The name of a new run's directory: the recipe, or the environment if the recipe is for any."""
    return config.recipe if config.recipe != OF_ANY else re.sub(r"[^A-Za-z0-9._]+", "-", config.env.rpartition(":")[2])


RECIPES: dict[str, Callable[[], Config]] = {
    "breakout": breakout,
    "breakout-ppo": breakout_ppo,
    "pong": pong,
    "cartpole": cartpole,
    "gymnasium": gymnasium,
    "pendulum": pendulum,
    "bipedalwalker": bipedalwalker,
    "hopper": hopper,
    "dba3c-breakout": dba3c_breakout,
}
