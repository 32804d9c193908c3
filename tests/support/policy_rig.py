"""Run directories with checkpoints, made without training, for tests that play a policy."""

import itertools
from pathlib import Path
from typing import Any

from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.learner.envs import EnvConfig, describe_env
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.start.initial import initial_checkpoint

BREAKOUT = Config(env="ALE/Breakout-v5", envs=EnvConfig(max_frames=800))
CARTPOLE = Config(env="CartPole-v1", model="mlp")


def write_run(path: Path, config: Config, *versions: int, counters: dict[str, Any] | None = None) -> Path:
    """Write a run directory whose checkpoints all hold the initial parameters."""
    directory = RunDirectory(path)
    path.mkdir()
    write_json(directory.config, config.to_json())
    initial = initial_checkpoint(config, describe_env(config.env, config.envs))
    for version in versions:
        Checkpoint(
            layout=initial.layout,
            generation=0,
            version=version,
            optimizer=initial.optimizer,
            state_names=initial.state_names,
            states=initial.states,
            counters=counters or {},
        ).write(directory.checkpoints)
    return path


FAILING_NETWORK = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, shape, num_actions):
        super().__init__(4, num_actions)

    def forward(self, observations):
        logits = super().forward(observations.float().flatten(1)[:, :4])
        if not self.training:
            {fails}
        return logits, logits[:, 0]
"""
_NUMBERS = itertools.count()


def write_failing_network(directory: Path, fails: str) -> str:
    """Write a module with a network ``Net`` that can be loaded, but fails in evaluation mode."""
    name = f"failing_network_{next(_NUMBERS)}"
    (directory / f"{name}.py").write_text(FAILING_NETWORK.format(fails=fails), encoding="utf-8")
    return name
