"""The percentile bootstrap of a mean score (Efron and Tibshirani 1993, chapter 13), with a fixed seed. Pure."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 10_000
AT_ONCE: Final = 1_000_000  # scores that are drawn at a time, to limit the memory


def mean_interval(scores: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of ``scores``, as [low, high]."""
    return _interval(_resampled_means(scores, np.random.default_rng(0)))


def difference_interval(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of ``scores`` minus the mean of ``others``, as [low, high]."""
    rng = np.random.default_rng(0)
    return _interval(_resampled_means(scores, rng) - _resampled_means(others, rng))


def _resampled_means(scores: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
    known = np.asarray(scores, dtype=np.float64)
    rows = max(1, AT_ONCE // len(known))
    counts = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([rng.choice(known, (count, len(known))).mean(axis=1) for count in counts])


def _interval(means: NDArray[np.float64]) -> list[float]:
    found: list[float] = np.percentile(means, [2.5, 97.5]).tolist()
    return found
