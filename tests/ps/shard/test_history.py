"""A shard's history lists each version once, in complete lines, whatever happens to the process or the disk."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.rig import file_size_limit

from zmqrl.errors import ClusterError, FullDiskError
from zmqrl.ps.shard import history as history_module
from zmqrl.ps.shard.events import Record, View
from zmqrl.ps.shard.history import (
    History,
    LostState,
    last_version,
    pack_record,
    parse_line,
    read_lines,
    unpack_record,
)

RECORD = Record(
    generation=1,
    version=1,
    view=View(1, 2, (0, 1)),
    quorum=2,
    ranks=(1, 0),
    late=0,
    duplicate=1,
    rejected=0,
    tallies={0: (1, 0, 0, 0), 1: (1, 0, 1, 0)},
    unattributed=0,
)


def record(version: int, **fields: Any) -> Record:
    made: dict[str, Any] = {"version": version, "totals": (2 * version, 0, version, 0)}
    return dataclasses.replace(RECORD, **made | fields)


def append(history: History, *made: int, **fields: Any) -> None:
    """Append a line for each version."""
    for version in made:
        history.append(record(version, **fields), crc32=7)


def versions(path: Path) -> list[int]:
    return [json.loads(line)["version"] for line in path.read_text().splitlines()]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "shard-0.jsonl")


def test_a_record_is_read_from_a_slot_as_it_was_written() -> None:
    whole = dataclasses.replace(
        RECORD, totals=(2, 0, 1, 3), stop=7, made_at=11, elapsed=12, staleness=(0, 1), applied={0: 5, 1: 4}
    )
    for field in dataclasses.fields(Record):
        assert getattr(whole, field.name) not in (field.default, {}), "the test must see that the field is kept"
    assert unpack_record(pack_record(whole)) == whole


@pytest.mark.parametrize("room", [0, 5])
def test_a_line_that_cannot_be_written_is_an_error_and_leaves_nothing(history: History, room: int) -> None:
    append(history, 1)
    with (
        file_size_limit(history.path.stat().st_size + room),
        pytest.raises(ClusterError, match=r"cannot write .*shard-0\.jsonl"),
    ):
        append(history, 2)
    append(history, 2)
    assert versions(history.path) == [1, 2]


def test_a_committed_version_missing_from_the_history_is_written_once(history: History) -> None:
    append(history, 1)
    history.close()
    history.path.write_bytes(history.path.read_bytes() + b'{"version": 2, "vi')
    for _ in range(2):
        recovered = History(history.path)
        recovered.recover(record(2), crc32=7)
        recovered.close()
    assert versions(history.path) == [1, 2]


def test_undone_lines_are_kept_beside_the_history(history: History) -> None:
    append(history, 1, 2, 3)
    history.rewind(1, generation=2)
    history.append(record(2), crc32=9)
    assert versions(history.path) == [1, 2]
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 3]


def test_lines_undone_by_two_rollbacks_to_one_checkpoint_are_all_kept(history: History) -> None:
    for versions_made in ((1, 2), (2, 3)):
        append(history, *versions_made)
        history.rewind(1, generation=2)
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 2, 3]


def test_an_error_names_a_history_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot write .*: Is a directory"):
        History(tmp_path)


@pytest.mark.parametrize("generation", [1, 2])
def test_a_history_ahead_of_the_store_means_that_state_is_lost(history: History, generation: int) -> None:
    append(history, 1, 2, 3, generation=generation)
    history.close()
    reopened = History(history.path)
    with pytest.raises(LostState, match=f"has version 3 of generation {generation}, but the newest .* is 2 of"):
        reopened.recover(record(2), crc32=7)
    assert versions(history.path) == [1, 2, 3]
    reopened.close()


def test_a_version_that_a_rollback_undid_is_lost_state(history: History) -> None:
    """The loaded version is damaged, so the newest version in the store is one that the rollback has undone."""
    append(history, 1, 2, 3)
    history.rewind(1, generation=2)
    history.close()
    reopened = History(history.path)
    with pytest.raises(LostState, match="is 3 of generation 1, which the rollback to generation 2 has undone"):
        reopened.recover(record(3), crc32=7)
    assert versions(history.path) == [1]
    reopened.recover(record(2, generation=2), crc32=7)
    assert versions(history.path) == [1, 2]
    reopened.close()


def test_a_rewind_missed_because_of_a_kill_is_done_at_the_next_start(history: History) -> None:
    append(history, 1, 2, 3)
    history.close()
    loaded = Record.handed_over(2, 1, View(1, 2, (0, 1)))
    for _ in range(2):
        reopened = History(history.path)
        reopened.recover(loaded, crc32=7)
        assert reopened.news == []
        reopened.close()
    assert versions(history.path) == [1]
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 3]


def test_a_missing_line_is_written_even_if_a_rewind_was_missed_too(history: History) -> None:
    append(history, 1, 3, generation=0)
    history.close()
    reopened = History(history.path)
    reopened.recover(record(2), crc32=7)
    reopened.close()
    assert versions(history.path) == [1, 2]
    assert versions(history.path.with_name("shard-0.before-generation-1.jsonl")) == [3]


def test_totals_count_the_lines_up_to_a_version(history: History) -> None:
    append(history, 1, 2, 3)
    for _ in range(2):
        assert history.totals(0) == (0, 0, 0, 0)
        assert history.totals(2) == (4, 0, 2, 0)
        assert history.totals(9) == (6, 0, 3, 0)
        without = [{k: v for k, v in line.items() if k != "totals"} for line in read_lines(history.path)]
        history.path.write_text("".join(json.dumps(line) + "\n" for line in without))  # as written by an older zmqrl


def test_only_the_end_of_a_history_is_read_to_find_its_last_version(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []

    def parse(raw: bytes) -> dict[str, Any] | None:
        parsed.append(raw)
        return parse_line(raw)

    monkeypatch.setattr(history_module, "parse_line", parse)
    assert last_version(history.path) == last_version(history.path / "missing") == 0
    append(history, *range(1, 101))
    with history.path.open("ab") as file:
        file.write(b'damaged\n{"version": 101}')  # the last line is not complete
    assert last_version(history.path) == 100
    assert len(parsed) == 2
    assert next(read_lines(history.path))["version"] == 1
    assert len(parsed) == 3
    history.path.write_bytes(b"damaged\n")
    assert last_version(history.path) == 0


@pytest.mark.parametrize("piece", [100, 1000, 1 << 20])
@pytest.mark.parametrize("version", [0, 1, 40, 99, 100])
def test_a_history_of_any_length_is_rewound_to_the_right_line(
    history: History, monkeypatch: pytest.MonkeyPatch, piece: int, version: int
) -> None:
    monkeypatch.setattr(history_module, "PIECE_BYTES", piece)
    append(history, *range(1, 101))
    history.path.write_bytes(history.path.read_bytes() + b'{"version": 101, "vi')
    reopened = History(history.path)
    assert reopened.last_version == 100
    assert reopened.totals(version) == (2 * version, 0, version, 0)
    reopened.rewind(version, generation=2)
    assert versions(history.path) == list(range(1, version + 1))
    assert reopened.last_version == (version or None)
    undone = history.path.with_name("shard-0.before-generation-2.jsonl")
    assert (versions(undone) if undone.exists() else []) == list(range(version + 1, 101))
    append(reopened, version + 1)
    assert versions(history.path) == list(range(1, version + 2))


def test_a_rewind_killed_before_the_cut_keeps_the_undone_lines_once(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(history, 1, 2, 3)
    with monkeypatch.context() as killed:
        killed.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            history.rewind(1, generation=2)
    reopened = History(history.path)
    reopened.rewind(1, generation=2)
    assert versions(history.path) == [1]
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 3]


def test_a_full_disk_leaves_no_half_line_and_the_line_can_be_written_once_there_is_space(history: History) -> None:
    append(history, 1)
    with file_size_limit(history.path.stat().st_size + 10), pytest.raises(FullDiskError, match="the disk is full"):
        append(history, 2)
    assert versions(history.path) == [1]
    append(history, 2)
    assert versions(history.path) == [1, 2]


def test_a_disk_too_full_for_a_copy_of_a_damaged_history_is_an_error_and_the_history_stays(history: History) -> None:
    append(history, 1, 2)
    damaged = b"{\n" + history.path.read_bytes()
    history.path.write_bytes(damaged)
    with file_size_limit(10), pytest.raises(ClusterError, match=r"cannot write .*shard-0\.jsonl"):
        History(history.path)
    assert history.path.read_bytes() == damaged


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"null",
        b"[]",
        b"\x00\xff",
        b'{"version": "2"}',
        b'{"version": 2, "ranks": 5}',
        b'{"version": 2, "late": 1e999}',
    ],
)
@pytest.mark.parametrize("place", [1, 2])
def test_a_history_with_a_damaged_line_is_kept_and_continues_without_it(
    history: History, damage: bytes, place: int
) -> None:
    append(history, 1, 2, 3)
    history.close()
    lines = history.path.read_bytes().splitlines(keepends=True)
    lines[place] = damage + b"\n"
    history.path.write_bytes(b"".join(lines))
    kept = [version for version in (1, 2, 3) if version != place + 1]
    assert [line["version"] for line in read_lines(history.path)] == kept
    reopened = History(history.path)
    (original,) = history.path.parent.glob("shard-0.damaged-*.jsonl")
    assert original.read_bytes() == b"".join(lines)
    assert reopened.news == [
        f"{history.path}: line {place + 1} could not be read; the original file is kept as {original.name}"
    ]
    append(reopened, 4)
    reopened.rewind(3, generation=2)
    assert versions(history.path) == kept
    reopened.close()


@pytest.mark.parametrize(("left", "missing"), [([], "1 to 3"), ([1], "2 to 3")])
def test_a_shard_that_is_back_names_the_lines_missing_from_its_history(
    history: History, left: list[int], missing: str
) -> None:
    append(history, *left)
    history.recover(record(4), crc32=7)
    assert versions(history.path) == [*left, 4]
    assert history.news == [f"{history.path}: the lines of versions {missing} are missing"]
