"""Run directories with one checkpoint, made without training: for the tests of all that plays a policy."""

from pathlib import Path
from typing import Any

from zmqrl.agent.envs import EnvConfig, describe_env
from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.run import initial_checkpoint
from zmqrl.config import Config
from zmqrl.rundir import RunDirectory, write_json

BREAKOUT = Config(env="ALE/Breakout-v5", envs=EnvConfig(max_frames=800))
CARTPOLE = Config(env="CartPole-v1", model="mlp")


def write_run(path: Path, config: Config, *versions: int, counters: dict[str, Any] | None = None) -> Path:
    """A run directory whose checkpoints all hold the initial parameters."""
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
