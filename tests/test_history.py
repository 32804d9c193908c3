"""The history of a shard: whole lines, each version once, whatever happens to the process or the disk."""

import dataclasses
import json
from pathlib import Path

import pytest
from rig import file_size_limit

from zmqrl.errors import ClusterError
from zmqrl.ps.history import History, pack_record, unpack_record
from zmqrl.ps.shard_events import Record, View

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


def record(version: int) -> Record:
    return dataclasses.replace(RECORD, version=version)


def versions(path: Path) -> list[int]:
    return [json.loads(line)["version"] for line in path.read_text().splitlines()]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "shard-0.jsonl")


def test_a_record_survives_its_way_through_a_slot() -> None:
    assert unpack_record(pack_record(RECORD)) == RECORD


@pytest.mark.parametrize("room", [0, 5])
def test_a_line_that_the_disk_does_not_take_is_an_error_and_leaves_nothing(history: History, room: int) -> None:
    history.append(record(1), crc32=7)
    with (
        file_size_limit(history.path.stat().st_size + room),
        pytest.raises(ClusterError, match=r"cannot write .*shard-0\.jsonl"),
    ):
        history.append(record(2), crc32=7)
    history.append(record(2), crc32=7)
    assert versions(history.path) == [1, 2]


def test_the_version_that_was_committed_but_not_written_is_written_once(history: History) -> None:
    history.append(record(1), crc32=7)
    history.close()
    history.path.write_bytes(history.path.read_bytes() + b'{"version": 2, "vi')
    for _ in range(2):
        recovered = History(history.path)
        recovered.recover(record(2), crc32=7)
        recovered.close()
    assert versions(history.path) == [1, 2]


def test_what_a_rollback_undoes_is_kept_beside_the_history(history: History) -> None:
    for version in (1, 2, 3):
        history.append(record(version), crc32=7)
    history.rewind(1, generation=2)
    history.append(record(2), crc32=9)
    assert versions(history.path) == [1, 2]
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 3]


def test_what_two_rollbacks_from_one_checkpoint_undo_is_all_kept(history: History) -> None:
    for versions_made in ((1, 2), (2, 3)):
        for version in versions_made:
            history.append(record(version), crc32=7)
        history.rewind(1, generation=2)
    assert versions(history.path.with_name("shard-0.before-generation-2.jsonl")) == [2, 2, 3]


def test_a_history_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot write .*: Is a directory"):
        History(tmp_path)
