"""Atari games compared with Gymnasium's Atari preprocessing and with the bare emulator."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from support.games_rig import PLAIN, play, random_actions

from zmqrl.learner.envs import EnvConfig, Game, make_envs

pytestmark = pytest.mark.processes


def preprocessed(
    emulator: gymnasium.Env[Any, Any], *, lives_end_it: bool = False, grayscale: bool = True
) -> gymnasium.Env[Any, Any]:
    """One game with Gymnasium's own preprocessing."""
    frames = AtariPreprocessing(emulator, noop_max=0, terminal_on_life_loss=lives_end_it, grayscale_obs=grayscale)
    return FrameStackObservation(frames, 4, padding_type="zero")


def emulator(env_id: str, *, max_frames: int = 108_000) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(env_id, frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=max_frames)


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [
        ("ALE/Breakout-v5", 600),
        ("ALE/Seaquest-v5", 500),
        pytest.param("ALE/Pong-v5", 1100, marks=pytest.mark.slow),
        pytest.param("ALE/BankHeist-v5", 800, marks=pytest.mark.slow),
    ],
)
def test_frames_rewards_and_ends_match_the_preprocessing_of_gymnasium(env_id: str, steps: int) -> None:
    """The frames match bit for bit over full games. A lost life changes nothing but ``terminated``."""
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


def test_rgb_frames_match_the_preprocessing_of_gymnasium_frame_by_frame() -> None:
    """Channel 3 * t + c of an observation is colour c of frame t, even if the time limit cuts a game off."""
    config = dataclasses.replace(PLAIN, grayscale=False, max_frames=600)
    theirs = preprocessed(emulator("ALE/Seaquest-v5", max_frames=600), grayscale=False)
    ours = make_envs("ALE/Seaquest-v5", config, threads=1)
    assert ours.spec.observation_shape == (12, 84, 84)

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
    """The test ends there: Gymnasium's wrapper skips the remaining frames of that step, but zmqrl plays them."""
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
    """Plays ``frames`` frames at the start of a game, as ale_py does. With ``fire``, the first action is FIRE."""

    frames = 0
    fire = False

    def reset(self, **how: Any) -> Any:
        started = self.env.reset(**how)
        for frame in range(self.frames):
            self.env.step(1 if self.fire and frame == 0 else 0)
        return started


@pytest.mark.parametrize(("fire_reset", "waits"), [(True, range(1, 30)), (False, range(30))])
def test_a_game_starts_with_fire_and_fewer_than_noop_max_frames(fire_reset: bool, waits: range) -> None:
    """River Raid moves from its first frame. Unlike other games, it keeps nothing from the previous game."""
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
def test_scores_match_whole_games_in_the_bare_emulator(env_id: str) -> None:
    """Amidar's number of lives is misleading: it starts at 0 lives, and a game can end at 8 lives."""
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


def test_an_atari_game_cut_off_by_its_time_limit_returns_its_last_observation() -> None:
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
    assert info["lives"] > 0  # a new game has 0 lives, and the change to 0 is not a lost life
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


def test_a_life_lost_in_the_last_step_before_the_time_limit_ends_the_return_and_the_game() -> None:
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


def test_an_action_that_does_not_exist_is_refused() -> None:
    """ale_py would wait forever for the result of such an action."""
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
