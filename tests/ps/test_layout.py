"""The cut of the parameter vector into slices, and the hash that shows whether two processes agree on it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.ps.layout import ALIGNMENT, MAX_COUNT, MAX_SHARDS, Layout

TENSORS = [("conv.weight", (16, 4, 8, 8)), ("conv.bias", (16,)), ("head.weight", (6, 256))]

tensors = st.lists(
    st.tuples(st.text(max_size=8), st.lists(st.integers(0, 40), max_size=4)), min_size=1, max_size=6
).filter(lambda named: Layout(tuple((n, tuple(s)) for n, s in named), 1).count > 0)


@given(tensors, st.integers(1, MAX_SHARDS))
def test_slices_are_aligned_and_similar_in_size_and_cover_the_vector(
    named: list[tuple[str, list[int]]], n: int
) -> None:
    shards = min(n, Layout.of(named, 1).blocks)
    layout = Layout.of(named, shards)
    slices = layout.slices
    assert [cut.shard for cut in slices] == list(range(shards))
    assert [cut.start for cut in slices] == [0, *(cut.stop for cut in slices[:-1])]
    assert slices[-1].stop == layout.count
    assert all(cut.start % ALIGNMENT == 0 for cut in slices)
    counts = [cut.count for cut in slices]
    assert min(counts) >= 1
    assert 4 * (max(counts) - min(counts)) <= 64


@pytest.mark.parametrize("count", [1024, 1025, 1039, 1040, 684_295])
def test_any_number_of_shards_gives_slices_similar_in_size(count: int) -> None:
    for shards in range(1, MAX_SHARDS + 1):
        counts = [cut.count for cut in Layout.of([("w", (count,))], shards).slices]
        assert sum(counts) == count, shards
        assert 4 * (max(counts) - min(counts)) <= 64, shards


def test_a_shard_has_at_least_one_block() -> None:
    assert [cut.count for cut in Layout.of([("w", (17,))], 2).slices] == [16, 1]
    with pytest.raises(UsageError, match="use at most 2"):
        Layout.of([("w", (17,))], 3)


@pytest.mark.parametrize("shards", [-1, 0, MAX_SHARDS + 1])
def test_the_number_of_shards_has_limits(shards: int) -> None:
    with pytest.raises(UsageError, match="must be from 1 to 64"):
        Layout.of([("w", (100_000,))], shards)


@pytest.mark.parametrize("named", [[], [("w", (0,))], [("w", (3, 0, 5))]])
def test_an_empty_parameter_vector_cannot_be_cut(named: list[tuple[str, tuple[int, ...]]]) -> None:
    with pytest.raises(UsageError):
        Layout.of(named, 1)


def test_a_tensor_with_a_negative_length_is_refused() -> None:
    with pytest.raises(UsageError):
        Layout.of([("w", (-16, -16))], 1)


def test_a_tensor_without_dimensions_is_one_parameter() -> None:
    assert Layout.of([("log_std", ()), ("w", (3,))], 1).count == 4


def test_the_hash_changes_with_names_shapes_order_and_cuts() -> None:
    hashes = {
        Layout.of(TENSORS, 1).hash,
        Layout.of(TENSORS, 2).hash,
        Layout.of(TENSORS, 3).hash,
        Layout.of(TENSORS[::-1], 1).hash,
        Layout.of([("conv.w", (16, 4, 8, 8)), *TENSORS[1:]], 1).hash,
        Layout.of([("conv.weight", (16, 4, 64)), *TENSORS[1:]], 1).hash,
        Layout.of([*TENSORS, ("empty", (0,))], 1).hash,
    }
    assert len(hashes) == 7
    assert all(len(h) == 16 and set(h) <= set("0123456789abcdef") for h in hashes)


def test_the_hash_matches_other_implementations() -> None:
    assert Layout.of([("w", (4, 8)), ("ä", (1,))], 2).hash == "1f4f2031cc228836"


@given(tensors, st.integers(1, 4))
def test_a_layout_survives_json(named: list[tuple[str, list[int]]], n: int) -> None:
    layout = Layout.of(named, min(n, Layout.of(named, 1).blocks))
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize("key", ["tensors", "shards", "hash"])
def test_a_layout_that_contradicts_its_hash_is_refused(key: str) -> None:
    wrong = {"tensors": [["w", [64]]], "shards": 3, "hash": "0" * 16}
    with pytest.raises(UsageError):
        Layout.from_json(Layout.of(TENSORS, 2).to_json() | {key: wrong[key]})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"tensors": anything, "shards": anything, "hash": anything}) | anything)
def test_an_unreadable_layout_is_a_usage_error(data: Any) -> None:
    with pytest.raises(UsageError):
        Layout.from_json(data)


@pytest.mark.parametrize("length", [float("inf"), float("nan"), "x", None, [2], 1e300])
def test_an_unreadable_shape_is_a_usage_error(length: Any) -> None:
    with pytest.raises(UsageError):
        Layout.from_json({"tensors": [["w", [length] * 20]], "shards": 2, "hash": ""})


def test_there_is_a_limit_of_the_number_of_parameters() -> None:
    assert Layout.of([("w", (MAX_COUNT,))], 1).count == MAX_COUNT
    with pytest.raises(UsageError, match="there are more than"):
        Layout.of([("w", (MAX_COUNT + 1,))], 1)


@given(
    lengths=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), min_size=1, max_size=8),
    shards=st.integers(1, 4),
)
def test_every_element_of_a_running_statistic_is_averaged_on_its_shard(
    lengths: list[tuple[bool, int]], shards: int
) -> None:
    named = [
        (f"{'running_statistics.' if averaged else 'w.running_'}{i}", (n,)) for i, (averaged, n) in enumerate(lengths)
    ]
    count = sum(n for _, n in lengths)
    assume(-(-count // ALIGNMENT) >= shards)
    layout = Layout.of(named, shards)
    whole = []
    for cut in layout.slices:
        marked = np.zeros(cut.count, bool)
        for part in layout.averaged(cut.shard):
            marked[part] = True
        whole.append(marked)
    expected = [averaged for averaged, n in lengths for _ in range(n)]
    assert np.concatenate(whole).tolist() == expected
