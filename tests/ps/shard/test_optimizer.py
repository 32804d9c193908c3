"""Updates of a slice match torch.optim, give the same bits for every cut, and depend only on their arguments."""

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.gradients import GradientSum, ReceivedSlice
from zmqrl.ps.shard.optimizer import BLOCK, Optimizer, OptimizerConfig
from zmqrl.ps.wire.codec import FloatVector

RATE = 3e-3
CASES: dict[str, tuple[OptimizerConfig, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {
    "adam": (
        OptimizerConfig(learning_rate=RATE),
        lambda w: torch.optim.Adam(w, RATE, foreach=False),
    ),
    "adam, RL epsilon, other betas, decay": (
        OptimizerConfig(learning_rate=RATE, epsilon=1e-5, beta1=0.5, beta2=0.95, weight_decay=0.01),
        lambda w: torch.optim.Adam(w, RATE, eps=1e-5, betas=(0.5, 0.95), weight_decay=0.01, foreach=False),
    ),
    "rmsprop": (
        OptimizerConfig(name="rmsprop", learning_rate=RATE, epsilon=1e-5),
        lambda w: torch.optim.RMSprop(w, RATE, eps=1e-5, foreach=False),
    ),
    "rmsprop, momentum, decay": (
        OptimizerConfig(name="rmsprop", learning_rate=RATE, alpha=0.9, momentum=0.8, weight_decay=0.01),
        lambda w: torch.optim.RMSprop(w, RATE, alpha=0.9, momentum=0.8, weight_decay=0.01, foreach=False),
    ),
    "sgd": (
        OptimizerConfig(name="sgd", learning_rate=RATE),
        lambda w: torch.optim.SGD(w, RATE, foreach=False),
    ),
    "sgd, momentum, decay": (
        OptimizerConfig(name="sgd", learning_rate=RATE, momentum=0.9, weight_decay=0.01),
        lambda w: torch.optim.SGD(w, RATE, momentum=0.9, weight_decay=0.01, foreach=False),
    ),
}
CONFIGS = {name: config for name, (config, _) in CASES.items()}


def normal(seed: int, count: int) -> FloatVector:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def steps(
    config: OptimizerConfig, weights: FloatVector, gradient_sums: Iterable[FloatVector], count: int
) -> tuple[FloatVector, dict[str, FloatVector]]:
    """The weights and state after one update per sum, starting at version 0."""
    optimizer = Optimizer(config)
    state = {name: np.zeros_like(weights) for name in optimizer.state_names}
    for version, gradient_sum in enumerate(gradient_sums):
        new_weights = np.full_like(weights, np.nan)
        new_state = {name: np.full_like(weights, np.nan) for name in optimizer.state_names}
        optimizer.step(version, gradient_sum, count, weights, state, new_weights, new_state)
        weights, state = new_weights, new_state
    return weights, state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 3, 64])
def test_fifty_updates_match_torch(case: str, count: int) -> None:
    config, make = CASES[case]
    size = BLOCK + 1000
    scale = np.geomspace(1e-8, 1e3, size, dtype=np.float32)
    sums = [normal(seed, size) * scale * count for seed in range(50)]
    start = normal(100, size)
    ours, state = steps(config, start, sums, count)

    theirs = torch.from_numpy(start.copy()).requires_grad_()
    reference = make([theirs])
    expected = theirs.detach().numpy()
    largest = np.abs(start)
    for gradient_sum in sums:
        theirs.grad = torch.from_numpy(gradient_sum / np.float32(count))
        reference.step()
        largest = np.maximum(largest, np.abs(expected))
    # Half a unit in the last place for each of the two results and each step, and the same amount for the sums.
    assert (np.abs(ours - expected) <= 2 * len(sums) * 2.0**-23 * largest).all()
    for name in Optimizer(config).state_names:
        tensor = reference.state[theirs][name].numpy()
        # Entries near zero are differences of larger numbers.
        np.testing.assert_allclose(state[name] / (tensor.std() + scale), tensor / (tensor.std() + scale), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    size=st.integers(64, 300),
    cuts=st.sets(st.integers(1, 299), max_size=63),
    count=st.integers(1, 64),
    seed=st.integers(0, 1000),
)
def test_any_cut_into_slices_gives_the_same_bits(case: str, size: int, cuts: set[int], count: int, seed: int) -> None:
    start, sums = normal(seed, size), [normal(seed + i, size) for i in range(1, 4)]
    whole, whole_state = steps(CONFIGS[case], start, sums, count)
    edges = [0, *sorted(cut for cut in cuts if cut < size), size]
    for a, b in itertools.pairwise(edges):
        part, part_state = steps(CONFIGS[case], start[a:b], [g[a:b] for g in sums], count)
        assert part.tobytes() == whole[a:b].tobytes()
        for name, array in part_state.items():
            assert array.tobytes() == whole_state[name][a:b].tobytes()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [2, 7, 64])
