import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.words import counted, ended_how, numbered


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "host", "0 hosts"), (1, "host", "1 host"), (2, "backup", "2 backups"), (1_200, "update", "1,200 updates")],
)
def test_a_noun_agrees_with_its_count(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_a_noun_can_have_a_plural_of_its_own() -> None:
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]


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
