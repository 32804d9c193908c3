"""Games against the real thing: Gymnasium's Atari preprocessing, the bare emulator, Gymnasium's own environments."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from zmqrl.agent.envs import EnvConfig, Envs, Game, Step, describe_env, make_envs
from zmqrl.errors import UsageError

# A game that starts at once is the same for Gymnasium's preprocessing, which knows no FIRE and counts no-ops otherwise.
PLAIN = EnvConfig(num_envs=1, noop_max=0, fire_reset=False, clip_rewards=False)


def preprocessed(
    emulator: gymnasium.Env[Any, Any], *, lives_end_it: bool = False, grayscale: bool = True
) -> gymnasium.Env[Any, Any]:
    """Gymnasium's own preprocessing of one game."""
    pytest.importorskip("cv2", reason="Gymnasium's Atari preprocessing needs opencv-python-headless")
    frames = AtariPreprocessing(emulator, noop_max=0, terminal_on_life_loss=lives_end_it, grayscale_obs=grayscale)
    return FrameStackObservation(frames, 4, padding_type="zero")


def emulator(env_id: str, *, max_frames: int = 108_000) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(env_id, frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=max_frames)


def random_actions(envs: Envs, steps: int, seed: int = 0) -> Iterator[np.ndarray]:
    return iter(np.random.default_rng(seed).integers(envs.num_actions, size=(steps, envs.num_envs)))


def play(envs: Envs, steps: int, seed: int = 0) -> list[Step]:
    return [envs.step(actions) for actions in random_actions(envs, steps, seed)]


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [("ALE/Breakout-v5", 600), ("ALE/Pong-v5", 1100), ("ALE/Seaquest-v5", 500), ("ALE/BankHeist-v5", 800)],
)
def test_frames_rewards_and_ends_are_those_of_gymnasiums_preprocessing(env_id: str, steps: int) -> None:
    """Bit for bit, over whole games. A lost life changes nothing but ``terminated``."""
    theirs = preprocessed(emulator(env_id))
    ours = make_envs(env_id, PLAIN, threads=1)
    ours_without_lives = make_envs(env_id, dataclasses.replace(PLAIN, life_loss=False), threads=1)
    expected, info = theirs.reset(seed=1)
    np.testing.assert_array_equal(ours.reset(1)[0], expected)
    np.testing.assert_array_equal(ours_without_lives.reset(1)[0], expected)
    games = lost_lives = 0
    for actions in random_actions(ours, steps):
        lives = info["lives"]
        expected, reward, over, truncated, info = theirs.step(int(actions[0]))
        life_lost = info["lives"] < lives
        if over:
            expected, info = theirs.reset()
        games += over
        lost_lives += life_lost and not over
        for envs, terminated in ((ours, over or life_lost), (ours_without_lives, over)):
            step = envs.step(actions)
            np.testing.assert_array_equal(step.observations[0], expected)
            assert step.rewards[0] == reward
            assert step.terminated[0] == terminated
            assert step.truncated[0] == truncated
            assert len(step.games) == over
    assert games >= 1
    assert lost_lives >= 2 or env_id == "ALE/Pong-v5"
    ours.close()
    ours_without_lives.close()


def test_rgb_frames_are_those_of_gymnasiums_preprocessing_one_after_the_other() -> None:
    """Channel 3 * t + c of an observation is colour c of frame t, also where the time limit cuts a game off."""
    config = dataclasses.replace(PLAIN, grayscale=False, max_frames=600)
    theirs = preprocessed(emulator("ALE/Seaquest-v5", max_frames=600), grayscale=False)
    ours = make_envs("ALE/Seaquest-v5", config, threads=1)
    assert ours.observation_shape == (12, 84, 84)

    def colours_together(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([frame.transpose(2, 0, 1) for frame in frames])

    expected, _ = theirs.reset(seed=1)
    np.testing.assert_array_equal(ours.reset(1)[0], colours_together(expected))
    cut_off = 0
    for actions in random_actions(ours, 320):
        step = ours.step(actions)
        expected, _, over, truncated, _ = theirs.step(int(actions[0]))
        if truncated:
            np.testing.assert_array_equal(step.final_observations[0], colours_together(expected))
            cut_off += 1
        if over or truncated:
            expected, _ = theirs.reset()
        np.testing.assert_array_equal(step.observations[0], colours_together(expected))
    assert cut_off == 2
    ours.close()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "ALE/Seaquest-v5", "ALE/SpaceInvaders-v5"])
