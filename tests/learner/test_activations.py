"""Learning with the activations from acting gives the same gradient as learning without them."""

from typing import cast

import numpy as np
import pytest
import torch
from support.stub_games import FrameEnvs

from zmqrl.learner import networks
from zmqrl.learner.envs import Envs
from zmqrl.learner.losses import Learner
from zmqrl.learner.networks import Compute, ConvPolicy, make_model
from zmqrl.learner.rollout import Player, Rollout
from zmqrl.learner.settings import BA3CConfig, NetworkConfig, PPOConfig

CONFIG = BA3CConfig(rollout_steps=3)


def played(name: str, compute: Compute = "float32", *, keeps_activations: bool = True) -> tuple[ConvPolicy, Rollout]:
    """A network, and a rollout of two games that the network played."""
    torch.manual_seed(0)
    envs = FrameEnvs(num_envs=2)
    model = make_model(name, envs.spec, NetworkConfig(compute=compute, hidden=32))
    assert isinstance(model, ConvPolicy)
    rollout = Rollout(
        steps=CONFIG.rollout_steps,
        num_envs=envs.num_envs,
        spec=envs.spec,
    )
    player = Player(model, cast(Envs, envs), 0, keeps_activations=keeps_activations)
    player.play(rollout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    player.play(rollout)  # nothing of the first rollout may remain, and nothing of its parameters
    return model, rollout


def gradient(model: ConvPolicy, rollout: Rollout) -> torch.Tensor:
    """The gradient of the next update, as one vector."""
    learner = Learner(model, CONFIG, seed=0)
    learner.prepare(rollout)
    learner.gradient(rollout, 0, version=0)
    return torch.cat([cast(torch.Tensor, parameter.grad).flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ["small", "nature", "narrow", "dba3c"])
def test_activations_of_acting_give_the_gradient_of_the_whole_batch(name: str) -> None:
    model, rollout = played(name)
    found = gradient(model, rollout)
    rollout.activations = None
    wanted = gradient(model, rollout)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize(("amx", "read"), [(False, (4, 84, 84)), (True, (64, 21, 21))])
def test_activations_in_bfloat16_give_the_gradient_within_its_rounding(
    amx: bool, read: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: amx)
    model, rollout = played("small", "bfloat16")
    assert rollout.activations is not None
    assert rollout.activations._layers[0].shape[1:] == read
    found = gradient(model, rollout)
    rollout.activations = None
    wanted = gradient(model, rollout)
    assert float((found - wanted).norm() / wanted.norm()) < 2**-7


def test_activations_are_used_again_for_the_same_gradient() -> None:
    model, rollout = played("small")
    assert torch.equal(gradient(model, rollout), gradient(model, rollout))


def test_only_the_backward_pass_computes_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rollout = played("small")

    def fail(*_: object) -> None:
        raise AssertionError("the forward pass was computed again")

    monkeypatch.setattr(torch.nn.functional, "conv2d", fail)
    assert np.isfinite(gradient(model, rollout).numpy()).all()


def test_a_player_keeps_no_activations_unless_asked() -> None:
    _, rollout = played("small", keeps_activations=False)
    assert rollout.activations is None


@pytest.mark.parametrize(("config", "whole"), [(BA3CConfig(), True), (PPOConfig(epochs=1, minibatches=1), False)])
def test_only_an_algorithm_that_learns_from_whole_rollouts_in_order_uses_activations(
    config: BA3CConfig | PPOConfig, whole: bool
) -> None:
    assert config.uses_whole_rollouts is whole
