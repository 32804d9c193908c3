"""Observations of Gymnasium's spaces, as networks read them: vectors or images. Each one must belong to its space."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeGuard

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from zmqrl.learner.games import with_bounds
from zmqrl.words import counted

NUMBERS = "biuf"  # the kinds of dtypes that hold real numbers
VALUE_SHOWN = 40  # characters
CHANNELS, LEAST_SIDE = (1, 3, 4), 8  # of images of floats

Vector: TypeAlias = npt.NDArray[np.float32]


class Unfit(Exception):
    """Why an observation does not belong to its space, or why zmqrl cannot read observations of that space."""


class Vectors:
    """Reads observations as vectors float32 (n,), in the layout of Gymnasium's ``flatten``: choices are one-hot."""

    dtype = np.dtype(np.float32)

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        """Raises Unfit if ``space`` has a part other than Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.

        Also raises Unfit if its observations have no numbers.
        """
        self._part = _part(space, "")
        if not self._part.size:
            raise Unfit(f"has {kind_of(space)} observations, which are empty")
        self.shape = (self._part.size,)

    def __call__(self, observation: Any) -> Vector:
        """The ``observation`` as a new vector.

        Raises Unfit if a number is not finite, changes when converted to the integers of its space, or is not among
        the choices of its space. The bounds of a Box do not matter.
        """
        vector = np.zeros(self.shape, np.float32)
        self._part.write(observation, vector)
        return vector

    def drawn(self, rng: np.random.Generator) -> Vector:
        """The vector of a random observation. A number that lacks a bound lies near the other one, or near 0.

        Whole numbers are never the lowest of several, because a mask of zeros would allow no action.
        """
        return self(self._part.drawn(rng))