def test_the_slices_of_a_layout_give_the_same_bits_across_block_borders(case: str, shards: int) -> None:
    size = 3 * BLOCK + 17
    start, sums = normal(0, size), [normal(i, size) for i in (1, 2)]
    whole, _ = steps(CONFIGS[case], start, sums, 3)
    parts = [
        steps(CONFIGS[case], start[s.start : s.stop], [g[s.start : s.stop] for g in sums], 3)[0]
        for s in Layout.of([("w", [size])], shards).slices
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_change_its_inputs_and_can_be_repeated(case: str) -> None:
    optimizer = Optimizer(CONFIGS[case])
    weights, gradient_sum = normal(0, 1000), normal(1, 1000)
    state = {name: np.abs(normal(2, 1000)) for name in optimizer.state_names}
    inputs = [weights, gradient_sum, *state.values()]
    for array in inputs:
        array.flags.writeable = False
    results = []
    for another in (optimizer, Optimizer(CONFIGS[case])):
        new_weights = np.empty_like(weights)
        new_state = {name: np.empty_like(weights) for name in state}
        another.step(1234, gradient_sum, 2, weights, state, new_weights, new_state)
        results.append([new_weights.tobytes(), *(array.tobytes() for array in new_state.values())])
    assert results[0] == results[1]


def test_the_first_momentum_step_puts_the_gradient_into_the_buffer() -> None:
    optimizer = Optimizer(OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.9))
    zeros, new, buffer = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
    optimizer.step(0, np.full(3, 4, np.float32), 2, zeros, {"momentum_buffer": zeros}, new, {"momentum_buffer": buffer})
    np.testing.assert_array_equal(buffer, 2.0)
    np.testing.assert_array_equal(new, -2.0)


def test_a_huge_gradient_causes_no_warning_and_stays_finite_in_adam() -> None:
    with np.errstate(all="raise"):
        weights, _ = steps(OptimizerConfig(learning_rate=RATE), np.zeros(8, np.float32), [np.full(8, 1e25, "f4")], 1)
    assert np.isfinite(weights).all()


def test_a_rate_without_a_schedule_is_constant() -> None:
    optimizer = Optimizer(OptimizerConfig(learning_rate=0.1))
    assert [optimizer.learning_rate(version, 0.0) for version in (0, 1, 10**6)] == [0.1, 0.1, 0.1]


def test_a_rate_without_a_number_of_updates_follows_the_progress_of_the_run() -> None:
    optimizer = Optimizer(OptimizerConfig(learning_rate=1.0, final_learning_rate=0.5))
    assert [optimizer.learning_rate(7, elapsed) for elapsed in (0.0, 0.25, 1.0, 1.5)] == [1.0, 0.875, 0.5, 0.5]
    counting = Optimizer(OptimizerConfig(learning_rate=1.0, final_learning_rate=0.5, schedule_updates=4))
    assert counting.learning_rate(2, 1.0) == 0.75


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_a_step_uses_the_learning_rate_of_its_progress(name: Any) -> None:
    falling = OptimizerConfig(name=name, learning_rate=0.5, final_learning_rate=0.1)
    constant = OptimizerConfig(name=name, learning_rate=Optimizer(falling).learning_rate(3, 0.75))
    found = []
    for config, elapsed in ((falling, 0.75), (constant, 0.0)):
        optimizer, weights, gradient = Optimizer(config), np.ones(5, np.float32), np.full(5, 2.0, np.float32)
        state = {key: np.full(5, 0.25, np.float32) for key in optimizer.state_names}
        new_weights, new_state = np.empty_like(weights), {key: np.empty_like(value) for key, value in state.items()}
        assert optimizer.step(3, gradient, 1, weights, state, new_weights, new_state, elapsed=elapsed)
        found.append(new_weights)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_scheduled_rate_falls_linearly_and_then_stays_constant() -> None:
    optimizer = Optimizer(OptimizerConfig(learning_rate=1.0, final_learning_rate=0.5, schedule_updates=4))
    assert [optimizer.learning_rate(version, 0.0) for version in range(7)] == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]


