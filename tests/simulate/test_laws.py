"""Laws for random durations."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.simulate.laws import Law


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("constant:0.2", 0.2, 0.0),
        ("exponential:3", 3.0, 3.0),
        ("lognormal:2:0.5", 2.0, 2.0 * np.sqrt(np.expm1(0.25))),
        ("uniform:1:3", 2.0, 2 / np.sqrt(12)),
        ("pareto:1:3", 1.5, np.sqrt(0.75)),
        ("constant:1.4+0.1*exponential:5", 1.9, np.sqrt(0.1 * 50 - 0.25)),
        ("constant:1e+1", 10.0, 0.0),
    ],
)
def test_draws_have_the_mean_and_deviation_of_the_law(text: str, mean: float, deviation: float) -> None:
    law = Law.parse(text, "--compute")
    drawn = law.draw(np.random.default_rng(1), 400_000)
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.std() == pytest.approx(deviation, rel=0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("exponentia:1", r"unknown law 'exponentia' \(did you mean exponential\?\)"),
        ("constant", "constant needs constant:S"),
        ("lognormal:1", "lognormal needs lognormal:MEAN:SIGMA"),
        ("constant:x", "not a number"),
        ("constant:-1", "must be 0 or more"),
        ("constant:nan", "finite"),
        ("2*constant:1", "2 is not a probability"),
        ("lognormal:0.1:1e200", "SIGMA must be 10 or less"),
        ("pareto:0.01:0.5", "ALPHA must be above 1, or else the mean is infinite"),
        ("uniform:3:1", "LOW must not be above HIGH"),
        ("constant:1+", "unknown law ''"),
    ],
)
def test_an_invalid_law_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Law.parse(text, "--compute")


@given(st.text(max_size=20))
def test_any_text_is_either_a_law_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Law.parse(text, "--compute").draw(np.random.default_rng(0), 3).min() >= 0
