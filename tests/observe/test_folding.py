"""The same line from many processes is shown once. No line is lost, and the lines of a process keep their order."""

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe import folding
from zmqrl.observe.folding import Folded, Folding, LogSource, ranges

SOURCES = [(f"h{1 + rank // 2}", f"worker-{rank}") for rank in range(4)]
PAUSES = st.integers(0, 6).map(lambda eighths: eighths / 8)  # eighths, so that sums are exact
SAID = st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from("abcd"), PAUSES), max_size=40)


def once(lines: list[str]) -> list[str]:
    """The lines without immediate repetitions."""
    return [line for line, _ in groupby(lines)]


def fold(said: list[tuple[LogSource, str, float]], held: Folding) -> list[Folded]:
    """The lines shown if each line is logged the given number of seconds after the previous line."""
    shown, now = [], 0.0
    for source, line, pause_s in said:
        now += pause_s
        shown += held.take(now)
        held.add(source, line, now)
    return shown + held.take_all()


@given(SAID)
def test_no_line_is_lost_and_the_lines_of_each_process_stay_in_order(said: list[tuple[LogSource, str, float]]) -> None:
    shown = fold(said, Folding())
    counts = Counter[str]()
    for each in shown:
        counts[each.line] += each.count
    assert counts == Counter(line for _, line, _ in said)
    for source in SOURCES:
        its = [line for who, line, _ in said if who == source]
        assert once([each.line for each in shown if source in each.sources]) == once(its)


@given(SAID)
def test_no_line_is_held_back_for_longer_than_the_window(said: list[tuple[LogSource, str, float]]) -> None:
    held = Folding()
    now, unseen = 0.0, list[float]()
    for source, line, pause_s in said:
        now += pause_s
        held.add(source, line, now)
        unseen.append(now)
        if held.take(now):
            unseen.clear()
        assert not unseen or now - unseen[0] < folding.WINDOW_S
    held.take(now + folding.WINDOW_S)
    assert held.take_all() == []


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.permutations(SOURCES))
def test_a_line_that_all_processes_log_is_shown_once(lines: list[str], order: list[LogSource]) -> None:
    shown = fold([(source, line, 0.0) for source in order for line in lines], Folding())
    assert [each.line for each in shown] == once(lines)
    assert all(list(each.sources) == order for each in shown)


def test_tracebacks_that_differ_in_one_line_are_folded_around_that_line() -> None:
    held = Folding()
    for rank, source in enumerate(SOURCES):
        for line in ("Traceback", f"  rank = {rank}", "RuntimeError: broken"):
            held.add(source, line, 0.0)
    shown = [str(each) for each in held.take_all()]
    assert shown[0] == "[h1,h2 worker-0..3] Traceback (4x)"
    assert shown[-1] == "[h1,h2 worker-0..3] RuntimeError: broken (4x)"
    assert sorted(shown[1:-1]) == [f"[{host} {name}]   rank = {rank}" for rank, (host, name) in enumerate(SOURCES)]


def test_lines_that_differ_only_in_time_are_folded_and_the_first_is_shown() -> None:
    held = Folding()
    for second, source in enumerate(SOURCES):
        held.add(source, f"2026-01-01 10:00:0{second},000 WARNING hot", 0.0)
    assert [str(each) for each in held.take_all()] == ["[h1,h2 worker-0..3] 2026-01-01 10:00:00,000 WARNING hot (4x)"]


def test_a_flood_of_lines_is_shown_before_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_HELD", 10)
    held = Folding()
    for number in range(25):
        held.add(("", "supervisor"), str(number), 0.0)
    assert [str(each) for each in held.take(0.0)] == [f"[supervisor] {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["h1", "h2"], "h1,h2"),
        (["h3", "h2", "h1", "h7"], "h1..h3,h7"),
        (["h8", "h9", "h10", "h11"], "h8..h11"),
        (["node08.lan", "node09.lan", "node10.lan"], "node08.lan..node10.lan"),
        (["one", "two", "three"], "one,three,two"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1,10.0.0.2"),
        ([f"h{number}" for number in range(0, 20, 2)], "h0,h2,h4,h6 and 6 more"),
        pytest.param(["h" + "1" * 5000], "h" + "1" * 5000, id="too many digits for a number"),
    ],
)
def test_names_are_shown_as_ranges(names: list[str], shown: str) -> None:
    assert ranges(names) == shown


def test_ranges_of_ranks_can_be_shortened() -> None:
    names = [f"worker-{rank}" for rank in (0, 1, 2, 3, 9)]
    assert ranges([*names, "shard-0"], short=True) == "shard-0,worker-0..3,worker-9"