def test_a_rate_can_fall_to_exactly_zero() -> None:
    config = OptimizerConfig(learning_rate=3e-4, final_learning_rate=0.0, schedule_updates=3)
    start = normal(0, 10)
    three, _ = steps(config, start, [normal(1, 10)] * 3, 1)
    five, _ = steps(config, start, [normal(1, 10)] * 5, 1)
    assert (three != start).all()
    assert five.tobytes() == three.tobytes()


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("adam", ("exp_avg", "exp_avg_sq")),
        ("rmsprop", ("square_avg",)),
        ("rmsprop, momentum, decay", ("square_avg", "momentum_buffer")),
        ("sgd", ()),
        ("sgd, momentum, decay", ("momentum_buffer",)),
    ],
)
def test_optimizer_state_has_the_names_used_by_torch(case: str, names: tuple[str, ...]) -> None:
    assert Optimizer(CONFIGS[case]).state_names == names


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"learning_rate": 1e39},
        {"weight_decay": 1e39},
        {"epsilon": 1e39},
        {"final_learning_rate": 1e39, "schedule_updates": 5},
        {"final_learning_rate": float("inf"), "schedule_updates": 5},
        {"schedule_updates": 5},
        {"schedule_updates": -5, "final_learning_rate": 0.0},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"alpha": 1.5},
        {"momentum": 1.0},
        {"epsilon": -1e-8},
        {"weight_decay": -0.1},
    ],
)
def test_an_error_about_an_invalid_value_names_its_option(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(UsageError, match=re.escape(f"--optimizer.{name.replace('_', '-')} {value}")):
        OptimizerConfig(**{"learning_rate": RATE, **wrong})


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_weights_without_gradients_stay_finite_only_if_epsilon_is_above_zero(name: Any) -> None:
    start, sums = normal(0, 5), [np.zeros(5, np.float32)]
    np.testing.assert_array_equal(steps(OptimizerConfig(name=name, learning_rate=RATE), start, sums, 1)[0], start)
    zero = OptimizerConfig(name=name, learning_rate=RATE, epsilon=0.0)
    with np.errstate(invalid="ignore"):
        assert np.isnan(steps(zero, start, sums, 1)[0]).all()
    for epsilon in (0.0, 1e-50):
        config = OptimizerConfig(name=name, learning_rate=RATE, epsilon=epsilon)
        text = rf"^--optimizer\.epsilon {epsilon}: must be above 0 as float32, because {name} would divide"
        with pytest.raises(UsageError, match=text):
            config.check()


@settings(max_examples=200)
@given(
    case=st.sampled_from(sorted(CASES)),
    size=st.sampled_from([1, 7, BLOCK + 5]),
    exponent=st.integers(-45, 38),
    weight=st.sampled_from([0.0, 1.0, -3e38]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_a_step_reports_whether_its_result_is_finite(
    case: str, size: int, exponent: int, weight: float, place: float
) -> None:
    optimizer = Optimizer(CONFIGS[case])
    weights, gradient = normal(1, size), normal(2, size)
    gradient[int(place * size)] = 3 * 10.0**exponent
    weights[int(place * size)] = weight
    state = {name: np.zeros_like(weights) for name in optimizer.state_names}
    new_weights, new_state = np.empty_like(weights), {name: np.empty_like(weights) for name in state}
    finite = optimizer.step(7, gradient, 1, weights, state, new_weights, new_state)
    assert finite == all(np.isfinite(array).all() for array in (new_weights, *new_state.values()))


def test_each_optimizer_detects_overflow() -> None:
    for case, config in CONFIGS.items():
        optimizer = Optimizer(config)
        weights = np.full(3, 3.4e38, np.float32)
        state = {name: np.zeros_like(weights) for name in optimizer.state_names}
        new = {name: np.empty_like(weights) for name in state}
        rate = OptimizerConfig(name=config.name, learning_rate=1e30, momentum=config.momentum)
        assert not Optimizer(rate).step(0, -weights, 1, weights, state, np.empty_like(weights), new), case


def test_a_rate_that_overflows_only_in_float32_is_detected() -> None:
    optimizer = Optimizer(OptimizerConfig(name="adam", learning_rate=3e38, beta1=0.999999))
    weights = normal(0, 3)
    state = {name: np.zeros_like(weights) for name in optimizer.state_names}
    new = {name: np.empty_like(weights) for name in state}
    assert not optimizer.step(0, np.ones_like(weights), 1, weights, state, np.empty_like(weights), new)


@pytest.mark.parametrize("size", [1, 1000])
def test_accumulating_reports_whether_the_sum_is_finite(size: int) -> None:
    large, small = np.full(size, 3e38, np.float32), np.ones(size, np.float32)
    total = GradientSum(size)
    for numbers, finite in (((large,), True), ((large, small), True), ((large, large), False), ((small, small), True)):
        for i, each in enumerate(numbers):
            total.add(ReceivedSlice("f32", each.data), first=i == 0)
        assert total.is_finite() == finite


@pytest.mark.parametrize("others", [0, 1])
def test_what_a_worker_writes_later_changes_neither_the_sum_nor_a_kept_slice(others: int) -> None:
    memory, total = np.ones(8, np.float32), GradientSum(8)
    for i in range(others + 1):
        total.add(ReceivedSlice("f32", memory.data, is_shared=True), first=i == 0)
    kept = ReceivedSlice("f32", memory.data, is_shared=True)
    kept.keep()
    memory[:] = 7
    np.testing.assert_array_equal(total.value, np.full(8, others + 1))
    np.testing.assert_array_equal(kept.numbers, np.ones(8))
    assert total.is_finite()


@pytest.mark.parametrize("bad", [0, 1])
def test_numbers_that_a_worker_changes_after_the_check_are_noticed_in_the_sum(bad: int) -> None:
    memory, total = [np.ones(8, np.float32) for _ in range(2)], GradientSum(8)
    slices = [ReceivedSlice("f32", each.data, is_shared=True) for each in memory]
    assert all(each.is_finite() for each in slices)
    memory[bad][3] = np.nan
    for i, each in enumerate(slices):
        total.add(each, first=i == 0)
    assert not total.is_finite()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_averaged_elements_become_the_mean_of_what_the_workers_reached(config: OptimizerConfig) -> None:
    """This is true for every optimizer, even if the square of a gradient overflows."""
    part, weights, workers = slice(3, 7), normal(0, 12), 4
    reached = [normal(rank + 1, 12) * np.float32(1e25) for rank in range(workers)]
    optimizer, plain = Optimizer(config, [part]), Optimizer(config)
    gradient_sum = np.stack([weights - each for each in reached]).sum(0)
    gradient_sum[:3], gradient_sum[7:] = 0.25, -0.5
    state = {name: np.zeros_like(weights) for name in optimizer.state_names}
    results = []
    for each in (optimizer, plain):
        new_weights, new_state = np.empty_like(weights), {name: np.empty_like(weights) for name in state}
        finite = each.step(3, gradient_sum, workers, weights, state, new_weights, new_state)
        results.append((finite, new_weights, new_state))
    (finite, ours, our_state), (_, others, other_state) = results
    assert finite
    np.testing.assert_allclose(ours[part], np.mean(reached, axis=0)[part], rtol=1e-5)
    rest = [*range(3), *range(7, 12)]
    np.testing.assert_array_equal(ours[rest], others[rest])
    for name in state:
        assert not our_state[name][part].any()
        np.testing.assert_array_equal(our_state[name][rest], other_state[name][rest])