class Images:
    """Reads images as uint8 (channels, height, width).

    An image is (height, width), (height, width, channels), (channels, height, width), or a stack of images with
    channels. It has fewer channels than rows and columns.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        """Raises Unfit if ``space`` does not have such images."""
        if not _is_image(space):
            uint8 = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (3, 4)
            needed = "fewer channels than rows and columns" if uint8 else "uint8 images"
            raise Unfit(f"has {kind_of(space)} observations: --envs.images needs {needed}")
        self._image = _numbers(space, "")
        self.shape = _channels_first(np.empty(space.shape, np.uint8)).shape

    def __call__(self, observation: Any) -> npt.NDArray[np.uint8]:
        """The ``observation`` as a new image. Raises Unfit unless all its numbers are whole and from 0 to 255."""
        return _channels_first(np.array(self._image.checked(observation)))  # the environment may reuse its array

    def drawn(self, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """A random image, within the bounds of the space."""
        return _channels_first(self._image.drawn(rng))


def flattened_images(space: gymnasium.Space[Any], keys: str = "") -> Iterator[str]:
    """The parts of ``space`` that could be images, such as ``observation['camera'] (Box uint8 (64, 64, 3))``.

    In :class:`Vectors`, neighbouring pixels are no longer neighbours.
    """
    parts: Mapping[Any, gymnasium.Space[Any]] = {}
    match space:
        case Dict():
            parts = space.spaces
        case Tuple():
            parts = dict(enumerate(space.spaces))
        case _ if _is_image(space) or _is_image_of_floats(space):
            yield f"observation{keys} ({kind_of(space)})"
    for key, part in parts.items():
        yield from flattened_images(part, f"{keys}[{key!r}]")


def _is_image(space: gymnasium.Space[Any]) -> TypeGuard[Box]:
    if not isinstance(space, Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) in (3, 4) and _channel_axis(space.shape) is not None)


def _channel_axis(shape: tuple[int, ...]) -> Literal[-3, -1] | None:
    """Which axis of an image, or of a stack, counts the channels: there must be fewer than rows and columns."""
    first, middle, last = shape[-3:]
    if last < min(first, middle):
        return -1
    return -3 if first < min(middle, last) else None


def _is_image_of_floats(space: gymnasium.Space[Any]) -> bool:
    """Whether floats probably are an image: 1, 3 or 4 channels first or last, and at least 8 x 8 pixels. Or a stack."""
    if not isinstance(space, Box) or space.dtype.kind != "f" or len(space.shape) not in (3, 4):
        return False
    first, middle, last = space.shape[-3:]
    return (last in CHANNELS and min(first, middle) >= LEAST_SIDE) or (
        first in CHANNELS and min(middle, last) >= LEAST_SIDE
    )


def kind_of(space: object) -> str:
    """A space in a few words, such as ``Box uint8 (64, 64, 3)``."""
    shape = f" {space.dtype} {space.shape}" if isinstance(space, Box) else ""
    return f"{type(space).__name__}{shape}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Array:
    """A part that is one array of numbers.

    Each number must fit ``dtype``, and lie within ``bounds`` (low, high), if given. With ``offsets``, numbers become
    one-hot: the vector is 1 at ``offsets`` plus the number. Otherwise, the vector gets the numbers themselves. Random
    numbers lie within ``usual`` (low, high), whose bounds can be missing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    usual: tuple[np.ndarray, np.ndarray]
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    offsets: np.ndarray | None = None

    def write(self, value: Any, vector: Vector) -> None:
        """Write ``value`` to ``vector``, which holds zeros."""
        numbers = self.checked(value).ravel()
        if self.offsets is None:
            vector[:] = numbers
        else:
            vector[self.offsets + numbers] = 1

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        usual = np.array([bound.ravel() for bound in self.usual], np.float64)
        low, high = with_bounds(usual) if self.bounds is None else usual
        numbers: np.ndarray = rng.uniform(low, high).reshape(self.shape)
        if self.dtype.kind != "f":
            numbers = np.ceil(numbers)
        return numbers.astype(self.dtype)

    def checked(self, value: Any) -> np.ndarray:
        """``value`` as an array of ``dtype``. Raises Unfit if it does not belong to the space."""
        try:
            given = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise Unfit(f"{self.name} is not an array: {str(error).partition('.')[0]}") from error
        if given.shape != self.shape:
            raise Unfit(f"{self.name} has shape {given.shape}, not {self.shape}")
        if given.dtype.kind not in NUMBERS:
            if self.shape:
                raise Unfit(f"{self.name} has dtype {given.dtype}, not {self.dtype}")
            raise Unfit(f"{self.name} is {value!r:.{VALUE_SHOWN}}, but must be {self._allowed(())}")
        numbers = given
        if given.dtype != self.dtype:
            with np.errstate(over="ignore", invalid="ignore"):  # the next lines detect both
                numbers = given.astype(self.dtype)
        if self.dtype.kind == "f":
            self._require(np.isfinite(numbers), given)
        elif numbers is not given:
            self._require(numbers == given, given)
        if self.bounds is not None:
            low, high = self.bounds
            self._require((low <= numbers) & (numbers <= high), given)
        return numbers

    def _require(self, fit: npt.NDArray[np.bool_], given: np.ndarray) -> None:
        if not fit.all():
            index = tuple(np.argwhere(~fit)[0].tolist())
            where = f"[{', '.join(map(str, index))}]" if index else ""
            raise Unfit(f"{self.name}{where} is {given[index]}, but must be {self._allowed(index)}")

    def _allowed(self, index: tuple[int, ...]) -> str:
        """The allowed numbers at ``index``, in words."""
        if self.dtype.kind == "f":
            return f"a finite {self.dtype} number"
        if self.bounds is not None:
            low, high = (bound[index] for bound in self.bounds)
        else:
            low, high = (0, 1) if self.dtype.kind == "b" else (np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
        return f"a whole number from {low} to {high}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Parts:
    """A Dict or a Tuple. ``parts``: by key or index, each part and its slice of the vector."""

    name: str
    is_dict: bool
    parts: dict[Any, tuple["_Array | _Parts", slice]]
    size: int

    def write(self, value: Any, vector: Vector) -> None:
        self._check(value)
        for key, (part, within) in self.parts.items():
            part.write(value[key], vector[within])

    def drawn(self, rng: np.random.Generator) -> Any:
        drawn = {key: part.drawn(rng) for key, (part, _) in self.parts.items()}
        return drawn if self.is_dict else tuple(drawn.values())

    def _check(self, value: Any) -> None:
        if not self.is_dict:
            if not isinstance(value, (tuple, list, np.ndarray)):
                raise Unfit(f"{self.name} is of type {type(value).__name__}, not tuple")
            if len(value) != len(self.parts):
                raise Unfit(f"{self.name} has {counted(len(value), 'part')}, not {len(self.parts)}")
        elif not isinstance(value, Mapping):
            raise Unfit(f"{self.name} is of type {type(value).__name__}, not dict")
        elif value.keys() != self.parts.keys():
            for key in self.parts:
                if key not in value:
                    raise Unfit(f"{self.name} lacks the key {key!r}")
            unknown = next(key for key in value if key not in self.parts)
            raise Unfit(f"{self.name} has the key {unknown!r:.{VALUE_SHOWN}}, which its space lacks")


def _part(space: gymnasium.Space[Any], keys: str) -> _Array | _Parts:
    """The part of an observation to which ``keys`` lead, such as ``['camera'][0]``."""
    match space:
        case Dict():
            return _parts(space.spaces, keys, is_dict=True)
        case Tuple():
            return _parts(dict(enumerate(space.spaces)), keys, is_dict=False)
        case Box():
            return _numbers(space, keys)
        case MultiBinary():
            return _whole(keys, np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64))
        case MultiDiscrete():
            return _choices(keys, space.start, space.nvec)
        case Discrete():
            return _choices(keys, np.asarray(space.start), np.asarray(space.n))
    raise Unfit(f"has {kind_of(space)} observations{keys}, which cannot be flattened")


