"""Laws: distributions of durations, such as ``lognormal:0.2:0.5`` or ``constant:1.4+0.01*pareto:5:1.5``."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from zmqrl.errors import UsageError, did_you_mean, require

Seconds: TypeAlias = npt.NDArray[np.float64]
HOW: Final = "LAW is constant:S, exponential:MEAN, lognormal:MEAN:SIGMA, uniform:LOW:HIGH, pareto:LEAST:ALPHA, or a sum"

MOST_SIGMA: Final = 10.0  # above this, nearly all draws are 0


@dataclass(frozen=True, slots=True)
class _Kind:
    """The parameter names and the sampler of a kind of law."""

    numbers: tuple[str, ...]
    draw: Callable[..., Seconds]


def _lognormal(random: np.random.Generator, size: int, mean: float, sigma: float) -> Seconds:
    return random.lognormal(math.log(mean) - sigma**2 / 2, sigma, size) if mean else np.zeros(size)


KINDS: Final[dict[str, _Kind]] = {
    "constant": _Kind(("S",), lambda random, size, s: np.full(size, s)),
    "exponential": _Kind(("MEAN",), lambda random, size, mean: random.exponential(mean, size)),
    "lognormal": _Kind(("MEAN", "SIGMA"), _lognormal),
    "uniform": _Kind(("LOW", "HIGH"), lambda random, size, low, high: random.uniform(low, high, size)),
    "pareto": _Kind(("LEAST", "ALPHA"), lambda random, size, least, alpha: least * (1 + random.pareto(alpha, size))),
}


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a sum. Each draw includes the term with ``probability``."""

    kind: str
    numbers: tuple[float, ...]
    probability: float = 1.0

    def draw(self, random: np.random.Generator, size: int) -> Seconds:
        drawn = KINDS[self.kind].draw(random, size, *self.numbers)
        return drawn if self.probability == 1 else drawn * (random.random(size) < self.probability)


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution of durations in seconds: the sum of independent terms. ``where`` is its text, with the option."""

    terms: tuple[Term, ...]
    where: str

    @classmethod
    def parse(cls, text: str, option: str) -> "Law":
        """Read a law. Raises a UsageError that names ``option``."""
        # Do not split at the sign of an exponent, as in 1e+3.
        where = f"{option} {text}"
        return cls(tuple(_term(part, where) for part in re.split(r"(?<![0-9][eE])\+", text)), where)

    def draw(self, random: np.random.Generator, size: int) -> Seconds:
        """Draw independent durations: float64 (size,)."""
        with np.errstate(over="ignore"):
            drawn: Seconds = np.sum([term.draw(random, size) for term in self.terms], axis=0)
        return drawn


def _term(text: str, where: str) -> Term:
    share, times, rest = text.rpartition("*")
    kind, *words = rest.split(":")
    require(kind in KINDS, f"{where}: unknown law {kind!r}{did_you_mean(kind, KINDS)}; {HOW}.")
    names = KINDS[kind].numbers
    try:
        numbers = tuple(float(word) for word in words)
        probability = float(share) if times else 1.0
    except ValueError:
        raise UsageError(f"{where}: {text!r} has a part that is not a number; {HOW}.") from None
    require(len(numbers) == len(names), f"{where}: {kind} needs {':'.join([kind, *names])}.")
    require(all(0 <= n < math.inf for n in numbers), f"{where}: each number must be 0 or more and finite.")
    require(0 < probability <= 1, f"{where}: {share} is not a probability; write a number such as 0.01*{rest}.")
    require(kind != "uniform" or numbers[0] <= numbers[1], f"{where}: LOW must not be above HIGH.")
    require(kind != "lognormal" or numbers[1] <= MOST_SIGMA, f"{where}: SIGMA must be {MOST_SIGMA:g} or less.")
    require(kind != "pareto" or numbers[1] > 1, f"{where}: ALPHA must be above 1, or else the mean is infinite.")
    return Term(kind, numbers, probability)
