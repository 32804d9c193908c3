"""The settings of the algorithms and the networks.

Commands that do not learn import this module, so it imports torch only when the learner calls it.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from zmqrl.errors import UsageError, require
from zmqrl.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from zmqrl.learner.losses import Loss
    from zmqrl.learner.rollout import Rollout

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


class Algorithm(Protocol):
    """The settings of an algorithm, and what the learner computes with them.

    A subclass is a frozen dataclass that declares the settings below with their defaults, and adds its own.
    """

    __slots__ = ()

    rollout_steps: int
    gamma: float
    value_coefficient: float
    entropy_coefficient: float
    final_entropy_coefficient: float | None
    entropy_schedule_updates: int
    max_grad_norm: float

    @property
    @abstractmethod
    def updates_per_rollout(self) -> int:
        """The number of updates that learn from one rollout."""

    @property
    def rollout_settings(self) -> tuple[str, ...]:
        """The settings that determine the size of a rollout and ``updates_per_rollout``."""
        return ("rollout_steps",)

    @property
    @abstractmethod
    def uses_whole_rollouts(self) -> bool:
        """Whether each minibatch is a whole rollout, in its order, as ``Rollout.activations`` requires."""

    @abstractmethod
    def minibatch_samples(self, num_envs: int) -> int:
        """The number of samples in a minibatch.

        Raises UsageError if ``num_envs`` games have no equal minibatches, or minibatches from which nothing is learned.
        """

    @abstractmethod
    def samples(self, rollout: "Rollout", index: int, seed: int) -> npt.NDArray[np.int64]:
        """The samples of minibatch ``index``: int64 (M,), each ``step * num_envs + env``."""

    @abstractmethod
    def advantages(self, rollout: "Rollout") -> "tuple[Tensor, Tensor]":
        """The advantages of the actions and the targets of the values, both float32 (T, B)."""

    @property
    @abstractmethod
    def loss(self) -> "Loss":
        """The loss, unless ``--loss`` replaces it."""

    @property
    def follows_progress(self) -> bool:
        """Whether a schedule follows the progress of the run."""
        return self.entropy_follows_progress

    @property
    def entropy_follows_progress(self) -> bool:
        return self.final_entropy_coefficient is not None and not self.entropy_schedule_updates

    def at(self, elapsed: float) -> Self:
        """The settings for the loss at progress ``elapsed`` (0 to 1) of the run. The entropy bonus is separate."""
        return self

    def check_shared(self, group: str) -> None:
        """Raise UsageError for the first invalid setting among those of all algorithms. ``group`` is ``--NAME``."""
        steps, gamma, norm = self.rollout_steps, self.gamma, self.max_grad_norm
        final = self.final_entropy_coefficient
        require(steps >= 1, f"{group}.rollout-steps {steps}: must be 1 or more.")
        require(0 <= gamma <= 1, f"{group}.gamma {gamma}: must be from 0 to 1.")
        for option, coefficient in (
            ("value-coefficient", self.value_coefficient),
            ("entropy-coefficient", self.entropy_coefficient),
            ("final-entropy-coefficient", 0.0 if final is None else final),
        ):
            require(0 <= coefficient <= 1e6, f"{group}.{option} {coefficient}: must be from 0 to 1e6.")
        require(0 < norm < math.inf, f"{group}.max-grad-norm {norm}: must be above 0 and finite.")
        updates = self.entropy_schedule_updates
        require(
            updates == 0 or (updates > 0 and final is not None),
            f"{group}.entropy-schedule-updates {updates}: must be 0 or more. "
            f"Above 0, also set {group}.final-entropy-coefficient, the coefficient at the end of the schedule.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig(Algorithm):
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
        self.check_shared("--ppo")
        require(self.epochs >= 1, f"--ppo.epochs {self.epochs}: must be 1 or more.")
        require(self.minibatches >= 1, f"--ppo.minibatches {self.minibatches}: must be 1 or more.")
        require(0 <= self.gae_lambda <= 1, f"--ppo.gae-lambda {self.gae_lambda}: must be from 0 to 1.")
        for option, clip in (("clip", self.clip), ("final-clip", self.final_clip)):
            require(clip is None or 0 < clip < math.inf, f"--ppo.{option} {clip}: must be above 0 and finite.")

    @property
    def updates_per_rollout(self) -> int:
        return self.epochs * self.minibatches

    @property
    def rollout_settings(self) -> tuple[str, ...]:
        return ("rollout_steps", "epochs", "minibatches")

    @property
    def uses_whole_rollouts(self) -> bool:
        return False

    def minibatch_samples(self, num_envs: int) -> int:
        divided = num_envs if self.shuffle == "envs" else num_envs * self.rollout_steps
        if divided % self.minibatches:
            what, hint = f"{counted(divided, 'sample')} of a rollout", ""
            if self.shuffle == "envs":
                what, hint = counted(num_envs, "environment"), ", or use --ppo.shuffle samples"
            raise UsageError(
                f"ppo cannot divide {what} into {self.minibatches} equal minibatches: "
                f"change --envs.num-envs or --ppo.minibatches{hint}."
            )
        samples = num_envs * self.rollout_steps // self.minibatches
        require(
            samples > 1 or not self.normalize_advantages,
            f"--ppo.minibatches {self.minibatches}: minibatches of one sample teach the policy nothing, because the "
            "only advantage becomes 0. Lower --ppo.minibatches, or use --ppo.no-normalize-advantages.",
        )
        return samples

    def samples(self, rollout: "Rollout", index: int, seed: int) -> npt.NDArray[np.int64]:
        """The order depends on ``seed``, the number of the rollout, and the epoch."""
        epoch, part = divmod(index, self.minibatches)
        rng = np.random.default_rng((seed, rollout.number, epoch))
        steps, num_envs = rollout.steps, rollout.num_envs
        samples: npt.NDArray[np.int64]
        if self.shuffle == "envs":
            envs = rng.permutation(num_envs).reshape(self.minibatches, -1)[part]
            samples = (np.arange(steps)[:, None] * num_envs + envs).ravel()
        else:
            samples = rng.permutation(steps * num_envs).reshape(self.minibatches, -1)[part]
        return samples

    def advantages(self, rollout: "Rollout") -> "tuple[Tensor, Tensor]":
        from zmqrl.learner.returns import gae

        return gae(rollout.rewards, rollout.values, *rollout.ends, self.gamma, self.gae_lambda)

    @property
    def loss(self) -> "Loss":
        from zmqrl.learner.losses import ppo_loss

        return ppo_loss

    @property
    def follows_progress(self) -> bool:
        return self.final_clip is not None or self.entropy_follows_progress

    def at(self, elapsed: float) -> Self:
        if self.final_clip is None:
            return self
        return replace(self, clip=self.clip + elapsed * (self.final_clip - self.clip))


@dataclass(frozen=True, kw_only=True, slots=True)
class BA3CConfig(Algorithm):
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
        self.check_shared("--ba3c")

    @property
    def updates_per_rollout(self) -> int:
        return 1

    @property
    def uses_whole_rollouts(self) -> bool:
        return True

    def minibatch_samples(self, num_envs: int) -> int:
        return num_envs * self.rollout_steps

    def samples(self, rollout: "Rollout", index: int, seed: int) -> npt.NDArray[np.int64]:
        return np.arange(rollout.steps * rollout.num_envs)

    def advantages(self, rollout: "Rollout") -> "tuple[Tensor, Tensor]":
        from zmqrl.learner.returns import n_step_returns

        returns = n_step_returns(rollout.rewards, *rollout.ends, self.gamma)
        return returns - rollout.values, returns

    @property
    def loss(self) -> "Loss":
        from zmqrl.learner.losses import ba3c_loss

        return ba3c_loss


AlgorithmName: TypeAlias = Literal["ppo", "ba3c"]
ALGORITHMS: Final[Mapping[str, type[Algorithm]]] = {"ppo": PPOConfig, "ba3c": BA3CConfig}
"""The algorithms by the value of ``--algo``, which is also the name of their settings in ``Config``."""
