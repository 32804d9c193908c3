"""The losses match scalar references. The learner makes the right minibatches and gradients, and really learns."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.stub_games import described
from torch import Tensor, nn

from zmqrl.errors import UsageError
from zmqrl.learner.envs import Envs, Game, Step
from zmqrl.learner.losses import Batch, Learner, ba3c_loss, entropy_coefficient_at, ppo_loss
from zmqrl.learner.networks import make_model
from zmqrl.learner.returns import gae, n_step_returns
from zmqrl.learner.rollout import Player, Rollout
from zmqrl.learner.settings import Algorithm, BA3CConfig, PPOConfig

SAMPLES, ACTIONS = 24, 3
# With several threads, tiny products can be ten times slower on a busy host, because the threads wait for each other.
torch.set_num_threads(1)


def draw_batch(seed: int = 0) -> tuple[Tensor, Tensor, Batch]:
    """Logits, values and a batch. About half of the ratios lie outside the clip range."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SAMPLES, ACTIONS, generator=generator).requires_grad_()
    values = torch.randn(SAMPLES, generator=generator).requires_grad_()
    actions = torch.randint(0, ACTIONS, (SAMPLES,), generator=generator)
    log_probs = logits.detach().log_softmax(-1).gather(1, actions[:, None])[:, 0]
    batch = Batch(
        actions=actions,
        log_probs=log_probs + 0.15 * torch.randn(SAMPLES, generator=generator),
        advantages=2 * torch.randn(SAMPLES, generator=generator) + 0.5,
        returns=torch.randn(SAMPLES, generator=generator),
    )
    return logits, values, batch


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def reference_policy(logits: Tensor) -> list[list[float]]:
    """The probabilities of each sample's actions."""
    rows = []
    for row in logits.tolist():
        total = math.fsum(math.exp(logit) for logit in row)
        rows.append([math.exp(logit) / total for logit in row])
    return rows


def reference_entropy(policy: list[list[float]]) -> float:
    return mean([-math.fsum(p * math.log(p) for p in row) for row in policy])


@pytest.mark.parametrize("normalize", [True, False])
def test_ppo_loss_is_the_clipped_surrogate_of_the_paper(normalize: bool) -> None:
    logits, values, batch = draw_batch()
    config = PPOConfig(clip=0.1, value_coefficient=0.7, normalize_advantages=normalize)
    loss, stats = ppo_loss(logits, values, batch, config, 0.03)

    policy = reference_policy(logits)
    advantages = batch.advantages.tolist()
    average = mean(advantages)
    deviation = math.sqrt(mean([(a - average) ** 2 for a in advantages]))
    surrogates, kls, clipped = [], [], 0
    for i, advantage in enumerate(advantages):
        ratio = policy[i][int(batch.actions[i])] / math.exp(float(batch.log_probs[i]))
        scaled = (advantage - average) / deviation if normalize else advantage
        surrogates.append(min(ratio * scaled, min(max(ratio, 0.9), 1.1) * scaled))
        kls.append(ratio - 1 - math.log(ratio))
        clipped += not 0.9 <= ratio <= 1.1
    value_loss = mean([(v - r) ** 2 for v, r in zip(values.tolist(), batch.returns.tolist(), strict=True)])
    entropy = reference_entropy(policy)

    assert 0 < clipped < SAMPLES
    assert loss.item() == pytest.approx(-mean(surrogates) + 0.7 * value_loss - 0.03 * entropy, rel=1e-4)
    assert {name: float(stat) for name, stat in stats.items()} == pytest.approx(
        {
            "policy_loss": -mean(surrogates),
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": mean(kls),
            "clip_fraction": clipped / SAMPLES,
            "value_mean": mean(values.tolist()),
            "advantage_mean": average,
            "advantage_std": deviation,
        },
        rel=1e-4,
        abs=1e-6,
    )


def test_ba3c_loss_is_the_loss_of_advantage_actor_critic() -> None:
    logits, values, batch = draw_batch()
    loss, stats = ba3c_loss(logits, values, batch, BA3CConfig(value_coefficient=0.7), 0.03)
    policy = reference_policy(logits)
    advantages = [r - v for r, v in zip(batch.returns.tolist(), values.tolist(), strict=True)]
    log_probs = [math.log(row[int(action)]) for row, action in zip(policy, batch.actions, strict=True)]
    policy_loss = -mean([p * a for p, a in zip(log_probs, advantages, strict=True)])
    value_loss = mean([a * a for a in advantages])
    entropy = reference_entropy(policy)
    assert loss.item() == pytest.approx(policy_loss + 0.7 * value_loss - 0.03 * entropy, rel=1e-4)
    assert float(stats["policy_loss"]) == pytest.approx(policy_loss, rel=1e-4)
    assert float(stats["value_loss"]) == pytest.approx(value_loss, rel=1e-4)
    assert float(stats["entropy"]) == pytest.approx(entropy, rel=1e-4)
    assert "clip_fraction" not in stats


