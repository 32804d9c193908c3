"""Complete runs on environments of users: box actions, several choices at once, observations of several parts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from support.paths import ROOT
from support.run_rig import RunFiles, training

from zmqrl.checkpoint import tensors_of
from zmqrl.config import Config
from zmqrl.policy import load_policy

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MINE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple


class Target(gymnasium.Env):
    '''Pays for actions near a target. A game ends after 8 steps.'''

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, action="box", offset=0.0):
        self.render_mode, self.offset = render_mode, offset
        self.action_space = {"box": Box(-2.0, 2.0, (2,)), "choices": MultiDiscrete([3, 2])}[action]
        self.observation_space = Dict(
            {"near": Box(-np.inf, np.inf, (2,), np.float64), "turn": Tuple([Discrete(2), Box(0, 255, (1,), np.uint8)])}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        self.target = self.np_random.uniform(-1, 1, 2) * 100
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        paid = -float(np.abs(self.target / 100 + self.offset - action).sum())
        return self.seen(), paid, False, self.time == 8, {}

    def seen(self):
        return {"near": self.target, "turn": (self.time % 2, np.array([self.time], np.uint8))}

    def render(self):
        return np.full((16, 16, 3), 16 * self.time, np.uint8)


class Longer(gymnasium.Wrapper):
    pass


gymnasium.register("Target-v0", Target)
"""
# Four updates learn from one rollout of 128 steps.
SHORT = ("--envs.num-envs", "4", "--ppo.epochs", "2", "--ppo.minibatches", "2", "--wrapper", "my_games:Longer")
NORMALIZED = ("--envs.normalize-observations", "--envs.normalize-rewards")


def run(where: Path, name: str, *options: str, module: str = MINE, short: Sequence[str] = SHORT) -> RunFiles:
    (where / "my_games.py").write_text(module, encoding="utf-8")
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(where)])}
    command = ("--env", "my_games:Target-v0", *short, *options)
    with training(where / name, *command, environment=environment) as it:
        assert it.wait() == 0, it.said()
    return it.files


def printed(where: Path, *arguments: str) -> Any:
    """What a command prints as JSON."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(where)])}
    command = [sys.executable, "-m", "zmqrl", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def newest_tensors(files: RunFiles) -> dict[str, np.ndarray]:
    """The tensors in the newest checkpoint, by name."""
    checkpoint = files.newest()
    return dict(tensors_of(checkpoint.layout, checkpoint.vector()))


@pytest.mark.parametrize("action", ["box", "choices"])
def test_a_run_trains_evaluates_and_records_an_environment_of_a_user(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = run(tmp_path, "run", "--env-arg", f"action={action}", "--env-arg", "offset=0.5", "--updates", "8")
    summary = files.assert_summary_exact("updates")
    assert summary["flavour"] == (
        f"played with action={action}, offset=0.5, wrapped by my_games:Longer, scores are sums of rewards"
    )
    assert Config.read(files.path / "config.json").envs.args == (f"action={action}", "offset=0.5")
    assert printed(tmp_path, "eval", str(files.path), "--episodes", "3")["episodes"] == 3
    assert printed(tmp_path, "record", str(files.path), "--greedy")["steps"] == 8
    monkeypatch.syspath_prepend(tmp_path)
    policy = load_policy(files.path)
    chosen = policy.act(np.zeros((3, 5), np.float32))
    assert isinstance(chosen, np.ndarray)
    assert chosen.shape == (3, 2)
    assert chosen.dtype == np.dtype(np.float32 if action == "box" else np.int64)
    assert np.shape(policy.act(np.zeros(5, np.float32), greedy=True)) == (2,)


def random_score(action: str) -> float:
    """The mean score of 200 games with random actions."""
    env: gymnasium.Env[Any, Any] = gymnasium.make("my_games:Target-v0", disable_env_checker=True, action=action)
    env.action_space.seed(1)
    scores = []
    for seed in range(200):
        env.reset(seed=seed)
        scores.append(sum(float(env.step(env.action_space.sample())[1]) for _ in range(8)))
    return float(np.mean(scores))


@pytest.mark.parametrize("action", ["box", "choices"])
def test_a_policy_learns_the_actions_that_pay(action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best mean scores are 0 for the box, and -6 for the choices, which are whole numbers."""
    settings = ("--consistent", "--envs.normalize-observations", "--optimizer.learning-rate", "3e-3")
    files = run(tmp_path, "run", "--env-arg", f"action={action}", *settings, "--updates", "800", short=())
    monkeypatch.syspath_prepend(tmp_path)
    assert files.summary()["score_mean_50"] > 0.6 * random_score(action)


def test_statistics_are_bit_identical_for_any_number_of_shards_and_survive_a_resume(tmp_path: Path) -> None:
    options = ("--consistent", *NORMALIZED)
    first = run(tmp_path, "first", *options, "--shards", "1", "--updates", "24")
    again = run(tmp_path, "again", *options, "--shards", "4", "--updates", "24")
    assert again.summary()["params_sha256"] == first.summary()["params_sha256"]
    tensors = newest_tensors(first)
    assert tensors["running_statistics.observations.count"].item() == 24 / 4  # rollouts: 4 updates learn from one
    assert tensors["running_statistics.returns.variance"].item() > 0
    # The target is drawn from -100 to 100.
    assert 1000 < tensors["running_statistics.observations.variance"][0] < 6000
    tensors = newest_tensors(run(tmp_path, "first", "--resume", "--updates", "32"))
    assert tensors["running_statistics.observations.count"].item() == 32 / 4


def test_a_run_with_backups_counts_each_rollout_once(tmp_path: Path) -> None:
    files = run(tmp_path, "run", *NORMALIZED, "--backups", "1", "--updates", "40", "--shards", "3")
    files.assert_history_exact(40)
    assert newest_tensors(files)["running_statistics.observations.count"].item() == pytest.approx(10)


SIGNAL_AT_EXIT = """
import atexit
import signal


@atexit.register
def signal_that_comes_late():
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_to_a_worker_that_exits_leaves_no_traceback_in_its_log(tmp_path: Path) -> None:
    files = run(
        tmp_path, "run", "--updates", "8", "--evaluator", "--evaluation.episodes", "1", module=MINE + SIGNAL_AT_EXIT
    )
    logs = {path.name: path.read_text(encoding="utf-8") for path in (files.path / "logs").glob("*.log")}
    assert {"worker-0.log", "worker-1.log", "evaluator-0.log"} <= set(logs)
    assert [name for name, log in logs.items() if "Traceback" in log] == []
