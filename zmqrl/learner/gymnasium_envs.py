"""Games of any Gymnasium environment with discrete actions. The environment's results are checked at every step."""

import inspect
from typing import Any, NoReturn

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.spaces import Box, Discrete
from gymnasium.spaces.utils import flatdim, flatten

from zmqrl.errors import UsageError, blaming, require
from zmqrl.learner.games import Scores, Step, game_seeds

LARGEST = float(np.finfo(np.float32).max)
OLDER_API = (
    "cannot be played: it has the API of Gym before 0.26: reset(seed=, options=) must return (observation, info), and "
    "step(action) must return (observation, reward, terminated, truncated, info)"
)


class CheckedEnv:
    """One environment ``env``. Its observations become vectors float32 (n,): a discrete one is one-hot.

    Every method raises UsageError when the environment raises anything, even SystemExit. It also
    raises UsageError unless every observation belongs to its space, every reward is one number, and all numbers are
    finite. ``info`` is ignored.
    """

    def __init__(self, env_id: str, registered: Registered, *, failed: str = "does not start", **options: Any) -> None:
        """Errors name the environment ``env_id``. If it cannot be made, the error begins with ``env_id`` ``failed``.

        ``options`` are added to the options of its registration.
        """
        self.env_id = env_id
        with blaming(f"{env_id} {failed}"):
            # Where this class raises, Gymnasium's checker would only print a warning.
            self.env: gymnasium.Env[Any, Any] = gymnasium.make(registered, disable_env_checker=True, **options)
            self._observations, actions = self.env.observation_space, self.env.action_space
        if not isinstance(actions, Discrete):
            self._refuse(f"has {_kind(actions)} actions: only Discrete actions are supported")
        with blaming(f"{env_id} fails"):
            length = _length(self._observations)
        if length is None:
            self._refuse(f"has {_kind(self._observations)} observations, which cannot be flattened")
        self.num_actions, self.length = int(actions.n), length
        self._first_action = actions.start
        self._steps = 0

    def reset(self, seed: int | None = None) -> npt.NDArray[np.float32]:
        """Start a game. Returns its first observation."""
        self._steps = 0
        with blaming(f"{self.env_id} fails"):
            observation, _ = self.env.reset(seed=seed)
            return self._vector(observation)

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool]:
        """Play ``action``, counted from 0. Returns observation, reward, and whether the game is over or cut off."""
        self._steps += 1
        with blaming(f"{self.env_id} fails"):
            observation, reward, terminated, truncated, _ = self.env.step(action + self._first_action)
            return self._vector(observation), self._number(reward), bool(terminated), bool(truncated)

    def try_out(self) -> None:
        """Start a game and play one step."""
        try:
            self.reset(seed=0)
            self.step(np.int64(0))
        except UsageError:
            with blaming(f"{self.env_id} fails"):
                older = _has_older_api(self.env.unwrapped, self._first_action)
            if older:
                self._refuse(OLDER_API)
            raise

    def close(self) -> None:
        with blaming(f"{self.env_id} fails"):
            self.env.close()

    def _vector(self, observation: Any) -> npt.NDArray[np.float32]:
        if isinstance(self._observations, Box) and np.shape(observation) != self._observations.shape:
            shape = f"{np.shape(observation)} {self._moment()}, not {self._observations.shape}"
            self._refuse(f"returned an observation of shape {shape}")
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
    """Games of one Gymnasium environment, stepped one after another. Observations are vectors."""

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[np.generic]

    def __init__(self, env_id: str, registered: Registered, num_envs: int) -> None:
        """Raises UsageError like :class:`CheckedEnv`, and when the games have different spaces."""
        self._envs = [CheckedEnv(env_id, registered) for _ in range(num_envs)]
        sizes = {(env.length, env.num_actions) for env in self._envs}
        require(len(sizes) == 1, f"{env_id} has different spaces each time it is made: they must be the same.")
        ((length, self.num_actions),) = sizes
        self.num_envs = num_envs
        self.observation_shape = (length,)
        self.observation_dtype = np.dtype(np.float32)

    def reset(self, seed: int) -> np.ndarray:
        self._scores = Scores(self.num_envs)
        seeds = game_seeds(seed, self.num_envs).tolist()
        return np.stack([env.reset(own) for env, own in zip(self._envs, seeds, strict=True)])

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
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


def _length(space: gymnasium.Space[Any]) -> int | None:
    """The length of the flattened observations of ``space``, or None if they cannot be flattened."""
    try:
        return flatdim(space) if space.is_np_flattenable else None
    except (NotImplementedError, AttributeError):  # a user-defined space, or an object that is not a space
        return None


def _kind(space: object) -> str:
    shape = f" {space.shape}" if isinstance(space, Box) else ""
    return f"{type(space).__name__}{shape}"


def _has_older_api(env: gymnasium.Env[Any, Any], action: np.int64) -> bool:
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
