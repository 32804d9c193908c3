"""Files of JSON lines hold only complete lines, even after a kill or on a full disk."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rig import file_size_limit

from zmqrl import json_lines
from zmqrl.json_lines import JsonLines, open_file, read_file, read_json, replacing


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
@pytest.mark.parametrize("use", [open_file, read_file, read_json, JsonLines])
def test_only_a_regular_file_is_opened(tmp_path: Path, use: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    (tmp_path / "directory").mkdir()
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for name in ("pipe", "link", "device", "directory"):
        reason = "Is a directory" if name == "directory" else "not a regular file"
        with pytest.raises(OSError, match=reason) as refused:
            use(tmp_path / name)
        assert refused.value.filename == str(tmp_path / name)
    assert len(list(descriptors.iterdir())) == before


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"version": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_json(tmp_path / "link") == {"version": 1}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_each_row_is_a_line_that_is_readable_at_once(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "metrics.jsonl")
    row = {"version": 1, "contributions": {"used": 3}, "policy_lag": None}
    file.write(row)
    assert lines(tmp_path / "metrics.jsonl") == [row]
    file.close()


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write({"loss": float("nan"), "split_s": {"act": float("inf")}, "scores": [1.0, float("-inf")]})
    file.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"loss": None, "split_s": {"act": None}, "scores": [1.0, None]}]


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("torn", ["", '{"version": 2, "wa'])
def test_a_resumed_run_appends_after_the_last_complete_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str, piece: int
) -> None:
    monkeypatch.setattr(json_lines, "PIECE_BYTES", piece)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"version": 1}\n' + torn)
    file = JsonLines(path)
    file.write({"version": 3})
    file.close()
    assert lines(path) == [{"version": 1}, {"version": 3}]


def test_a_full_disk_is_reported_once_and_leaves_complete_lines(tmp_path: Path) -> None:
    path, told = tmp_path / "metrics.jsonl", list[str]()
    file = JsonLines(path)
    file.write_or_tell({"version": 1}, told.append)
    with file_size_limit(path.stat().st_size + 5):
        file.write_or_tell({"version": 2}, told.append)
        file.write_or_tell({"version": 3}, told.append)
    file.write_or_tell({"version": 4}, told.append)
    with file_size_limit(path.stat().st_size):
        file.write_or_tell({"version": 5}, told.append)
    file.close()
    assert lines(path) == [{"version": 1}, {"version": 4}]
    assert [text.startswith(f"cannot append to {path}, so lines will be missing: ") for text in told] == [True, True]


def test_undone_rows_move_to_a_separate_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path)
    for version in (1, 2, 5, 6, 7, 3, 4, 8):  # an older zmqrl rolled back without moving the undone rows
        rows.write({"version": version})
    with path.open("ab") as file:
        file.write(b"{\n")
    rows.rewind(4, generation=3)
    rows.write({"version": 5})
    assert [json.loads(line)["version"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    aside = path.with_name("metrics.before-generation-3.jsonl").read_text().splitlines()
    assert sorted(aside) == ["{", *(f'{{"version": {version}}}' for version in (5, 6, 7, 8))]
    rows.rewind(5, generation=4)
    assert not path.with_name("metrics.before-generation-4.jsonl").exists()
    rows.close()


@pytest.mark.parametrize("fails", [True, False])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, fails: bool) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_text("after")
        if fails:
            raise KeyboardInterrupt
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file": "before" if fails else "after"}
