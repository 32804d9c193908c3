"""Evenly spaced lines are read from a long file."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl import json_lines
from zmqrl.json_lines import sample_lines

LINES = st.lists(st.integers(1, 120).map(lambda size: b"x" * size), max_size=80)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK_BYTES", 32)
        yield


@given(LINES, st.binary(max_size=100).filter(lambda part: b"\n" not in part), st.integers(1, 30))
def test_a_sample_has_complete_lines_in_order_with_the_first_and_the_last(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], unfinished: bytes, most: int
) -> None:
    lines = [b"%d:%s" % (number, body) for number, body in enumerate(bodies)]
    path = tmp_path_factory.mktemp("sample") / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + unfinished)
    sample = sample_lines(path, most)
    numbers = [lines.index(line) for line in sample]  # only lines of the file, each complete
    assert numbers == sorted(set(numbers))
    if lines:
        assert numbers[0] == 0
        assert numbers[-1] == len(lines) - 1
    if path.stat().st_size <= 32 * most:
        assert sample == lines
    else:
        assert len(sample) <= most + 1


def test_a_sample_of_a_long_file_is_even(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"%010d\n" % number for number in range(10_000)))
    numbers = [int(line) for line in sample_lines(path, 100)]
    gaps = [after - before for before, after in pairwise(numbers)]
    assert len(numbers) == 101
    assert set(gaps[:-1]) <= {99, 100, 101}


def test_only_a_file_has_lines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("line\n")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")  # no process writes to it
    assert sample_lines(tmp_path / "file", 10) == [b"line"]
    assert [sample_lines(tmp_path / name, 10) for name in ("none", "link", "pipe", "file/none")] == [[]] * 4
