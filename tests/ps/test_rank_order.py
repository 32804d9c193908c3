"""Consistent mode with real numbers: the number of shards and the order of arrival do not affect the bits."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import gradient_header
from support.protocol_model import LAYOUT, RUN
from support.stand_ins import received, stood_in

from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.wire import messages as m

Floats = npt.NDArray[np.float32]
WORKERS, COUNT, UPDATES = 4, 64, 50


def gradients() -> "dict[tuple[int, int], Floats]":
    """Gradients by version and rank. Their numbers differ so much in size that the order of a sum affects its bits."""
    chance = np.random.default_rng(3)
    return {
        (version, rank): (chance.standard_normal(COUNT) * 10.0 ** chance.integers(-4, 4, COUNT)).astype(np.float32)
        for version in range(UPDATES)
        for rank in range(WORKERS)
    }


GRADIENTS = gradients()


def trained(shards: int, order: Callable[[int, int], tuple[int, ...]], *, consistent: bool = True) -> Floats:
    """The weights after all updates if contributions arrive at each shard in ``order(version, shard)``."""
    slices = np.split(np.ones(COUNT, np.float32), shards)
    for shard, weights in enumerate(slices):
        identity = e.Identity(
            run=RUN, layout=LAYOUT, shard=shard, incarnation=1, codec="f32", payload_bytes={"f32": 1}, secret=""
        )
        machine = ShardMachine(identity, ShardTiming(), consistent=consistent)
        record = e.Record.handed_over(1, 0, e.View(1, WORKERS, tuple(range(WORKERS))))
        machine.handle(e.StateRestored(record, recovered=True), 0.0)
        for rank in range(WORKERS):
            hello = m.Hello(run=RUN, layout=LAYOUT, role="worker", rank=rank, incarnation=1, host="h", pid=1, secret="")
            machine.handle(e.ControlArrived(b"%d" % rank, hello), 0.0)
        cut = slice(shard * COUNT // shards, (shard + 1) * COUNT // shards)
        total = np.zeros_like(weights)
        for version in range(UPDATES):
            for rank in order(version, shard):
                header = gradient_header(run=RUN, layout=LAYOUT, shard=shard, version=version, rank=rank)
                event = e.GradientArrived(header, received(GRADIENTS[version, rank][cut]), 1, lambda: True)
                for action in machine.handle(event, 0.0):
                    if isinstance(action, e.Accumulate):
                        gradient: Floats = stood_in(np.ndarray, action.payload)
                        total = gradient.copy() if action.first else total + gradient
                    elif isinstance(action, e.Update):
                        weights -= np.float32(0.01) * (total / np.float32(action.record.quorum)) * weights
                        machine.handle(e.Updated(action.record), 0.0)
        assert machine.version == UPDATES
    return np.concatenate(slices)


IN_ORDER = trained(1, lambda _version, _shard: tuple(range(WORKERS)))


@pytest.mark.parametrize("shards", [1, 4])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_in_consistent_mode_shards_and_arrival_order_do_not_change_the_bits(shards: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    orders = list(itertools.permutations(range(WORKERS)))
    assert (
        trained(shards, lambda _version, _shard: orders[chance.integers(len(orders))]).tobytes() == IN_ORDER.tobytes()
    )


def test_without_consistent_mode_arrival_order_changes_the_bits() -> None:
    in_reverse = trained(1, lambda _version, _shard: tuple(reversed(range(WORKERS))), consistent=False)
    assert in_reverse.tobytes() != IN_ORDER.tobytes()
