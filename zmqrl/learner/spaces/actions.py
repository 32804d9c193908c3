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
            return DiscreteActions(int(space.n), int(space.start), space.dtype)
        case MultiDiscrete() if space.nvec.size:
            return FactoredActions(_numbers(space.nvec), _numbers(space.start), space.shape, space.dtype)
        case MultiBinary():
            choices = math.prod(space.shape)
            return FactoredActions((2,) * choices, (0,) * choices, space.shape)
        case Box() if space.dtype.kind == "f" and space.low.size:
            low, high = _rounded(space.low, np.less, np.inf), _rounded(space.high, np.greater, -np.inf)
            dtype: np.dtype[Any] = np.dtype(np.float16 if space.dtype == np.float16 else np.float32)
            return BoxActions(_numbers(low), _numbers(high), space.shape, dtype)
    return None


def _rounded(bounds: np.ndarray, is_outside: np.ufunc, inside: float) -> np.ndarray:
    """``bounds`` as float32, like actions. Bounds that rounding moves outside are rounded towards ``inside``."""
    with np.errstate(over="ignore"):
        rounded = bounds.astype(np.float32)
    return np.where(is_outside(rounded, bounds), np.nextafter(rounded, np.float32(inside)), rounded)


def _numbers(array: np.ndarray) -> tuple[Any, ...]:
    return tuple(array.ravel().tolist())


def taken(action: Any, space: gymnasium.Space[Any]) -> Any:
    """Convert ``action``, in the form of ``ActionSpace.played``, to the dtype of ``space``."""
    if isinstance(space, Discrete):
        return space.dtype.type(action)  # unlike an array, the key of a dictionary
    own = np.asarray(action).astype(space.dtype)
    if isinstance(space, Box) and own.dtype != np.float32:
        own = np.clip(own, space.low, space.high)  # perhaps no float32 number lies between the bounds
    return own
