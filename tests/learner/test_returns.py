"""Advantages and returns compared with loops over scalars."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zmqrl.learner.returns import gae, n_step_returns


def draw_rollout(steps: int, num_envs: int, seed: int) -> dict[str, Tensor]:
    """A random rollout. About every third step ends a game: terminated, truncated or both."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, num_envs)
    truncated = torch.rand(shape, generator=generator) < 0.2
    return {
        "rewards": torch.randn(shape, generator=generator),
        "values": torch.randn(shape, generator=generator),
        "terminated": torch.rand(shape, generator=generator) < 0.2,
        "truncated": truncated,
        "bootstrap_values": torch.randn(shape, generator=generator) * truncated,
        "last_values": torch.randn(num_envs, generator=generator),
    }


def value_after(rollout: dict[str, Tensor], t: int, i: int) -> float:
    """The value of the state after step t of game i."""
    if rollout["terminated"][t, i]:
        return 0.0
    if rollout["truncated"][t, i]:
        return float(rollout["bootstrap_values"][t, i])
    last = t == len(rollout["rewards"]) - 1
    return float(rollout["last_values"][i] if last else rollout["values"][t + 1, i])


def ends(rollout: dict[str, Tensor], t: int, i: int) -> bool:
    return bool(rollout["terminated"][t, i] or rollout["truncated"][t, i])


def reference_gae(rollout: dict[str, Tensor], gamma: float, lam: float) -> Tensor:
    """The sum of eq. 16 written out: sum over l of (gamma lam)^l delta_{t+l}, up to the end of the game."""
    steps, num_envs = rollout["rewards"].shape
    advantages = torch.zeros(steps, num_envs)
    for i in range(num_envs):
        for t in range(steps):
            total = 0.0
            for k in range(t, steps):
                delta = float(rollout["rewards"][k, i]) + gamma * value_after(rollout, k, i)
                total += (gamma * lam) ** (k - t) * (delta - float(rollout["values"][k, i]))
                if ends(rollout, k, i):
                    break
            advantages[t, i] = total
    return advantages


def reference_n_step(rollout: dict[str, Tensor], gamma: float) -> Tensor:
    """Discounted rewards up to the end of the game or of the rollout, plus the discounted value of the next state."""
    steps, num_envs = rollout["rewards"].shape
    returns = torch.zeros(steps, num_envs)
    for i in range(num_envs):
        for t in range(steps):
            total = 0.0
            for k in range(t, steps):
                total += gamma ** (k - t) * float(rollout["rewards"][k, i])
                if ends(rollout, k, i) or k == steps - 1:
                    total += gamma ** (k - t + 1) * value_after(rollout, k, i)
                    break
            returns[t, i] = total
    return returns


def run_gae(rollout: dict[str, Tensor], gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    return gae(**rollout, gamma=gamma, lam=lam)


def run_n_step(rollout: dict[str, Tensor], gamma: float) -> Tensor:
    return n_step_returns(**{name: kept for name, kept in rollout.items() if name != "values"}, gamma=gamma)


ROLLOUTS = st.builds(draw_rollout, st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31))
FRACTIONS = st.floats(0, 1)


@settings(deadline=None)
@given(ROLLOUTS, FRACTIONS, FRACTIONS)
def test_gae_is_the_sum_of_the_paper(rollout: dict[str, Tensor], gamma: float, lam: float) -> None:
    advantages, returns = run_gae(rollout, gamma, lam)
    torch.testing.assert_close(advantages, reference_gae(rollout, gamma, lam), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(returns, advantages + rollout["values"])


@settings(deadline=None)
@given(ROLLOUTS, FRACTIONS)
def test_n_step_returns_are_sums_up_to_the_end_of_the_game_or_rollout(rollout: dict[str, Tensor], gamma: float) -> None:
    torch.testing.assert_close(run_n_step(rollout, gamma), reference_n_step(rollout, gamma), rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(ROLLOUTS, FRACTIONS)
def test_gae_with_lambda_one_gives_the_n_step_returns(rollout: dict[str, Tensor], gamma: float) -> None:
    torch.testing.assert_close(run_gae(rollout, gamma, 1.0)[1], run_n_step(rollout, gamma), rtol=1e-4, atol=1e-4)


def one_game(terminated: list[int], truncated: list[int], bootstrap: list[float]) -> dict[str, Tensor]:
    return {
        "rewards": torch.ones(3, 1),
        "values": torch.tensor([[10.0], [20.0], [30.0]]),
        "terminated": torch.tensor(terminated, dtype=torch.bool)[:, None],
        "truncated": torch.tensor(truncated, dtype=torch.bool)[:, None],
        "bootstrap_values": torch.tensor(bootstrap)[:, None],
        "last_values": torch.tensor([40.0]),
    }


def test_an_unfinished_game_is_worth_the_value_of_the_last_observation() -> None:
    returns = run_n_step(one_game([0, 0, 0], [0, 0, 0], [0, 0, 0]), 0.5)
    assert returns[:, 0].tolist() == [1 + 0.5 * (1 + 0.5 * 21), 1 + 0.5 * 21, 21]


def test_a_terminated_step_has_no_value_after_it() -> None:
    game = one_game([0, 1, 0], [0, 0, 0], [0, 0, 0])
    assert run_n_step(game, 0.5)[:, 0].tolist() == [1.5, 1, 21]
    assert run_gae(game, 0.5, 0.0)[0][:, 0].tolist() == [1 + 10 - 10, 1 - 20, 21 - 30]


def test_a_truncated_step_is_worth_the_value_of_its_final_observation() -> None:
    game = one_game([0, 0, 0], [0, 1, 0], [0, 8, 0])
    assert run_n_step(game, 0.5)[:, 0].tolist() == [1 + 0.5 * 5, 5, 21]
    assert run_gae(game, 0.5, 0.0)[0][:, 0].tolist() == [1 + 10 - 10, 5 - 20, 21 - 30]


def test_a_step_that_is_both_terminated_and_truncated_counts_as_terminated() -> None:
    game = one_game([0, 1, 0], [0, 1, 0], [0, 8, 0])
    assert run_n_step(game, 0.5)[:, 0].tolist() == [1.5, 1, 21]
    assert run_gae(game, 0.5, 1.0)[1][:, 0].tolist() == [1.5, 1, 21]
