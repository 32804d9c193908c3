"""The difference between two profiles, per span and per part of the critical path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from zmqrl.observe.tables import plain_table

UPDATE, PATH = "update", "path"


@dataclass(frozen=True, slots=True)
class Change:
    """A span of a role, or a part of the critical path (role ``path``): milliseconds per update in two runs.

    ``growth`` is the increase, as a fraction of the first run's time per update.
    """

    role: str
    span: str
    before_ms: float
    after_ms: float
    growth: float


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Compare two results of ``Analysis.to_json``. The update comes first, then parts and spans by growth."""
    update_ms: float = before["update_ms"]["mean"]

    def change(role: str, span: str, one: float, other: float) -> Change:
        return Change(role, span, one, other, (other - one) / update_ms)

    found = []
    of_roles = [{PATH: profile["path_ms"], **profile["budget_ms"]} for profile in (before, after)]
    for role, spans in of_roles[0].items():
        others = of_roles[1][role]
        found += [change(role, span, spans.get(span, 0.0), others.get(span, 0.0)) for span in spans | others]
    found.sort(key=lambda each: -each.growth)
    return [change("", UPDATE, update_ms, after["update_ms"]["mean"]), *found]


def grown(found: Sequence[Change], limit: float) -> list[Change]:
    """The spans and parts that grew by more than ``limit``, except ``wait``, which other processes cause."""
    return [change for change in found if change.growth > limit and change.span != "wait"]


def print_changes(found: Sequence[Change], console: Console) -> None:
    table = plain_table("difference, ms per update", "", "span", "before", "after", "of an update")
    for each in found:
        numbers = (f"{each.before_ms:.3f}", f"{each.after_ms:.3f}", f"{each.growth:+.1%}")
        table.add_row(each.role, each.span, *numbers)
    console.print(table)
