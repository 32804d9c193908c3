"""The options that turn a recipe into given settings. Pure."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.observe.records import PLACE, flat
from zmqrl.recipes import RECIPES

REPEATED: Final = {"straggle": "straggle", "envs.args": "env-arg", "envs.wrappers": "wrapper"}
WITHOUT_OPTION: Final = frozenset({"recipe", "schedule.default_minutes", "scenario", "failures"})


def train_command(config: Config) -> list[str]:
    """The command that trains with the settings of ``config``: ``zmqrl train RECIPE ...``.

    It does not set where the run is stored and shown, and does not repeat the failures of a scenario file.
    """
    recipe = RECIPES[config.recipe]()
    before, left_out = dict(flat(recipe.to_json())), PLACE | WITHOUT_OPTION | config.without_effect().keys()
    if _implies_schedule(recipe, config):
        left_out |= {name for name in before if name.startswith("schedule.")}
    words = ["zmqrl", "train", config.recipe]
    for name, value in flat(config.to_json()):
        if name not in left_out and value != before[name]:
            words += _option(name, value)
    return words


def _implies_schedule(recipe: Config, config: Config) -> bool:
    """Whether the other settings of ``config`` imply its schedule, which then needs no option."""
    try:
        implied = dataclasses.replace(config, schedule=recipe.schedule).with_schedule().schedule
    except UsageError:
        return False
    return implied == dataclasses.replace(config.schedule, default_minutes=implied.default_minutes)


def _option(name: str, value: Any) -> Iterator[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        group, dot, last = option.rpartition(".")
        yield f"--{option}" if value else f"--{group}{dot}no-{last}"
    elif name in REPEATED:
        for each in value:
            yield from (f"--{REPEATED[name]}", each)
    else:
        yield f"--{option}"
        yield from map(_text, value if isinstance(value, list | tuple) else [value])


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
