"""Settings are built from plain data, and an error names the setting that does not fit."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from zmqrl.errors import UsageError
from zmqrl.observe.forms import decode


@dataclass(frozen=True, kw_only=True)
class Sail:
    area: float
    colour: Literal["red", "white"] = "white"


@dataclass(frozen=True, kw_only=True)
class Boat:
    crew_size: int = 2
    log: Path | None = None
    names: tuple[str, ...] = ()
    jib: Sail = field(default_factory=lambda: Sail(area=5.0))
    spare: tuple[Sail, ...] = ()


def test_missing_settings_keep_their_defaults() -> None:
    assert decode(Boat, {}) == Boat()


def test_plain_data_takes_the_types_of_the_settings() -> None:
    data = {"crew-size": 3, "log": "a/b", "names": ["Ada"], "jib": {"area": 4}, "spare": [{"area": "inf"}]}
    boat = decode(Boat, data)
    spare = (Sail(area=math.inf),)
    assert boat == Boat(crew_size=3, log=Path("a/b"), names=("Ada",), jib=Sail(area=4.0), spare=spare)
    assert type(boat.jib.area) is float


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([1], "boat is [1]: it must be a group of settings."),
        ({"crew": 1}, "unknown setting boat.crew (did you mean crew_size?)."),
        ({"mast": 1}, "unknown setting boat.mast."),
        ({"crew_size": "3"}, "boat.crew_size cannot be '3'."),
        ({"crew_size": True}, "boat.crew_size cannot be True."),
        ({"crew_size": None}, "boat.crew_size cannot be None."),
        ({"log": 3}, "boat.log cannot be 3."),
        ({"names": "Ada"}, "boat.names cannot be 'Ada'."),
        ({"names": ["Ada", 7]}, "boat.names[1] cannot be 7."),
        ({"jib": {"area": 5, "colour": "blue"}}, "boat.jib.colour cannot be 'blue'."),
        ({"jib": {"area": 10**400}}, f"boat.jib.area cannot be {10**400!r:.60}."),
        ({"spare": [{"area": 1}, {}]}, "boat.spare[1] is not complete: "),
        ({"jib": {"keel": 1}}, "boat.jib.keel belongs to the hull."),
    ],
)
def test_an_error_names_the_setting(data: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        decode(Boat, data, "boat", refused={"keel": "belongs to the hull."})
    assert str(caught.value).startswith(sentence)
