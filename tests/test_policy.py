"""Policies read from a run: their settings, their actions, and the errors if a policy cannot be read."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from support.commands import ran
from support.games_rig import RANDOM_SKIP
from support.paths import ROOT
from support.policy_rig import BREAKOUT, CARTPOLE, write_failing_network, write_run
from support.rig import ending
from support.stub_games import described

import zmqrl
from zmqrl import cli
from zmqrl.commands.measure.play import whole_game
from zmqrl.config import CheckpointConfig, Config, WireConfig
from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig
from zmqrl.learner.networks import make_model
from zmqrl.learner.plugin import seed_global_generators
from zmqrl.learner.settings import NetworkConfig
from zmqrl.policy import Policy, load_policy
from zmqrl.rundir import write_json


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(write_run(tmp_path_factory.mktemp("runs") / "cartpole", CARTPOLE, 0))


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(write_run(tmp_path_factory.mktemp("runs") / "breakout", BREAKOUT, 0))


def frames(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(batch, 4, 84, 84), dtype=np.uint8)


def test_the_newest_checkpoint_is_read_unless_a_version_is_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CARTPOLE, 3, 40, 200, counters={"wall_s": 12.5, "agent_steps": 4096})
    policy = zmqrl.load_policy(str(run))
    assert (policy.version, policy.wall_s, policy.agent_steps) == (200, 12.5, 4096)
    assert (policy.env_id, policy.config.model) == ("CartPole-v1", "mlp")
    assert zmqrl.load_policy(run, 40).version == 40


@pytest.mark.parametrize(
    "stored",
    [
        {"wire": WireConfig(transport="tcp", address="0.0.0.0")},
        {"wire": WireConfig(address="10.9.9.9")},
        {"metrics_port": "0.0.0.0:80"},
        {"checkpoint": CheckpointConfig(keep=0)},
    ],
)
def test_a_policy_can_be_read_even_if_its_run_could_not_be_resumed_with_the_stored_settings(
    tmp_path: Path, stored: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, **stored), 40)
    policy = load_policy(run)
    assert policy.version == 40
    with pytest.raises(UsageError):
        policy.config.check()


@pytest.mark.processes
def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, zmqrl; assert 'load_policy' in zmqrl.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=180).returncode == 0


def test_an_unreadable_policy_is_reported_in_one_sentence(tmp_path: Path) -> None:
    def refusal(version: int | None = None) -> str:
        with pytest.raises(UsageError) as refused:
            load_policy(tmp_path / "run", version)
        return str(refused.value)

    assert refusal() == f"{tmp_path / 'run'} is not a run directory: there is no config.json in it."
    run = write_run(tmp_path / "run", CARTPOLE)
    assert refusal() == f"there is no checkpoint in {run / 'checkpoints'} yet."
    (run / "config.json").unlink()
    run.rmdir()
    write_run(run, CARTPOLE, 3, 40)
    assert refusal(7) == (
        f"there is no checkpoint of version 7 in {run / 'checkpoints'}: choose one of v00000003, v00000040."
    )
    model = run / "checkpoints" / "v00000040" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    damage = f"{model} is damaged: its checksum differs from the one in manifest.json."
    assert refusal(40) == damage
    assert refusal() == f"{damage} Checkpoint v00000003 is intact: use it with --checkpoint 3."
    other = dataclasses.replace(CARTPOLE, env="Acrobot-v1")
    write_json(run / "config.json", other.to_json())
    assert refusal(3) == f"{run}: checkpoint 3 does not match the network in config.json."


def test_one_observation_gives_one_action_and_a_batch_gives_one_each(cartpole: Policy, breakout: Policy) -> None:
    for policy, observations in ((cartpole, np.zeros((5, 4), np.float64)), (breakout, frames(5))):
        actions = policy.act(observations)
        assert isinstance(actions, np.ndarray)
        assert (actions.shape, actions.dtype) == ((5,), np.dtype(np.int64))
        action = policy.act(observations[0], greedy=True)
        assert isinstance(action, int)
        assert 0 <= action < policy.spec.actions.outputs


@pytest.mark.parametrize(
    "observations",
    [
        frames(1)[0, :3],
        frames(2)[:, :, 1:],
        frames(2) / 255,
        frames(2).astype(np.int64),
        frames(2).astype(np.uint16),
        np.zeros(4, np.uint8),
        0,
    ],
    ids=["three frames", "a row short", "divided", "not bytes", "two bytes each", "a vector", "a number"],
)
def test_observations_of_another_shape_or_kind_are_refused(breakout: Policy, observations: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"but the policy acts on uint8 \(4, 84, 84\) or a batch of them\.$"):
        breakout.act(observations)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused(cartpole: Policy, number: float) -> None:
    with pytest.raises(UsageError, match=r"^the observations have numbers that are not finite as float32\.$"):
        cartpole.act(np.array([[0.0, 0.0, 0.0, 0.0], [0.0, number, 0.0, 0.0]]))


TAKING = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

SPACES = {
    "discrete": Discrete(3, start=5),
    "choices": MultiDiscrete(np.array([[3, 2], [2, 4]]), start=np.array([[0, 7], [-2, 3]])),
    "bytes": Discrete(3, start=1, dtype=np.uint8),
    "small_choices": MultiDiscrete([3, 2], dtype=np.int32),
    "flags": MultiBinary((2, 3)),
    "halves": Box(-0.1, 0.1, (2,), np.float16),
    "box": Box(2.0, 4.0, (2, 1)),
    "doubles": Box(-0.1, 0.1, (2, 1), np.float64),
}

class Taking(gymnasium.Env):
    observation_space = Box(-1.0, 1.0, (2,))

    def __init__(self, space):
        self.action_space = SPACES[space]

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), repr(action)
        return np.zeros(2, np.float32), 1.0, True, False, {}

gymnasium.register("Taking-v0", Taking)
"""


