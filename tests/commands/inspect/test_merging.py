"""The lines of several logs are shown in the order of their times."""

from datetime import UTC, datetime
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.commands.inspect.merging import HELD_S, SETTLED_S, Merging, Timed, time_of
from zmqrl.observe.folding import LogSource
from zmqrl.words import log_time

SOURCES: list[LogSource] = [("h1", "worker-0"), ("h1", "worker-1"), ("h2", "worker-2")]
START = time_of("2026-01-05 10:00:00")
assert START is not None


def stamped(second: float, text: str) -> str:
    minutes, rest = divmod(second, 60)
    return f"2026-01-05 10:{minutes:02.0f}:{rest:06.3f} {text}".replace(".", ",", 1)


def shown(parts: list[Timed]) -> list[str]:
    return [line for part in parts for line in part.lines]


@pytest.mark.parametrize(
    ("line", "later_s"),
    [
        ("2026-01-05 10:00:01", 1.0),
        ("2026-01-05 10:00:01 started", 1.0),
        ("2026-01-05 10:00:01,250 INFO started", 1.25),
        ("2026-01-05 10:00:01.250000 started", 1.25),
        ("2026-01-05 10:00:01x", None),
        ("2026-01-05 10:00:01,250+9900 no such offset", None),
        ("0001-01-01 00:00:00 before all times", None),
        ("2026-13-05 10:00:01 no such month", None),
        (" 2026-01-05 10:00:01 indented", None),
        ("Traceback (most recent call last):", None),
        ("", None),
    ],
)
def test_the_time_at_the_start_of_a_line_is_read(line: str, later_s: float | None) -> None:
    assert START is not None
    assert time_of(line) == (None if later_s is None else START + later_s)


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-05 10:00:01+0000",
        "2026-01-05 11:00:01,000+0100 INFO started",
        "2026-01-05 11:00:01,000+01:00 INFO started",
        "2026-01-05 06:30:01.000-0330 started",
    ],
)
def test_a_time_with_an_offset_is_the_same_moment_in_each_time_zone(line: str) -> None:
    assert time_of(line) == datetime(2026, 1, 5, 10, 0, 1, tzinfo=UTC).timestamp()


def test_a_new_line_follows_the_old_lines_of_its_log_that_have_no_offset() -> None:
    assert START is not None
    assert time_of(log_time(START)) == START


def test_lines_of_hosts_in_different_time_zones_are_in_the_order_in_which_they_were_written() -> None:
    merging = Merging()
    in_utc = ["2026-01-05 10:00:01,000+0000 one", "2026-01-05 10:00:03,000+0000 three"]
    in_paris = ["2026-01-05 11:00:02,000+0100 two", "2026-01-05 11:00:04,000+0100 four"]
    for source, lines in ((SOURCES[2], in_paris), (SOURCES[0], in_utc)):
        for line in lines:
            merging.add(source, line, 0.0)
    assert [line.split()[-1] for line in shown(merging.take_all())] == ["one", "two", "three", "four"]


def test_lines_are_merged_by_time_and_a_traceback_stays_with_its_line() -> None:
    merging = Merging()
    logs = {
        SOURCES[0]: [stamped(1, "one"), stamped(4, "failed"), "Traceback", "  File", stamped(5, "again")],
        SOURCES[2]: ["left over", stamped(2, "two"), stamped(4, "four")],
    }
    for source, lines in logs.items():
        for line in lines:
            merging.add(source, line, 0.0)
    assert shown(merging.take_all()) == [
        "left over",
        stamped(1, "one"),
        stamped(2, "two"),
        stamped(4, "failed"),
        "Traceback",
        "  File",
        stamped(4, "four"),
        stamped(5, "again"),
    ]


def test_the_first_lines_without_a_time_belong_to_the_line_before_them() -> None:
    merging = Merging()
    assert START is not None
    merging.begin(SOURCES[1], START + 3)
    merging.add(SOURCES[1], "  the rest of a traceback", 0.0)
    merging.add(SOURCES[0], stamped(2, "two"), 0.0)
    merging.add(SOURCES[0], stamped(4, "four"), 0.0)
    assert shown(merging.take_all()) == [stamped(2, "two"), "  the rest of a traceback", stamped(4, "four")]


def test_a_clock_that_goes_back_does_not_change_the_order_of_a_log() -> None:
    merging = Merging()
    for second in (5, 3, 6):
        merging.add(SOURCES[0], stamped(second, "a"), 0.0)
    merging.add(SOURCES[1], stamped(4, "b"), 0.0)
    assert shown(merging.take_all()) == [stamped(4, "b"), stamped(5, "a"), stamped(3, "a"), stamped(6, "a")]


# By source: the time in eighths of a second of each line, and whether a line without a time follows it.
LOGS = st.fixed_dictionaries(
    dict.fromkeys(SOURCES, st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=12).map(sorted))
)


@given(LOGS, st.data())
def test_a_followed_log_is_shown_in_order_even_if_lines_arrive_late(
    logs: dict[LogSource, list[tuple[int, bool]]], data: st.DataObject
) -> None:
    arrivals: list[tuple[float, int, LogSource, list[str]]] = []
    for number, (source, lines) in enumerate(logs.items()):
        arrived = 0.0
        for at, has_more in lines:
            arrived = max(arrived, at / 8 + data.draw(st.floats(0, SETTLED_S)))
            more = [f"more of {source[1]} {at}"] if has_more else []
            arrivals.append((arrived, number, source, [stamped(at / 8, source[1]), *more]))
    arrivals.sort(key=lambda each: each[:2])
    merging, parts = Merging(), list[Timed]()
    for arrived, _, source, lines_of_part in arrivals:
        parts += merging.take(arrived)
        for line in lines_of_part:
            merging.add(source, line, arrived)
    parts += merging.take_all()
    assert [part.at for part in parts] == sorted(part.at for part in parts)
    for source in SOURCES:
        its = [line for part in parts if part.source == source for line in part.lines]
        assert its == [line for _, _, who, said in arrivals if who == source for line in said]
    assert all(time_of(part.lines[0]) is not None for part in parts)
    assert [len(list(group)) for _, group in groupby(map(id, parts))] == [1] * len(parts)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=30))
def test_no_line_is_held_for_longer_than_the_limit(pauses: list[float]) -> None:
    merging, now, held = Merging(), 0.0, list[float]()
    for pause_s in pauses:
        now += pause_s
        merging.add(SOURCES[0], stamped(round(now, 3), "x"), now)
        held.append(now)
        for _ in merging.take(now):
            held.pop(0)
        assert not held or now - held[0] < HELD_S
