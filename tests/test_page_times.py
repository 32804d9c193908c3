"""The tables of the costs of the page, and the part of a page that a benchmark fills."""

from pathlib import Path
from typing import Any

import marked
import page
import pytest

RESULTS: dict[str, Any] = {
    "runs": 100,
    "hours": 1.0,
    "metrics_bytes": 434e6,
    "shown_s": {"new run": 1.25, "new row": 1.0},
    "rows": [
        {
            "cold": True,
            "took_s": {"files": 0.1, "table": 0.2, "curves": 0.3, "total": total, "browser": 2.5, "drawn": total + 0.2},
            "processor_s": {"files": 0.01, "table": 0.12, "curves": 0.36},
        }
        for total in (0.5, 0.7, 0.6)
    ],
}


def test_the_table_has_the_start_of_the_browser_apart_from_the_opening_of_the_page() -> None:
    assert page.tables(RESULTS).splitlines() == [
        "| 100 runs of 1 h (434 MB of metrics), no file in the cache | median | lowest to highest |",
        "|---|---|---|",
        "| start of Chromium | 2.50 s | 2.50 to 2.50 s |",
        "| from opening the address until 12 curves appear | 0.80 s | 0.70 to 0.90 s |",
        "| all answers that this needs, without a browser | 0.60 s | 0.50 to 0.70 s |",
        "| processor time for the table of all runs | 0.12 s | 0.12 to 0.12 s |",
        "| processor time for each drawn run | 0.03 s | 0.03 to 0.03 s |",
        "| a new run appears, at the latest after | 1.2 s | |",
        "| a new row appears, at the latest after | 1.0 s | |",
    ]


def test_without_a_browser_or_an_empty_cache_the_table_says_so() -> None:
    rows = [{**row, "cold": False, "took_s": {"total": 0.5}} for row in RESULTS["rows"]]
    table = page.tables({**RESULTS, "rows": rows})
    assert "files in the cache" in table
    assert "Chromium" not in table
    assert "curves appear" not in table


def test_the_updates_of_a_run_are_beside_those_with_an_open_page() -> None:
    rates = {"no page": [20.0, 40.0, 30.0], "list of runs": [19.0, 38.0, 28.5], "timing": [20.4, 40.8, 30.6]}
    cores = {"no page": 0.0, "list of runs": 0.012, "timing": 0.03}
    beside = {
        view: [{"updates_per_s": rate, "cores": cores[view]} for rate in of_view] for view, of_view in rates.items()
    }
    assert page.tables({**RESULTS, "beside": beside}).splitlines()[-5:] == [
        "| cartpole, with this open | updates/s | compared with no page | cores that the page used |",
        "|---|---|---|---|",
        "| no page | 30.0 | - | 0.000 |",
        "| list of runs | 28.5 | -5.0 % (-5.0 % to -5.0 %) | 0.012 |",
        "| timing | 30.6 | +2.0 % (+2.0 % to +2.0 %) | 0.030 |",
    ]


def test_a_page_without_the_marks_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    for text in ("no marks\n", "<!-- page -->\na\n<!-- end -->\n<!-- page -->\nb\n<!-- end -->\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match="must have `<!-- page -->` and `<!-- end -->` exactly once"):
            marked.fill(path, "page", "new\n")
        assert path.read_text(encoding="utf-8") == text
    path.write_text("before\n<!-- page -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    marked.fill(path, "page", "new\n")
    assert path.read_text(encoding="utf-8") == "before\n<!-- page -->\nnew\n<!-- end -->\nafter\n"