def test_a_lost_life_ends_the_return_in_the_step_where_gymnasium_ends_it(env_id: str) -> None:
    """Up to there only: Gymnasium's wrapper leaves the rest of that step's frames out, and we play on."""
    theirs = preprocessed(emulator(env_id), lives_end_it=True)
    ours = make_envs(env_id, PLAIN, threads=1)
    ours.reset(0)
    theirs.reset(seed=0)
    for actions in random_actions(ours, 2000):
        step = ours.step(actions)
        expected, reward, terminated, _, _ = theirs.step(int(actions[0]))
        assert step.terminated[0] == terminated
        if terminated:
            break
        np.testing.assert_array_equal(step.observations[0], expected)
        assert step.rewards[0] == reward
    assert terminated
    assert step.games == []
    ours.close()


class Wait(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Lets ``frames`` pass at the start of a game, the first with FIRE if so asked: as ale_py does."""

    frames = 0
    fire = False

    def reset(self, **how: Any) -> Any:
        started = self.env.reset(**how)
        for frame in range(self.frames):
            self.env.step(1 if self.fire and frame == 0 else 0)
        return started


@pytest.mark.parametrize(("fire_reset", "waits"), [(True, range(1, 30)), (False, range(30))])
def test_a_game_starts_with_fire_and_fewer_than_noop_max_frames(fire_reset: bool, waits: range) -> None:
    """River Raid moves from its first frame on, and keeps nothing of the game before, as other games do."""
    wait = Wait(emulator("ALE/Riverraid-v5"))
    wait.fire = fire_reset
    theirs = preprocessed(wait)
    starts = set()
    for wait.frames in waits:
        starts.add(theirs.reset()[0].tobytes())
    envs = make_envs("ALE/Riverraid-v5", EnvConfig(num_envs=4, fire_reset=fire_reset, max_frames=8), threads=1)
    seen = {start.tobytes() for start in envs.reset(5)}
    for step in play(envs, 20):
        if step.games:
            seen |= {start.tobytes() for start in step.observations}
    assert seen <= starts
    assert len(seen) > 10
    envs.close()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "ALE/BankHeist-v5", "ALE/Amidar-v5"])
def test_scores_are_those_of_whole_games_in_the_bare_emulator(env_id: str) -> None:
    """Amidar's count of lives is no guide: it starts at 0, and a game can end at 8."""
    envs = make_envs(env_id, PLAIN, threads=1)
    bare = gymnasium.make(env_id, repeat_action_probability=0.0)
    envs.reset(0)
    bare.reset(seed=0)
    expected, games = [], []
    score, length = 0.0, 0
    for actions in random_actions(envs, 800):
        games += envs.step(actions).games
        _, reward, over, _, _ = bare.step(int(actions[0]))
        score += float(reward)
        length += 1
        if over:
            expected.append(Game(score, length))
            score, length = 0.0, 0
            bare.reset()
    assert games == expected
    assert games
    envs.close()


def test_an_atari_game_cut_off_by_its_time_limit_hands_over_its_last_observation() -> None:
    theirs = preprocessed(emulator("ALE/Amidar-v5", max_frames=400))
    envs = make_envs("ALE/Amidar-v5", dataclasses.replace(PLAIN, max_frames=400), threads=1)
    start = envs.reset(0)
    theirs.reset(seed=0)
    score = 0.0
    for actions in random_actions(envs, 100):
        step = envs.step(actions)
        expected, reward, _, truncated, info = theirs.step(int(actions[0]))
        score += float(reward)
        assert step.truncated[0] == truncated
        assert not step.terminated[0]
    assert truncated
    assert info["lives"] > 0  # more than the 0 of a new game, which is no lost life
    np.testing.assert_array_equal(step.final_observations[0], expected)
    np.testing.assert_array_equal(step.observations, start)
    assert step.games == [Game(score, 100)]
    assert envs.step(np.zeros(1, np.int64)).final_observations == {}
    envs.close()


def test_a_time_limit_within_a_step_cuts_that_step_short() -> None:
    envs = make_envs("ALE/Pong-v5", dataclasses.replace(PLAIN, num_envs=3, max_frames=42), threads=1)
    envs.reset(0)
    steps = play(envs, 22)
    assert [step.truncated.all() for step in steps] == ([False] * 10 + [True]) * 2
    assert list(steps[10].final_observations) == [0, 1, 2]
    assert [game.agent_steps for game in steps[21].games] == [11, 11, 11]
    envs.close()


def test_a_life_lost_in_the_last_step_before_the_time_limit_ends_return_and_game() -> None:
    envs = make_envs("ALE/Breakout-v5", PLAIN, threads=1)
    envs.reset(0)
    steps = play(envs, 100)
    length = next(t for t, step in enumerate(steps, 1) if step.terminated[0])
    assert not steps[length - 1].games
    envs.close()

    for life_loss in (True, False):
        config = dataclasses.replace(PLAIN, max_frames=4 * length, life_loss=life_loss)
        envs = make_envs("ALE/Breakout-v5", config, threads=1)
        envs.reset(0)
        *_, last = play(envs, length)
        assert (last.terminated[0], last.truncated[0]) == (life_loss, not life_loss)
        assert list(last.final_observations) == ([] if life_loss else [0])
        assert [game.agent_steps for game in last.games] == [length]
        envs.close()


def test_a_seed_decides_every_game_whatever_the_threads() -> None:
    config = EnvConfig(num_envs=2, sticky_actions=0.25)
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


def test_game_i_of_a_seed_is_the_same_in_gymnasiums_environments_too() -> None:
    envs = make_envs("CartPole-v1", EnvConfig(num_envs=2), threads=1)
    start = envs.reset(7)
    steps = play(envs, 50)
    np.testing.assert_array_equal(envs.reset(7), start)
    for step, again in zip(steps, play(envs, 50), strict=True):
        np.testing.assert_array_equal(step.observations, again.observations)
    assert sum(len(step.games) for step in steps) >= 2
    assert len({tuple(game) for game in (*start, *envs.reset(8))}) == 4
    envs.close()


def test_what_a_step_returned_stays_as_it_was() -> None:
    for env_id in ("ALE/Breakout-v5", "CartPole-v1"):
        envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
        envs.reset(0)
        (step,) = play(envs, 1)
        kept = (step.observations.copy(), step.rewards.copy(), step.terminated.copy())
        play(envs, 60)
        for before, after in zip(kept, (step.observations, step.rewards, step.terminated), strict=True):
            np.testing.assert_array_equal(before, after)
        envs.close()


def test_rewards_are_clipped_for_learning_and_scores_are_not() -> None:
    """Two shots in Space Invaders are worth 5 to 30 points each."""
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


def test_every_id_of_an_atari_game_plays_the_same() -> None:
    played = []
    for env_id in ("ALE/Breakout-v5", "Breakout-v0"):
        envs = make_envs(env_id, EnvConfig(num_envs=1), threads=1)
        envs.reset(3)
        played.append(np.stack([step.observations for step in play(envs, 30)]))
        envs.close()
    np.testing.assert_array_equal(played[0], played[1])


def test_an_action_that_does_not_exist_is_refused() -> None:
    """ale_py would wait for its result for ever."""
    envs = make_envs("ALE/Breakout-v5", PLAIN, threads=1)
    envs.reset(0)
    for action in (4, -1):
        with pytest.raises(AssertionError):
            envs.step(np.array([action]))
    envs.close()


def test_closing_ends_the_emulator_threads() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    envs = make_envs("ALE/Pong-v5", PLAIN, threads=1)
    assert threads() == before + 1
    envs.close()
    assert threads() == before


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
    """Action 6 takes one step forward, 5 one back; the exit is at 3; every step costs half a point."""

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
    assert (envs.num_actions, envs.observation_shape) == (2, (1,))
    envs.reset(0)
    # Game 0 walks out in 3 steps, game 1 gets lost, game 2 reaches the exit in the step of the time limit.
    plan = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]])
    steps = [envs.step(actions) for actions in plan]
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


