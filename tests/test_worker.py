"""The loop of a worker, with a connection that gives the weights of planned versions."""

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, cast

import numpy as np
import pytest
import torch
from support.actor_learners import actor_learner_of
from support.stub_games import described
from torch import nn

from zmqrl import worker
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UserCodeError
from zmqrl.learner.dummy import DUMMY_ID, DummyEnvs
from zmqrl.learner.games import EnvConfig
from zmqrl.learner.losses import Learner
from zmqrl.learner.networks import ConvPolicy, make_model
from zmqrl.learner.settings import BA3CConfig, NetworkConfig
from zmqrl.observe.spans import Spans
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.worker.connection import Connection, NotFinite, PulledWeights
from zmqrl.recipes import RECIPES
from zmqrl.worker import join, keeps_activations, work


class PlannedConnection:
    """Gives the weights of ``versions``, one after the other, and keeps the gradients that are pushed."""

    rank = 0

    def __init__(self, vector: np.ndarray, versions: list[int], spans: Spans) -> None:
        self.vector, self.versions, self.spans = vector, versions, spans
        self.gradients: list[np.ndarray] = []

    def pull(self, newer_than: int = -1) -> PulledWeights | None:
        if not self.versions:
            return None
        version = self.versions.pop(0)
        assert version > newer_than
        return PulledWeights(0, (version,), self.vector * np.float32(1 + version / 10))

    def gradient_buffer(self) -> np.ndarray:
        return np.empty_like(self.vector)

    def push(self, _: PulledWeights, gradient: np.ndarray) -> None:
        self.gradients.append(gradient.copy())

    def tally(self) -> SimpleNamespace:
        return SimpleNamespace(skipped=0)

    def report(self, _: object) -> None:
        pass


def config_of(mode: Literal["sync", "async"], model: str = "small") -> Config:
    return replace(
        RECIPES["dba3c-breakout"](),
        env=DUMMY_ID,
        model=model,
        network=NetworkConfig(),
        ba3c=BA3CConfig(rollout_steps=3),
        envs=EnvConfig(num_envs=2),
        mode=mode,
    )


def subclass(observation_shape: tuple[int, ...], num_actions: int) -> ConvPolicy:
    """A user's network that inherits from ours."""
    model = make_model("small", described(observation_shape, num_actions))
    model.__class__ = type("Mine", (ConvPolicy,), {})
    return cast(ConvPolicy, model)


@pytest.mark.parametrize(
    ("mode", "model"), [("async", "small"), ("sync", f"{__name__}:subclass")], ids=["mixed-weights", "own-network"]
)
def test_activations_are_not_kept_if_the_weights_or_the_layers_can_differ(
    mode: Literal["sync", "async"], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__.partition(".")[0], sys.modules[__name__])
    with actor_learner_of(config_of(mode, model)) as actor_learner:
        assert not actor_learner.player._keeps_activations


def test_a_new_run_has_the_seeds_with_which_consistent_runs_were_recorded() -> None:
    (seed,) = np.random.SeedSequence((3, 1, 7)).generate_state(1)
    with actor_learner_of(replace(config_of("sync"), seed=3), rank=1, version=7) as actor_learner:
        assert actor_learner.player._generator.initial_seed() == seed
        assert cast(Learner, actor_learner.learner)._seed == seed


@pytest.mark.parametrize(
    ("changes", "kept"), [({}, True), ({"device": "cuda"}, False), ({"act_only": True}, False)], ids=str
)
def test_activations_are_kept_on_the_cpu_only_and_only_to_learn(changes: dict[str, Any], kept: bool) -> None:
    config = replace(config_of("sync"), **changes)
    assert keeps_activations(config, make_model(config.model, described((4, 84, 84), 3))) is kept


