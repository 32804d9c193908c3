"""Environments of users: zmqrl checks what they return, and reports each fault in one sentence."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, Game, describe_env, make_envs, try_env
from zmqrl.learner.games import FLAGS, UNCHANGED, ActionSpace, BoxActions, DiscreteActions, FactoredActions
from zmqrl.local.extras import install_command

pytestmark = pytest.mark.processes

CONFIG = EnvConfig(num_envs=2)
ABOVE_A_TENTH = float(np.float32(0.1))
BELOW_A_TENTH = float(np.nextafter(np.float32(0.1), np.float32(0)))
EYE = Box(0, 255, (40, 30), np.uint8)
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
    terminated: Any = False
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
        return self.observation, self.reward, self.terminated, self.time == 4, info


class Raising(User):
    def step(self, action: Any) -> Any:
        raise NotImplementedError


class Leaving(User):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise SystemExit("no licence")


class LevelLess(User):
    """Lacks a file, and has not made its window when it is closed. A second reset fails for another reason."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.resets += 1
        if self.resets > 1:
            raise RuntimeError("already reset")
        raise FileNotFoundError("level.txt")

    def close(self) -> None:
        raise AttributeError("no window")


class OldReset(User):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32)


class OldStep(User):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, {}


class Spaceless(User):
    space: gymnasium.Space[Any] = Nameless()

    def __init__(self) -> None:
        self.observation_space = self.space


class Packaged(User):
    remedy = 'pip install "gymnasium[box2d]"'
    cause: Exception | None = None

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled(f"run {self.remedy}") from self.cause


def place(function: Any, after: int = 1) -> str:
    """The line of this file ``after`` the first line of ``function``, as errors name it."""
    return f"(test_gymnasium_envs.py, line {function.__code__.co_firstlineno + after})"


class Sizeless(User):
    def __init__(self) -> None:
        raise TypeError("no size")


@pytest.fixture
def register() -> Iterator[Any]:
    """``register(cls, **attributes)`` registers an environment whose class has these attributes. Returns the id of the
    environment.
    """
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


@pytest.mark.parametrize(
    ("space", "config", "sees", "wrapper"),
    [
        (Box(0, 255, (40, 30, 3), np.uint8), CONFIG, "observation (Box uint8 (40, 30, 3))", ""),
        (
            Box(0.0, 1.0, (40, 30, 3)),
            CONFIG,
            "observation (Box float32 (40, 30, 3))",
            "a wrapper that returns uint8 images, ",
        ),
        (
            Dict({"goal": Discrete(3), "eyes": Dict({"left": EYE, "right": EYE})}),
            CONFIG,
            "observation['eyes']['left'] (Box uint8 (40, 30)) and 1 other image",
            "a wrapper that returns only the image, ",
        ),
        (Box(0, 255, (40, 30, 3), np.uint8), EnvConfig(images=True), None, ""),
        (Dict({"goal": Box(0, 255, (3,), np.uint8), "map": Box(-1.0, 1.0, (40, 30))}), CONFIG, None, ""),
    ],
    ids=["image", "image of floats", "dictionary with images", "kept as an image", "no image"],
)
def test_images_that_become_vectors_are_noticed(
    register: Any, space: gymnasium.Space[Any], config: EnvConfig, sees: str | None, wrapper: str
) -> None:
    env_id = register(observation_space=space)
    notice = describe_env(env_id, config).notice
    assert notice == (
        sees
        and f"{env_id}: the policy sees {sees} as a flat vector of numbers: to use convolutions, add {wrapper}"
        "--envs.images and --model small"
    )


NAN = np.array([0.0, np.nan], np.float32)
PARTS = Dict({"a": Discrete(3), "b": Box(-9.0, 9.0, (2,), np.float64)})
SEEN: dict[str, Any] = {"a": 1, "b": np.array([2.0, 3.0])}