def test_ppo_gradients_match_the_textbook_expression() -> None:
    logits, values, batch = draw_batch(1)
    loss, _ = ppo_loss(logits, values, batch, PPOConfig(clip=0.1), 0.02)
    ours = torch.autograd.grad(loss, (logits, values))

    policy = torch.softmax(logits, dim=1)
    ratio = policy[torch.arange(SAMPLES), batch.actions] / torch.exp(batch.log_probs)
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std(unbiased=False)
    surrogate = torch.min(ratio * advantages, torch.clamp(ratio, 0.9, 1.1) * advantages)
    naive = -surrogate.mean() + 0.5 * torch.nn.functional.mse_loss(values, batch.returns)
    entropy = -(policy * torch.log(policy)).sum() / SAMPLES
    theirs = torch.autograd.grad(naive - 0.02 * entropy, (logits, values))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


def test_the_policy_loss_of_ba3c_has_no_gradient_for_the_values() -> None:
    logits, values, batch = draw_batch(2)
    loss, _ = ba3c_loss(logits, values, batch, BA3CConfig(), 0.0)
    (gradient,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(gradient, (values - batch.returns) / SAMPLES)


def draw_sample() -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """The first sample of ``draw_batch`` as a batch of its own."""
    logits, values, batch = draw_batch()
    one = Batch(
        actions=batch.actions[:1],
        log_probs=batch.log_probs[:1],
        advantages=batch.advantages[:1],
        returns=batch.returns[:1],
    )
    return logits[:1], values[:1], one


def test_one_sample_with_normalized_advantage_is_finite() -> None:
    loss, stats = ppo_loss(*draw_sample(), PPOConfig(), 0.01)
    assert torch.stack([loss, *stats.values()]).isfinite().all()


@pytest.mark.parametrize("make_config", [PPOConfig, BA3CConfig])
def test_the_entropy_bonus_follows_the_version(make_config: Callable[..., Algorithm]) -> None:
    constant = make_config(entropy_coefficient=0.01)
    assert [entropy_coefficient_at(constant, v, 0.0) for v in (0, 10**9)] == [0.01, 0.01]
    falling = make_config(entropy_coefficient=0.02, final_entropy_coefficient=0.01, entropy_schedule_updates=100)
    told = [entropy_coefficient_at(falling, v, 0.0) for v in (0, 50, 100, 500)]
    assert told == pytest.approx([0.02, 0.015, 0.01, 0.01])
    assert not falling.follows_progress
    for final_coefficient, updates in ((0.0, -100), (None, 100)):
        with pytest.raises(UsageError, match="entropy-schedule-updates"):
            make_config(final_entropy_coefficient=final_coefficient, entropy_schedule_updates=updates)
    for final in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=r"final-entropy-coefficient .*: must be from 0 to 1e6"):
            make_config(final_entropy_coefficient=final, entropy_schedule_updates=100)


@pytest.mark.parametrize("make_config", [PPOConfig, BA3CConfig])
def test_the_entropy_bonus_follows_the_progress_of_the_run(make_config: Callable[..., Algorithm]) -> None:
    config = make_config(entropy_coefficient=0.02, final_entropy_coefficient=0.01)
    assert config.follows_progress
    assert not make_config().follows_progress
    told = [entropy_coefficient_at(config, 10**9, elapsed) for elapsed in (0.0, 0.5, 1.0)]
    assert told == pytest.approx([0.02, 0.015, 0.01])


def test_the_clip_range_follows_the_progress_of_the_run() -> None:
    clips = []

    def loss(logits: Tensor, values: Tensor, batch: Batch, config: PPOConfig, *_: Any) -> tuple[Tensor, dict[str, Any]]:
        clips.append(config.clip)
        return logits.sum() + values.sum(), {}

    config = PPOConfig(clip=0.2, final_clip=0.1)
    assert config.follows_progress
    learner, rollout = Learner(Recording(), config, seed=0, loss=loss), draw_rollout(num_envs=8)
    learner.prepare(rollout)
    for elapsed in (0.0, 0.5, 1.0):
        learner.gradient(rollout, 0, 7, elapsed)
    assert clips == pytest.approx([0.2, 0.15, 0.1])
    with pytest.raises(UsageError, match=r"--ppo\.final-clip 0"):
        PPOConfig(final_clip=0.0)


