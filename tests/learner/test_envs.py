"""All kinds of games have the same interface: seeds, scores, ends, flavours and refusals."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from support.games_rig import PLAIN, RANDOM_SKIP, play

from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, Game, describe_env, make_envs

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("config", [EnvConfig(sticky_actions=0.25), pytest.param(RANDOM_SKIP, marks=pytest.mark.slow)])
def test_a_seed_decides_every_game_for_any_number_of_threads(config: EnvConfig) -> None:
    config = dataclasses.replace(config, num_envs=2)
    runs = []
    for threads, seed, played_before in ((1, 7, False), (2, 7, True), (1, 8, False)):
        envs = make_envs("ALE/Breakout-v5", config, threads=threads)
        if played_before:
            envs.reset(1)
            play(envs, 5)
        start = envs.reset(seed)
        steps = play(envs, 200)
        runs.append([start, *(step.observations for step in steps)])
        envs.close()
    same, again, other = (np.stack(run) for run in runs)
    np.testing.assert_array_equal(same, again)
    games = [*np.moveaxis(same, 1, 0), *np.moveaxis(other, 1, 0)]
    assert len({game.tobytes() for game in games}) == 4


def test_game_i_of_a_seed_is_the_same_in_gymnasium() -> None:
    envs = make_envs("CartPole-v1", EnvConfig(num_envs=2), threads=1)
    start = envs.reset(7)
    steps = play(envs, 50)
    np.testing.assert_array_equal(envs.reset(7), start)
    for step, again in zip(steps, play(envs, 50), strict=True):
        np.testing.assert_array_equal(step.observations, again.observations)
    assert sum(len(step.games) for step in steps) >= 2
    assert len({tuple(game) for game in (*start, *envs.reset(8))}) == 4
    envs.close()


def test_the_result_of_a_step_is_not_overwritten_by_later_steps() -> None:
    for env_id, config in (("ALE/Breakout-v5", PLAIN), ("ALE/Breakout-v5", RANDOM_SKIP), ("CartPole-v1", PLAIN)):
        envs = make_envs(env_id, config, threads=1)
        start = envs.reset(0)
        kept_start = start.copy()
        (step,) = play(envs, 1)
        kept = (step.observations.copy(), step.rewards.copy(), step.terminated.copy())
        play(envs, 60)
        np.testing.assert_array_equal(start, kept_start)
        for before, after in zip(kept, (step.observations, step.rewards, step.terminated), strict=True):
            np.testing.assert_array_equal(before, after)
        envs.close()


def test_rewards_are_clipped_for_learning_and_scores_are_not() -> None:
    """In Space Invaders, a hit is worth 5 to 30 points."""
    clipped, true = [
        make_envs("ALE/SpaceInvaders-v5", EnvConfig(num_envs=1, clip_rewards=clip), threads=1) for clip in (True, False)
    ]
    clipped.reset(0)
    true.reset(0)
    theirs, ours = play(true, 1500), play(clipped, 1500)
    rewards = np.array([step.rewards for step in theirs])
    assert rewards.max() > 1
    np.testing.assert_array_equal([step.rewards for step in ours], rewards.clip(-1, 1))
    assert [step.games for step in ours] == [step.games for step in theirs]
    assert sum(game.score for step in ours for game in step.games) > 5
    assert describe_env("ALE/SpaceInvaders-v5", EnvConfig(clip_rewards=False)).flavour.count("rewards unclipped") == 1
    for envs in (clipped, true):
        envs.close()


def test_all_ids_of_an_atari_game_play_the_same_game() -> None:
    played = []
    for env_id in ("ALE/Breakout-v5", "Breakout-v0"):
        envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
        envs.reset(3)
        played.append(np.stack([step.observations for step in play(envs, 30)]))
        envs.close()
    np.testing.assert_array_equal(played[0], played[1])


def test_a_balanced_pole_is_cut_off_after_500_steps() -> None:
    envs = make_envs("CartPole-v1", EnvConfig(num_envs=4), threads=1)
    observations = envs.reset(0)
    for _ in range(500):
        step = envs.step((observations[:, 2] + observations[:, 3] > 0).astype(np.int64))
        assert not step.terminated.any()
        observations = step.observations
    assert step.truncated.all()
    assert step.games == [Game(500.0, 500)] * 4
    assert list(step.final_observations) == [0, 1, 2, 3]
    for i, last in step.final_observations.items():
        assert last.dtype == np.float32
        assert not np.array_equal(last, observations[i])
    envs.close()


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """Action 6 moves a step forward, action 5 a step back. The exit is at position 3. Every step costs half a point."""

    observation_space = Box(-10.0, 10.0, (1,), np.float64)
    action_space = Discrete(2, start=5)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = 0
        return np.zeros(1), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.position += 1 if action == 6 else -1
        return np.array([float(self.position)]), -0.5, self.position == 3, False, {}


@pytest.fixture
def corridor() -> Iterator[str]:
    env_id = "zmqrl-test/Corridor-v0"
    gymnasium.register(env_id, f"{__name__}:Corridor", max_episode_steps=5)
    yield env_id
    del gymnasium.registry[env_id]


def test_any_registered_environment_with_vectors_and_discrete_actions_can_be_played(corridor: str) -> None:
    envs = make_envs(corridor, EnvConfig(num_envs=3), threads=1)
    assert (envs.spec.actions.outputs, envs.spec.observation_shape) == (2, (1,))
    envs.reset(0)
    # Game 0 reaches the exit in 3 steps, game 1 never does, and game 2 does in the last step before the time limit.
    plan = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]])
    steps = [envs.step(envs.spec.actions.played(actions)) for actions in plan]
    np.testing.assert_array_equal(steps[1].observations.T, [[2, -2, 0]])
    np.testing.assert_array_equal(steps[2].terminated, [True, False, False])
    np.testing.assert_array_equal(steps[2].observations.T, [[0, -3, 1]])
    assert steps[2].games == [Game(-1.5, 3)]
    np.testing.assert_array_equal(steps[4].terminated, [False, False, True])
    np.testing.assert_array_equal(steps[4].truncated, [False, True, False])
    np.testing.assert_array_equal(steps[4].observations.T, [[2, 0, 0]])
    assert {i: last.tolist() for i, last in steps[4].final_observations.items()} == {1: [-5.0]}
    assert steps[4].games == [Game(-2.5, 5), Game(-2.5, 5)]
    for step in steps:
        assert step.observations.dtype == step.rewards.dtype == np.float32
        np.testing.assert_array_equal(step.rewards, np.full(3, -0.5, np.float32))
    envs.close()


def test_a_game_can_be_described_without_playing_it() -> None:
    spec = describe_env("ALE/Pong-v5", EnvConfig(frame_stack=2, screen_size=42))
    assert (spec.observation_shape, spec.observation_dtype, spec.actions.outputs) == (
        (2, 42, 42),
        np.dtype(np.uint8),
        6,
    )
    envs = make_envs("ALE/Pong-v5", EnvConfig(num_envs=2, frame_stack=2, screen_size=42), threads=1)
    assert envs.reset(0).shape == (2, 2, 42, 42)
    assert envs.spec.actions.outputs == 6
    envs.close()
    spec = describe_env("Acrobot-v1", EnvConfig())
    assert (spec.observation_shape, spec.observation_dtype, spec.actions.outputs) == ((6,), np.dtype(np.float32), 3)
    assert spec.flavour == "played as registered, scores are sums of true rewards"


def test_the_flavour_names_what_a_score_depends_on() -> None:
    assert EnvConfig().flavour() == (
        "sticky 0, life loss ends returns, no-ops 30, fire at the start, skip 4, stack 4, grey 84x84, "
        "at most 108000 frames, rewards clipped for learning, scores unclipped"
    )
    assert "random skip 2-4 without max-pooling, stack 4" in RANDOM_SKIP.flavour()
    assert "RGB 84x84" in EnvConfig(grayscale=False).flavour()
    other = EnvConfig(sticky_actions=0.25, life_loss=False, fire_reset=False)
    assert other.flavour().startswith("sticky 0.25, lives ignored, no-ops 30, no fire at the start")
    assert describe_env("ALE/Pong-v5", other).flavour == other.flavour()


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("Breakout", "there is no environment 'Breakout': did you mean ALE/Breakout-v5?"),
        ("ALE/Braekout-v5", "there is no environment 'ALE/Braekout-v5': did you mean ALE/Breakout-v5?"),
        ("CartPole-v9", "there is no environment 'CartPole-v9': did you mean CartPole-v1?"),
        ("xyzzy", "there is no environment 'xyzzy': names of Atari games look like ALE/Breakout-v5."),
        (
            "nowhere:Corridor-v0",
            "cannot import nowhere, which should register Corridor-v0: ModuleNotFoundError: No module named 'nowhere'.",
        ),
    ],
)
def test_an_unsupported_environment_is_refused_in_one_sentence(env_id: str, sentence: str) -> None:
    for refuse in (describe_env, lambda env_id, config: make_envs(env_id, config, threads=1)):
        with pytest.raises(UsageError) as refused:
            refuse(env_id, EnvConfig())
        assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("count", "name", "hint"),
    [
        (2, "Nope-v0", "registers Room0-v0, Room1-v0."),
        (7, "Nope-v0", "registers Room0-v0, Room1-v0, Room2-v0, Room3-v0, Room4-v0, Room5-v0 and 1 other."),
        (3, "Room1-v3", "did you mean {}:Room1-v0?"),
    ],
)
def test_an_unknown_id_of_a_module_is_answered_with_the_ids_of_that_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, name: str, hint: str
) -> None:
    module = f"rooms_for_{name.partition('-')[0]}_{count}"
    rooms = [f"gymnasium.register('Room{i}-v0', entry_point='{module}:Room')" for i in range(count)]
    (tmp_path / f"{module}.py").write_text("\n".join(["import gymnasium", *rooms]), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(gymnasium.registry)
    with pytest.raises(UsageError) as refused:
        describe_env(f"{module}:{name}", EnvConfig())
    for each in set(gymnasium.registry) - set(known):
        del gymnasium.registry[each]
    answer = hint.format(module) if "{}" in hint else f"{module} {hint}"
    assert str(refused.value) == f"there is no environment '{module}:{name}': {answer}"


@pytest.mark.parametrize("settings", [{}, {"grayscale": False, "frame_stack": 2, "screen_size": 42}])
def test_the_dummy_repeats_its_frames_and_ends_its_games(settings: dict[str, Any]) -> None:
    config = EnvConfig(num_envs=4, **settings)
    spec, game = describe_env("zmqrl/Dummy-v0", config), describe_env("ALE/Breakout-v5", config)
    assert spec.flavour.startswith("no game: ")
    assert dataclasses.replace(spec, flavour=game.flavour) == game
    envs = make_envs("zmqrl/Dummy-v0", config, threads=1)
    start = envs.reset(3)
    assert (start.shape, start.dtype) == ((4, *spec.observation_shape), spec.observation_dtype)
    assert start.std() > 50
    steps = play(envs, 600)
    assert all(step.observations is start for step in steps)
    games = [game for step in steps for game in step.games]
    assert len(games) == sum(step.terminated.sum() for step in steps) > 4
    assert 0 < sum(game.score for game in games) <= sum(step.rewards.sum() for step in steps)
    assert not any(step.truncated.any() for step in steps)
    envs.reset(3)
    assert [step.games for step in play(envs, 600)] == [step.games for step in steps]
    assert not np.array_equal(envs.reset(4), start)


@pytest.mark.parametrize(("env_id", "length"), [("FrozenLake-v1", 16), ("Blackjack-v1", 32 + 11 + 2)])
def test_observations_that_are_not_a_box_become_vectors(env_id: str, length: int) -> None:
    spec = describe_env(env_id, EnvConfig())
    assert spec.observation_shape == (length,)
    envs = make_envs(env_id, EnvConfig(num_envs=3), threads=1)
    observations = [envs.reset(7), *(envs.step(np.zeros(3, np.int64)).observations for _ in range(20))]
    envs.close()
    assert {(o.shape, o.dtype) for o in observations} == {((3, length), np.dtype(np.float32))}
    assert all(set(np.unique(o)) <= {0.0, 1.0} for o in observations)


def test_an_environment_that_does_not_start_is_refused_with_its_own_reason() -> None:
    def broken(**_: Any) -> gymnasium.Env[Any, Any]:
        raise RuntimeError("the maze is closed.\nfor good")

    gymnasium.register("zmqrl-test/Broken-v0", broken)
    with pytest.raises(UsageError) as refused:
        describe_env("zmqrl-test/Broken-v0", EnvConfig())
    del gymnasium.registry["zmqrl-test/Broken-v0"]
    place = f"(test_envs.py, line {broken.__code__.co_firstlineno + 1})"
    assert str(refused.value) == f"zmqrl-test/Broken-v0 does not start: RuntimeError: the maze is closed {place}."


WRONG = {
    "min_frame_skip": 5,
    "num_envs": 0,
    "frame_skip": 0,
    "frame_stack": 0,
    "screen_size": 0,
    "sticky_actions": 1.0,
    "noop_max": -1,
}


@pytest.mark.parametrize(("setting", "value"), [*WRONG.items(), ("max_frames", 0)])
def test_an_error_about_an_invalid_setting_names_its_option(setting: str, value: Any) -> None:
    config = EnvConfig(**{setting: value})
    with pytest.raises(UsageError, match=f"^--envs.{setting.replace('_', '-')} {value}: "):
        describe_env("ALE/Breakout-v5", config)
