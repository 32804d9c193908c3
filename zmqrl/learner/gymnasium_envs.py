"""Games of any Gymnasium environment, with checks of its results at every step."""

import inspect
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.spaces import Box
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from zmqrl.errors import UsageError, blaming, load_function, require
from zmqrl.learner.games import EnvConfig, EnvSpec, Scores, Step, game_seeds
from zmqrl.learner.spaces.actions import TRAINABLE, actions_of, taken
from zmqrl.learner.spaces.observations import NUMBERS, VALUE_SHOWN, Images, Unfit, Vectors, flattened_images, kind_of
from zmqrl.local.extras import OF_GYMNASIUM, install_command
from zmqrl.words import counted

# Wrappers that keep statistics for one game only, and outside checkpoints, with the option to use instead.
STATISTICS: dict[type[Any], str] = {
    NormalizeObservation: "--envs.normalize-observations",
    NormalizeReward: "--envs.normalize-rewards",
}
MOST_OUTPUTS = 2**24  # torch draws one of at most so many alternatives
LARGEST = float(np.finfo(np.float32).max)
OLDER_API = (
    "cannot be played: it has the API of Gym before 0.26: reset(seed=, options=) must return (observation, info), and "
    "step(action) must return (observation, reward, terminated, truncated, info)"
)


