"""Environments of users: zmqrl checks what they return, and reports each fault in one sentence."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, Game, describe_env, make_envs, try_env

pytestmark = pytest.mark.processes

CONFIG = EnvConfig(num_envs=2)
OLDER_API = (
    "it has the API of Gym before 0.26: reset(seed=, options=) must return (observation, info), and step(action) must "
    "return (observation, reward, terminated, truncated, info)."
)


class Nameless(gymnasium.Space[Any]):
    """A space without a readable description, as some users write."""


class User(gymnasium.Env[Any, Any]):
    """Returns the attributes that a test sets, starting at step ``wrong_from``. A game ends after 4 steps."""

    observation_space: Any = Box(-1.0, 1.0, (2,), np.float32)
    action_space: Any = Discrete(2)
    first: Any = (np.zeros(2, np.float32), {})
    observation: Any = np.zeros(2, np.float32)
    reward: Any = 1.0
    infos: Any = ({},)
    wrong_from = 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.first

    def step(self, action: Any) -> Any:
        self.time += 1
        info = self.infos[self.time % len(self.infos)]
        if self.time < self.wrong_from:
            return np.zeros(2, np.float32), 1.0, False, False, info
        return self.observation, self.reward, False, self.time == 4, info


class Raising(User):
    def step(self, action: Any) -> Any:
        raise NotImplementedError


class Leaving(User):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise SystemExit("no licence")


class OldReset(User):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32)


class OldStep(User):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, {}


class Spaceless(User):
    def __init__(self) -> None:
        self.observation_space = Nameless()


@pytest.fixture
def register() -> Iterator[Any]:
    """``register(cls, **attributes)`` registers an environment whose class has these attributes; returns its id."""
    made: list[str] = []

    def registered(cls: type[User] = User, **attributes: Any) -> str:
        env_id = f"zmqrl-test/User{len(made)}-v0"
        settings = {"max_episode_steps": attributes.pop("max_episode_steps", None)}
        entry_point: Any = type("User", (cls,), attributes)
        gymnasium.register(env_id, entry_point, **settings)
        made.append(env_id)
        return env_id

    yield registered
    for env_id in made:
        del gymnasium.registry[env_id]


NAN = np.array([0.0, np.nan], np.float32)


@pytest.mark.parametrize(
    ("cls", "attributes", "sentence"),
    [
        (Raising, {}, "fails: NotImplementedError."),
        (Leaving, {}, "fails: SystemExit: no licence."),
        (Spaceless, {}, "has Nameless observations, which cannot be flattened."),
        (User, {"observation_space": None}, "has NoneType observations, which cannot be flattened."),
        (
            User,
            {"action_space": MultiDiscrete([2, 2])},
            "has MultiDiscrete actions: only Discrete actions are supported.",
        ),
        (OldReset, {}, OLDER_API),
        (OldReset, {"max_episode_steps": 9}, OLDER_API),
        (User, {"first": np.zeros(2, np.float32)}, OLDER_API),
        (OldStep, {}, OLDER_API),
        (OldStep, {"max_episode_steps": 9}, OLDER_API),
        (User, {"first": (np.zeros(3), {})}, "returned an observation of shape (3,) from reset, not (2,)."),
        (
            User,
            {"first": (NAN, {})},
            "returned nan as value 1 of an observation from reset: all values must be finite.",
        ),
        (
            User,
            {"observation": np.array([1e39, 0.0]), "observation_space": Box(-np.inf, np.inf, (2,), np.float64)},
            "returned inf as value 0 of an observation from step 1: all values must be finite.",
        ),
        (User, {"observation": np.zeros((1, 2))}, "returned an observation of shape (1, 2) from step 1, not (2,)."),
        (User, {"observation": None}, "returned an observation of shape () from step 1, not (2,)."),
        (
            User,
            {"observation_space": Discrete(3), "first": (5, {})},
            "fails: IndexError: index 5 is out of bounds for axis 0 with size 3.",
        ),
        (User, {"reward": np.ones(1)}, "returned a reward of shape (1,) from step 1: it must be one finite number."),
        (User, {"reward": None}, "returned a reward of None from step 1: it must be one finite number."),
        (User, {"reward": "10"}, "returned a reward of '10' from step 1: it must be one finite number."),
        (User, {"reward": np.nan}, "returned a reward of nan from step 1: it must be one finite number."),
        (User, {"reward": 1e39}, "returned a reward of 1e+39 from step 1: it must be one finite number."),
    ],
)
def test_an_environment_is_tried_before_it_is_used(
    register: Any, cls: type[User], attributes: dict[str, Any], sentence: str
) -> None:
    env_id = register(cls, **attributes)
    with pytest.raises(UsageError) as refused:
        try_env(env_id, CONFIG)
    assert str(refused.value) in (f"{env_id} {sentence}", f"{env_id} cannot be played: {sentence}")


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"reward": np.nan}, "returned a reward of nan from step 3: it must be one finite number."),
        ({"observation": NAN}, "returned nan as value 1 of an observation from step 3: all values must be finite."),
    ],
)
def test_a_number_that_is_not_finite_is_also_refused_in_the_middle_of_a_game(
    register: Any, attributes: dict[str, Any], sentence: str
) -> None:
    env_id = register(wrong_from=3, **attributes)
    try_env(env_id, CONFIG)
    envs = make_envs(env_id, CONFIG, threads=1)
    envs.reset(0)
    for _ in range(2):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(UsageError) as refused:
        envs.step(np.zeros(2, np.int64))
    assert str(refused.value) == f"{env_id} {sentence}"
    envs.close()


@pytest.mark.parametrize(
    "infos",
    [
        ({"winner": None}, {"winner": 3}),
        ({"score": 1}, {"score": None}),
        ({"place": np.zeros(2)}, {"place": np.zeros(3)}),
        ({"place": 1.5}, {"place": {"x": 1}}),
        ({"final_obs": 1}, {}),
    ],
)
def test_info_may_contain_anything(register: Any, infos: Any) -> None:
    env_id = register(infos=infos, first=(np.zeros(2, np.float32), infos[0]))
    try_env(env_id, CONFIG)
    envs = make_envs(env_id, CONFIG, threads=1)
    envs.reset(0)
    steps = [envs.step(np.zeros(2, np.int64)) for _ in range(4)]
    assert steps[-1].games == [Game(4.0, 4)] * 2
    assert {i: last.tolist() for i, last in steps[-1].final_observations.items()} == {0: [0.0, 0.0], 1: [0.0, 0.0]}
    envs.close()


@given(st.one_of(st.integers(-100, 100), st.booleans(), st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_reward_may_be_any_finite_number(reward: float) -> None:
    for kind in (lambda value: value, np.asarray, np.float64, np.float32):
        paying: Any = type("Paying", (User,), {"reward": kind(reward)})
        gymnasium.register("zmqrl-test/Paying-v0", paying)
        try:
            envs = make_envs("zmqrl-test/Paying-v0", EnvConfig(num_envs=1), threads=1)
            envs.reset(0)
            assert envs.step(np.zeros(1, np.int64)).rewards.tolist() == [np.float32(reward)]
        finally:
            del gymnasium.registry["zmqrl-test/Paying-v0"]


def test_observations_of_several_parts_are_flattened_into_one_vector(register: Any) -> None:
    space = Dict({"a": Discrete(3), "b": Box(-9.0, 9.0, (2,), np.float64)})
    seen = {"a": 1, "b": np.array([2.0, 3.0])}
    env_id = register(observation_space=space, first=(seen, {}))
    assert describe_env(env_id, CONFIG).observation_shape == (5,)
    envs = make_envs(env_id, CONFIG, threads=1)
    np.testing.assert_array_equal(envs.reset(0), [[0, 1, 0, 2, 3]] * 2)
    envs.close()


def test_options_with_the_names_of_gymnasium_options_reach_the_environment() -> None:
    """``make_vec`` removes these keywords from a registration."""

    def made(**settings: Any) -> User:
        assert settings == {"num_envs": 7, "wrappers": 3}
        return User()

    gymnasium.register("zmqrl-test/Own-v0", made, kwargs={"num_envs": 7, "wrappers": 3})
    try:
        envs = make_envs("zmqrl-test/Own-v0", CONFIG, threads=1)
        assert envs.reset(0).shape == (2, 2)
        envs.close()
    finally:
        del gymnasium.registry["zmqrl-test/Own-v0"]
