"""The settings of the algorithms and the networks. This module does not import torch."""

import math
from dataclasses import dataclass
from typing import Literal

from zmqrl.errors import UsageError, require
from zmqrl.words import counted

HIDDEN = {"small": 256, "nature": 512, "narrow": 128, "dba3c": 128, "mlp": 64}  # units of the hidden layers, by default
VECTOR_NETWORK = "mlp"
*_FIRST, _LAST = (name for name in HIDDEN if name != VECTOR_NETWORK)
IMAGE_NETWORKS = f"{', '.join(_FIRST)} or {_LAST}"  # in a sentence
MAX_HIDDEN = 8192  # above it, orthogonal initialization takes minutes


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Settings that all networks share."""

    hidden: int | None = None
    """Units of the hidden layers. None: the default of the network, from 64 (mlp) to 512 (nature)."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the computation. auto: bfloat16 if the hardware supports it. Weights stay float32."""

    def __post_init__(self) -> None:
        require(
            self.hidden is None or 1 <= self.hidden <= MAX_HIDDEN,
            f"--network.hidden {self.hidden}: must be from 1 to {MAX_HIDDEN}.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig:
    """Proximal policy optimization with a clipped surrogate (Schulman et al. 2017, eq. 7 and 9)."""

    rollout_steps: int = 64
    """Agent steps of each game in one rollout."""
    epochs: int = 3
    """Number of passes over each rollout."""
    minibatches: int = 8
    """Number of minibatches per epoch. Each makes one update."""
    shuffle: Literal["envs", "samples"] = "envs"
    """Contents of a minibatch: all steps of some environments (envs), or single steps (samples)."""
    gamma: float = 0.99
    """Discount factor of future rewards, per agent step."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation."""
    clip: float = 0.1
    """Clip range of the probability ratio. With a schedule: the initial value."""
    final_clip: float | None = None
    """Clip range at the end of a linear schedule that follows the progress of the run. None: constant."""
    value_coefficient: float = 0.5
    """Coefficient of the value loss."""
    entropy_coefficient: float = 0.01
    """Coefficient of the entropy bonus. With a schedule: the initial value."""
    final_entropy_coefficient: float | None = None
    """Coefficient of the entropy bonus at the end of a linear schedule. None: constant."""
    entropy_schedule_updates: int = 0
    """Length of the entropy schedule, in updates. 0: it follows the progress of the run."""
    max_grad_norm: float = 0.5
    """Clip the norm of each worker's gradient to this value."""
    normalize_advantages: bool = True
    """Scale the advantages of each minibatch to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        _check_shared("--ppo", self)
        require(self.epochs >= 1, f"--ppo.epochs {self.epochs}: must be 1 or more.")
        require(self.minibatches >= 1, f"--ppo.minibatches {self.minibatches}: must be 1 or more.")
        require(0 <= self.gae_lambda <= 1, f"--ppo.gae-lambda {self.gae_lambda}: must be from 0 to 1.")
        for option, clip in (("clip", self.clip), ("final-clip", self.final_clip)):
            require(clip is None or 0 < clip < math.inf, f"--ppo.{option} {clip}: must be above 0 and finite.")

    @property
    def follows_progress(self) -> bool:
        """Whether a schedule follows the progress of the run."""
        return self.final_clip is not None or _entropy_follows_progress(self)

    @property
    def updates_per_rollout(self) -> int:
        """The number of updates that learn from one rollout."""
        return self.epochs * self.minibatches

    def minibatch_samples(self, num_envs: int) -> int:
        """Samples in a minibatch. Raises UsageError if ``num_envs`` games cannot be divided into equal minibatches."""
        divided = num_envs if self.shuffle == "envs" else num_envs * self.rollout_steps
        if divided % self.minibatches:
            what, hint = f"{counted(divided, 'sample')} of a rollout", ""
            if self.shuffle == "envs":
                what, hint = counted(num_envs, "environment"), ", or use --ppo.shuffle samples"
            raise UsageError(
                f"ppo cannot divide {what} into {self.minibatches} equal minibatches: "
                f"change --envs.num-envs or --ppo.minibatches{hint}."
            )
        return num_envs * self.rollout_steps // self.minibatches


@dataclass(frozen=True, kw_only=True, slots=True)
class BA3CConfig:
    """Batch asynchronous advantage actor-critic (Adamski et al. 2017), with synchronous updates by default."""

    rollout_steps: int = 5
    """Agent steps of each game in one rollout, and so in one update."""
    gamma: float = 0.99
    """Discount factor of future rewards, per agent step."""
    value_coefficient: float = 0.5
    """Coefficient of the value loss."""
    entropy_coefficient: float = 0.01
    """Coefficient of the entropy bonus. With a schedule: the initial value."""
    final_entropy_coefficient: float | None = None
    """Coefficient of the entropy bonus at the end of a linear schedule. None: constant."""
    entropy_schedule_updates: int = 0
    """Length of the entropy schedule, in updates. 0: it follows the progress of the run."""
    max_grad_norm: float = 0.5
    """Clip the norm of each worker's gradient to this value."""

    def __post_init__(self) -> None:
        _check_shared("--ba3c", self)

    @property
    def follows_progress(self) -> bool:
        return _entropy_follows_progress(self)

    @property
    def updates_per_rollout(self) -> int:
        """Always one."""
        return 1

    def minibatch_samples(self, num_envs: int) -> int:
        """Samples in the only minibatch, the whole rollout."""
        return num_envs * self.rollout_steps


def _check_shared(group: str, config: PPOConfig | BA3CConfig) -> None:
    """Raise UsageError for the first invalid setting among those that both algorithms share."""
    steps, gamma, norm = config.rollout_steps, config.gamma, config.max_grad_norm
    final = config.final_entropy_coefficient
    require(steps >= 1, f"{group}.rollout-steps {steps}: must be 1 or more.")
    require(0 <= gamma <= 1, f"{group}.gamma {gamma}: must be from 0 to 1.")
    for option, coefficient in (
        ("value-coefficient", config.value_coefficient),
        ("entropy-coefficient", config.entropy_coefficient),
        ("final-entropy-coefficient", 0.0 if final is None else final),
    ):
        require(0 <= coefficient <= 1e6, f"{group}.{option} {coefficient}: must be from 0 to 1e6.")
    require(0 < norm < math.inf, f"{group}.max-grad-norm {norm}: must be above 0 and finite.")
    updates = config.entropy_schedule_updates
    require(
        updates == 0 or (updates > 0 and final is not None),
        f"{group}.entropy-schedule-updates {updates}: must be 0 or more. "
        f"Above 0, also set {group}.final-entropy-coefficient, the coefficient at the end of the schedule.",
    )


def _entropy_follows_progress(config: PPOConfig | BA3CConfig) -> bool:
    return config.final_entropy_coefficient is not None and not config.entropy_schedule_updates
