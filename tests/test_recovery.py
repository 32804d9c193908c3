"""The table of recovery times in the documentation shows the kept measurements."""

import json

import recovery


def test_the_table_has_the_median_and_the_longest_time_of_each_case() -> None:
    assert recovery.table({"a shard is killed": [0.25, 1.0, 0.5]}).splitlines() == [
        "| what happens | median | longest | runs |",
        "|---|---|---|---|",
        "| a shard is killed | 0.5 s | 1.0 s | 3 |",
    ]


def test_the_page_shows_the_kept_measurements() -> None:
    results = json.loads((recovery.RESULTS / "results.json").read_text(encoding="utf-8"))
    found = recovery.TABLE.search(recovery.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == recovery.table(results["seconds"])
