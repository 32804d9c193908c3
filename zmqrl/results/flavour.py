"""The flavour of the games of a run: which games its scores are from."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import fields

from zmqrl.errors import UsageError
from zmqrl.learner.games import EnvConfig, is_ale_id
from zmqrl.observe.forms import decode
from zmqrl.observe.records import RunRecord

GROUP = "envs."


def flavour_of(run: RunRecord) -> str | None:
    """The flavour in ``summary.json``. For an Atari game without it, that of the settings. None: unknown."""
    known: str = (run.summary or {}).get("flavour", "")
    if known or not is_ale_id(str(run.settings.get("env"))):
        return known or None
    names = {field.name for field in fields(EnvConfig)}
    found = {name.removeprefix(GROUP): value for name, value in run.settings.items() if name.startswith(GROUP)}
    try:
        return decode(EnvConfig, {name: value for name, value in found.items() if name in names}).flavour()
    except UsageError:  # a run of another version of zmqrl
        return None


def flavour_lines(flavours: Iterable[tuple[str, str | None]]) -> list[str]:
    """A line for each flavour in ``flavours``, which has the name and the flavour of each run.

    The lines name the runs if these have different flavours.
    """
    by_flavour: defaultdict[str | None, list[str]] = defaultdict(list)
    for name, flavour in flavours:
        by_flavour[flavour].append(name)
    if len(by_flavour) == 1:
        return [f"games: {flavour}" for flavour in by_flavour if flavour]
    return [f"games of {', '.join(names)}: {flavour or 'unknown'}" for flavour, names in by_flavour.items()]
