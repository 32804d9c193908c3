"""The table of recovery times in the documentation shows the kept measurements."""

import json
from pathlib import Path

import marked
import recovery

from zmqrl.ps.shard.store import SlotStore


def test_the_table_has_the_median_and_the_longest_time_of_each_case() -> None:
    assert recovery.table({"a shard is killed": [0.25, 1.0, 0.5]}).splitlines() == [
        "| what happens | median | longest | runs |",
        "|---|---|---|---|",
        "| a shard is killed | 0.5 s | 1.0 s | 3 |",
    ]


def test_the_page_shows_the_kept_measurements() -> None:
    results = json.loads((recovery.RESULTS / "results.json").read_text(encoding="utf-8"))
    assert marked.part(recovery.PAGE, "recovery") == recovery.table(results["seconds"])


def test_the_damage_affects_only_the_newest_version_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.slots"
    made = SlotStore.create(path, identity=b"run", count=10, state_names=["m"])
    for version in range(1, 8):
        made.commit(made.free_slot(), generation=1, version=version, record=b"", crc32=0)
    made.free_slot()  # the shard was stopped while it wrote version 8
    made.close()
    recovery.damage_newest(path)
    left = SlotStore.open(path, identity=b"run", count=10, state_names=["m"])
    assert left is not None
    assert left.newest is not None
    assert left.newest.version == 6
