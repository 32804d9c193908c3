"""The bare parts of ``zmqrl bench train`` do the work of a worker with the same settings."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from zmqrl.bench.bare import BareForward, BareGames, BareGradient
from zmqrl.config import Config
from zmqrl.learner.envs import EnvConfig
from zmqrl.learner.settings import NetworkConfig
from zmqrl.recipes import cartpole

FRAMES = Config(
    env="zmqrl/Dummy-v0",
    model="small",
    algo="ba3c",
    envs=EnvConfig(num_envs=8),
    network=NetworkConfig(compute="float32"),
)


def job(config: Config) -> dict[str, Any]:
    sent = json.loads(json.dumps(config.to_json()))  # as it arrives in the process
    return {"config": sent, "rank": 1, "threads": torch.get_num_threads()}


@pytest.mark.parametrize("config", [cartpole(), FRAMES], ids=["vectors", "frames"])
def test_bare_games_play_all_games_of_a_worker_at_each_step(config: Config) -> None:
    games = BareGames(**job(config))
    found = games.run(0.0)
    assert games.played == 2, "one step is not measured"
    assert found["steps"] == config.envs.num_envs
    assert games.run(0.05)["steps"] % config.envs.num_envs == 0
    games.close()


@pytest.mark.parametrize(("config", "batch"), [(cartpole(), 256), (FRAMES, 40)], ids=["vectors", "frames"])
@pytest.mark.parametrize("part", [BareForward, BareGradient])
def test_the_network_computes_whole_minibatches(
    part: type[BareForward | BareGradient], config: Config, batch: int
) -> None:
    bare = part(**job(config))
    assert bare.observations.shape[0] == batch
    found = bare.run(0.0)
    assert found["steps"] == batch
    assert 0 < found["seconds"] < 60
    assert (bare.facts["batch"], bare.facts["compute"]) == (batch, "float32")


@pytest.mark.parametrize(
    ("config", "backward_only"),
    [
        (FRAMES, True),
        (replace(FRAMES, algo="ppo"), False),  # learns from each rollout several times
        (replace(FRAMES, mode="async"), False),  # learns with newer weights than it acted with
        (replace(cartpole(), algo="ba3c"), False),  # this network keeps no activations
    ],
)
def test_a_forward_pass_counts_unless_the_learner_keeps_the_activations_of_acting(
    config: Config, backward_only: bool
) -> None:
    assert BareGradient(**job(config)).facts["backward_only"] == backward_only
