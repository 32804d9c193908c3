"""Actions of Gymnasium's spaces: which ones a policy can choose, and how an environment takes them."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from zmqrl.learner.games import ActionSpace, BoxActions, DiscreteActions, FactoredActions

TRAINABLE = "a policy can choose Discrete, MultiDiscrete, MultiBinary and Box (float) actions"


def actions_of(space: gymnasium.Space[Any]) -> ActionSpace | None:
    """The actions of ``space``, or None if no policy of zmqrl can choose them."""
    match space:
        case Discrete():
            return DiscreteActions(int(space.n))
        case MultiDiscrete() if space.nvec.size:
            return FactoredActions(tuple(space.nvec.ravel().tolist()))
        case MultiBinary():
            return FactoredActions((2,) * math.prod(space.shape))
        case Box() if space.dtype.kind == "f" and space.low.size:
            return BoxActions(tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist()))
    return None


def taken(action: np.ndarray, space: gymnasium.Space[Any]) -> Any:
    """Convert ``action`` (*shape), which counts from 0, to an action of ``space`` for the environment."""
    if isinstance(space, Discrete):
        return action + space.start
    shaped = np.reshape(action, space.shape or ())
    if isinstance(space, MultiDiscrete):
        shaped = shaped + space.start
    own = shaped.astype(space.dtype)
    if isinstance(space, Box) and space.dtype != action.dtype:
        own = np.clip(own, space.low, space.high)  # rounding to float32 can have moved a number across its bound
    return own
