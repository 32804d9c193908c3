"""The tables that benchmarks write into pages show the kept results."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import central_graph
import efficiency
import flood
import marked
import measure
import page
import pytest
import recovery
import scaling
import simulation_validation
import start_up
from support.paths import ROOT

RESULTS = ROOT / "benchmarks/results"
TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "central-graph": ("central-graph", lambda found: central_graph.table(found["rows"])),
    "efficiency": ("efficiency", efficiency.table),
    "flood": ("flood", flood.table),
    "page": ("page", page.tables),
    "peers": ("peers", lambda found: measure.tables(found["agent_steps_per_s"])),
    "recovery": ("recovery", lambda found: recovery.table(found["seconds"])),
    "scaling": ("scaling", scaling.tables),
    "validation": ("simulation-validation", lambda found: simulation_validation.table(found["rows"])),
    "start-up": ("start-up", lambda found: start_up.table(found["rows"])),
}
"""By the name in the marks of a page: the folder of the results, and the function that makes the table."""
SHOWN = [
    (path, name)
    for path in sorted([*RESULTS.rglob("*.md"), *(ROOT / "docs").rglob("*.md")])
    for name in re.findall(r"^<!-- (?!end -->)(\S+) -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def test_every_table_is_in_a_page() -> None:
    assert {name for _, name in SHOWN} == {*TABLES, "scores"}, "the scores of peers need runs that are not kept"


@pytest.mark.parametrize(
    ("shown", "name"), [each for each in SHOWN if each[1] in TABLES], ids=lambda each: Path(each).name
)
def test_a_page_shows_the_kept_results(shown: Path, name: str) -> None:
    folder, table = TABLES[name]
    kept = RESULTS / folder / "results.json"
    expected = table(json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else "Not measured yet.\n"
    assert marked.part(shown, name) == expected