@pytest.mark.parametrize("make_config", [PPOConfig, BA3CConfig])
def test_a_gradient_depends_on_its_version_and_not_on_earlier_work(
    make_config: Callable[..., Algorithm],
) -> None:
    coefficients = []

    def loss(logits: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, dict[str, Tensor]]:
        coefficients.append(rest[-1])
        return logits.sum() + values.sum(), {}

    config = make_config(entropy_coefficient=0.02, final_entropy_coefficient=0.01, entropy_schedule_updates=100)
    learner, rollout = Learner(Recording(), config, seed=0, loss=loss), draw_rollout(num_envs=8)
    learner.prepare(rollout)
    for version in (100, 0, 50, 50, 10**9):
        metrics = learner.gradient(rollout, 0, version)
        assert set(metrics) == {
            *("loss", "grad_norm", "grad_norm_clipped", "explained_variance", "entropy_coefficient")
        }
        assert metrics["entropy_coefficient"] == coefficients[-1]
    assert coefficients == pytest.approx([0.01, 0.02, 0.015, 0.015, 0.01])


def draw_rollout(steps: int = 8, num_envs: int = 6, *, seed: int = 0, number: int = 0) -> Rollout:
    """A rollout of vectors whose first number identifies the sample. Rewards are from -3 to 3. A few steps end a
    game.
    """
    generator = torch.Generator().manual_seed(seed)
    rollout = Rollout(steps=steps, num_envs=num_envs, spec=described((4,)))
    rollout.number = number
    rollout.observations.copy_(torch.randn(rollout.observations.shape, generator=generator))
    rollout.observations[..., 0] = torch.arange(steps * num_envs).view(steps, num_envs)
    rollout.actions.random_(0, 2, generator=generator)
    rollout.log_probs.uniform_(-1, -0.5, generator=generator)
    rollout.rewards.uniform_(-3, 3, generator=generator)
    rollout.values.normal_(generator=generator)
    rollout.last_values.normal_(generator=generator)
    rollout.terminated[2, 0] = rollout.truncated[3, 1] = rollout.terminated[4, 2] = rollout.truncated[4, 2] = True
    rollout.bootstrap_values[3, 1] = 2.0
    return rollout


