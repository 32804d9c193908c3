"""Varies some settings of a scenario."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Final

from zmqrl.errors import UsageError, did_you_mean
from zmqrl.simulate.scenario import Scenario

KINDS: Final = {
    **dict.fromkeys(("workers", "backups", "quorum", "shards", "hosts", "cores", "updates", "seed", "parameters"), int),
    **dict.fromkeys(("bandwidth", "latency", "loss", "loopback"), float),
    **dict.fromkeys(("compute", "abandon", "codec"), str),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """A setting, and the values to try for this setting."""

    name: str
    values: tuple[int | float | str, ...]

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Read ``shards=1,2,4``. Raises UsageError."""
        option, equals, listed = text.partition("=")
        name = option.replace("-", "_")
        if not equals or name not in KINDS:
            raise UsageError(f"--sweep {text}: write NAME=VALUE,VALUE,...; NAME is one of {', '.join(KINDS)}"
                             f"{did_you_mean(name, KINDS) if equals else ''}.")  # fmt: skip
        try:
            return cls(name, tuple(KINDS[name](value) for value in listed.split(",")))
        except ValueError:
            raise UsageError(f"--sweep {text}: a value is not a number.") from None


def variants(scenario: Scenario, axes: Sequence[Axis]) -> list[Scenario]:
    """One valid scenario for each combination of values. The last axis changes fastest. Raises UsageError."""
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        settings: dict[str, Any] = dict(zip((axis.name for axis in axes), values, strict=True))
        with_shards = scenario.with_shards(settings.get("shards", scenario.shards))
        found.append(dataclasses.replace(with_shards, **settings))
    for each in found:
        each.check()
    return found