class CheckedEnv:
    """One environment ``env``, whose observations become vectors float32 (n,). Discrete observations become one-hot.

    With ``config.images``, images stay uint8 and become (channels, height, width).

    Every method raises UsageError when the environment raises anything, even SystemExit, and when a result is invalid:
    an observation outside its space, a reward that is not one number, a number that is not finite, or an end that is
    neither True nor False. The bounds of a Box and ``info`` are ignored.
    """

    def __init__(
        self, env_id: str, registered: Registered, config: EnvConfig, *, failed: str = "does not start", **options: Any
    ) -> None:
        """If the environment cannot be made, the error begins with ``env_id`` and ``failed``.

        ``config.args`` and ``options`` extend the options of the registration.
        """
        self.env_id = env_id
        with blaming(f"{env_id} {failed}"):
            self.env: gymnasium.Env[Any, Any] = _made(env_id, registered, **config.make_arguments() | options)
            _refuse_statistics(self.env, f"the registration of {env_id}")
            for wrapper in config.wrappers:
                self.env = _wrapped(self.env, wrapper)
            observations, self._actions = self.env.observation_space, self.env.action_space
        with blaming(f"{env_id} fails"):
            actions = actions_of(self._actions)
            if actions is None:
                self._refuse(f"has {kind_of(self._actions)} actions: {TRAINABLE}")
            if actions.outputs > MOST_OUTPUTS:
                needed = f"need {actions.outputs:,} outputs of a network: the limit is {MOST_OUTPUTS:,}"
                self._refuse(f"has {kind_of(self._actions)} actions, which {needed}")
            try:
                self._read: Images | Vectors = Images(observations) if config.images else Vectors(observations)
            except Unfit as why:
                self._refuse(str(why))
        self.spec = EnvSpec(
            observation_shape=self._read.shape,
            observation_dtype=self._read.dtype,
            actions=actions,
            flavour=config.gymnasium_flavour(),
            normalizes_observations=config.normalize_observations,
            normalizes_rewards=config.normalize_rewards,
            notice=None if config.images else _notice(env_id, observations),
            drawn=self._read.drawn,
        )
        self._steps = 0

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._steps = 0
        with blaming(f"{self.env_id} fails"):
            observation, _ = self.env.reset(seed=seed)
            return self._seen(observation)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Play ``action``, in the form of ``spec.actions.played``.

        Returns observation, reward, ``terminated`` and ``truncated``.
        """
        self._steps += 1
        with blaming(f"{self.env_id} fails"):
            observation, reward, terminated, truncated, _ = self.env.step(taken(action, self._actions))
            seen, paid = self._seen(observation), self._number(reward)
            return seen, paid, self._flag("terminated", terminated), self._flag("truncated", truncated)

    def try_out(self) -> None:
        """Start a game and play one step."""
        try:
            self.reset(seed=0)
            self.step(self._first())
        except UsageError:
            older = False
            with suppress(Exception, SystemExit):  # the first error is the one to show
                older = _has_older_api(self.env.unwrapped, taken(self._first(), self._actions))
            if older:
                self._refuse(OLDER_API)
            raise

    def close(self) -> None:
        with blaming(f"{self.env_id} fails"):
            self.env.close()

    def _first(self) -> Any:
        """The action in the middle of the space, or the first one."""
        actions = self.spec.actions
        (first,) = actions.played(np.zeros((1, *actions.shape), actions.dtype))
        return first

    def _seen(self, observation: Any) -> np.ndarray:
        try:
            return self._read(observation)
        except Unfit as why:
            self._refuse(f"returned a wrong observation {self._moment()}: {why}")

    def _number(self, reward: Any) -> float:
        paid = np.asarray(reward)
        if paid.shape != () or paid.dtype.kind not in NUMBERS or not abs(float(paid)) <= LARGEST:
            self._refuse(f"returned a reward of {_shown(paid)} {self._moment()}: it must be one finite number")
        return float(paid)

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        flag = np.asarray(value)
        if flag.shape != () or flag.dtype.kind not in NUMBERS or flag not in (0, 1):
            self._refuse(f"returned a value of {_shown(flag)} for {name} {self._moment()}: it must be True or False")
        return bool(flag)

    def _moment(self) -> str:
        return f"from step {self._steps}" if self._steps else "from reset"

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"{self.env_id} {why}.")


class GymnasiumEnvs:
    """Games of one Gymnasium environment, stepped one after another."""

    def __init__(self, env_id: str, registered: Registered, config: EnvConfig) -> None:
        """Raises UsageError like :class:`CheckedEnv`, and if the games have different spaces."""
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
        with ExitStack() as each:  # closes the other games even if one fails
            for env in self._envs:
                each.callback(env.close)


def _notice(env_id: str, observations: gymnasium.Space[Any]) -> str | None:
    """A notice about images that become vectors, or None if there are no images."""
    found = list(flattened_images(observations))
    if not found:
        return None
    others = f" and {counted(len(found) - 1, 'other image')}" if len(found) > 1 else ""
    wrapper = "a wrapper that returns only the image, "
    if isinstance(observations, Box):
        wrapper = "" if observations.dtype == np.uint8 else "a wrapper that returns uint8 images, "
    return (
        f"{env_id}: the policy sees {found[0]}{others} as a flat vector of numbers: to use convolutions, add {wrapper}"
        "--envs.images and --model small"
    )


def _made(env_id: str, registered: Registered, /, **options: Any) -> gymnasium.Env[Any, Any]:
    """Make the environment. Raises UsageError if an extra of zmqrl is missing, and other errors as they are."""
    try:
        # Where CheckedEnv raises, Gymnasium's checker would only print a warning.
        return gymnasium.make(registered, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        for extra, module in OF_GYMNASIUM.items():
            if f"[{extra}]" in str(error):
                lacking = getattr(error.__cause__, "name", None) or module
                raise UsageError(f"{env_id} needs {lacking}: run {install_command(extra)}.") from error
        raise


def _shown(value: np.ndarray) -> str:
    return f"shape {value.shape}" if value.shape else f"{value.item()!r:.{VALUE_SHOWN}}"


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: str) -> gymnasium.Env[Any, Any]:
    """Wrap ``env`` with the user's function ``wrapper``, such as ``module:function``."""
    blame = f"--wrapper {wrapper}"
    with blaming(f"{blame} fails"):
        wrapped = load_function(blame, wrapper)(env)
    require(
        isinstance(wrapped, gymnasium.Env),
        f"{blame} returned a value of type {type(wrapped).__name__}: it must return an environment of Gymnasium.",
    )
    _refuse_statistics(wrapped, blame)
    return wrapped  # type: ignore[no-any-return]


def _refuse_statistics(env: gymnasium.Env[Any, Any], blame: str) -> None:
    """Raise UsageError if one of the wrappers in ``env`` is in STATISTICS."""
    while isinstance(env, gymnasium.Wrapper):
        for kind, option in STATISTICS.items():
            require(
                not isinstance(env, kind),
                f"{blame} makes a {kind.__name__}, whose statistics differ from game to game and are not in "
                f"checkpoints: use {option}.",
            )
        env = env.env


def _has_older_api(env: gymnasium.Env[Any, Any], action: Any) -> bool:
    """Whether ``reset`` or ``step`` has the form of Gym before 0.26."""
    try:
        inspect.signature(env.reset).bind(seed=0, options=None)
    except TypeError:
        return True
    started: object = env.reset(seed=0)
    if not (isinstance(started, tuple) and len(started) == 2):
        return True
    played: object = env.step(action)
    return isinstance(played, tuple) and len(played) == 4
