"""The help of commands with many options: every option is in a group, and keeps the text of tyro."""

import dataclasses
import re

import pytest

from zmqrl import cli
from zmqrl.commands.help import OptionGroup, grouped, help_of
from zmqrl.commands.run import help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """The engine of a boat."""

    power: float = 2.5
    """Power in kW."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boat:
    """A boat."""

    name: str = "Ada"
    """Name of the boat."""
    sails: int = 1
    """Number of sails."""
    engine: Engine = dataclasses.field(default_factory=Engine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trip:
    """Sail somewhere."""

    to: str = "Crete"
    """Where to."""


GROUPS = [OptionGroup("trip", ["help", "to"]), OptionGroup("boat", ["sails"], ["engine"])]
PAGE = """usage: sail [-h] [--name STR] [--sails INT] [--to STR] [--engine.power FLOAT]

Sail somewhere.

EXAMPLES
  Sail to Rhodes:
    sail --to Rhodes

TRIP OPTIONS
  -h, --help            show this help message and exit
  --to STR              Where to. (default: Crete)

BOAT OPTIONS
  --sails INT           Number of sails. (default: 3)

BOAT OPTIONS: --engine.*
  The engine of a boat.
  --engine.power FLOAT  Power in kW. (default: 2.5)

OTHER OPTIONS
  --name STR            Name of the boat. (default: Ada)
"""


@pytest.mark.parametrize("columns", ["80", "300"])
def test_options_are_sorted_into_groups_and_no_option_is_lost(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    page = help_of(Trip, Boat(sails=3), "sail")
    assert grouped(page, GROUPS, {"sail --to Rhodes": "Sail to Rhodes"}) == PAGE


def test_the_help_keeps_the_colours_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = grouped(help_of(Trip, Boat(sails=3), "sail"), GROUPS, {"sail --to Rhodes": "Sail to Rhodes"})
    assert "\x1b[1mTRIP OPTIONS\x1b[0m" in shown
    for line in shown.splitlines():
        assert line.count("\x1b[0m") or "\x1b" not in line, "a style ends on its line"
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == PAGE


@pytest.mark.parametrize("command", ["train", "launch"])
def test_every_option_of_a_run_is_in_a_group(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "OTHER OPTIONS" not in shown, "add the new option to a group of commands/run/help.py"
    assert "\n  --ppo.clip FLOAT\n" in shown
    assert ("\nHOST OPTIONS\n" in shown) == (command == "launch")
    named = [name for group in (*help.RUN, *help.HOSTS) for name in (*group.options, *group.parts)]
    assert len(named) == len(set(named)), "an option is in two groups"


def test_the_help_of_launch_says_what_its_checks_leave_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["launch", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--no-preflight Check the hosts first, as `zmqrl doctor` does, but not the bandwidth." in shown
