import pytest

from zmqrl.observe import spans as spans_module
from zmqrl.observe.spans import Spans


class Clock:
    """Stands in for ``time.monotonic_ns``. Tests set the time."""

    def __init__(self) -> None:
        self.now_ns = 10_000

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spans_module, "time", clock)
    return clock


def spend(spans: Spans, clock: Clock, name: str, duration_ns: int) -> None:
    with spans(name):
        clock.now_ns += duration_ns


def test_totals_cover_the_whole_process(clock: Clock) -> None:
    spans = Spans()
    spend(spans, clock, "act", 2_000_000_000)
    spend(spans, clock, "act", 500_000_000)
    spend(spans, clock, "wait", 250_000_000)
    assert spans.totals() == {"act": (2, 2.5), "wait": (1, 0.25)}
    spend(spans, clock, "act", 1_000_000_000)
    assert spans.totals() == {"act": (3, 3.5), "wait": (1, 0.25)}


def test_an_outer_span_contains_the_inner_one(clock: Clock) -> None:
    spans = Spans()
    with spans("env_step"):
        clock.now_ns += 100
        spend(spans, clock, "act", 50)
    assert spans.totals() == {"env_step": (1, 150e-9), "act": (1, 50e-9)}


def test_the_current_span_is_the_innermost_open_one(clock: Clock) -> None:
    spans = Spans()
    seen = [spans.current]
    with spans("env_step"):
        clock.now_ns += 100
        with spans("act"):
            seen.append(spans.current)
        seen.append(spans.current)
    seen.append(spans.current)
    assert seen == [None, ("act", 10_100), ("env_step", 10_000), None]


def test_a_span_that_ends_with_an_exception_counts_and_does_not_swallow_it(clock: Clock) -> None:
    spans = Spans()

    def fail() -> None:
        with spans("push"):
            clock.now_ns += 7
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert spans.totals() == {"push": (1, 7e-9)}


def test_a_span_allocates_no_object() -> None:
    spans = Spans()
    assert spans("act") is spans("act")


def test_the_newest_spans_are_kept_for_the_histograms(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Spans()
    spans.version = 7
    spend(spans, clock, "act", 5)
    spend(spans, clock, "gradient", 20)
    assert spans.fold() == [("act", 10_000, 5, 7), ("gradient", 10_005, 20, 7)]
    assert spans.fold() == []
    spend(spans, clock, "act", 7)
    assert not spans.recent or spans.recent[-1][0] == "gradient"
    spans.fold()
    assert [event[0] for event in spans.recent] == ["act", "gradient", "act"]
    assert (spans.histograms["act"].count, spans.histograms["act"].total) == (2, 12)


def test_spans_that_are_never_read_use_bounded_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "FOLD_AT", 10)
    spans = Spans()
    for _ in range(spans_module.RECENT + 25):
        spend(spans, clock, "act", 1)
    assert len(spans.recent) == spans_module.RECENT
    assert spans.histograms["act"].count == spans_module.RECENT + 24
    assert len(spans.fold()) == 1
