import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.words import (
    ESCAPING,
    as_text,
    as_word,
    counted,
    duration,
    ended_how,
    escaped,
    figure,
    log_time,
    numbered,
    told_apart,
)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "host", "0 hosts"), (1, "host", "1 host"), (2, "backup", "2 backups"), (1_200, "update", "1,200 updates")],
)
def test_a_noun_agrees_with_its_count(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_a_noun_can_have_a_plural_of_its_own() -> None:
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5 + 1e-8, "0.5"), (-21.0, "-21"), (2341.25, "2,341.25"), (99_999.96, "100,000"), (1_234_567.0, "1,234,567")],
)
def test_a_figure_has_all_digits_of_its_whole_part(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((5.5, 4.9, 6.1), ["5.5", "4.9", "6.1"]),
        ((20.14, 18.7, 20.06), ["20.14", "18.70", "20.06"]),
        ((20.14, 18.7, 20.14), ["20.1", "18.7", "20.1"]),
        ((1234.5, 1234.5, 1234.5), ["1,234.5"] * 3),
        ((0.1 + 0.2, 0.3, 1.0), ["0.3", "0.3", "1.0"]),
        ((-0.0123, -0.0119, 0.0), ["-0.0123", "-0.0119", "0.0000"]),
    ],
)
def test_different_numbers_look_different(values: tuple[float, ...], texts: list[str]) -> None:
    assert told_apart(*values) == texts


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=4))
def test_numbers_that_are_told_apart_keep_their_order(values: list[float]) -> None:
    texts = [float(text.replace(",", "")) for text in told_apart(*sorted(values))]
    assert texts == sorted(texts)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (6.4 * 3600, "6 h"), (5e5, "6 days")]
)
def test_a_duration_has_the_largest_unit_that_fits_twice(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "rank 3"), ([4, 3], "ranks 3-4"), ([9, 3, 5, 6, 7, 8], "ranks 3, 5-9"), ([0, 2, 2], "ranks 0, 2")],
)
def test_consecutive_numbers_are_a_range(numbers: list[int], text: str) -> None:
    assert numbered("rank", numbers) == text


@given(st.sets(st.integers(0, 99), min_size=1))
def test_a_list_names_exactly_its_numbers(numbers: set[int]) -> None:
    parts = numbered("rank", numbers).partition(" ")[2].split(", ")
    ranges = [[int(end) for end in part.split("-")] for part in parts]
    assert [number for each in ranges for number in range(each[0], each[-1] + 1)] == sorted(numbers)


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "exit status 0"), (3, "exit status 3"), (-11, "killed by SIGSEGV"), (-99, "killed by signal 99")],
)
def test_a_signal_in_an_exit_status_is_named(status: int, text: str) -> None:
    assert ended_how(status) == text


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("runs/first", "runs/first", "runs/first"),
        ("my runs/läuft", "my runs/läuft", "'my runs/läuft'"),
        (os.fsdecode(b"run-\xff a"), r"$'run-\xff a'", r"$'run-\xff a'"),
        ("it's\n", r"$'it\x27s\x0a'", r"$'it\x27s\x0a'"),
    ],
)
def test_a_path_can_be_copied_to_a_shell(path: str, text: str, word: str) -> None:
    assert (as_text(path), as_word(Path(path))) == (text, word)


@pytest.mark.processes
@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
def test_a_shell_reads_a_word_as_the_bytes_of_the_path(name: bytes) -> None:
    word = as_word(os.fsdecode(name))
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, timeout=60)
    assert done.stdout == name


def test_bytes_that_are_not_text_are_escaped() -> None:
    text = os.fsdecode(b"run-\xff \xfe \xc3\xbc")
    assert escaped(text) == text.encode(errors=ESCAPING).decode() == r"run-\xff \xfe ü"
    assert text.encode("ascii", ESCAPING) == rb"run-\xff \xfe \xfc"


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> Iterator[None]:
    """The local time of this process is that of ``zone``."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("local_zone")
@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("UTC0", "2026-01-05 10:12:03,512+0000"),
        ("CET-1", "2026-01-05 11:12:03,512+0100"),
        ("NST3:30", "2026-01-05 06:42:03,512-0330"),
    ],
)
def test_a_time_in_a_log_has_its_offset_from_utc(stamp: str) -> None:
    assert log_time(1767607923.5126) == stamp