@pytest.mark.parametrize("space", ["discrete", "bytes", "choices", "small_choices", "flags", "box", "halves"])
def test_an_action_is_one_that_the_environment_takes(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taking_env.py").write_text(TAKING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(CARTPOLE, env="taking_env:Taking-v0", envs=EnvConfig(args=(f"space={space}",)))
    policy = load_policy(write_run(tmp_path / "run", config, 0))
    env = gymnasium.make(policy.env_id, space=space)
    observation, _ = env.reset()
    for greedy in (False, True):
        action = policy.act(observation, np.random.default_rng(0), greedy=greedy)
        env.step(action)
        (again,) = policy.act(observation[np.newaxis], np.random.default_rng(0), greedy=greedy)  # type: ignore[misc]
        np.testing.assert_array_equal(again, action)
        assert env.action_space.contains(again)
    (turn,) = whole_game(policy, 0, greedy=True)
    np.testing.assert_array_equal(turn.action, action)


def test_actions_at_bounds_that_float32_rounds_are_in_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taking_env.py").write_text(TAKING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(CARTPOLE, env="taking_env:Taking-v0", envs=EnvConfig(args=("space=doubles",)))
    policy = load_policy(write_run(tmp_path / "run", config, 0))
    actions = policy.act(np.zeros((100, 2), np.float32), np.random.default_rng(0))
    assert isinstance(actions, np.ndarray)
    assert min(map(abs, (actions.max() - 0.1, actions.min() + 0.1))) < 1e-6
    space = gymnasium.spaces.Box(-0.1, 0.1, (2, 1), np.float64)
    assert all(space.contains(action) for action in actions)


def test_actions_are_drawn_with_the_probabilities_of_the_policy(tmp_path: Path) -> None:
    cartpole = load_policy(write_run(tmp_path / "run", CARTPOLE, 0))
    with torch.no_grad():
        cartpole.model.get_parameter("actor.4.weight").mul_(100)  # an untrained policy is nearly uniform
    observation = np.array([0.3, -1.0, 0.1, 2.0], np.float32)
    logits, _ = cartpole.model(torch.from_numpy(observation[None]).double())
    expected = logits.softmax(-1).detach().numpy()[0]
    drawn = cartpole.act(np.tile(observation, (20_000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, expected, atol=0.015)
    assert cartpole.act(observation, greedy=True) == expected.argmax()


def test_a_generator_gives_the_same_actions_in_a_batch_and_one_by_one(breakout: Policy) -> None:
    one_by_one = np.random.default_rng(7)
    np.testing.assert_array_equal(
        breakout.act(frames(16), np.random.default_rng(7)), [breakout.act(frame, one_by_one) for frame in frames(16)]
    )


@pytest.mark.parametrize("name", ["small", "nature", "narrow", "dba3c"])
def test_a_network_converted_to_float64_computes_in_float64_throughout(name: str) -> None:
    """A single float32 operation would cause differences of about 1e-7 between batches."""
    model = make_model(name, described((4, 84, 84), 6), NetworkConfig(compute="bfloat16"))
    torch.nn.init.normal_(model.get_parameter("actor.weight"))
    single = make_model(name, described((4, 84, 84), 6), NetworkConfig(compute="float32"))
    single.load_state_dict(model.state_dict())
    model.double()
    observations = torch.from_numpy(frames(3))
    for whole, one, rounded in zip(model(observations), model(observations[:1]), single(observations), strict=True):
        assert whole.dtype == torch.float64
        torch.testing.assert_close(whole[:1], one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole.float(), rounded, rtol=1e-3, atol=1e-4)
        assert (whole != whole.float()).any()


def test_loading_a_policy_does_not_change_the_global_random_state(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CARTPOLE, 0)
    before = torch.random.get_rng_state()
    states = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    load_policy(run)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states  # type: ignore[index]


def test_a_policy_has_the_network_width_of_its_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CARTPOLE, network=NetworkConfig(hidden=16))
    assert load_policy(write_run(tmp_path / "run", config, 0)).act(np.zeros(4, np.float32)) in (0, 1)


OWN_NETWORK = """
import random

import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, num_actions):
        super().__init__()
        self.body = nn.Linear(shape[-1], 16).requires_grad_(False)
        self.register_buffer("shift", torch.randn(16))
        self.register_buffer("drawn", torch.tensor([np.random.rand(), random.random()]))
        self.actor, self.critic = nn.Linear(16, num_actions), nn.Linear(16, 1)

    def forward(self, observations):
        x = self.body(observations.float().flatten(1)[:, : self.body.in_features] / 255) + self.shift
        return self.actor(x), self.critic(x).squeeze(-1)
"""


@pytest.mark.parametrize("config", [CARTPOLE, BREAKOUT])
def test_a_custom_network_computes_the_same_as_in_its_workers(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy computes in float32, as the network does. Untrained parameters are drawn from the seed of the run."""
    (tmp_path / "own_network_of_a_policy.py").write_text(OWN_NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(config, model="own_network_of_a_policy:Net", seed=7)
    policy = load_policy(write_run(tmp_path / "run", config, 0))
    seed_global_generators(7)
    model = make_model(config.model, policy.spec)
    for name, tensor in model.state_dict().items():
        assert torch.equal(policy.model.state_dict()[name], tensor), name
    observation = np.ones(policy.spec.observation_shape, policy.spec.observation_dtype)
    logits, _ = model(torch.from_numpy(observation[np.newaxis]))
    assert policy.act(observation, greedy=True) == logits.argmax()


CHANNELS_LAST = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, shape, num_actions):
        super().__init__(4, num_actions)

    def forward(self, observations):
        pixels = observations.movedim(1, -1).view(len(observations), -1)
        logits = super().forward(pixels[:, :4] / 255)
        return logits, logits[:, 0]
"""


def test_a_custom_network_gets_images_in_the_memory_format_of_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "channels_last_network.py").write_text(CHANNELS_LAST, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(BREAKOUT, model="channels_last_network:Net")
    policy = load_policy(write_run(tmp_path / "run", config, 0))
    logits, _ = policy.model(torch.from_numpy(frames(8)).contiguous(memory_format=torch.channels_last))
    np.testing.assert_array_equal(policy.act(frames(8), greedy=True), logits.argmax(1))
    assert policy.act(frames(8)[0], greedy=True) == logits[0].argmax()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fails", "sentence"),
    [
        (
            "raise ValueError('too few.\\nreally')",
            "fails for observations of shape (4, 84, 84): ValueError: too few ({module}.py, line 11).",
        ),
        ("raise SystemExit(0)", "fails for observations of shape (4, 84, 84): SystemExit: 0 ({module}.py, line 11)."),
        ("raise AssertionError", "fails for observations of shape (4, 84, 84): AssertionError ({module}.py, line 11)."),
        (
            "return logits",
            "fails for observations of shape (4, 84, 84): ValueError: not enough values to unpack (expected 2, got 1).",
        ),
        (
            "return logits.squeeze(), logits[:, 0]",
            "returned Tensor float32 (4,) as logits for a batch of 1: they must be float32 (1, 4).",
        ),
        (
            "return logits / 0 * 0, logits[:, 0]",
            "returned outputs with which no action can be chosen: NaN, inf, or only -inf.",
        ),
    ],
)
def test_a_custom_network_that_fails_in_a_game_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, sentence: str
) -> None:
    module = write_failing_network(tmp_path, fails)
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(tmp_path / "run", dataclasses.replace(BREAKOUT, model=f"{module}:Net"), 0)
    for command in ("eval", "record"):
        with pytest.raises(UsageError) as refused:
            cli.run([command, str(run)])
        assert str(refused.value) == f"--model {module}:Net {sentence.format(module=module)}"
    assert list(run.glob("videos/*")) == []


CLOSED = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

closed = []

class Closed(CartPoleEnv):
    def close(self):
        super().close()
        closed.append(os.getpid())

gymnasium.register("Closed-v0", Closed)
"""


def test_loading_a_policy_closes_the_environment_and_ends_no_process_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "closed_env.py").write_text(CLOSED, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="closed_env:Closed-v0"), 0)
    closed = sys.modules["closed_env"].closed
    closed.clear()
    with ending(subprocess.Popen(["sleep", "600"], start_new_session=True)) as theirs:
        load_policy(run)
        assert closed == [os.getpid()], "the environment was made in this process"
        assert theirs.poll() is None


@pytest.mark.processes
@pytest.mark.parametrize(
    "config",
    [
        CARTPOLE,
        dataclasses.replace(CARTPOLE, env="FrozenLake-v1"),  # its observation is a number, which becomes a vector
        BREAKOUT,
        *(
            pytest.param(dataclasses.replace(BREAKOUT, envs=envs), marks=pytest.mark.slow)
            for envs in (
                EnvConfig(max_frames=400, grayscale=False, frame_skip=2, frame_stack=3),
                dataclasses.replace(RANDOM_SKIP, num_envs=8, screen_size=64, max_frames=400),
            )
        ),
    ],
    ids=["CartPole", "FrozenLake", "Breakout", "RGB", "random skip"],
)
def test_the_example_plays_the_same_game_as_an_evaluation(config: Config, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config, 0)
    command = [sys.executable, str(ROOT / "docs" / "examples" / "play_policy.py"), str(run), "3"]
    played = ran(command, within_s=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    *_, last = whole_game(load_policy(run), 3, greedy=False)
    assert played.stdout == f"{config.env}, version 0: score {last.score:g} in {last.agent_steps} steps\n"


def test_acting_needs_no_optimizer_state(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CARTPOLE, 3)
    for file in run.glob("checkpoints/*/optimizer-*"):
        file.unlink()
    assert load_policy(run).act(np.zeros(4, np.float32)) in (0, 1)
