"""The console of a run: a live panel if the output is a terminal, else a line every ten seconds."""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from zmqrl.observe.folding import printable
from zmqrl.observe.live.figures import MOMENTARY
from zmqrl.observe.live.presence import HostLine
from zmqrl.observe.screen import Screen
from zmqrl.words import ESCAPING, counted, log_time

REFRESH_S = 0.25
LINE_S = 10.0
NOTICES_SHOWN = 8
RANKS_SHOWN = 6
HOSTS_SHOWN = 12

# Even a worker that is never late is missing while it computes, which is most of the time.
MISSING_AFTER_S = 2.0

_LEARNING = {
    "loss": "loss",
    "policy_loss": "policy",
    "value_loss": "value",
    "entropy": "entropy",
    "grad_norm": "grad norm",
    "policy_lag": "policy lag",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveFigures:
    """The content of the console: the newest row of ``metrics.jsonl``, and values that this row lacks.

    ``left_s`` is the time until the run ends, or None if unknown. The console shows ``hosts`` if there are several.
    """

    title: str
    row: Mapping[str, Any]
    frames_per_agent_step: float | None = None
    left_s: float | None = None
    hosts: Sequence[HostLine] = ()


class Console(Protocol):
    """Shows a run to the user. After the pipe or terminal has closed, shows nothing and raises no error."""

    def starting(self, stage: str, line: str) -> None:
        """Show the progress of the start, until there are figures. Any thread may call this method.

        ``stage`` describes the current stage, and ``line`` all stages.
        """

    def update(self, figures: LiveFigures) -> None:
        """Show ``figures`` at once or at the next refresh."""

    def notice(self, text: str) -> None:
        """Show an event at once, such as a restarted worker or a new checkpoint."""

    def close(self) -> None:
        """Show the last values and restore the terminal. A second call does nothing."""


class LoggedConsole:
    """A console that also writes its notices to a file, each with the time."""

    def __init__(self, console: Console, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._console, self._is_hidden = console, False
        self._file = path.open("ab", buffering=0)

    def starting(self, stage: str, line: str) -> None:
        if not self._is_hidden:
            self._console.starting(stage, line)

    def update(self, figures: LiveFigures) -> None:
        if not self._is_hidden:
            self._console.update(figures)

    def notice(self, text: str) -> None:
        self.log(text)
        if not self._is_hidden:
            self._console.notice(text)

    def hide(self) -> None:
        """Close the console. From now on, write only to the file."""
        self._console.close()
        self._is_hidden = True

    def log(self, text: str) -> None:
        """Write ``text`` to the file only."""
        with contextlib.suppress(OSError):  # another part reports a full disk
            self._file.write(f"{log_time(time.time())} {text}\n".encode(errors=ESCAPING))

    def close(self) -> None:
        self._file.close()
        self._console.close()


class _Terminal(RichConsole):
    def on_broken_pipe(self) -> None:
        # Without this method, Rich would end the process if the pipe closes.
        raise


def console_for(stream: TextIO, *, stamps: bool = True) -> Console:
    """A live panel if ``stream`` is a terminal that can move its cursor, else plain lines.

    Without ``stamps``, the panel adds no times to notices, which already begin with one.
    """
    if stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        terminal = _Terminal(file=stream, markup=False, emoji=False, highlight=False)
        return LiveConsole(terminal, is_idle=lambda: not isinstance(stream, Screen) or stream.is_idle, stamps=stamps)
    return PlainConsole(stream)


class PlainConsole:
    """Writes each stage of the start and each notice, and a line of figures every ten seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._row: dict[str, Any] = {}
        self._unwritten: LiveFigures | None = None
        self._due_s = -float("inf")
        self._gone = False
        self._stage = ""

    def starting(self, stage: str, line: str) -> None:
        if stage != self._stage:
            self._stage = stage
            self._write(stage)

    def update(self, figures: LiveFigures) -> None:
        self._row |= _told(figures.row)
        self._unwritten = figures
        if self._clock() >= self._due_s:
            self._due_s = self._clock() + LINE_S
            self._write_figures()

    def notice(self, text: str) -> None:
        self._write(printable(text))

    def close(self) -> None:
        self._write_figures()

    def _write_figures(self) -> None:
        if self._unwritten is not None:
            facts, hosts = _facts(self._unwritten, self._row), self._unwritten.hosts
            if len(hosts) > 1 and (remarks := [f"{line.host} {line.remarks}" for line in hosts if line.remarks]):
                facts.append(("hosts", "; ".join(remarks)))
            self._write("; ".join(f"{label} {text}" for label, text in facts))
            self._unwritten = None

    def _write(self, line: str) -> None:
        if self._gone:
            return
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except OSError:
            self._gone = True


class LiveConsole:
    """A panel that is redrawn in place, at most four times a second. The last few notices are below the figures.

    Before there are figures or notices, one line shows the progress of the start. The caller's thread draws the panel,
    but only while ``is_idle()``: a slow terminal skips panels.
    """

    def __init__(
        self,
        console: RichConsole,
        *,
        clock: Callable[[], float] = time.monotonic,
        is_idle: Callable[[], bool] = lambda: True,
        stamps: bool = True,
    ) -> None:
        self._console = console
        self._clock, self._is_idle, self._stamps = clock, is_idle, stamps
        # Other output to the same terminal goes above the panel. A redirected stream stays redirected.
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._row: dict[str, Any] = {}
        self._figures: LiveFigures | None = None
        self._notices: deque[str] = deque(maxlen=NOTICES_SHOWN)
        self._due_s = -float("inf")
        self._over = False
        self._line = ""
        self._drawing = threading.Lock()

    def starting(self, stage: str, line: str) -> None:
        with self._drawing:
            if self._figures is None:
                self._line = line
                self._draw_if_due()

    def update(self, figures: LiveFigures) -> None:
        with self._drawing:
            self._row |= _told(figures.row)
            self._figures = figures
            self._draw_if_due()

    def notice(self, text: str) -> None:
        with self._drawing:
            stamp = f"{_duration(self._row.get('wall_s', 0.0))} " if self._stamps else ""
            self._notices.append(f"{stamp}{printable(text)}")
            if self._is_idle():
                self._draw()

    def close(self) -> None:
        with self._drawing:
            self._live.transient = self._is_starting  # a run that did not start leaves no line
            if self._live.is_started or self._figures is not None:
                self._draw()
            self._stop()

    @property
    def _is_starting(self) -> bool:
        return self._figures is None and not self._notices

    def _draw_if_due(self) -> None:
        if self._clock() >= self._due_s and self._is_idle():
            self._draw()

    def _draw(self) -> None:
        if self._over:
            return
        self._due_s = self._clock() + REFRESH_S
        try:
            self._live.start()
            line = Text(f"starting: {self._line}", no_wrap=True, overflow="ellipsis")
            self._live.update(line if self._is_starting else self._panel(), refresh=True)
        except OSError:
            self._stop()

    def _stop(self) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self._live.stop()

    def _panel(self) -> Panel:
        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        if self._figures is None and self._line:
            facts.add_row("start", self._line)
        if self._figures is not None:
            for label, text in _facts(self._figures, self._row):
                facts.add_row(label, Text(text, style="bold" if label == "score" else ""))
        parts: list[RenderableType] = [facts]
        if self._figures is not None and len(self._figures.hosts) > 1:
            parts += [Rule(style="dim"), _host_table(self._figures.hosts)]
        if self._notices:
            notices = (Text(notice, style="yellow", overflow="fold") for notice in self._notices)
            parts += [Rule(style="dim"), *notices]
        return Panel(
            Group(*parts),
            title=Text(printable(self._figures.title)) if self._figures is not None else "zmqrl",
            title_align="left",
            box=box.ROUNDED,
            border_style="dim",
            # Leave room for the ^C that the terminal echoes. If the ^C wrapped to a new line, the next panel would not
            # cover this one.
            width=max(8, self._console.width - 2),
        )


def _host_table(hosts: Sequence[HostLine]) -> Table:
    """A line for each host. If there are too many, hosts without remarks are left out first."""
    shown = hosts
    if len(hosts) > HOSTS_SHOWN:
        first = sorted(range(len(hosts)), key=lambda index: not hosts[index].remarks)[:HOSTS_SHOWN]
        shown = [hosts[index] for index in sorted(first)]
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for line in shown:
        table.add_row(
            Text(line.host, style="dim"), Text(line.processes), Text(line.remarks or "present", style=_style(line))
        )
    if len(shown) < len(hosts):
        table.add_row("", Text(f"and {counted(len(hosts) - len(shown), 'more host')}", style="dim"), "")
    return table


def _style(line: HostLine) -> str:
    return "yellow" if line.remarks else "dim"


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in ``row`` that are not null: for the others, the console still shows the last known values. But the
    last speed of a run that hangs is not its speed.
    """
    return {key: value for key, value in row.items() if value is not None or key in MOMENTARY}


def _facts(figures: LiveFigures, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(label, text)`` in display order. Unknown values are left out, or shown as a dash."""
    left = "" if figures.left_s is None else f", {_duration(figures.left_s)} left"
    facts = [
        ("time", _duration(row.get("wall_s", 0.0)) + left),
        ("speed", _speed(row, figures.frames_per_agent_step)),
        ("updates", f"{row.get('version', 0):,}, {_number(row.get('updates_per_s'))}/s"),
        ("score", _score(row)),
        ("workers", _workers(row)),
        ("contributions", ", ".join(f"{n:,} {outcome}" for outcome, n in row.get("contributions", {}).items())),
        ("learning", ", ".join(f"{name} {_number(row[key])}" for key, name in _LEARNING.items() if key in row)),
    ]
    return [(label, text) for label, text in facts if text]


def _speed(row: Mapping[str, Any], frames_per_agent_step: float | None) -> str:
    rate = row.get("agent_steps_per_s")
    frames = ""
    if rate is not None and frames_per_agent_step is not None:
        frames = f" ({rate * frames_per_agent_step:,.0f} frames/s)"
    steps_per_s = "-" if rate is None else f"{rate:,.0f}"
    return f"{steps_per_s} agent steps/s{frames}, {row.get('agent_steps', 0):,} in total"


def _score(row: Mapping[str, Any]) -> str:
    episodes = row.get("episodes", 0)
    if not episodes:
        return "no game has ended yet"
    games = counted(episodes, "game")
    if "score_mean_50" not in row:
        return f"{games}, no mean until the first game of every environment has ended"
    return f"{_number(row['score_mean_50'])} in {f'the last 50 of {games}' if episodes > 50 else games}"


def _workers(row: Mapping[str, Any]) -> str:
    present = row.get("workers_present", 0)
    missing = {rank: seconds for rank, seconds in row.get("missing_s", {}).items() if seconds >= MISSING_AFTER_S}
    behind = dict(row.get("late_by_rank", {}))
    for rank, skipped in row.get("skipped_by_rank", {}).items():
        behind[rank] = behind.get(rank, 0) + skipped
    behind = {rank: n for rank, n in behind.items() if n}
    text = f"{'-' if present is None else present} present"
    if missing and present is not None:
        text += f", waiting for {_ranks(missing, lambda seconds: f'{seconds:,.0f} s')}"
    if behind:
        text += f", late or skipped: {_ranks(behind, lambda n: f'{n:,}')}"
    return text


def _ranks(figures: Mapping[str, float], shown: Callable[[float], str]) -> str:
    """The ranks with the largest values: ``rank 3 (12 s), rank 0 (4 s) and 2 more``."""
    worst = sorted(figures, key=lambda rank: -figures[rank])
    text = ", ".join(f"rank {rank} ({shown(figures[rank])})" for rank in worst[:RANKS_SHOWN])
    return f"{text} and {len(worst) - RANKS_SHOWN} more" if len(worst) > RANKS_SHOWN else text


def _duration(seconds: float) -> str:
    minutes, second = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
