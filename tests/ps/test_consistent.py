"""Consistent mode: the parameters depend only on the contributions, not on their order or the number of shards."""

from pathlib import Path

import numpy as np
import pytest
from support.rig import flat_layout, served, start_vector, toy_workers

from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.ps.worker.connection import PulledWeights

pytestmark = pytest.mark.processes

COUNT = 5000
WORKERS = 4
UPDATES = 50
ADAM = OptimizerConfig(name="adam", learning_rate=0.01)


def numbers_of(rank: int, version: int) -> FloatVector:
    """Numbers of very different sizes, so that the order of summation affects the bits."""
    random = np.random.default_rng([rank, version])
    return random.standard_normal(COUNT, np.float32) * np.float32(10.0 ** random.integers(-3, 4))


def gradient(rank: int, weights: PulledWeights) -> FloatVector:
    """A gradient that depends on the weights, like a real one, so that one wrong bit spreads."""
    return numbers_of(rank, weights.version) - weights.vector


def trained(directory: Path, shards: int, seed: int) -> FloatVector:
    def pause_s(rank: int, version: int) -> float:
        return 0.012 * float(np.random.default_rng([seed, rank, version]).random())

    options = {"workers": WORKERS, "consistent": True, "optimizer": ADAM, "layout": flat_layout(COUNT, shards)}
    with served(directory, **options) as running:  # type: ignore[arg-type]
        running.stop_at(UPDATES)
        with toy_workers([running.cluster] * WORKERS, gradient=gradient, pause_s=pause_s):
            pass
        for shard in running.all:
            assert [line["ranks"] for line in running.history(shard)] == [list(range(WORKERS))] * UPDATES
        return running.end_with(UPDATES)


def summed_alone(start: FloatVector) -> FloatVector:
    """The weights after the same training in rank order, without a server: float32 (COUNT,)."""
    optimizer = Optimizer(ADAM)
    weights, state = start.copy(), {name: np.zeros(COUNT, np.float32) for name in optimizer.state_names}
    for version in range(UPDATES):
        total = np.zeros(COUNT, np.float32)
        for rank in range(WORKERS):
            total += numbers_of(rank, version) - weights
        new_weights, new_state = np.empty_like(weights), {k: np.empty_like(v) for k, v in state.items()}
        optimizer.step(version, total, WORKERS, weights, state, new_weights, new_state)
        weights, state = new_weights, new_state
    return weights


def test_any_number_of_shards_and_any_arrival_order_give_the_same_bits_as_rank_order(tmp_path: Path) -> None:
    expected = summed_alone(start_vector(COUNT))
    for shards in (1, 4):
        vector = trained(tmp_path / str(shards), shards, seed=shards)
        np.testing.assert_array_equal(vector.view(np.uint32), expected.view(np.uint32))
