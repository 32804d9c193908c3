"""Games of any Gymnasium environment. The environment's results are checked at every step."""

import inspect
import math
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.spaces.utils import flatdim, flatten

from zmqrl.errors import UsageError, blaming, load_function, require
from zmqrl.learner.games import (
    ActionSpace,
    BoxActions,
    DiscreteActions,
    EnvConfig,
    EnvSpec,
    FactoredActions,
    Scores,
    Step,
    game_seeds,
)
from zmqrl.local.extras import install_command

GYMNASIUM_EXTRAS = ("box2d", "mujoco")  # the extras that zmqrl and Gymnasium both have
TRAINABLE = "a policy can choose Discrete, MultiDiscrete, MultiBinary and Box (float) actions"
LARGEST = float(np.finfo(np.float32).max)
OLDER_API = (
    "cannot be played: it has the API of Gym before 0.26: reset(seed=, options=) must return (observation, info), and "
    "step(action) must return (observation, reward, terminated, truncated, info)"
)


class CheckedEnv:
    """One environment ``env``. Its observations become vectors float32 (n,): a discrete one is one-hot.

    With ``config.images``, images stay uint8 and become (channels, height, width).

    Every method raises UsageError when the environment raises anything, even SystemExit. It also raises UsageError
    unless every observation belongs to its space, every reward is one number, and all numbers are finite. ``info`` is
    ignored.
    """

    def __init__(
        self, env_id: str, registered: Registered, config: EnvConfig, *, failed: str = "does not start", **options: Any
    ) -> None:
        """Errors name the environment ``env_id``. If it cannot be made, the error begins with ``env_id`` ``failed``.

        ``config.args`` and ``options`` are added to the options of its registration.
        """
        self.env_id = env_id
        with blaming(f"{env_id} {failed}"):
            self.env: gymnasium.Env[Any, Any] = _made(env_id, registered, **config.make_arguments(), **options)
            for wrapper in config.wrappers:
                self.env = _wrapped(self.env, wrapper)
            self._observations, self._actions = self.env.observation_space, self.env.action_space
        with blaming(f"{env_id} fails"):
            actions, length = _actions(self._actions), _length(self._observations)
        if actions is None:
            self._refuse(f"has {_kind(self._actions)} actions: {TRAINABLE}")
        if not length:
            why = "cannot be flattened" if length is None else "are empty"
            self._refuse(f"has {_kind(self._observations)} observations, which {why}")
        image = _image_shape(self._observations) if config.images else None
        if config.images and image is None:
            self._refuse(f"has {_kind(self._observations)} observations: --envs.images needs uint8 images")
        self._is_image = image is not None
        self.spec = EnvSpec(
            observation_shape=image or (length,),
            observation_dtype=np.dtype(np.uint8 if self._is_image else np.float32),
            actions=actions,
            flavour=config.gymnasium_flavour(),
            normalizes_observations=config.normalize_observations,
            normalizes_rewards=config.normalize_rewards,
        )
        self._steps = 0

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start a game. Returns its first observation."""
        self._steps = 0
        with blaming(f"{self.env_id} fails"):
            observation, _ = self.env.reset(seed=seed)
            return self._seen(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Play ``action`` (*shape), counted from 0. Returns observation, reward, and whether it is over or cut off."""
        self._steps += 1
        with blaming(f"{self.env_id} fails"):
            observation, reward, terminated, truncated, _ = self.env.step(self._own(action))
            return self._seen(observation), self._number(reward), bool(terminated), bool(truncated)

    def try_out(self) -> None:
        """Start a game and play one step."""
        try:
            self.reset(seed=0)
            self.step(self._first())
        except UsageError:
            with blaming(f"{self.env_id} fails"):
                older = _has_older_api(self.env.unwrapped, self._own(self._first()))
            if older:
                self._refuse(OLDER_API)
            raise

    def close(self) -> None:
        with blaming(f"{self.env_id} fails"):
            self.env.close()

    def _first(self) -> np.ndarray:
        """The action in the middle of the space, or the first one."""
        actions = self.spec.actions
        (first,) = actions.played(np.zeros((1, *actions.shape), actions.dtype))
        return np.asarray(first)

    def _own(self, action: np.ndarray) -> Any:
        """``action`` as the environment takes it."""
        if isinstance(self._actions, Discrete):
            return action + self._actions.start
        shaped = np.reshape(action, self._actions.shape or ())
        if isinstance(self._actions, MultiDiscrete):
            shaped = shaped + self._actions.start
        return shaped.astype(self._actions.dtype)

    def _seen(self, observation: Any) -> np.ndarray:
        if isinstance(self._observations, Box) and np.shape(observation) != self._observations.shape:
            shape = f"{np.shape(observation)} {self._moment()}, not {self._observations.shape}"
            self._refuse(f"returned an observation of shape {shape}")
        if self._is_image:
            return _channels_first(np.array(observation, np.uint8))  # a copy: the environment may reuse its array
        with np.errstate(over="ignore"):  # the next lines detect an overflow
            vector = np.asarray(flatten(self._observations, observation), np.float32)
        if not np.isfinite(vector).all():
            place = int(np.flatnonzero(~np.isfinite(vector))[0])
            what = f"returned {vector[place]} as value {place} of an observation {self._moment()}"
            self._refuse(f"{what}: all values must be finite")
        return vector

    def _number(self, reward: Any) -> float:
        paid = np.asarray(reward)
        if paid.shape != () or paid.dtype.kind not in "biuf" or not abs(float(paid)) <= LARGEST:
            what = f"shape {paid.shape}" if paid.shape else f"{paid.item()!r:.40}"
            self._refuse(f"returned a reward of {what} {self._moment()}: it must be one finite number")
        return float(paid)

    def _moment(self) -> str:
        return f"from step {self._steps}" if self._steps else "from reset"

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"{self.env_id} {why}.")