def test_a_game_is_described_without_playing_it() -> None:
    spec = describe_env("ALE/Pong-v5", EnvConfig(frame_stack=2, screen_size=42))
    assert (spec.observation_shape, spec.observation_dtype, spec.num_actions) == ((2, 42, 42), np.dtype(np.uint8), 6)
    envs = make_envs("ALE/Pong-v5", EnvConfig(num_envs=2, frame_stack=2, screen_size=42), threads=1)
    assert envs.reset(0).shape == (2, 2, 42, 42)
    assert envs.num_actions == 6
    envs.close()
    spec = describe_env("Acrobot-v1", EnvConfig())
    assert (spec.observation_shape, spec.observation_dtype, spec.num_actions) == ((6,), np.dtype(np.float32), 3)
    assert spec.flavour == "played as registered, scores are sums of true rewards"


def test_the_flavour_names_what_a_score_depends_on() -> None:
    assert EnvConfig().flavour() == (
        "sticky 0, life loss ends returns, no-ops 30, fire at the start, skip 4, stack 4, grey 84x84, "
        "at most 108000 frames, rewards clipped for learning, scores unclipped"
    )
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
        ("xyzzy", "there is no environment 'xyzzy': Atari games are named like ALE/Breakout-v5."),
        ("nowhere:Corridor-v0", "cannot import nowhere, which should register Corridor-v0: No module named 'nowhere'."),
        ("Pendulum-v1", "Pendulum-v1 takes Box (1,) actions, but only Discrete ones can be learned."),
    ],
)
def test_an_environment_that_cannot_be_learned_is_refused_in_one_sentence(env_id: str, sentence: str) -> None:
    for refuse in (describe_env, lambda env_id, config: make_envs(env_id, config, threads=1)):
        with pytest.raises(UsageError) as refused:
            refuse(env_id, EnvConfig())
        assert str(refused.value) == sentence


@pytest.mark.parametrize(("env_id", "length"), [("FrozenLake-v1", 16), ("Blackjack-v1", 32 + 11 + 2)])
def test_observations_that_are_no_box_become_vectors(env_id: str, length: int) -> None:
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
    with pytest.raises(UsageError, match=r"^zmqrl-test/Broken-v0 does not start: the maze is closed\.$"):
        describe_env("zmqrl-test/Broken-v0", EnvConfig())
    del gymnasium.registry["zmqrl-test/Broken-v0"]


WRONG = {"num_envs": 0, "frame_skip": 0, "frame_stack": 0, "screen_size": 0, "sticky_actions": 1.0, "noop_max": -1}


@pytest.mark.parametrize(("setting", "value"), [*WRONG.items(), ("max_frames", 0)])
def test_a_setting_that_cannot_be_is_refused_by_its_option(setting: str, value: Any) -> None:
    config = EnvConfig(**{setting: value})
    with pytest.raises(UsageError, match=f"^--envs.{setting.replace('_', '-')} {value}: "):
        describe_env("ALE/Breakout-v5", config)
