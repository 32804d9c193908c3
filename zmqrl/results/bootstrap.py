"""Intervals of mean scores. Those over games are by percentile bootstrap (Efron and Tibshirani 1993, chapter 13), with
a fixed seed. Those over trainings, which are fewer, are by Student's t. Pure.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 10_000
AT_ONCE: Final = 1_000_000  # scores that are drawn at a time, to limit the memory
# The 97.5 % quantiles of Student's t with 2, 3, ... degrees of freedom
T_QUANTILES: Final = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
FEWEST_TRAININGS: Final = 3  # two say too little about their spread: the interval would be 44 times as long


def mean_interval(scores: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of ``scores``, as [low, high]."""
    return _interval(_resampled_means(scores, np.random.default_rng(0)))


def difference_interval(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of ``scores`` minus the mean of ``others``, as [low, high]."""
    rng = np.random.default_rng(0)
    return _interval(_resampled_means(scores, rng) - _resampled_means(others, rng))


def prediction_interval(means: Sequence[float]) -> list[float]:
    """The 95 % prediction interval, as [low, high], of the mean score of one more training after those with ``means``.

    It is the interval of a normal distribution: mean +- t s sqrt(1 + 1/n). For more than ten trainings, it is a little
    too long. Raises ValueError for fewer than ``FEWEST_TRAININGS``.
    """
    if len(means) < FEWEST_TRAININGS:
        raise ValueError(f"{len(means)} trainings are too few")
    quantile = T_QUANTILES[min(len(means) - FEWEST_TRAININGS, len(T_QUANTILES) - 1)]
    mean = statistics.fmean(means)
    reach = quantile * statistics.stdev(means) * math.sqrt(1 + 1 / len(means))
    return [mean - reach, mean + reach]


def _resampled_means(scores: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
    known = np.asarray(scores, dtype=np.float64)
    rows = max(1, AT_ONCE // len(known))
    counts = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([rng.choice(known, (count, len(known))).mean(axis=1) for count in counts])


def _interval(means: NDArray[np.float64]) -> list[float]:
    found: list[float] = np.percentile(means, [2.5, 97.5]).tolist()
    return found