class GymnasiumEnvs:
    """Games of one Gymnasium environment, stepped one after another."""

    def __init__(self, env_id: str, registered: Registered, config: EnvConfig) -> None:
        """Raises UsageError like :class:`CheckedEnv`, and when the games have different spaces."""
        self.num_envs = config.num_envs
        self._envs = [CheckedEnv(env_id, registered, config) for _ in range(config.num_envs)]
        self.spec = self._envs[0].spec
        same = all(env.spec == self.spec for env in self._envs)
        require(same, f"{env_id} has different spaces each time it is made: they must be the same.")

    def reset(self, seed: int) -> np.ndarray:
        self._scores = Scores(self.num_envs)
        seeds = game_seeds(seed, self.num_envs).tolist()
        return np.stack([env.reset(own) for env, own in zip(self._envs, seeds, strict=True)])

    def step(self, actions: np.ndarray) -> Step:
        played = [env.step(action) for env, action in zip(self._envs, actions, strict=True)]
        last, *figures = zip(*played, strict=True)
        rewards, terminated, truncated = map(np.array, figures)
        over, cut_off = terminated | truncated, truncated & ~terminated
        ended = set(np.flatnonzero(over).tolist())
        return Step(
            observations=np.stack([env.reset() if i in ended else last[i] for i, env in enumerate(self._envs)]),
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=cut_off,
            final_observations={int(i): last[i] for i in np.flatnonzero(cut_off)},
            games=self._scores.add(rewards, over),
        )

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _made(env_id: str, registered: Registered, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make the environment. Raises UsageError if it needs packages of one of zmqrl's extras, and any other error."""
    try:
        # Where CheckedEnv raises, Gymnasium's checker would only print a warning.
        return gymnasium.make(registered, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        for extra in GYMNASIUM_EXTRAS:
            if f"[{extra}]" in str(error):
                needs = f"{env_id} needs packages that are not installed"
                raise UsageError(f"{needs}: run {install_command(extra)}.") from error
        raise


def _length(space: gymnasium.Space[Any]) -> int | None:
    """The length of the flattened observations of ``space``, or None if they cannot be flattened."""
    try:
        return flatdim(space) if space.is_np_flattenable else None
    except (NotImplementedError, AttributeError):  # a user-defined space, or an object that is not a space
        return None


def _actions(space: gymnasium.Space[Any]) -> ActionSpace | None:
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


def _image_shape(space: gymnasium.Space[Any]) -> tuple[int, ...] | None:
    """The shape (channels, height, width) of the images of ``space``, or None if it has no images."""
    if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3, 4):
        return None
    return _channels_first(np.empty(space.shape, np.uint8)).shape


def _channels_first(image: np.ndarray) -> np.ndarray:
    """``image`` as (channels, height, width).

    An image is (height, width), (height, width, channels), (channels, height, width), or a stack of the second kind.
    """
    if image.ndim == 2:
        return image[np.newaxis]
    if image.ndim == 4:
        return np.moveaxis(image, -1, 1).reshape(-1, *image.shape[1:3])
    first, *_, last = image.shape
    return image if first <= last else np.moveaxis(image, -1, 0)


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: str) -> gymnasium.Env[Any, Any]:
    """``env`` in the user's ``wrapper``, module:function."""
    blame = f"--wrapper {wrapper}"
    with blaming(f"{blame} fails"):
        wrapped = load_function(blame, wrapper)(env)
    require(
        isinstance(wrapped, gymnasium.Env),
        f"{blame} returned a value of type {type(wrapped).__name__}: it must return an environment of Gymnasium.",
    )
    return wrapped  # type: ignore[no-any-return]


def _kind(space: object) -> str:
    shape = f" {space.dtype} {space.shape}" if isinstance(space, Box) else ""
    return f"{type(space).__name__}{shape}"


def _has_older_api(env: gymnasium.Env[Any, Any], action: Any) -> bool:
    """Whether ``reset`` or ``step`` has the form that it had in Gym before 0.26."""
    try:
        inspect.signature(env.reset).bind(seed=0, options=None)
    except TypeError:
        return True
    started: object = env.reset(seed=0)
    if not (isinstance(started, tuple) and len(started) == 2):
        return True
    played: object = env.step(action)
    return isinstance(played, tuple) and len(played) == 4