class Recording(nn.Module):
    """The vector model, which also records the samples that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = make_model("mlp", described((4,), 2))
        self.shown: list[list[int]] = []

    def forward(self, observations: Tensor) -> Any:
        self.shown.append(observations[:, 0].int().tolist())
        return self.inner(observations)


def shown_samples(config: Algorithm, *, seed: int = 0, number: int = 0) -> list[list[int]]:
    model = Recording()
    learner, rollout = Learner(model, config, seed=seed), draw_rollout(number=number)
    learner.prepare(rollout)
    for index in range(config.updates_per_rollout):
        learner.gradient(rollout, index, version=index)
    return model.shown


@pytest.mark.parametrize("shuffle", ["envs", "samples"])
def test_each_epoch_shows_every_sample_once(shuffle: Any) -> None:
    config = PPOConfig(rollout_steps=8, epochs=2, minibatches=3, shuffle=shuffle)
    shown = shown_samples(config)
    assert config.updates_per_rollout == 6
    assert [len(samples) for samples in shown] == [16] * 6
    first, second = ([s for samples in shown[epoch * 3 : epoch * 3 + 3] for s in samples] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second


def test_shuffled_environments_stay_whole() -> None:
    for samples in shown_samples(PPOConfig(rollout_steps=8, epochs=1, minibatches=3)):
        envs = {sample % 6 for sample in samples}
        assert len(envs) == 2
        assert set(samples) == {t * 6 + env for t in range(8) for env in envs}


@pytest.mark.parametrize("shuffle", ["envs", "samples"])
def test_the_shuffle_depends_on_the_seed_and_the_rollout(shuffle: Any) -> None:
    config = PPOConfig(rollout_steps=8, epochs=1, minibatches=3, shuffle=shuffle)
    shown = shown_samples(config, seed=1, number=5)
    assert shown == shown_samples(config, seed=1, number=5)
    assert shown != shown_samples(config, seed=2, number=5)
    assert shown != shown_samples(config, seed=1, number=6)


def test_ba3c_learns_once_from_the_whole_rollout() -> None:
    assert BA3CConfig().updates_per_rollout == 1
    assert shown_samples(BA3CConfig(rollout_steps=8)) == [list(range(48))]


def test_environments_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match=r"6 environments into 4 equal minibatches.*shuffle samples"):
        PPOConfig(minibatches=4).minibatch_samples(6)
    assert PPOConfig(rollout_steps=8, minibatches=4, shuffle="samples").minibatch_samples(6) == 12
    with pytest.raises(UsageError, match="48 samples of a rollout into 5"):
        PPOConfig(rollout_steps=8, minibatches=5, shuffle="samples").minibatch_samples(6)


def test_minibatches_of_one_sample_are_refused_if_their_advantages_are_normalized() -> None:
    logits, values, one = draw_sample()
    loss, _ = ppo_loss(logits, values, one, PPOConfig(), 0.0)
    assert not torch.autograd.grad(loss, logits)[0].any(), "the policy learns"
    samples = PPOConfig(rollout_steps=8, minibatches=16, shuffle="samples")
    envs = PPOConfig(rollout_steps=1, minibatches=2)
    for config in (samples, envs):
        with pytest.raises(UsageError) as refused:
            config.minibatch_samples(2)
        assert str(refused.value) == (
            f"--ppo.minibatches {config.minibatches}: minibatches of one sample teach the policy nothing, because the "
            "only advantage becomes 0. Lower --ppo.minibatches, or use --ppo.no-normalize-advantages."
        )
        assert replace(config, normalize_advantages=False).minibatch_samples(2) == 1
    assert replace(samples, minibatches=8).minibatch_samples(2) == 2


@pytest.mark.parametrize("field", ["rollout_steps", "epochs", "minibatches"])
def test_counts_below_one_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=f"--ppo.{field.replace('_', '-')} 0: must be 1 or more"):
        PPOConfig(**{field: 0})  # type: ignore[arg-type]


def test_targets_come_from_the_rewards_and_do_not_change_them() -> None:
    rollout = draw_rollout()
    rewards = rollout.rewards.clone()
    ends = (rollout.terminated, rollout.truncated, rollout.bootstrap_values, rollout.last_values)

    Learner(Recording(), PPOConfig(gamma=0.9, gae_lambda=0.8), seed=0).prepare(rollout)
    advantages, returns = gae(rewards, rollout.values, *ends, 0.9, 0.8)
    assert torch.equal(rollout.advantages, advantages)
    assert torch.equal(rollout.returns, returns)

    Learner(Recording(), BA3CConfig(gamma=0.9), seed=0).prepare(rollout)
    assert torch.equal(rollout.returns, n_step_returns(rewards, *ends, 0.9))
    assert torch.equal(rollout.rewards, rewards)


def test_explained_variance_is_one_for_perfect_values_and_finite_for_constant_returns() -> None:
    rollout = draw_rollout()
    learner = Learner(Recording(), PPOConfig(gae_lambda=1.0), seed=0)
    learner.prepare(rollout)
    rollout.values.copy_(rollout.returns)
    learner.prepare(rollout)
    assert float(rollout.explained_variance) == pytest.approx(1.0)
    for silent in (rollout.rewards, rollout.values, rollout.bootstrap_values, rollout.last_values):
        silent.zero_()
    learner.prepare(rollout)
    assert float(rollout.explained_variance) == 0.0


METRICS = {
    *("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "value_mean", "advantage_mean", "advantage_std"),
    *("grad_norm", "grad_norm_clipped", "explained_variance", "entropy_coefficient"),
}


@pytest.mark.parametrize("config", [PPOConfig(minibatches=3), BA3CConfig()])
def test_the_metrics_have_their_names_and_are_finite(config: Algorithm) -> None:
    learner, rollout = Learner(Recording(), config, seed=0), draw_rollout()
    learner.prepare(rollout)
    metrics = learner.gradient(rollout, 0, version=0)
    assert set(metrics) == METRICS | ({"clip_fraction"} if isinstance(config, PPOConfig) else set())
    assert all(type(metric) is float and math.isfinite(metric) for metric in metrics.values())


def test_the_gradient_is_clipped_by_its_norm_over_all_parameters() -> None:
    gradients, metrics = [], []
    for max_grad_norm in (1e9, 0.01):
        model, rollout = Recording(), draw_rollout()
        learner = Learner(model, BA3CConfig(max_grad_norm=max_grad_norm), seed=0)
        learner.prepare(rollout)
        metrics.append(learner.gradient(rollout, 0, version=0))
        gradients.append(torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in model.parameters()]))
    norm = float(gradients[0].norm())
    assert norm > 0.01
    assert metrics[0]["grad_norm"] == metrics[0]["grad_norm_clipped"] == pytest.approx(norm, rel=1e-5)
    assert metrics[1]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics[1]["grad_norm_clipped"] == 0.01
    torch.testing.assert_close(gradients[1], gradients[0] * 0.01 / norm, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("image", [False, True])
def test_gradients_that_are_views_into_one_vector_are_overwritten_in_place(image: bool) -> None:
    model: nn.Module
    if image:
        model = make_model("small", described((4, 84, 84), 2))
        rollout = Rollout(steps=2, num_envs=3, spec=described((4, 84, 84)))
        rollout.observations.random_(0, 256)
        rollout.rewards.uniform_()
    else:
        model, rollout = Recording(), draw_rollout()
    flat = torch.full((sum(parameter.numel() for parameter in model.parameters()),), 1e6)
    begin = 0
    for parameter in model.parameters():
        parameter.grad = flat[begin : begin + parameter.numel()].view(parameter.shape)
        begin += parameter.numel()
    learner = Learner(model, PPOConfig(minibatches=3, max_grad_norm=1e9), seed=0)
    learner.prepare(rollout)
    learner.gradient(rollout, 0, version=0)
    in_place = flat.clone()
    for parameter in model.parameters():
        parameter.grad = None
    learner.gradient(rollout, 0, version=0)
    assert torch.equal(in_place, torch.cat([cast(Tensor, p.grad).flatten() for p in model.parameters()]))


def test_the_same_minibatch_gives_the_same_gradient_bit_for_bit() -> None:
    flats = []
    for _ in range(2):
        model, rollout = Recording(), draw_rollout()
        learner = Learner(model, PPOConfig(minibatches=3), seed=0)
        learner.prepare(rollout)
        learner.gradient(rollout, 4, version=4)
        flats.append(torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in model.parameters()]))
    assert torch.equal(flats[0], flats[1])


class Bandits:
    """Two arms. The observation says which arm pays 1. The other arm pays nothing. A game has one step."""

    spec = described((2,), 2)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self, seed: int) -> np.ndarray:
        self.rng = np.random.default_rng(seed)
        return self.draw()

    def draw(self) -> np.ndarray:
        self.paying = self.rng.integers(0, 2, self.num_envs)
        return np.eye(2, dtype=np.float32)[self.paying]

    def step(self, actions: np.ndarray) -> Step:
        rewards = (actions == self.paying).astype(np.float32)
        return Step(
            observations=self.draw(),
            rewards=rewards,
            terminated=np.ones(self.num_envs, bool),
            truncated=np.zeros(self.num_envs, bool),
            final_observations={},
            games=[Game(score=float(reward), agent_steps=1) for reward in rewards],
        )

    def close(self) -> None:
        pass


@pytest.mark.processes
@pytest.mark.parametrize(
    ("config", "iterations"),
    [
        (PPOConfig(rollout_steps=16, epochs=3, minibatches=4), 10),
        (PPOConfig(rollout_steps=16, epochs=3, minibatches=4, shuffle="samples"), 10),
        (BA3CConfig(rollout_steps=5), 80),
    ],
)
def test_bandits_are_learned(config: Algorithm, iterations: int) -> None:
    torch.manual_seed(0)
    envs = Bandits(num_envs=8)
    model = make_model("mlp", described((2,), 2))
    player, learner = Player(model, cast(Envs, envs), seed=0), Learner(model, config, seed=0)
    rollout = Rollout(steps=config.rollout_steps, num_envs=8, spec=described((2,)))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    means = []
    for iteration in range(iterations):
        games = player.play(rollout)
        means.append(sum(game.score for game in games) / len(games))
        learner.prepare(rollout)
        for index in range(config.updates_per_rollout):
            learner.gradient(rollout, index, version=iteration * config.updates_per_rollout + index)
            adam.step()
    assert means[0] < 0.75
    assert sum(means[-3:]) / 3 > 0.9
