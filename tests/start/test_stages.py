"""The stages of a start, and how they reach a console."""

import threading

from support.rig import eventually

from zmqrl.observe.console import LiveFigures
from zmqrl.start.stages import Stages


class Shown:
    """A console that keeps what it gets."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, str]] = []

    def starting(self, stage: str, line: str) -> None:
        self.starts.append((stage, line))

    def update(self, figures: LiveFigures) -> None: ...

    def notice(self, text: str) -> None: ...

    def close(self) -> None: ...


class Slow(Shown):
    """Delays a tick of the first stage. If the second stage does not wait for this tick, the tick is shown after it."""

    def __init__(self) -> None:
        super().__init__()
        self.ticking, self.next = threading.Event(), threading.Event()

    def starting(self, stage: str, line: str) -> None:
        if stage == "second":
            self.next.set()
        elif threading.current_thread() is not threading.main_thread():
            self.ticking.set()
            self.next.wait(0.2)
        super().starting(stage, line)


def test_the_line_keeps_all_stages_and_counts_the_seconds() -> None:
    console, now_s = Shown(), 100.0
    with Stages(console, clock=lambda: now_s) as stages:
        stages.at("game", "checking the game")
        now_s += 2.0
        stages.at("connecting", "connecting to 8 hosts", 5, 8)
        now_s += 1.0
        stages.at("connecting", "connecting to 8 hosts", 8, 8)
        stages.at("shards", "starting 3 shards", 0, 3)
    shown = list(dict.fromkeys(console.starts))
    assert [line for _, line in shown] == [
        "game (0 s)",
        "game, connecting 5/8 (2 s)",
        "game, connecting 8/8 (3 s)",
        "game, connecting 8/8, shards 0/3 (3 s)",
    ]
    assert shown[-1][0] == "starting 3 shards"


def test_a_stage_that_takes_long_says_so_until_the_next_one() -> None:
    console, now_s = Shown(), 0.0
    with Stages(console, clock=lambda: now_s) as stages:
        stages.at("connecting", "connecting to 8 hosts", 0, 8)
        for seconds in (29.0, 30.0, 59.0, 60.0):
            now_s = seconds
            stages.at("connecting", "connecting to 8 hosts", 1 if seconds < 60.0 else 7, 8)
        stages.at("checking", "checking 8 hosts")
        now_s = 90.0
        stages.at("checking", "checking 8 hosts")
        stages.at("shards", "starting 3 shards", 0, 3)
    assert list(dict.fromkeys(stage for stage, _ in console.starts)) == [
        "connecting to 8 hosts",
        "connecting to 8 hosts: 1/8 after 30 s",
        "connecting to 8 hosts: 7/8 after 60 s",
        "checking 8 hosts",
        "checking 8 hosts: not done after 30 s",
        "starting 3 shards",
    ]


def test_the_seconds_count_while_a_stage_waits_until_the_start_is_over() -> None:
    console, now_s = Shown(), 0.0
    with Stages(console, clock=lambda: now_s) as stages:
        stages.at("game", "checking the game")
        now_s = 7.0
        eventually(lambda: ("checking the game", "game (7 s)") in console.starts, "a tick", 30.0)
    stages.at("late", "late")
    assert console.starts[-1][1] == "game (7 s)"
    assert [thread for thread in threading.enumerate() if thread.name == "stages" and not thread.daemon] == []


def test_a_stage_that_is_over_is_not_shown_after_the_next_one() -> None:
    console = Slow()
    with Stages(console) as stages:
        stages.at("first", "first")
        assert console.ticking.wait(30.0)
        stages.at("second", "second")
        eventually(lambda: [stage for stage, _ in console.starts].count("second") >= 2, "a tick", 30.0)
    shown = [stage for stage, _ in console.starts]
    assert shown == sorted(shown), "the first stage came back"
