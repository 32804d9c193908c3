"""Observations of all spaces that networks can read: they become the vectors of Gymnasium, or are refused."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple
from gymnasium.spaces.utils import flatten, unflatten
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.learner.spaces.observations import Images, Unfit, Vectors, flattened_images

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
LEAVES: st.SearchStrategy[gymnasium.Space[Any]] = st.one_of(
    st.builds(Box, st.just(-2.0), st.just(3.0), SHAPES, st.sampled_from([np.float16, np.float32, np.float64])),
    st.builds(Box, st.just(0), st.just(9), SHAPES, st.sampled_from([np.uint8, np.int8, np.int64])),
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    st.builds(MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=4)),
    st.just(MultiDiscrete(np.array([[2, 3], [4, 1]]), start=np.array([[0, 7], [-2, 3]]))),
    st.builds(MultiBinary, st.lists(st.integers(1, 3), min_size=1, max_size=2)),
)
SPACES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(Tuple),
        st.dictionaries(st.sampled_from("abc"), parts, min_size=1).map(Dict),
    ),
    max_leaves=5,
)


def changed(value: Any, change: Any) -> Any:
    """The observation ``value`` with a change in each of its arrays."""
    if isinstance(value, dict):
        return {key: changed(part, change) for key, part in value.items()}
    return [changed(part, change) for part in value] if isinstance(value, tuple) else change(np.asarray(value))


@given(SPACES, st.integers(0, 2**31 - 1))
def test_every_observation_of_a_space_becomes_the_vector_of_gymnasium(space: Any, seed: int) -> None:
    space.seed(seed)
    read, observation = Vectors(space), space.sample()
    expected = np.asarray(flatten(space, observation)).astype(np.float32)
    assert read.shape == expected.shape
    for change in (lambda array: array, lambda array: array.astype(np.float64), np.ndarray.tolist):
        vector = read(changed(observation, change))
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, expected)


@given(SPACES, st.integers(0, 2**31 - 1), st.sampled_from([np.nan, np.inf, -np.inf, 1e39]))
def test_a_number_that_is_not_finite_belongs_to_no_space(space: Any, seed: int, wrong: float) -> None:
    space.seed(seed)
    read, observation = Vectors(space), space.sample()
    with pytest.raises(Unfit, match=r"^observation.* is (nan|inf|-inf|1e\+39), but must be a (finite|whole) "):
        read(changed(observation, lambda array: np.full(array.shape, wrong)))


def test_a_vector_does_not_change_with_the_array_of_the_environment() -> None:
    own = np.ones(2, np.float32)
    vector = Vectors(Box(-1, 1, (2,)))(own)
    image_space = Box(0, 255, (2, 4, 3), np.uint8)
    frame = np.ones((2, 4, 3), np.uint8)
    image = Images(image_space)(frame)
    own[:], frame[:] = 5, 5
    assert vector.tolist() == [1, 1]
    assert image.max() == 1


@given(SPACES, st.integers(0, 2**31 - 1))
def test_a_random_vector_is_that_of_an_observation_of_the_space(space: Any, seed: int) -> None:
    read = Vectors(space)
    vector, again = (read.drawn(np.random.default_rng(seed)) for _ in range(2))
    assert vector.shape == read.shape
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, again)
    assert space.contains(unflatten(space, vector))


def test_random_numbers_are_finite_and_small_where_a_box_has_no_bounds() -> None:
    largest = float(np.finfo(np.float32).max)
    low, high = np.array([-np.inf, 5.0, -np.inf, -largest]), np.array([np.inf, np.inf, 3.0, largest])
    for dtype in (np.float32, np.float64):
        read = Vectors(Box(low.astype(dtype), high.astype(dtype), dtype=dtype))
        with np.errstate(all="raise"):
            vector = read.drawn(np.random.default_rng(0))
        assert (np.array([-1, 5, 1, -1]) <= vector).all()
        assert (vector <= np.array([1, 7, 3, 1])).all()
    whole = np.iinfo(np.int64)
    vector = Vectors(Box(whole.min, whole.max, (9,), np.int64)).drawn(np.random.default_rng(0))
    assert set(vector.tolist()) <= {0, 1}


def test_a_random_mask_allows_every_action() -> None:
    space = Dict({"mask": Box(0, 1, (9,), np.int8), "flags": MultiBinary(9)})
    assert Vectors(space).drawn(np.random.default_rng(0)).tolist() == [1] * 18


def test_a_random_image_is_within_the_bounds_of_its_space() -> None:
    image = Images(Box(2, 6, (40, 30, 3), np.uint8)).drawn(np.random.default_rng(0))
    assert image.shape == (3, 40, 30)
    assert image.dtype == np.uint8
    assert set(image.ravel().tolist()) == {3, 4, 5, 6}


BYTES = Box(0, 255, (2,), np.uint8)
NESTED = Dict({"a": Discrete(3), "b": Tuple((Box(-1, 1, (1,)), MultiBinary(2)))})


@pytest.mark.parametrize(
    ("space", "observation", "why"),
    [
        (Box(-1, 1, (2,)), [[1], [2, 3]], "observation is not an array: setting an array element with a sequence"),
        (Box(-1, 1, (2,)), ["1", "2"], "observation has dtype <U1, not float32"),
        (Box(-1, 1, (2,)), [1.0, None], "observation has dtype object, not float32"),
        (Box(-1, 1, (2,)), np.zeros((2, 1)), "observation has shape (2, 1), not (2,)"),
        (Box(-1, 1, ()), None, "observation is None, but must be a finite float32 number"),
        (BYTES, [1, 256], "observation[1] is 256, but must be a whole number from 0 to 255"),
        (BYTES, [-1, 0], "observation[0] is -1, but must be a whole number from 0 to 255"),
        (BYTES, [0.0, 0.5], "observation[1] is 0.5, but must be a whole number from 0 to 255"),
        (BYTES, [0.0, np.nan], "observation[1] is nan, but must be a whole number from 0 to 255"),
        (Box(0, 1, (1,), np.bool_), [2], "observation[0] is 2, but must be a whole number from 0 to 1"),  # type: ignore[arg-type]
        (Discrete(4, start=-1), 3, "observation is 3, but must be a whole number from -1 to 2"),
        (Discrete(4), -1, "observation is -1, but must be a whole number from 0 to 3"),
        (Discrete(4), 1.5, "observation is 1.5, but must be a whole number from 0 to 3"),
        (Discrete(4), 2**70, "observation is 1180591620717411303424, but must be a whole number from 0 to 3"),
        (
            Discrete(4),
            np.uint64(2**64 - 1),
            "observation is 18446744073709551615, but must be a whole number from 0 to 3",
        ),
        (Discrete(4), np.array([1]), "observation has shape (1,), not ()"),
        (MultiDiscrete([2, 3], start=[0, 4]), [1, 7], "observation[1] is 7, but must be a whole number from 4 to 6"),
        (MultiDiscrete([2, 3]), [-1, 0], "observation[0] is -1, but must be a whole number from 0 to 1"),
        (MultiDiscrete([2, 3]), [1], "observation has shape (1,), not (2,)"),
        (MultiBinary(2), [1, 2], "observation[1] is 2, but must be a whole number from 0 to 1"),
        (NESTED, {"a": 3, "b": ([0.5], [0, 1])}, "observation['a'] is 3, but must be a whole number from 0 to 2"),
        (NESTED, {"a": 1, "b": ([0.5], [0, 2])}, "observation['b'][1][1] is 2, but must be a whole number from 0 to 1"),
        (NESTED, {"a": 1, "b": ([0.5],)}, "observation['b'] has 1 part, not 2"),
        (NESTED, {"a": 1, "b": 2}, "observation['b'] is of type int, not tuple"),
        (NESTED, {"a": 1}, "observation lacks the key 'b'"),
        (NESTED, {"a": 1, "b": ([0.5], [0, 1]), "c": 1}, "observation has the key 'c', which its space lacks"),
        (NESTED, [1, 2], "observation is of type list, not dict"),
    ],
)
def test_an_observation_that_does_not_belong_to_its_space_is_refused(space: Any, observation: Any, why: str) -> None:
    with pytest.raises(Unfit) as refused:
        Vectors(space)(observation)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    ("space", "observation", "vector"),
    [
        (Box(-1, 1, (2,)), [7, -7], [7, -7]),
        (BYTES, [0.0, 255.0], [0, 255]),
        (BYTES, [True, False], [1, 0]),
        (Box(0, 9, (1,), np.int64), [50], [50]),
        (Discrete(3), 1.0, [0, 1, 0]),
        (Discrete(2), True, [0, 1]),
        (Discrete(2), np.array(1, np.uint8), [0, 1]),
        (MultiDiscrete([2, 2]), np.array([1.0, 0.0]), [0, 1, 1, 0]),
        (MultiBinary(2), [True, False], [1, 0]),
    ],
)
def test_another_dtype_is_accepted_if_no_number_changes_and_the_bounds_of_a_box_do_not_matter(
    space: Any, observation: Any, vector: list[float]
) -> None:
    assert Vectors(space)(observation).tolist() == vector


@pytest.mark.parametrize("part", [Text(3), Sequence(Discrete(2)), OneOf((Discrete(2), Discrete(3)))])
def test_a_space_that_cannot_be_flattened_is_named_with_its_place(part: Any) -> None:
    kind = type(part).__name__
    for space, place in ((part, ""), (Dict({"a": Discrete(2), "b": Tuple((part,))}), "['b'][0]")):
        with pytest.raises(Unfit) as refused:
            Vectors(space)
        assert str(refused.value) == f"has {kind} observations{place}, which cannot be flattened"


def test_the_images_in_a_space_are_found() -> None:
    camera, small = Box(0, 255, (64, 48, 3), np.uint8), Box(0, 255, (8, 8), np.uint8)
    assert list(flattened_images(camera)) == ["observation (Box uint8 (64, 48, 3))"]
    found = flattened_images(Dict({"eyes": Tuple([camera, Discrete(3)]), "goal": Box(-1.0, 1.0, (2,)), "map": small}))
    assert list(found) == ["observation['eyes'][0] (Box uint8 (64, 48, 3))", "observation['map'] (Box uint8 (8, 8))"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "is_image"),
    [
        ((40, 52, 3), True),
        ((1, 8, 8), True),
        ((2, 40, 52, 4), True),
        ((4, 3, 40, 52), True),
        ((40, 52), False),
        ((40, 1), False),
        ((3, 7, 40), False),
        ((40, 52, 2), False),
        ((3, 3, 3), False),
    ],
)
def test_floats_are_an_image_if_their_shape_is_that_of_one(shape: tuple[int, ...], is_image: bool, dtype: Any) -> None:
    space = Box(0.0, 1.0, shape, dtype)
    assert list(flattened_images(space)) == [f"observation (Box {np.dtype(dtype)} {shape})"] * is_image
    with pytest.raises(Unfit, match="needs uint8 images"):
        Images(space)


@given(SPACES)
def test_each_image_in_a_space_can_be_read_as_an_image(space: gymnasium.Space[Any]) -> None:
    is_image = isinstance(space, Box) and bool(list(flattened_images(space)))
    if is_image:
        Images(space)
    else:
        with pytest.raises(Unfit):
            Images(space)