def _parts(spaces: Mapping[Any, gymnasium.Space[Any]], keys: str, *, is_dict: bool) -> _Parts:
    parts, size = {}, 0
    for key, space in spaces.items():
        part = _part(space, f"{keys}[{key!r}]")
        parts[key] = part, slice(size, size + part.size)
        size += part.size
    return _Parts(name=f"observation{keys}", is_dict=is_dict, parts=parts, size=size)


def _numbers(space: Box, keys: str) -> _Array:
    """Numbers of a Box. Networks compute all floats in float32."""
    dtype: np.dtype[Any] = np.dtype(np.float32) if space.dtype.kind == "f" else space.dtype
    return _Array(
        name=f"observation{keys}",
        shape=space.shape,
        dtype=dtype,
        size=math.prod(space.shape),
        usual=(space.low, space.high),
    )


def _choices(keys: str, start: np.ndarray, counts: np.ndarray) -> _Array:
    """Choices, which become one-hot. Each is a whole number from ``start``, and has ``counts`` possible values."""
    low, counts = start.astype(np.int64), counts.astype(np.int64)
    offsets = np.cumsum(counts) - counts.ravel() - low.ravel()
    return replace(_whole(keys, low, low + counts - 1), size=int(counts.sum()), offsets=offsets)


def _whole(keys: str, low: np.ndarray, high: np.ndarray) -> _Array:
    return _Array(
        name=f"observation{keys}",
        shape=low.shape,
        dtype=np.dtype(np.int64),
        size=low.size,
        usual=(low, high),
        bounds=(low, high),
    )


def _channels_first(image: np.ndarray) -> np.ndarray:
    """``image`` as (channels, height, width)."""
    if image.ndim == 2:
        return image[np.newaxis]
    channels_first = np.moveaxis(image, -1, -3) if _channel_axis(image.shape) == -1 else image
    return channels_first.reshape(-1, *channels_first.shape[-2:])