@pytest.mark.parametrize(
    ("cls", "attributes", "sentence"),
    [
        (Raising, {}, f"fails: NotImplementedError {place(Raising.step)}."),
        (Leaving, {}, f"fails: SystemExit: no licence {place(Leaving.reset)}."),
        (LevelLess, {}, f"fails: FileNotFoundError: level.txt {place(LevelLess.reset, 4)}."),
        (
            Sizeless,
            {},
            "does not start: TypeError: no size was raised from the environment creator for zmqrl-test/User0-v0 with "
            f"kwargs ({{}}) {place(Sizeless.__init__)}.",
        ),
        (Spaceless, {}, "has Nameless observations, which cannot be flattened."),
        (Spaceless, {"space": Sequence(Discrete(2))}, "has Sequence observations, which cannot be flattened."),
        (Spaceless, {"space": Box(-1.0, 1.0, (0,))}, "has Box float32 (0,) observations, which are empty."),
        (Packaged, {}, f"needs Box2D: run {install_command('box2d')}."),
        (Packaged, {"cause": ImportError(name="pygame")}, f"needs pygame: run {install_command('box2d')}."),
        (
            Packaged,
            {"remedy": "gymnasium[toy]"},
            f"does not start: DependencyNotInstalled: run gymnasium[toy] {place(Packaged.__init__)}.",
        ),
        (User, {"observation_space": None}, "has NoneType observations, which cannot be flattened."),
        (
            User,
            {"action_space": Dict({"a": Discrete(2)})},
            "has Dict actions: a policy can choose Discrete, MultiDiscrete, MultiBinary and Box (float) actions.",
        ),
        (
            User,
            {"action_space": Box(0, 9, (2,), np.int64)},
            "has Box int64 (2,) actions: a policy can choose Discrete, MultiDiscrete, MultiBinary and Box (float) "
            "actions.",
        ),
        (OldReset, {}, OLDER_API),
        (OldReset, {"max_episode_steps": 9}, OLDER_API),
        (User, {"first": np.zeros(2, np.float32)}, OLDER_API),
        (OldStep, {}, OLDER_API),
        (OldStep, {"max_episode_steps": 9}, OLDER_API),
        (
            User,
            {"first": (np.zeros(3), {})},
            "returned a wrong observation from reset: observation has shape (3,), not (2,).",
        ),
        (
            User,
            {"first": (NAN, {})},
            "returned a wrong observation from reset: observation[1] is nan, but must be a finite float32 number.",
        ),
        (
            User,
            {"observation": np.array([1e39, 0.0]), "observation_space": Box(-np.inf, np.inf, (2,), np.float64)},
            "returned a wrong observation from step 1: observation[0] is 1e+39, but must be a finite float32 number.",
        ),
        (
            User,
            {"observation": np.zeros((1, 2))},
            "returned a wrong observation from step 1: observation has shape (1, 2), not (2,).",
        ),
        (
            User,
            {"observation": None},
            "returned a wrong observation from step 1: observation has shape (), not (2,).",
        ),
        (
            User,
            {"observation_space": Discrete(3), "first": (-1, {})},
            "returned a wrong observation from reset: observation is -1, but must be a whole number from 0 to 2.",
        ),
        (
            User,
            {"observation_space": PARTS, "first": (SEEN, {}), "observation": SEEN | {"b": NAN}},
            "returned a wrong observation from step 1: observation['b'][1] is nan, but must be a finite float32 "
            "number.",
        ),
        (User, {"reward": np.ones(1)}, "returned a reward of shape (1,) from step 1: it must be one finite number."),
        (User, {"reward": None}, "returned a reward of None from step 1: it must be one finite number."),
        (User, {"reward": "10"}, "returned a reward of '10' from step 1: it must be one finite number."),
        (User, {"reward": np.nan}, "returned a reward of nan from step 1: it must be one finite number."),
        (User, {"reward": 1e39}, "returned a reward of 1e+39 from step 1: it must be one finite number."),
        (User, {"terminated": None}, "returned a value of None for terminated from step 1: it must be True or False."),
        (
            User,
            {"terminated": "False"},
            "returned a value of 'False' for terminated from step 1: it must be True or False.",
        ),
        (User, {"terminated": 2}, "returned a value of 2 for terminated from step 1: it must be True or False."),
        (User, {"terminated": np.nan}, "returned a value of nan for terminated from step 1: it must be True or False."),
        (
            User,
            {"terminated": np.zeros(1, bool)},
            "returned a value of shape (1,) for terminated from step 1: it must be True or False.",
        ),
    ],
)
def test_an_environment_is_tried_before_it_is_used(
    register: Any, cls: type[User], attributes: dict[str, Any], sentence: str
) -> None:
    env_id = register(cls, **attributes)
    with pytest.raises(UsageError) as refused:
        try_env(env_id, CONFIG)
    assert str(refused.value) in (f"{env_id} {sentence}", f"{env_id} cannot be played: {sentence}")