@pytest.mark.parametrize("versions", [[4, 4], [4, 5]], ids=["no-lag", "lag"])
def test_a_gradient_is_that_of_its_weights_whatever_the_lag(versions: list[int]) -> None:
    config = config_of("sync")
    found = []
    for keeps in (True, False):
        with actor_learner_of(config) as actor_learner:
            assert actor_learner.player._keeps_activations
            actor_learner.player._keeps_activations = keeps
            vector = actor_learner.parameters.vector()
            connection = PlannedConnection(vector, list(versions), actor_learner.player._spans)
            work(cast(Connection, connection), actor_learner, config, logging.getLogger())
        found += connection.gradients
    kept, computed = found
    assert np.linalg.norm(kept - computed) < 1e-5 * np.linalg.norm(computed)


class Refusing(PlannedConnection):
    """Refuses every gradient, as a connection does if a number is not finite."""

    def push(self, weights: PulledWeights, gradient: np.ndarray) -> NoReturn:
        raise NotFinite(f"the gradient of version {weights.version} is not finite as f32.")


def test_a_gradient_that_is_not_finite_ends_the_worker_with_its_loss() -> None:
    config = config_of("sync")
    sentence = r"^the gradient of version 4 is not finite as f32 \(loss -?\d+\.\d+\)\.$"
    with actor_learner_of(config) as actor_learner:
        connection = Refusing(actor_learner.parameters.vector(), [4, 4], actor_learner.player._spans)
        with pytest.raises(ClusterError, match=sentence):
            work(cast(Connection, connection), actor_learner, config, logging.getLogger())


class Frail(nn.Module):
    """Fails in the forward or backward pass, once it has been tried."""

    forward_fails = backward_fails = False

    def __init__(self, observation_shape: tuple[int, ...], num_actions: int) -> None:
        super().__init__()
        self.layer = nn.Linear(84, num_actions)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.forward_fails:
            raise ValueError("the network broke")
        logits = self.layer(observations[:, 0, 0].float())
        if self.backward_fails and logits.requires_grad:
            logits.register_hook(self.broken)
        return logits, logits[:, 0]

    def broken(self, gradient: torch.Tensor) -> NoReturn:
        raise ValueError("the network broke")


def own_loss(outputs: torch.Tensor, values: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return outputs.mean() + values.mean(), {}


@pytest.mark.parametrize(
    ("broken", "loss", "blame"),
    [
        (
            "forward_fails",
            None,
            f"--model {__name__}:Frail fails: ValueError: the network broke (test_worker.py, line ",
        ),
        (
            "backward_fails",
            None,
            f"--model {__name__}:Frail fails: ValueError: the network broke (test_worker.py, line ",
        ),
        (
            "backward_fails",
            f"{__name__}:own_loss",
            f"--model {__name__}:Frail or --loss {__name__}:own_loss fails: ValueError: the network broke (",
        ),
    ],
)
def test_an_error_in_a_network_of_a_user_names_it(
    broken: str, loss: str | None, blame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__.partition(".")[0], sys.modules[__name__])
    config = replace(config_of("sync", f"{__name__}:Frail"), loss=loss)
    with actor_learner_of(config) as actor_learner:
        monkeypatch.setattr(actor_learner.player.model, broken, True)
        connection = PlannedConnection(actor_learner.parameters.vector(), [0, 0], actor_learner.player._spans)
        with pytest.raises(UserCodeError) as failed:
            work(cast(Connection, connection), actor_learner, config, logging.getLogger())
    assert str(failed.value).startswith(blame)


def test_a_game_that_fails_when_it_is_closed_does_not_hide_why_the_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Any) -> None:
        raise AttributeError("no window")

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise ClusterError("the shards refuse this worker.")

    monkeypatch.setattr(DummyEnvs, "close", close)
    monkeypatch.setattr(worker, "Connection", refused)
    with pytest.raises(ClusterError, match="the shards refuse this worker"):
        join(cast(Cluster, None), config_of("sync"), 0, version=0, threads=1, log=logging.getLogger())
