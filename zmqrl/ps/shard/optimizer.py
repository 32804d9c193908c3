"""Updates a slice with Adam, RMSProp or SGD, as in torch.optim, out of place and block by block.

Every operation is elementwise and rounded to float32, so the result is bit-identical for any number of slices. Each
pass over a block costs time, whatever its arithmetic. To save passes, scalar factors are first multiplied together, and
the block of new weights serves as scratch space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from zmqrl.errors import UsageError, require
from zmqrl.ps.wire.codec import FloatVector, is_finite, watched

OptimizerState: TypeAlias = Mapping[str, FloatVector]
# one block each of: gradient, weights, old state, new weights, new state
BlockUpdate: TypeAlias = Callable[[FloatVector, FloatVector, list[FloatVector], FloatVector, list[FloatVector]], None]

LARGEST = float(np.finfo(np.float32).max)
BLOCK = 24 * 1024  # elements: the seven blocks of Adam fit in an L2 cache of 1 MiB
# The optimizers that use a setting. The others ignore it. All optimizers use the settings that are not listed.
USED_BY: Mapping[str, Sequence[str]] = {
    "beta1": ("adam",),
    "beta2": ("adam",),
    "alpha": ("rmsprop",),
    "epsilon": ("adam", "rmsprop"),
    "momentum": ("rmsprop", "sgd"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The optimizer that the shards run. Its update rules are those of torch.optim."""

    name: Literal["adam", "rmsprop", "sgd"] = "adam"
    """Optimizer."""
    learning_rate: float
    """Learning rate. With a schedule: the initial value."""
    final_learning_rate: float | None = None
    """Learning rate at the end of a linear schedule. None: constant."""
    schedule_updates: int = 0
    """Length of the learning-rate schedule, in updates. 0: it follows the progress of the run."""
    beta1: float = 0.9
    """Decay of the first moment per update (adam)."""
    beta2: float = 0.999
    """Decay of the second moment per update (adam)."""
    alpha: float = 0.99
    """Decay of the mean squared gradient per update (rmsprop)."""
    epsilon: float = 1e-8
    """Constant added to the root of the second moment (adam and rmsprop)."""
    momentum: float = 0.0
    """Decay of the momentum buffer per update (rmsprop and sgd). 0: no momentum."""
    weight_decay: float = 0.0
    """Weight decay: add this multiple of the weights to the gradient."""

    def __post_init__(self) -> None:
        """Raise UsageError for the first invalid setting."""
        for name in ("learning_rate", "final_learning_rate", "epsilon", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LARGEST:
                raise UsageError(f"{_option(name)} {value}: must be 0 or more, and finite as float32.")
        for name in ("beta1", "beta2", "alpha", "momentum"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UsageError(f"{_option(name)} {value}: must be at least 0 and below 1.")
        if self.schedule_updates < 0 or (self.schedule_updates and self.final_learning_rate is None):
            raise UsageError(
                f"--optimizer.schedule-updates {self.schedule_updates}: must be 0 or more. "
                "Above 0, also set --optimizer.final-learning-rate, the rate at the end of the schedule."
            )
        if self.name == "adam" and self.momentum:
            raise UsageError(
                f"--optimizer.momentum {self.momentum}: adam has no momentum. "
                "Set --optimizer.beta1, or use rmsprop or sgd."
            )

    def check(self) -> None:
        require(
            bool(np.float32(self.epsilon) > 0) or self.name not in USED_BY["epsilon"],
            f"--optimizer.epsilon {self.epsilon}: must be above 0 as float32, because {self.name} would divide 0 by 0 "
            "for weights whose gradients are 0.",
        )

    @property
    def follows_progress(self) -> bool:
        """Whether the learning rate has a schedule that follows the progress of the run."""
        return self.final_learning_rate is not None and not self.schedule_updates


def _option(name: str) -> str:
    return f"--optimizer.{name.replace('_', '-')}"


class Optimizer:
    """The update rule that a config describes: computes the arrays of version v + 1 from those of version v.

    ``averaged`` has the parts of the arrays that hold running statistics. There, the new value is the old value minus
    the mean of the gradients, and the optimizer state stays zero.
    """

    def __init__(self, config: OptimizerConfig, averaged: Sequence[slice] = ()) -> None:
        self.config = config
        self.averaged = tuple(averaged)
        momentum = ("momentum_buffer",) if config.momentum > 0 else ()
        self.state_names: tuple[str, ...] = {
            "adam": ("exp_avg", "exp_avg_sq"),
            "rmsprop": ("square_avg", *momentum),
            "sgd": momentum,
        }[config.name]

    def learning_rate(self, version: int, elapsed: float) -> float:
        """The learning rate of the update from ``version``, at the progress ``elapsed`` of the run, from 0 to 1."""
        config = self.config
        if config.final_learning_rate is None:
            return config.learning_rate
        done = min(version / config.schedule_updates if config.schedule_updates else elapsed, 1.0)
        return config.learning_rate * (1 - done) + config.final_learning_rate * done

    def step(
        self,
        version: int,
        gradient_sum: FloatVector,
        count: int,
        weights: FloatVector,
        state: OptimizerState,
        new_weights: FloatVector,
        new_state: OptimizerState,
        *,
        elapsed: float = 0.0,
    ) -> bool:
        """Compute version ``version + 1`` from ``version`` and the sum of ``count`` gradients.

        All arrays are float32 (n,). The inputs must be finite, and the outputs must not overlap them. The state of
        version 0 is all zeros. ``elapsed`` is the progress of the run, from 0 to 1. The result equals that of
        torch.optim within float32 rounding. Returns whether the result is finite.
        """
        assert count >= 1
        assert gradient_sum.shape == weights.shape == new_weights.shape
        names = self.state_names
        decay = self.config.weight_decay
        rule = {"adam": self._adam, "rmsprop": self._rmsprop, "sgd": self._sgd}[self.config.name]
        left_finite: list[str] = []
        with watched(left_finite):
            update = rule(version, self.learning_rate(version, elapsed), 1.0 if decay else 1 / count)
            for start in range(0, weights.size, BLOCK):
                cut = slice(start, start + BLOCK)
                gradient = gradient_sum[cut]
                if decay:
                    gradient = gradient / np.float32(count) + weights[cut] * np.float32(decay)
                old = [state[name][cut] for name in names]
                new = [new_state[name][cut] for name in names]
                update(gradient, weights[cut], old, new_weights[cut], new)
            for cut in self.averaged:
                np.subtract(weights[cut], gradient_sum[cut] / np.float32(count), new_weights[cut])
                for array in new_state.values():
                    array[cut] = 0
        return not left_finite or all(map(is_finite, (new_weights, *new_state.values())))

    def _adam(self, version: int, learning_rate: float, scale: float) -> BlockUpdate:
        """Kingma and Ba 2015, algorithm 1 with t = version + 1, for ``scale`` times the gradient.

        With r = sqrt(1 - beta2^t), the new weight is w - lr / (1 - beta1^t) * m / (sqrt(v) / r + epsilon). It is
        computed as w - lr * r / (1 - beta1^t) * (m / (sqrt(v) + epsilon * r)).
        """
        config = self.config
        root = (1 - config.beta2 ** (version + 1)) ** 0.5
        beta1, weight1 = _scalar(config.beta1), _scalar((1 - config.beta1) * scale)
        beta2, weight2 = _scalar(config.beta2), _scalar((1 - config.beta2) * scale * scale)
        epsilon = _scalar(config.epsilon * root)
        rate = _scalar(-learning_rate * root / (1 - config.beta1 ** (version + 1)))

        def update(
            gradient: FloatVector,
            weights: FloatVector,
            old: list[FloatVector],
            new_weights: FloatVector,
            new: list[FloatVector],
        ) -> None:
            (exp_avg, exp_avg_sq), (new_exp_avg, new_exp_avg_sq), scratch = old, new, new_weights
            np.multiply(exp_avg, beta1, new_exp_avg)
            np.multiply(gradient, weight1, scratch)
            np.add(new_exp_avg, scratch, new_exp_avg)
            np.multiply(exp_avg_sq, beta2, new_exp_avg_sq)
            np.multiply(gradient, weight2, scratch)
            np.multiply(scratch, gradient, scratch)
            np.add(new_exp_avg_sq, scratch, new_exp_avg_sq)
            np.sqrt(new_exp_avg_sq, scratch)
            np.add(scratch, epsilon, scratch)
            np.divide(new_exp_avg, scratch, scratch)
            np.multiply(scratch, rate, scratch)
            np.add(scratch, weights, new_weights)

        return update

    def _rmsprop(self, version: int, learning_rate: float, scale: float) -> BlockUpdate:
        """Tieleman and Hinton 2012, lecture 6.5, not centred, for ``scale`` times the gradient.

        With momentum, the buffer accumulates gradient / (sqrt(square_avg) + epsilon), as in torch.
        """
        config = self.config
        alpha, weight = _scalar(config.alpha), _scalar((1 - config.alpha) * scale * scale)
        epsilon, momentum = _scalar(config.epsilon), _scalar(config.momentum)
        gathers = config.momentum > 0
        rate = -learning_rate
        factor, buffer_factor = _scalar(scale if gathers else scale * rate), _scalar(rate)

        def update(
            gradient: FloatVector,
            weights: FloatVector,
            old: list[FloatVector],
            new_weights: FloatVector,
            new: list[FloatVector],
        ) -> None:
            square_avg, new_square_avg, scratch = old[0], new[0], new_weights
            np.multiply(square_avg, alpha, new_square_avg)
            np.multiply(gradient, weight, scratch)
            np.multiply(scratch, gradient, scratch)
            np.add(new_square_avg, scratch, new_square_avg)
            np.sqrt(new_square_avg, scratch)
            np.add(scratch, epsilon, scratch)
            np.divide(gradient, scratch, scratch)
            np.multiply(scratch, factor, scratch)
            if gathers:
                np.multiply(old[1], momentum, new[1])
                np.add(new[1], scratch, new[1])
                np.multiply(new[1], buffer_factor, scratch)
            np.add(scratch, weights, new_weights)

        return update

    def _sgd(self, version: int, learning_rate: float, scale: float) -> BlockUpdate:
        """Gradient descent with ``scale`` times the gradient.

        Momentum is as in Sutskever et al. 2013, section 2, but rescaled and initialized as in torch.
        """
        config = self.config
        gathers = config.momentum > 0
        rate, momentum = -learning_rate, _scalar(config.momentum)
        factor, buffer_factor = _scalar(scale if gathers else scale * rate), _scalar(rate)

        def update(
            gradient: FloatVector,
            weights: FloatVector,
            old: list[FloatVector],
            new_weights: FloatVector,
            new: list[FloatVector],
        ) -> None:
            np.multiply(gradient, factor, new_weights)
            if gathers:
                buffer = new[0]
                np.multiply(old[0], momentum, buffer)
                np.add(buffer, new_weights, buffer)
                np.multiply(buffer, buffer_factor, new_weights)
            np.add(new_weights, weights, new_weights)

        return update


def _scalar(value: float) -> FloatVector:
    # A zero-dimensional array saves 0.5 µs over a Python number in each of the dozen operations per block.
    return np.array(value, np.float32)
