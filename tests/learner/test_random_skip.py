"""Atari games with random frame skip, compared with the bare emulator and frames that OpenCV scaled down."""

import dataclasses
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from support.games_rig import RANDOM_SKIP, play, random_actions

from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, Game, describe_env, make_envs
from zmqrl.learner.games import game_seeds

pytestmark = pytest.mark.processes


class Unpooled:
    """One game of the bare emulator with frames scaled down by OpenCV, as in Gym's ``-v0`` ids and DBA3C."""

    def __init__(self, env_id: str, config: EnvConfig, seed: int) -> None:
        self.bare = gymnasium.make(
            env_id,
            obs_type="grayscale" if config.grayscale else "rgb",
            frameskip=(2, 5),
            repeat_action_probability=0.25,
            max_num_frames_per_episode=config.max_frames,
        )
        self.start(int(game_seeds(seed, 1)[0]))

    def start(self, seed: int | None = None) -> None:
        screen, self.info = self.bare.reset(seed=seed)
        self.frames = [np.zeros_like(self.small(screen))] * 3 + [self.small(screen)]

    def step(self, action: np.int64) -> tuple[float, bool, bool, bool, int]:
        """Play one step. Returns the reward, three flags (game over, cut off, life lost) and the number of frames."""
        before = self.info
        screen, reward, over, truncated, self.info = self.bare.step(int(action))
        self.frames = [*self.frames[1:], self.small(screen)]
        frames = self.info["episode_frame_number"] - before["episode_frame_number"]
        return float(reward), over, truncated, self.info["lives"] < before["lives"], frames

    def small(self, screen: np.ndarray) -> np.ndarray:
        resized = cv2.resize(screen, (84, 84), interpolation=cv2.INTER_LINEAR)
        return np.atleast_3d(resized).transpose(2, 0, 1).astype(np.int16)

    def assert_shown(self, observation: np.ndarray) -> None:
        # OpenCV rounds one pixel in ten thousand the other way.
        np.testing.assert_allclose(observation, np.concatenate(self.frames), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("env_id", "grayscale", "life_loss"),
    [
        ("ALE/Breakout-v5", False, True),
        pytest.param("ALE/Breakout-v5", True, False, marks=pytest.mark.slow),
        pytest.param("ALE/Amidar-v5", False, True, marks=pytest.mark.slow),
    ],
)
def test_random_frame_skip_matches_the_bare_emulator(env_id: str, grayscale: bool, life_loss: bool) -> None:
    """The test plays full games with sticky actions. Amidar's number of lives starts at 0 and rises."""
    config = dataclasses.replace(RANDOM_SKIP, grayscale=grayscale, life_loss=life_loss)
    ours, theirs = make_envs(env_id, config, threads=1), Unpooled(env_id, config, seed=5)
    theirs.assert_shown(ours.reset(5)[0])
    expected, games, skips, lost_lives = [], [], set(), 0
    score, length = 0.0, 0
    for actions in random_actions(ours, 1300):
        step = ours.step(actions)
        reward, over, truncated, life_lost, skipped = theirs.step(actions[0])
        score, length = score + reward, length + 1
        skips.add(skipped)
        lost_lives += life_lost
        assert (step.rewards[0], step.terminated[0]) == (reward, over or (life_loss and life_lost))
        assert not step.truncated[0]
        assert not truncated
        games += step.games
        if over:
            expected.append(Game(score, length))
            score, length = 0.0, 0
            theirs.start()
        theirs.assert_shown(step.observations[0])
    assert games == expected
    assert games
    assert skips >= {2, 3, 4}
    assert max(skips) == 4
    assert lost_lives >= 3
    ours.close()


def test_a_game_with_random_frame_skip_is_cut_off_by_its_time_limit() -> None:
    config = dataclasses.replace(RANDOM_SKIP, max_frames=60)
    ours, theirs = make_envs("ALE/Pong-v5", config, threads=1), Unpooled("ALE/Pong-v5", config, seed=3)
    ours.reset(3)
    games = []
    for actions in random_actions(ours, 70):
        step = ours.step(actions)
        _, _, truncated, _, _ = theirs.step(actions[0])
        assert step.truncated[0] == truncated
        assert not step.terminated[0]
        assert list(step.final_observations) == [0] * truncated
        if truncated:
            theirs.assert_shown(step.final_observations[0])
            theirs.start()
            games += step.games
        theirs.assert_shown(step.observations[0])
    assert len(games) >= 2
    assert all(15 <= game.agent_steps <= 30 for game in games)
    ours.close()


def test_a_life_lost_at_the_time_limit_ends_the_return_even_with_random_frame_skip() -> None:
    envs = make_envs("ALE/Breakout-v5", RANDOM_SKIP, threads=1)
    bare = Unpooled("ALE/Breakout-v5", RANDOM_SKIP, seed=0)
    length = next(t for t, actions in enumerate(random_actions(envs, 200), 1) if bare.step(actions[0])[3])
    limit = bare.info["episode_frame_number"]
    for life_loss in (True, False):
        config = dataclasses.replace(RANDOM_SKIP, max_frames=limit, life_loss=life_loss)
        envs = make_envs("ALE/Breakout-v5", config, threads=1)
        envs.reset(0)
        *_, last = play(envs, length)
        assert (last.terminated[0], last.truncated[0]) == (life_loss, not life_loss)
        assert list(last.final_observations) == ([] if life_loss else [0])
        assert [game.agent_steps for game in last.games] == [length]
        envs.close()


@pytest.mark.parametrize("settings", [{}, {"noop_max": 0}, {"fire_reset": False}])
def test_random_frame_skip_is_refused_for_games_that_start_with_noops_or_fire(settings: dict[str, Any]) -> None:
    needs = "^--envs.min-frame-skip 2 needs --envs.noop-max 0 --envs.no-fire-reset: "
    with pytest.raises(UsageError, match=needs):
        describe_env("ALE/Breakout-v5", EnvConfig(min_frame_skip=2, **settings))
