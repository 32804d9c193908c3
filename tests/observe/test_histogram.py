import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe.histogram import Histogram, merged, or_dash, statistics_ms

durations = st.lists(st.integers(0, 2**50), min_size=1, max_size=200)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@given(durations, st.floats(0.1, 100))
def test_a_percentile_is_within_two_percent_of_the_exact_one(values: list[int], percent: float) -> None:
    exact = float(np.percentile(values, percent, method="inverted_cdf"))
    assert of(values).percentile(percent) == pytest.approx(exact, rel=0.016, abs=0.5)


@given(durations)
def test_count_mean_and_maximum_are_exact(values: list[int]) -> None:
    histogram = of(values)
    assert (histogram.count, histogram.total, histogram.maximum) == (len(values), sum(values), max(values))
    assert histogram.percentile(100) == max(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@given(durations, durations)
def test_a_merged_histogram_holds_all_values(one: list[int], other: list[int]) -> None:
    assert merged([of(one), of(other)]).to_json() == of(one + other).to_json()


@given(durations)
def test_a_histogram_survives_json(values: list[int]) -> None:
    data = of(values).to_json()
    assert Histogram.from_json(json.loads(json.dumps(data))).to_json() == data


def test_without_values_there_is_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(50))
    assert math.isnan(Histogram().mean)


@pytest.mark.parametrize(
    "data",
    [
        {"gaps": [-1], "counts": [1], "maximum": 1, "total": 1},
        {"gaps": [10**9], "counts": [1], "maximum": 1, "total": 1},
        {"gaps": [1], "counts": [-1], "maximum": 1, "total": 1},
    ],
)
def test_impossible_buckets_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Histogram.from_json(data)


@pytest.mark.parametrize(
    ("count", "known"),
    [(1, {"mean", "p50"}), (9, {"mean", "p50"}), (10, {"mean", "p50", "p90"}), (100, {"mean", "p50", "p90", "p99"})],
)
def test_a_percentile_of_too_few_durations_is_not_known(count: int, known: set[str]) -> None:
    found = statistics_ms([0.001 * (number + 1) for number in range(count)])
    assert {name for name, value in found.items() if value is not None} == known
    for name in known - {"mean"}:
        assert found[name] == pytest.approx(math.ceil(count * int(name[1:]) / 100)), "nearest rank"
    assert statistics_ms([]) == dict.fromkeys(("mean", "p50", "p90", "p99"))
    assert (or_dash(None, 2), or_dash(1.0, 2)) == ("-", "1.00")
