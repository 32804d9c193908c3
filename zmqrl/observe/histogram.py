"""A histogram of durations that can be merged. Its memory is bounded, and its percentiles are within 1.6 %."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

FEWEST = {50: 1, 90: 10, 99: 100}  # with fewer values, a percentile would say nothing but the largest value
PERCENTS = tuple(FEWEST)
SUB_BUCKETS = 64  # for each power of two: the width of a bucket is at most 1/64 of its values


class Histogram:
    """Counts non-negative integers in buckets, like an HDR histogram (G. Tene, hdrhistogram.org).

    Each value below 64 has its own bucket. From there, each range from a power of two to the next has 64 buckets of
    equal width, so a value differs from the middle of its bucket by at most 1.6 %. ``maximum`` and ``total`` are exact.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(SUB_BUCKETS, np.int64)
        self.maximum = 0
        self.total = 0

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Exact. NaN without values."""
        return self.total / self.count if self.count else float("nan")

    def add(self, values: Sequence[int] | NDArray[np.int64]) -> None:
        """Add ``values``. Negative values count as 0."""
        numbers = np.maximum(np.asarray(values, np.int64), 0)
        if not numbers.size:
            return
        self.maximum = max(self.maximum, int(numbers.max()))
        self.total += int(numbers.sum())
        self._add_counts(np.bincount(_buckets(numbers)))

    def merge(self, other: "Histogram") -> None:
        self.maximum = max(self.maximum, other.maximum)
        self.total += other.total
        self._add_counts(other.counts)

    def percentile(self, percent: float) -> float:
        """The percentile ``percent`` (0 to 100) by the nearest-rank method, within 1.6 %. NaN without values."""
        if not self.count:
            return float("nan")
        rank = max(1, int(np.ceil(self.count * percent / 100)))
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(self.maximum if rank == self.count else min(_value(bucket), self.maximum))

    def to_json(self) -> dict[str, object]:
        """Plain data. Empty buckets are left out. The indices of the others are stored as differences, which compress
        well.
        """
        filled = np.flatnonzero(self.counts)
        return {
            "gaps": np.diff(filled, prepend=0).tolist(),
            "counts": self.counts[filled].tolist(),
            "maximum": self.maximum,
            "total": self.total,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Inverse of ``to_json``. Raises ValueError for other ``data``."""
        histogram = cls()
        try:
            buckets, counts = np.cumsum(np.asarray(data["gaps"], np.int64)), np.asarray(data["counts"], np.int64)
            histogram.maximum, histogram.total = int(data["maximum"]), int(data["total"])  # type: ignore[call-overload]
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a histogram: {error}") from error
        if buckets.shape != counts.shape or buckets.ndim != 1:
            raise ValueError("a histogram needs one count for each bucket")
        if not buckets.size:
            return histogram
        if not (0 <= buckets.min() <= buckets.max() < 64 * SUB_BUCKETS and 0 <= counts.min() <= counts.max() < 2**53):
            raise ValueError("a histogram has an invalid bucket")
        histogram._add_counts(np.bincount(buckets, weights=counts).astype(np.int64))
        return histogram

    def _add_counts(self, counts: NDArray[np.int64]) -> None:
        if len(counts) > len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros(len(counts) - len(self.counts), np.int64)])
        self.counts[: len(counts)] += counts


def statistics_ms(seconds: Sequence[float]) -> Mapping[str, float | None]:
    """Exact mean and percentiles of durations, in milliseconds. None for a figure that needs more durations.

    The percentiles are by the nearest-rank method, as those of a histogram.
    """
    in_ms = 1e3 * np.asarray(seconds)
    found: dict[str, float | None] = {"mean": float(in_ms.mean()) if seconds else None}
    for percent, fewest in FEWEST.items():
        known = len(seconds) >= fewest
        found[f"p{percent}"] = float(np.percentile(in_ms, percent, method="inverted_cdf")) if known else None
    return found


def or_dash(number: float | None, decimals: int) -> str:
    """A figure of :func:`statistics_ms`, as text. A dash: unknown."""
    return "-" if number is None else f"{number:.{decimals}f}"


def merged(histograms: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _buckets(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each value: ``shift * 64 + (value >> shift)``, where ``value >> shift`` is below 128."""
    _, bits = np.frexp(values.astype(np.float64))  # number of bits, exact up to 2**53 ns (104 days) as a double
    shift = np.maximum(bits.astype(np.int64) - 7, 0)
    buckets: NDArray[np.int64] = shift * SUB_BUCKETS + (values >> shift)
    return buckets


def _value(bucket: int) -> int:
    """The middle of the values in ``bucket``."""
    if bucket < 2 * SUB_BUCKETS:
        return bucket
    shift = bucket // SUB_BUCKETS - 1
    return ((bucket - shift * SUB_BUCKETS) << shift) + (1 << shift) // 2
