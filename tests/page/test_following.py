"""Following a file that grows."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.page import following
from zmqrl.page.following import TAIL_BYTES, follow


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_each_complete_line_is_read_once_however_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.touch()
    offset, lines = 0, list[str]()
    for piece in pieces:
        with path.open("ab") as file:
            file.write(piece)
        found = follow(path, offset)
        assert found["from"] == offset
        offset = found["to"]
        lines += found["lines"]
    whole = b"".join(pieces)
    assert lines == [line.decode(errors="replace") for line in whole.split(b"\n")[:-1]]


def test_the_first_answer_has_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(20_000)))
    found = follow(path, None)
    assert found["to"] == path.stat().st_size
    assert found["lines"][-1] == "line 19999"
    assert found["lines"][0] == f"line {20_000 - len(found['lines'])}"
    assert 1000 < len(found["lines"]) < 20_000


def test_a_log_that_became_shorter_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("of the first session\n" * 10)
    after = follow(path, None)["to"]
    path.write_text("of the second session\n")
    assert follow(path, after) == {"from": 0, "to": 22, "lines": ["of the second session"], "rest": ""}


def test_the_last_line_is_shown_even_if_it_has_no_end(tmp_path: Path) -> None:
    """A process that dies, or a progress bar, leaves such a line."""
    path = tmp_path / "log"
    path.write_text("one\nout of mem")
    assert follow(path, None) == {"from": 0, "to": 4, "lines": ["one"], "rest": "out of mem"}
    with path.open("a") as file:
        file.write("ory\n")
    assert follow(path, 4) == {"from": 4, "to": 18, "lines": ["out of memory"], "rest": ""}
    path.write_text("x" * 2 * TAIL_BYTES)
    assert follow(path, None)["rest"] == "x" * TAIL_BYTES


def test_a_reader_that_is_far_behind_continues_near_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log may grow faster than the page asks for it."""
    for name, size in (("TAIL_BYTES", 20), ("MOST_BYTES", 40), ("MOST_BEHIND", 80)):
        monkeypatch.setattr(following, name, size)
    path = tmp_path / "log"
    path.write_text("".join(f"line {number:03}\n" for number in range(12)))
    assert follow(path, 108 - 81)["lines"] == ["line 010", "line 011"]
    near = follow(path, 108 - 80)
    assert (near["from"], near["to"]) == (28, 63)  # the next answers continue there
    assert follow(path, 63)["lines"][0] == "line 007"


def test_an_endless_line_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST_BYTES", 8)
    path = tmp_path / "log"
    path.write_text("x" * 20 + "\n")
    parts, offset = [], 0
    while offset < path.stat().st_size:
        found = follow(path, offset)
        parts += found["lines"]
        offset = found["to"]
    assert "".join(parts) == "x" * 20


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("log", "pipe"):
        with pytest.raises(OSError):
            follow(tmp_path / name, 0)
