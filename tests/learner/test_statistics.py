"""Running statistics: their values, the gradient that updates them, and what a player scales with them."""

import sys
from dataclasses import replace
from typing import cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.utils import RunningMeanStd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.stub_games import CountingEnvs, described
from torch import nn

from zmqrl.errors import UsageError
from zmqrl.learner.envs import Envs
from zmqrl.learner.losses import Learner
from zmqrl.learner.networks import make_model
from zmqrl.learner.rollout import Player, Rollout
from zmqrl.learner.settings import PPOConfig
from zmqrl.learner.statistics import (
    Moments,
    Statistics,
    add_statistics,
    discounted_returns,
    moments_of,
    scaled_observations,
    statistics_of,
)
from zmqrl.ps.layout import AVERAGED

CONFIG = PPOConfig(rollout_steps=12, minibatches=2, shuffle="samples", gamma=0.9, max_grad_norm=1e-3)
NUMBERS = arrays(np.float32, (7, 2), elements=st.floats(-100, 100, width=32))


def update(moments: Moments, *rollouts: np.ndarray) -> None:
    """Contribute one rollout per worker, and subtract the mean of the gradients as a shard does."""
    gradients = []
    for rollout in rollouts:
        for parameter in moments.parameters():
            parameter.grad = torch.zeros_like(parameter)
        moments.set_gradient(moments_of(rollout))
        gradients.append([cast(torch.Tensor, parameter.grad) for parameter in moments.parameters()])
    with torch.no_grad():
        for parameter, *each in zip(moments.parameters(), *gradients, strict=True):
            parameter -= torch.stack(each).mean(0)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_one_worker_gets_the_mean_and_variance_of_all_numbers(rollouts: list[np.ndarray]) -> None:
    moments = Moments(2)
    for rollout in rollouts:
        update(moments, rollout)
    whole = np.concatenate(rollouts).astype(np.float64)
    assert moments.count.item() == len(rollouts)
    np.testing.assert_allclose(moments.mean.detach(), whole.mean(0), atol=1e-3)
    np.testing.assert_allclose(moments.variance.detach(), whole.var(0), rtol=1e-3, atol=1e-2)


def test_the_statistics_of_one_worker_are_those_of_gymnasium() -> None:
    rng, moments = np.random.default_rng(0), Moments(3)
    known = RunningMeanStd(epsilon=1e-12, shape=(3,))  # type: ignore[no-untyped-call]
    for _ in range(20):
        rollout = rng.normal([0.0, 100.0, -3.0], [1.0, 0.1, 30.0], (64, 3)).astype(np.float32)
        update(moments, rollout)
        known.update(rollout)  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(moments.mean.detach(), known.mean, rtol=1e-5)
    np.testing.assert_allclose(moments.variance.detach(), known.var, rtol=1e-3)


def test_several_workers_get_the_mean_of_what_each_would_get_alone() -> None:
    rng, together = np.random.default_rng(0), Moments(2)
    for _ in range(30):
        update(together, *(rng.normal([5.0, -1.0], [2.0, 0.5], (64, 2)).astype(np.float32) for _ in range(4)))
    assert together.count.item() == 30
    np.testing.assert_allclose(together.mean.detach(), [5.0, -1.0], rtol=0.05)
    np.testing.assert_allclose(together.variance.detach(), [4.0, 0.25], rtol=0.1)


def test_the_spread_between_workers_is_missing_in_the_first_update_and_then_less_and_less() -> None:
    moments, spread = Moments(1), 1.25  # the variance of 0, 1, 2 and 3
    for updates in range(1, 101):
        update(moments, *(np.full((8, 1), constant, np.float32) for constant in range(4)))
        missing = sum(1 / number for number in range(1, updates + 1)) / updates
        assert moments.mean.item() == pytest.approx(1.5, rel=1e-5)
        assert moments.variance.item() == pytest.approx(spread * (1 - missing), abs=1e-4)
        assert updates != 1 or moments.variance.item() == 0
    assert missing == pytest.approx(0.05, abs=0.005)


def test_numbers_that_never_change_have_no_variance_and_become_zero() -> None:
    moments = Moments(1)
    for _ in range(5):
        update(moments, np.full((8, 1), 3.7, np.float32))
    assert moments.variance.item() == 0
    assert abs(moments.scaled(torch.tensor([3.7])).item()) < 0.01