def test_all_games_are_closed_even_if_closing_one_fails(register: Any) -> None:
    closed: list[gymnasium.Env[Any, Any]] = []

    def close(self: gymnasium.Env[Any, Any]) -> None:
        closed.append(self)
        raise AttributeError("no window")

    env_id = register(close=close)
    envs = make_envs(env_id, EnvConfig(num_envs=3), threads=1)
    del closed[:]
    with pytest.raises(UsageError) as failed:
        envs.close()
    assert str(failed.value) == f"{env_id} fails: AttributeError: no window {place(close, 2)}."
    assert len(closed) == 3


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"reward": np.nan}, "returned a reward of nan from step 3: it must be one finite number."),
        (
            {"observation": NAN},
            "returned a wrong observation from step 3: observation[1] is nan, but must be a finite float32 number.",
        ),
        (
            {"observation": np.zeros(3)},
            "returned a wrong observation from step 3: observation has shape (3,), not (2,).",
        ),
        ({"terminated": None}, "returned a value of None for terminated from step 3: it must be True or False."),
    ],
)
def test_a_wrong_result_is_also_refused_in_the_middle_of_a_game(
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
    env_id = register(observation_space=PARTS, first=(SEEN, {}))
    assert describe_env(env_id, CONFIG).observation_shape == (5,)
    envs = make_envs(env_id, CONFIG, threads=1)
    np.testing.assert_array_equal(envs.reset(0), [[0, 1, 0, 2, 3]] * 2)
    envs.close()


@pytest.mark.parametrize("true", [True, np.True_, 1, 1.0, np.array(1, np.uint8)])
def test_a_game_may_end_with_any_kind_of_true(register: Any, true: Any) -> None:
    env_id = register(terminated=true)
    envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
    envs.reset(0)
    step = envs.step(np.zeros(1, np.int64))
    assert step.terminated.tolist() == [True]
    assert step.games == [Game(1.0, 1)]
    envs.close()


def test_the_bounds_of_a_box_do_not_matter_for_observations(register: Any) -> None:
    """Gymnasium only warns of such observations, and many environments return them."""
    env_id = register(first=(np.array([1.5, -50.0]), {}))
    assert try_env(env_id, CONFIG).observation_shape == (2,)
    envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
    assert envs.reset(0).tolist() == [[1.5, -50.0]]
    envs.close()


def test_frames_that_are_not_whole_numbers_are_refused_as_images(register: Any) -> None:
    """Such frames would be black: a wrapper that scales frames to 1 must also declare floats."""
    shape = (5, 6, 3)
    env_id = register(observation_space=Box(0, 255, shape, np.uint8), first=(np.full(shape, 0.5), {}))
    with pytest.raises(UsageError) as refused:
        try_env(env_id, EnvConfig(images=True))
    assert str(refused.value) == (
        f"{env_id} returned a wrong observation from reset: observation[0, 0, 0] is 0.5, but must be a whole number "
        "from 0 to 255."
    )


class Taking(User):
    """Records the actions that it gets. These actions must belong to its action space."""

    taken: Any

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        self.taken.append(action)
        return super().step(action)


@pytest.mark.parametrize(
    ("space", "actions", "chosen", "taken"),
    [
        (Discrete(3, start=5), DiscreteActions(3, 5), 2, 7),
        (Discrete(3, start=1, dtype=np.int32), DiscreteActions(3, 1, np.dtype(np.int32)), 2, 3),
        (Discrete(3, start=1, dtype=np.uint8), DiscreteActions(3, 1, np.dtype(np.uint8)), 0, 1),
        (MultiDiscrete([3, 2], start=[0, 4]), FactoredActions((3, 2), (0, 4), (2,)), [2, 1], [2, 5]),
        (
            MultiDiscrete(np.array([[3, 2], [2, 2]])),
            FactoredActions((3, 2, 2, 2), (0, 0, 0, 0), (2, 2)),
            [2, 1, 0, 1],
            [[2, 1], [0, 1]],
        ),
        (MultiBinary(3), FactoredActions((2, 2, 2), (0, 0, 0), (3,)), [1, 0, 1], [1, 0, 1]),
        (
            Box(-2.0, np.array([2.0, 8.0], np.float32), (2,)),
            BoxActions((-2.0, -2.0), (2.0, 8.0), (2,)),
            [0.75, 0.8],
            [1.5, 7.0],
        ),
        (Box(-1.0, 1.0, (1, 2), np.float64), BoxActions((-1.0, -1.0), (1.0, 1.0), (1, 2)), [1.0, 0.5], [[1.0, 0.5]]),
        (Box(-1.0, 1.0, ()), BoxActions((-1.0,), (1.0,), ()), [0.5], 0.5),
        (
            Box(-0.1, 0.1, (1,), np.float64),
            BoxActions((-BELOW_A_TENTH,), (BELOW_A_TENTH,), (1,)),
            [1.0],
            [BELOW_A_TENTH],
        ),
        (Box(0.1, 0.1, (1,), np.float64), BoxActions((ABOVE_A_TENTH,), (BELOW_A_TENTH,), (1,)), [1.0], [0.1]),
    ],
)
def test_an_environment_gets_actions_of_its_own_space(
    register: Any, space: Any, actions: ActionSpace, chosen: Any, taken: Any
) -> None:
    given: list[Any] = []
    env_id = register(Taking, action_space=space, taken=given)
    assert try_env(env_id, CONFIG).actions == actions
    envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
    envs.reset(0)
    envs.step(actions.played(np.array([chosen], actions.dtype)))
    np.testing.assert_array_equal(given[-1], taken)
    envs.step(actions.drawn(np.random.default_rng(0), 1))
    envs.close()
    assert {type(each) for each in given} == {space.dtype.type if isinstance(space, Discrete) else np.ndarray}


@pytest.mark.parametrize(
    ("space", "outputs"),
    [(Discrete(10**11), "100,000,000,000"), (MultiDiscrete([2**23 + 1, 2**23]), "16,777,217")],
)
def test_actions_that_need_too_many_outputs_are_refused(register: Any, space: Any, outputs: str) -> None:
    env_id = register(action_space=space)
    with pytest.raises(UsageError) as refused:
        describe_env(env_id, CONFIG)
    needed = f"need {outputs} outputs of a network: the limit is 16,777,216."
    assert str(refused.value) == f"{env_id} has {type(space).__name__} actions, which {needed}"


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((5, 6, 3), (3, 5, 6)),
        ((5, 6), (1, 5, 6)),
        ((3, 5, 6), (3, 5, 6)),
        ((4, 5, 6, 3), (12, 5, 6)),
        ((4, 3, 5, 6), (12, 5, 6)),
    ],
)
def test_images_of_any_size_can_stay_images(register: Any, shape: tuple[int, ...], seen: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    env_id = register(observation_space=Box(0, 255, shape, np.uint8), first=(image, {}), observation=image)
    assert describe_env(env_id, CONFIG).observation_shape == (image.size,)
    envs = make_envs(env_id, EnvConfig(num_envs=2, images=True), threads=1)
    frames = envs.reset(0)
    assert frames.shape == (2, *seen)
    assert frames.dtype == envs.spec.observation_dtype == np.uint8
    expected = np.moveaxis(image, -1, 0) if shape == (5, 6, 3) else image.reshape(-1, 5, 6)
    if shape == (4, 5, 6, 3):
        expected = np.concatenate([np.moveaxis(each, -1, 0) for each in image])
    np.testing.assert_array_equal(frames[0], expected)
    envs.close()


@pytest.mark.parametrize("shape", [(8, 8, 20), (20, 8, 8), (8, 8, 8), (2, 8, 8, 20)])
def test_images_are_refused_if_their_channels_could_be_rows_or_columns(register: Any, shape: tuple[int, ...]) -> None:
    env_id = register(observation_space=Box(0, 255, shape, np.uint8))
    assert describe_env(env_id, CONFIG).observation_shape == (math.prod(shape),)
    with pytest.raises(UsageError) as refused:
        describe_env(env_id, EnvConfig(images=True))
    assert str(refused.value) == (
        f"{env_id} has Box uint8 {shape} observations: --envs.images needs fewer channels than rows and columns."
    )


def test_images_are_refused_where_there_are_none(register: Any) -> None:
    env_id = register()
    with pytest.raises(UsageError) as refused:
        describe_env(env_id, EnvConfig(images=True))
    assert str(refused.value) == f"{env_id} has Box float32 (2,) observations: --envs.images needs uint8 images."


class Halving(gymnasium.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return observation / 2


class Doubling(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> Any:
        return reward * 2


NOTHING: Any = lambda env: None  # noqa: E731


def hidden(env: Any) -> Any:
    return Doubling(gymnasium.wrappers.NormalizeReward(env))


def test_wrappers_apply_in_their_order_and_are_named_in_the_flavour(register: Any) -> None:
    env_id = register(first=(np.ones(2, np.float32), {}))
    names = (f"{__name__}:Halving", f"{__name__}:Halving", f"{__name__}:Doubling")
    config = EnvConfig(num_envs=1, wrappers=names)
    spec = try_env(env_id, config)
    assert spec.flavour == f"played as registered, wrapped by {', '.join(names)}, scores are sums of rewards"
    envs = make_envs(env_id, config, threads=1)
    np.testing.assert_array_equal(envs.reset(0), [[0.25, 0.25]])
    assert envs.step(np.zeros(1, np.int64)).rewards.tolist() == [2.0]
    envs.close()


@pytest.mark.parametrize(
    ("wrapper", "sentence"),
    [
        ("gymnasium", "must be module:function."),
        ("gymnasium:NoSuch", "gymnasium has no 'NoSuch'."),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'."),
        (
            f"{__name__}:NOTHING",
            "returned a value of type NoneType: it must return an environment of Gymnasium.",
        ),
        ("gymnasium.wrappers:TransformAction", "fails: TypeError: "),
        (
            "gymnasium.wrappers:NormalizeObservation",
            "makes a NormalizeObservation, whose statistics differ from game to game and are not in checkpoints: use "
            "--envs.normalize-observations.",
        ),
        (
            "gymnasium.wrappers:NormalizeReward",
            "makes a NormalizeReward, whose statistics differ from game to game and are not in checkpoints: use "
            "--envs.normalize-rewards.",
        ),
        (
            f"{__name__}:hidden",
            "makes a NormalizeReward, whose statistics differ from game to game and are not in checkpoints: use "
            "--envs.normalize-rewards.",
        ),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_named(register: Any, wrapper: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        try_env(register(), EnvConfig(wrappers=(wrapper,)))
    assert str(refused.value).startswith(f"--wrapper {wrapper}")
    assert str(refused.value).removeprefix(f"--wrapper {wrapper}").removeprefix(":").strip().startswith(sentence)


@pytest.mark.parametrize("kind", ["NormalizeObservation", "NormalizeReward"])
def test_a_registration_cannot_bring_statistics_of_its_own(kind: str) -> None:
    wrapper = WrapperSpec(kind, f"gymnasium.wrappers:{kind}", {})
    entry_point: Any = User
    gymnasium.register("zmqrl-test/Wrapped-v0", entry_point, additional_wrappers=(wrapper,))
    try:
        with pytest.raises(UsageError) as refused:
            describe_env("zmqrl-test/Wrapped-v0", EnvConfig(wrappers=(f"{__name__}:Halving",)))
    finally:
        del gymnasium.registry["zmqrl-test/Wrapped-v0"]
    assert str(refused.value).startswith(f"the registration of zmqrl-test/Wrapped-v0 makes a {kind}, whose statistics")


@pytest.mark.parametrize(
    ("name", "value", "unchanged"),
    [
        ("sticky_actions", 0.25, 0.0),
        ("frame_skip", 2, 1),
        ("min_frame_skip", 2, None),
        ("frame_stack", 3, 1),
        ("screen_size", 64, 84),
        ("noop_max", 5, 0),
        ("max_frames", 1000, 108_000),
    ],
)
def test_a_setting_of_atari_games_is_not_ignored(register: Any, name: str, value: Any, unchanged: Any) -> None:
    env_id = register()
    random_skip = {"noop_max": 0, "fire_reset": False}  # a random frame skip needs these
    rules: dict[str, Any] = random_skip if name == "min_frame_skip" else {}
    with pytest.raises(UsageError) as refused:
        try_env(env_id, EnvConfig(**rules | {name: value}))
    assert str(refused.value) == (
        f"--envs.{name.replace('_', '-')} {value} has no effect on {env_id}, which Gymnasium makes: remove this "
        "option. To change the environment, use --env-arg or --wrapper."
    )
    try_env(env_id, EnvConfig(**{name: unchanged}))


@pytest.mark.parametrize("name", ["grayscale", "life_loss", "fire_reset"])
def test_a_switch_of_atari_games_is_not_ignored(register: Any, name: str) -> None:
    env_id, off, on = register(), dict[str, Any]({name: False}), dict[str, Any]({name: True})
    with pytest.raises(UsageError) as refused:
        try_env(env_id, EnvConfig(**off))
    assert str(refused.value) == (
        f"--envs.no-{name.replace('_', '-')} has no effect on {env_id}, which Gymnasium makes: remove this option. "
        "To change the environment, use --env-arg or --wrapper."
    )
    try_env(env_id, EnvConfig(**on))
    try_env(env_id, EnvConfig(**off), stored=EnvConfig(**off))  # an older version has accepted it


def test_every_setting_is_refused_or_applies() -> None:
    of_every_environment = {"num_envs", "args", "wrappers", "images", "normalize_observations", "normalize_rewards"}
    never_clipped = {"clip_rewards"}  # other environments have true rewards, as --envs.no-clip-rewards asks
    names = {field.name for field in dataclasses.fields(EnvConfig)}
    assert names == of_every_environment | never_clipped | set(UNCHANGED) | set(FLAGS), "is a new setting ignored?"


@pytest.mark.parametrize("name", ["env_id", "registered"])
def test_an_argument_can_have_any_name(name: str) -> None:
    given: dict[str, Any] = {}

    def made(**settings: Any) -> User:
        given.update(settings)
        return User()

    gymnasium.register("zmqrl-test/Any-v0", made)
    try:
        try_env("zmqrl-test/Any-v0", EnvConfig(args=(f"{name}=3",)))
    finally:
        del gymnasium.registry["zmqrl-test/Any-v0"]
    assert given == {name: 3}


def test_arguments_reach_the_environment_as_python_values() -> None:
    given: dict[str, Any] = {}

    def made(**settings: Any) -> User:
        given.update(settings)
        return User()

    gymnasium.register("zmqrl-test/Own-v0", made, kwargs={"size": 1})
    try:
        args = ("size=3", "share=0.5", "hard=True", "name=a/b.xml", "text='x y'", "cells=[1, (2, 3)]", "sign=-1")
        spec = describe_env("zmqrl-test/Own-v0", EnvConfig(args=args))
        assert spec.flavour == f"played with {', '.join(args)}, scores are sums of true rewards"
        values = {"size": 3, "share": 0.5, "hard": True, "name": "a/b.xml", "text": "x y", "cells": [1, (2, 3)]}
        assert given == values | {"sign": -1}
    finally:
        del gymnasium.registry["zmqrl-test/Own-v0"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("size",), "size: must be NAME=VALUE"),
        (("2x=1",), "2x=1: must be NAME=VALUE"),
        (("size=[1",), "size=[1: the value must be a Python literal"),
        (("call=f(1)",), "call=f(1): the value must be a Python literal"),
        (("size=1", "size=2"), "size=2: size already has a value"),
    ],
)
def test_an_argument_that_cannot_be_read_is_named(args: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        describe_env("CartPole-v1", EnvConfig(args=args))
    assert str(refused.value).startswith(f"--env-arg {words}")


@pytest.mark.parametrize("settings", [{"args": ("mode=1",)}, {"wrappers": ("a:b",)}, {"images": True}])
@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "zmqrl/Dummy-v0"])
def test_games_that_gymnasium_does_not_make_take_no_arguments_and_wrappers(env_id: str, settings: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{env_id} is not made by Gymnasium: remove --env-arg, --wrapper and"):
        describe_env(env_id, EnvConfig(**settings))


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
