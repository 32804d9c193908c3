"""An environment and a loss whose gradients depend on nothing but the weights and the rank.

So the final weights of a run do not depend on when its workers were restarted. The id of the environment for ``--env``
is ``support.still_env:Still-v0``. The loss for ``--loss`` is ``support.still_env:loss``.
"""

import sys
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

SIZE = 64


class StillEnv(gymnasium.Env[Any, Any]):
    """Shows the rank of its worker, whatever the agent does."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (SIZE,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen = np.linspace(-1, 1, SIZE, dtype=np.float32) / (1 + _rank())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.seen, 0.0, False, False, {}


def _rank() -> int:
    """The rank of this worker, from the frames of its callers: zmqrl does not tell environments their rank. 0 outside a
    worker.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "join":
        frame = frame.f_back
    return int(frame.f_locals.get("rank", 0))


def loss(
    logits: Tensor, values: Tensor, batch: Any, config: Any, entropy_coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pull logits and values to fixed targets. Actions, rewards and advantages have no effect."""
    off = (logits - 0.5).square().mean() + (values + 0.5).square().mean()
    return off, {"off": off.detach()}


gymnasium.register("Still-v0", entry_point=f"{__name__}:StillEnv", max_episode_steps=100)