def test_scaled_numbers_are_clipped() -> None:
    moments = Moments(1)
    update(moments, np.array([[1.0], [3.0]], np.float32))
    assert moments.scaled(torch.tensor([[2.0], [3.0], [99.0], [-99.0]])).flatten().tolist() == [0, 1, 10, -10]


@pytest.mark.parametrize(
    ("observations", "returns", "sentence"),
    [
        ([[0.0, 0.0], [0.0, 1e20]], [[0.0], [1.0]], "observations: the standard deviation of observation[1]"),
        ([[0.0, 0.0], [0.0, 1.0]], [[0.0], [-1e20]], "rewards: the standard deviation of the return of a game"),
    ],
)
def test_numbers_whose_variance_is_too_large_for_float32_are_refused(
    observations: list[list[float]], returns: list[list[float]], sentence: str
) -> None:
    statistics = Statistics(replace(described((2,)), normalizes_observations=True, normalizes_rewards=True))
    for parameter in statistics.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rollout = {"observations": moments_of(np.array(observations)), "returns": moments_of(np.array(returns))}
    with pytest.raises(UsageError) as refused:
        statistics.set_gradients(rollout)
    option = sentence.partition(":")[0]
    assert str(refused.value) == (
        f"--envs.normalize-{sentence} is 5e+19, which is too large: scale the {option} in your environment."
    )


@given(
    rewards=arrays(np.float32, (6, 2), elements=st.floats(-10, 10, width=32)),
    over=arrays(np.bool_, (6, 2)),
    cut=st.integers(0, 6),
)
def test_discounted_returns_start_again_with_each_game_and_continue_in_the_next_rollout(
    rewards: np.ndarray, over: np.ndarray, cut: int
) -> None:
    expected, running = [], np.zeros(2)
    for reward, ended in zip(rewards, over, strict=True):
        running = 0.9 * running + reward
        expected.append(running)
        running = running * ~ended
    first, between = discounted_returns(rewards[:cut], over[:cut], 0.9, np.zeros(2))
    second, after = discounted_returns(rewards[cut:], over[cut:], 0.9, between)
    np.testing.assert_allclose(np.concatenate((first, second)), expected)
    np.testing.assert_allclose(after, running)


def normalized() -> tuple[nn.Module, Rollout, Player]:
    spec = replace(described((2,)), normalizes_observations=True, normalizes_rewards=True)
    torch.manual_seed(0)
    network = make_model("mlp", spec)
    player = Player(network, cast(Envs, CountingEnvs()), 0, gamma=CONFIG.gamma)
    return network, Rollout(steps=CONFIG.rollout_steps, num_envs=4, spec=spec), player


def test_a_player_scales_with_the_statistics_of_the_version_it_plays_and_reports_the_moments_it_saw() -> None:
    network, rollout, player = normalized()
    statistics = statistics_of(network)
    assert statistics is not None
    assert statistics.observations is not None
    assert statistics.returns is not None
    with torch.no_grad():
        statistics.observations.mean.copy_(torch.tensor([1.0, 6.0]))
        statistics.observations.variance.copy_(torch.tensor([4.0, 9.0]))
    player.play(rollout)
    games, steps = np.meshgrid(range(4), range(12))
    raw = np.stack((games, steps), -1).astype(np.float32)
    np.testing.assert_allclose(rollout.observations, (raw - [1, 6]) / [2, 3], rtol=1e-6)
    np.testing.assert_allclose(rollout.last_observations[:, 1], np.full(4, 2.0), rtol=1e-6)
    for ours, expected in zip(rollout.moments["observations"], moments_of(raw.reshape(-1, 2)), strict=True):
        np.testing.assert_allclose(ours, expected)
    rewards = rollout.actions.numpy() * 10.0
    sums, _ = discounted_returns(rewards, (rollout.terminated | rollout.truncated).numpy(), 0.9, np.zeros(4))
    np.testing.assert_allclose(rollout.rewards, (rewards / sums.std()).clip(-10, 10), rtol=1e-5)


