import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from zmqrl.observe.console import LiveConsole, LiveFigures, LoggedConsole, PlainConsole, console_for
from zmqrl.observe.live.presence import HostLine
from zmqrl.observe.metrics import Counters, RunMetrics

ROW: dict[str, Any] = {
    "version": 12_345,
    "wall_s": 753.4,
    "agent_steps": 3_123_456,
    "agent_steps_per_s": 1460.4,
    "updates_per_s": 20.13,
    "score_mean_50": 57.31,
    "episodes": 1203,
    "policy_loss": -0.01234,
    "value_loss": 0.3456,
    "entropy": 1.0234,
    "loss": None,
    "grad_norm": 0.4412,
    "policy_lag": 1.25,
    "contributions": {"used": 24_690, "late": 12, "duplicate": 0, "rejected": 0, "skipped": 3},
    "late_by_rank": {"0": 0, "2": 12},
    "skipped_by_rank": {"2": 3},
    "missing_s": {"0": 0.1, "2": 12.2},
    "workers_present": 2,
}
FIGURES = LiveFigures(title="breakout, ppo, 2+1 workers, 1 shard", row=ROW, frames_per_agent_step=4, left_s=1047)
FACTS = [
    "0:12:33, 0:17:27 left",
    "1,460 agent steps/s (5,842 frames/s), 3,123,456 in total",
    "12,345, 20.1/s",
    "57.3 in the last 50 of 1,203 games",
    "2 present, waiting for rank 2 (12 s), late or skipped: rank 2 (15)",
    "24,690 used, 12 late, 0 duplicate, 0 rejected, 3 skipped",
    "policy -0.0123, value 0.346, entropy 1.02, grad norm 0.441, policy lag 1.25",
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def figures(**changes: Any) -> LiveFigures:
    return LiveFigures(title="run", row={**ROW, **changes})


def live(width: int = 100, **settings: Any) -> tuple[LiveConsole, RichConsole, Clock]:
    clock = Clock()
    terminal = RichConsole(
        file=io.StringIO(), force_terminal=True, width=width, height=40, record=True, _environ={}, **settings
    )
    return LiveConsole(terminal, clock=clock), terminal, clock


def words(text: str) -> str:
    """The text on the screen, without the frame and the line wrapping."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


# plain


def test_a_plain_line_has_all_the_facts() -> None:
    stream = io.StringIO()
    PlainConsole(stream).update(FIGURES)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.isascii()
    for fact in FACTS:
        assert fact in line


def test_plain_lines_come_every_ten_seconds_and_notices_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    console = PlainConsole(stream, clock=clock)
    for second in range(21):
        clock.now_s = 100.0 + second
        console.update(figures(version=second))
        if second == 5:
            console.notice("worker 2 died")
    lines = stream.getvalue().splitlines()
    assert [line.split("updates ")[-1].split(",")[0] for line in lines] == ["0", "worker 2 died", "10", "20"]


def test_a_notice_in_the_log_begins_with_its_time_and_the_offset_from_utc(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = LoggedConsole(PlainConsole(stream), tmp_path / "logs" / "supervisor.log")
    console.notice("worker 2 died")
    console.close()
    (line,) = (tmp_path / "logs" / "supervisor.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}[+-]\d{4} worker 2 died", line)
    assert stream.getvalue() == "worker 2 died\n"


def test_each_stage_of_the_start_is_one_plain_line() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream, clock=Clock())
    for stage, line in (
        ("connecting to 2 hosts", "connecting 0/2 (0 s)"),
        ("connecting to 2 hosts", "connecting 2/2 (1 s)"),
        ("starting 1 shard", "connecting 2/2, shards 0/1 (1 s)"),
        ("starting 1 shard", "connecting 2/2, shards 0/1 (2 s)"),
    ):
        console.starting(stage, line)
    assert stream.getvalue() == "connecting to 2 hosts\nstarting 1 shard\n"


def test_closing_writes_the_last_figures_once() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream, clock=Clock())
    console.update(figures(version=1))
    console.update(figures(version=2))
    console.close()
    console.close()
    assert [line.split("updates ")[1][0] for line in stream.getvalue().splitlines()] == ["1", "2"]


def test_a_figure_missing_from_an_update_keeps_its_value() -> None:
    stream, clock = io.StringIO(), Clock()
    console = PlainConsole(stream, clock=clock)
    console.update(figures(entropy=1.5))
    console.update(figures(entropy=None))
    console.close()
    assert "entropy 1.5" in stream.getvalue().splitlines()[1]


def test_the_first_row_of_a_run_can_be_displayed() -> None:
    stream = io.StringIO()
    row = RunMetrics(start=Counters()).row(0.0)
    PlainConsole(stream).update(LiveFigures(title="run", row=row))
    assert "- agent steps/s, 0 in total" in stream.getvalue()
    assert "no game has ended yet" in stream.getvalue()


def test_games_are_counted_even_before_there_is_a_mean() -> None:
    stream = io.StringIO()
    row = RunMetrics(start=Counters()).row(0.0) | {"episodes": 37}
    PlainConsole(stream).update(LiveFigures(title="run", row=row))
    assert "score 37 games, no mean until the first game of every environment has ended" in stream.getvalue()


def test_the_workers_that_have_been_missing_longest_are_named() -> None:
    stream = io.StringIO()
    PlainConsole(stream).update(figures(missing_s={str(rank): float(rank) for rank in range(20)}))
    assert "waiting for rank 19 (19 s), rank 18 (18 s), " in stream.getvalue()
    assert "rank 14 (14 s) and 12 more" in stream.getvalue()


def test_a_notice_cannot_move_the_cursor_or_forge_a_line() -> None:
    stream = io.StringIO()
    PlainConsole(stream).notice("worker said \x1b[2J\r\nall is well [red]")
    assert stream.getvalue() == "worker said  [2J  all is well [red]\n"


def test_characters_that_the_stream_cannot_encode_are_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainConsole(stream).notice("naïve")
    assert raw.getvalue() == b"na?ve\n"


def test_the_last_speed_of_a_run_that_hangs_is_not_shown_as_its_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    console = PlainConsole(stream, clock=clock)
    console.update(figures())
    clock.now_s += 60.0
    console.update(figures(agent_steps_per_s=None, updates_per_s=None, workers_present=None))
    last = stream.getvalue().splitlines()[-1]
    assert "speed - agent steps/s, 3,123,456 in total" in last
    assert "workers - present, late or skipped: rank 2 (15)" in last


@pytest.mark.parametrize("kind", [PlainConsole, console_for])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_a_viewer_that_goes_away_does_not_end_the_run(
    kind: Any, error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setenv("TERM", "xterm")
    console = kind(Gone())
    console.update(FIGURES)
    console.notice("a worker died")
    console.close()


# live


@pytest.mark.parametrize("width", [30, 60, 100, 200])
def test_the_panel_shows_all_the_facts_at_any_width(width: int) -> None:
    console, terminal, _ = live(width)
    console.update(FIGURES)
    shown = terminal.export_text()
    console.close()
    assert all(len(line) <= width for line in shown.splitlines())
    joined = words(shown)
    for fact in FACTS:
        assert all(word in joined for word in fact.split())
    if width >= 100:
        assert all(fact in joined for fact in FACTS)


def test_the_panel_ends_with_the_last_few_notices() -> None:
    console, terminal, _ = live()
    console.update(FIGURES)
    for rank in range(10):
        console.notice(f"worker {rank} died [red] and was restarted")
    terminal.export_text()
    console.close()
    shown = words(terminal.export_text())
    assert "worker 1 died" not in shown
    for rank in range(2, 10):
        assert f"0:12:33 worker {rank} died [red] and was restarted" in shown


def test_the_panel_is_redrawn_at_most_four_times_a_second_and_at_the_end() -> None:
    console, terminal, clock = live()
    drawn = []
    for step in range(11):
        clock.now_s = 100.0 + step / 10
        console.update(figures(version=step))
        drawn.append(bool(terminal.export_text().strip()))
    assert sum(drawn) == 4
    console.update(figures(version=99))
    console.close()
    assert "99, 20.1/s" in terminal.export_text()


def test_a_panel_that_was_never_drawn_writes_nothing() -> None:
    console, terminal, _ = live()
    console.close()
    assert terminal.export_text() == ""


def test_until_there_is_more_to_show_a_line_shows_how_far_the_start_is() -> None:
    console, terminal, clock = live(width=40)
    console.starting("connecting to 8 hosts", "game, connecting 5/8 (2 s)")
    assert terminal.export_text().strip() == "starting: game, connecting 5/8 (2 s)"
    clock.now_s += 1.0
    console.starting("starting 64 shards", "game, connecting 8/8, checking, shards 7/64 (3 s)")
    assert words(terminal.export_text()) == "starting: game, connecting 8/8, checkin…"
    console.notice("h3 has a new kernel")
    assert "start game, connecting 8/8" in words(terminal.export_text())
    console.update(FIGURES)
    console.starting("too late", "too late")
    console.close()
    assert "too late" not in terminal.export_text()


def test_a_run_that_does_not_start_leaves_nothing_on_the_terminal() -> None:
    console, terminal, _ = live()
    console.starting("connecting to 8 hosts", "connecting 5/8 (2 s)")
    console.close()
    written = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert written.endswith("\x1b[1A\x1b[2K"), "the line is erased"
    assert "\x1b[?25h" in written, "the cursor is visible again"


def test_closing_restores_the_cursor_and_later_calls_draw_nothing() -> None:
    console, terminal, _ = live()
    console.update(FIGURES)
    console.close()
    written = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert written.rstrip().endswith("\x1b[?25h")
    console.update(FIGURES)
    console.notice("too late")
    console.close()
    assert terminal.file.getvalue() == written  # type: ignore[attr-defined]


def test_a_stream_that_is_not_a_terminal_gets_plain_lines_without_colours() -> None:
    stream = io.StringIO()
    console = console_for(stream)
    console.update(FIGURES)
    console.notice("a worker died")
    console.close()
    assert isinstance(console, PlainConsole)
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_the_panel_and_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(console_for(Terminal()), LiveConsole)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console_for(Terminal()), PlainConsole)


def test_no_color_removes_the_colours_of_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = {}
    for setting in ("", "1"):
        monkeypatch.setenv("NO_COLOR", setting)
        stream = Terminal()
        console = console_for(stream)
        console.update(FIGURES)
        console.notice("a worker died")
        console.close()
        shown[setting] = stream.getvalue()
    assert "\x1b[33m" in shown[""]
    assert "\x1b[33m" not in shown["1"]


# hosts

HOSTS = [
    HostLine(host="h1", processes="shard-0,worker-0..3", remarks=""),
    HostLine(host="h2", processes="worker-4..7", remarks="worker-5: silent for 12 s"),
]


def test_the_panel_of_a_run_on_several_hosts_shows_who_is_on_each_host() -> None:
    console, terminal, _ = live()
    console.update(replace(FIGURES, hosts=HOSTS[:1]))
    assert "shard-0" not in terminal.export_text()
    console.close()
    console, terminal, _ = live()
    console.update(replace(FIGURES, hosts=HOSTS))
    shown = words(terminal.export_text())
    console.close()
    assert "h1 shard-0,worker-0..3 present h2 worker-4..7 worker-5: silent for 12 s" in shown


def test_of_many_hosts_those_with_remarks_are_shown() -> None:
    many = [HostLine(host=f"n{number:03}", processes="worker-1", remarks="") for number in range(100)]
    many[77] = HOSTS[1]
    console, terminal, _ = live()
    console.update(replace(FIGURES, hosts=many))
    shown = words(terminal.export_text())
    console.close()
    assert "n010 worker-1 present h2 worker-4..7 worker-5: silent for 12 s and 88 more hosts" in shown
    assert "n011" not in shown


def test_a_plain_line_names_only_the_hosts_with_remarks() -> None:
    stream = io.StringIO()
    PlainConsole(stream).update(replace(FIGURES, hosts=HOSTS))
    assert stream.getvalue().endswith("; hosts h2 worker-5: silent for 12 s\n")
