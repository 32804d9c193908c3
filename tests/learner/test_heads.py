"""Policies over actions agree with torch.distributions: log-probabilities, entropies, their gradients and samples."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal

from zmqrl.learner.games import ActionSpace, BoxActions, DiscreteActions, FactoredActions
from zmqrl.learner.heads import head_of

SPACES: list[ActionSpace] = [
    DiscreteActions(5),
    FactoredActions((3,), (0,), (1,)),
    FactoredActions((2, 4, 3), (0, 1, -2), (3,)),
    BoxActions((-1.0,), (1.0,), (1,)),
    BoxActions((-2.0, 0.0, -np.inf), (2.0, 5.0, np.inf), (3,)),
]
MANY = 20_000


def outputs_for(actions: ActionSpace, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, actions.outputs, generator=torch.Generator().manual_seed(seed))


def theirs(actions: ActionSpace, outputs: Tensor) -> Sequence[Distribution]:
    """The same policy as one distribution for each number in an action."""
    if isinstance(actions, BoxActions):
        means, log_stds = torch.split(outputs, len(actions.low), -1)
        return [Normal(mean, log_std.exp()) for mean, log_std in zip(means.T, log_stds.T, strict=True)]
    counts = actions.counts if isinstance(actions, FactoredActions) else [actions.count]
    return [Categorical(logits=part) for part in torch.split(outputs, list(counts), -1)]


def numbers(actions: ActionSpace, chosen: Tensor) -> Sequence[Tensor]:
    """The numbers of the actions ``chosen`` (B, *shape), each (B,)."""
    return chosen.unbind(1) if actions.shape else [chosen]


@pytest.mark.parametrize("actions", SPACES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_entropies_and_gradients_are_those_of_torch(actions: ActionSpace, seed: int) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 16, seed).requires_grad_()
    chosen, sampled_log_probs = head.sample(outputs.detach(), torch.Generator().manual_seed(seed))
    assert chosen.shape == (16, *actions.shape)
    assert chosen.numpy().dtype == actions.dtype
    log_probs, entropy = head.log_probs_and_entropy(outputs, chosen)
    parts = list(zip(theirs(actions, outputs), numbers(actions, chosen), strict=True))
    their_log_probs = torch.stack([each.log_prob(number) for each, number in parts]).sum(0)
    their_entropy = torch.stack([each.entropy() for each, _ in parts]).sum(0).mean()
    torch.testing.assert_close(log_probs, their_log_probs)
    torch.testing.assert_close(sampled_log_probs, their_log_probs)
    torch.testing.assert_close(entropy, their_entropy)
    weights = torch.linspace(-1, 1, 16)
    for our, their in (((log_probs * weights).sum(), (their_log_probs * weights).sum()), (entropy, their_entropy)):
        ours = torch.autograd.grad(our, outputs, retain_graph=True)[0]
        torch.testing.assert_close(ours, torch.autograd.grad(their, outputs, retain_graph=True)[0])


@pytest.mark.parametrize("actions", SPACES[:3], ids=str)
def test_actions_that_a_network_masks_are_never_chosen_and_leave_the_entropy_and_its_gradient_finite(
    actions: ActionSpace,
) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 64).requires_grad_()
    masked = outputs.index_fill(1, torch.tensor([0]), -torch.inf)  # the first alternative of the first choice
    chosen, _ = head.sample(masked.detach(), torch.Generator().manual_seed(0))
    drawn = torch.from_numpy(head.drawn(masked.detach(), np.random.default_rng(0)))
    for each in (chosen, drawn):
        assert (numbers(actions, each)[0] > 0).all()
    log_probs, entropy = head.log_probs_and_entropy(masked, chosen)
    expected = torch.stack([each.entropy() for each in theirs(actions, masked.detach())]).sum(0).mean()
    torch.testing.assert_close(entropy, expected)
    gradient = torch.autograd.grad(log_probs.mean() + entropy, outputs)[0]
    assert gradient.isfinite().all()
    assert not gradient[:, 0].any()


@pytest.mark.parametrize("actions", SPACES, ids=str)
def test_the_gradient_of_a_batch_is_the_mean_of_the_gradients_of_its_parts(actions: ActionSpace) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 12).requires_grad_()
    chosen, _ = head.sample(outputs.detach(), torch.Generator().manual_seed(0))

    def gradient(rows: slice) -> Tensor:
        log_probs, entropy = head.log_probs_and_entropy(outputs[rows], chosen[rows])
        return torch.autograd.grad(log_probs.mean() + entropy, outputs)[0]

    parts = [gradient(slice(start, start + 4)) for start in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(slice(None)))


@pytest.mark.parametrize("actions", SPACES, ids=str)
def test_samples_have_the_mean_and_the_deviation_of_their_distribution(actions: ActionSpace) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 1).expand(MANY, -1)
    sampled, _ = head.sample(outputs, torch.Generator().manual_seed(0))
    drawn = torch.from_numpy(head.drawn(outputs.contiguous(), np.random.default_rng(0)))
    for chosen in (sampled, drawn):
        for each, number in zip(theirs(actions, outputs[:1]), numbers(actions, chosen.double()), strict=True):
            if isinstance(each, Normal):
                assert number.mean().item() == pytest.approx(each.mean.item(), abs=0.1 * each.stddev.item())
                assert number.std().item() == pytest.approx(each.stddev.item(), rel=0.05)
            else:
                assert isinstance(each, Categorical)
                shares = torch.bincount(number.long(), minlength=each.probs.shape[1]) / MANY
                torch.testing.assert_close(shares, each.probs[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("actions", SPACES, ids=str)
def test_the_best_action_is_the_most_probable_one(actions: ActionSpace) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 8)
    best = torch.from_numpy(head.best(outputs))
    highest, _ = head.log_probs_and_entropy(outputs, best)
    for seed in range(20):
        _, log_probs = head.sample(outputs, torch.Generator().manual_seed(seed))
        assert (log_probs <= highest + 1e-6).all()


@pytest.mark.parametrize("actions", SPACES, ids=str)
def test_the_same_generator_draws_the_same_actions(actions: ActionSpace) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 8)
    first, second = (head.drawn(outputs, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_box_actions_are_scaled_to_their_bounds_and_clipped() -> None:
    actions = BoxActions((-2.0, 0.0, -np.inf, -3e38), (2.0, 5.0, np.inf, 3e38), (4,))
    played = actions.played(np.array([[0.0] * 4, [0.5] * 4, [-9.0] * 4, [9.0] * 4]))
    expected = [[0, 2.5, 0, 0], [1, 3.75, 0.5, 0.5], [-2, 0, -9, -9], [2, 5, 9, 9]]
    np.testing.assert_array_equal(played, np.array(expected, np.float32))


def test_a_policy_begins_one_unit_inside_the_only_bound_of_a_number() -> None:
    actions = BoxActions((5.0, -np.inf, -3e38), (np.inf, -7.0, 0.0), (3,))
    played = actions.played(np.array([[0.0] * 3, [-1.0] * 3, [1.5] * 3, [-9.0] * 3, [9.0] * 3]))
    expected = [[6, -8, -1], [5, -9, -2], [7.5, -7, 0], [5, -17, -10], [15, -7, 0]]
    np.testing.assert_array_equal(played, np.array(expected, np.float32))


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2))
def test_actions_within_bounds_of_one_stay_as_they_are(numbers: list[float]) -> None:
    actions = BoxActions((-1.0, -1.0), (1.0, 1.0), (2,))
    np.testing.assert_array_equal(actions.played(np.array([numbers], np.float32))[0], np.array(numbers, np.float32))


def test_games_take_actions_with_their_own_numbers_and_shape() -> None:
    assert DiscreteActions(3, start=5).played(np.array([0, 2])).tolist() == [5, 7]
    factored = FactoredActions((3, 2, 2, 2), (0, 4, -1, 0), (2, 2))
    assert factored.played(np.array([[2, 1, 0, 1]])).tolist() == [[[2, 5], [-1, 1]]]
    assert BoxActions((-2.0, 0.0), (2.0, 4.0), (2, 1)).played(np.array([[0.5, 0.5]])).tolist() == [[[1.0], [3.0]]]
    drawn = factored.drawn(np.random.default_rng(0), 1000)
    assert (drawn.shape, drawn.min(0).tolist(), drawn.max(0).tolist()) == (
        (1000, 2, 2),
        [[0, 4], [-1, 0]],
        [[2, 5], [0, 1]],
    )


@pytest.mark.parametrize("actions", SPACES, ids=str)
def test_random_actions_have_the_shape_and_dtype_that_games_take(actions: ActionSpace) -> None:
    drawn = actions.drawn(np.random.default_rng(0), 6, 3)
    assert (drawn.shape, drawn.dtype) == ((6, 3, *actions.shape), actions.dtype)


@pytest.mark.parametrize("actions", SPACES, ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_outputs_with_a_wrong_number_are_not_accepted_unless_it_masks_one_of_several_alternatives(
    actions: ActionSpace, wrong: float
) -> None:
    head, outputs = head_of(actions), outputs_for(actions, 3)
    assert head.accepts(outputs)
    outputs[1, -1] = wrong
    assert head.accepts(outputs) == (wrong == -torch.inf and not isinstance(actions, BoxActions))


def test_a_choice_without_any_alternative_is_not_accepted() -> None:
    for actions in (DiscreteActions(2), FactoredActions((3, 2), (0, 0), (2,))):
        outputs = outputs_for(actions, 3)
        outputs[1, -2:] = -torch.inf
        assert not head_of(actions).accepts(outputs)
        outputs[1, -1] = -5.0
        assert head_of(actions).accepts(outputs)