def test_each_worker_scales_rewards_with_its_own_rollout_but_observations_only_with_shared_statistics() -> None:
    network, rollout, _ = normalized()
    scales, observations = [], []
    for seed in (0, 1):
        Player(network, cast(Envs, CountingEnvs()), seed, gamma=CONFIG.gamma).play(rollout)
        scales.append((10 * rollout.actions.max() / rollout.rewards.max()).item())
        observations.append(rollout.observations.clone())
    assert scales[0] != pytest.approx(scales[1], rel=0.01)
    assert torch.equal(*observations)


def test_the_first_minibatch_of_a_rollout_updates_the_statistics_and_the_loss_never_does() -> None:
    network, rollout, player = normalized()
    player.play(rollout)
    learner = Learner(network, CONFIG, seed=0)
    learner.prepare(rollout)
    for index in range(3):
        metrics = learner.gradient(rollout, index, version=index)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            if name.endswith("count"):
                assert parameter.grad.item() == (-1 if index == 0 else 0)
            elif name.startswith(AVERAGED) and index > 0:
                assert not parameter.grad.any()
        policy = [p.grad for name, p in network.named_parameters() if not name.startswith(AVERAGED)]
        norm = torch.cat([cast(torch.Tensor, grad).flatten() for grad in policy]).norm().item()
        assert norm == pytest.approx(metrics["grad_norm_clipped"], rel=1e-3)


def test_the_names_of_statistics_are_those_that_shards_average() -> None:
    network, _, _ = normalized()
    names = [name.removeprefix(AVERAGED) for name, _ in network.named_parameters() if name.startswith(AVERAGED)]
    assert names == [f"{of}.{what}" for of in ("observations", "returns") for what in ("count", "mean", "variance")]


def test_a_network_without_normalization_has_no_statistics_and_sees_raw_observations() -> None:
    network = make_model("mlp", described((2,)))
    assert statistics_of(network) is None
    seen = torch.ones(3, 2)
    assert scaled_observations(network, seen) is seen


def test_a_network_of_a_user_must_not_use_the_name_of_the_statistics() -> None:
    network = nn.Linear(2, 2)
    network.running_statistics = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="already has an attribute running_statistics: rename"):
        add_statistics(network, described((2,)))


class Outputs(nn.Module):
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features[:, 1:], features[:, 0]


def sequential(observation_shape: tuple[int, ...], num_actions: int) -> nn.Module:
    (inputs,) = observation_shape
    return nn.Sequential(nn.Linear(inputs, 1 + num_actions), Outputs())


def test_a_network_that_runs_its_modules_one_after_another_ignores_its_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, __name__.partition(".")[0], sys.modules[__name__])
    spec = replace(described((2,), 3), normalizes_observations=True, normalizes_rewards=True)
    network = make_model(f"{__name__}:sequential", spec)
    assert statistics_of(network) is not None
    logits, values = network(torch.ones(5, 2))
    assert (logits.shape, values.shape) == ((5, 3), (5,))


def test_images_cannot_be_normalized() -> None:
    with pytest.raises(UsageError, match=r"--envs.normalize-observations does not apply to images"):
        replace(described((4, 84, 84)), normalizes_observations=True)


def test_rewards_are_scaled_like_those_of_gymnasium_once_statistics_are_known() -> None:
    """With many rollouts, zmqrl and Gymnasium divide by the deviation of the same discounted returns."""
    rng, moments = np.random.default_rng(0), Moments(1)
    rewards, over = rng.normal(1.0, 2.0, (2000, 1)).astype(np.float32), np.zeros((2000, 1), bool)

    class Paying(gymnasium.Env[np.ndarray, np.int64]):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(1)
        paid = iter(rewards[:, 0].tolist())

        def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            return np.zeros(1, np.float32), next(self.paid), False, False, {}

    theirs = gymnasium.wrappers.NormalizeReward(Paying(), gamma=0.9)
    scaled = [float(theirs.step(np.int64(0))[1]) for _ in range(2000)]
    sums, _ = discounted_returns(rewards, over, 0.9, np.zeros(1))
    for part in np.split(sums, 20):
        update(moments, part)
    ours = moments.scaled_rewards(torch.from_numpy(rewards), moments_of(sums[-100:]))
    np.testing.assert_allclose(ours[-100:, 0].detach(), scaled[-100:], rtol=0.05)
