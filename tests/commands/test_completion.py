"""Completion in bash, zsh and fish: the words that the shells really offer."""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import ROOT
from support.terminal import terminal_of

from zmqrl import cli
from zmqrl.commands import COMMANDS
from zmqrl.commands.completion import completions
from zmqrl.commands.measure.bench import BENCHMARKS
from zmqrl.commands.options import options_of
from zmqrl.config import Config
from zmqrl.recipes import RECIPES

FOUND = completions()
NAMES = [name for name in FOUND if name != "bench"]
OWN_TRAIN_OPTIONS = len(list(options_of(Config)))
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_zmqrl
((${#COMPREPLY[@]})) && printf '%s\\n' "${COMPREPLY[@]}"
"""


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        cli.run([*name.split(), "--help"])
    return capsys.readouterr().out


@pytest.mark.processes  # takes seconds for all commands together
@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_a_command_are_those_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", help_of(name, capsys).replace("--help", "")))
    options = FOUND[name].options
    if "--env" not in shown and len(options) > OWN_TRAIN_OPTIONS:  # some commands do not repeat the options of train
        options = options[:-OWN_TRAIN_OPTIONS]
    firsts = {option.names[0] for option in options} - {"--help"}
    assert firsts <= shown
    long = {spelling for option in FOUND[name].options for spelling in option.names}
    lines = re.findall(r"^\W*(--[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*)", help_of(name, capsys), re.MULTILINE)
    assert set(lines) <= long


def test_every_command_and_benchmark_is_completed() -> None:
    assert list(FOUND) == [*COMMANDS, *(f"bench {name}" for name in BENCHMARKS)]
    for name in ("train", "launch", "doctor", "bench train"):
        assert FOUND[name].words == tuple(RECIPES)
    assert FOUND["eval"].kind == FOUND["serve"].kind == "runs"
    assert FOUND["worker"].kind == "files"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the script of each shell."""
    where = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        with (where / shell).open("w") as file, contextlib.redirect_stdout(file):
            assert cli.run(["completion", shell]) == 0
    return where


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a run and a file."""
    (tmp_path / "runs" / "first run").mkdir(parents=True)
    (tmp_path / "fleet.toml").touch()
    return tmp_path


CASES = [
    (["tr"], ["train"]),
    (["train", "po"], ["pong"]),
    (["train", ""], list(RECIPES)),
    (["train", "pong", ""], []),
    (["train", "pong", "--ref"], []),
    (["train", "pong", "--detach", "--mod"], ["--model", "--mode"]),
    (["train", "--mode", ""], ["sync", "async"]),
    (["train", "--mode", "=", "as"], ["async"]),
    (["train", "--no-pa"], ["--no-page"]),
    (["train", "--wire.no-c"], ["--wire.no-curve"]),
    (["train", "--workers", ""], []),
    (["train", "--scenario", "f"], ["fleet.toml"]),
    (["launch", "-H", "h1", "dba"], ["dba3c-breakout"]),
    (["launch", "-H", ""], []),
    (["launch", "--sync", ""], ["none", "wheel"]),
    (["bench", ""], ["train", "wire"]),
    (["bench", "train", "--sec"], ["--seconds"]),
    (["bench", "train", "cart"], ["cartpole"]),
    (["recipes", "dba"], ["dba3c-breakout"]),
    (["recipes", "--wor"], []),
    (["eval", ""], ["runs/first run"]),
    (["eval", "ru"], ["runs"]),
    (["eval", "runs/first run", "--ch"], ["--checkpoint"]),
    (["simulate", "fl"], ["fleet.toml"]),
    (["completion", ""], ["bash", "zsh", "fish"]),
    (["plot", "--x", "mi"], ["minutes"]),
]


@pytest.mark.processes
@pytest.mark.parametrize(("words", "offered"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_bash_offers_what_can_follow(scripts: Path, place: Path, words: list[str], offered: list[str]) -> None:
    command = ["bash", "--norc", "-c", PRESS_TAB, "bash", str(scripts / "bash"), "zmqrl", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == offered


@pytest.mark.processes
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_the_tab_key_completes_a_command_a_recipe_a_value_and_a_run(
    scripts: Path, place: Path, need_programs: Callable[..., None], name: str
) -> None:
    need_programs(name)
    options = ("--norc", "--noprofile") if name == "bash" else ("-f",)
    (place / "runs" / "pong-3").mkdir()
    variables = {"TERM": "dumb", "PS1": "> ", "HOME": str(place)}
    with terminal_of(name, *options, "-i", variables=variables, directory=place) as terminal:
        terminal.type(f"source {scripts / name}; echo re''ady\n")
        terminal.has_said("ready")
        terminal.type("zmqrl trai\t")
        terminal.has_said("zmqrl train ")
        terminal.type("dba\t")
        terminal.has_said("dba3c-breakout ")
        terminal.type("--mode as\t")
        terminal.has_said("async ")
        terminal.type("\x15zmqrl eval runs/po\t")
        terminal.has_said("runs/pong-3")


@pytest.mark.processes
def test_fish_offers_what_can_follow(scripts: Path, place: Path, need_programs: Callable[..., None]) -> None:
    need_programs("fish")
    lines = ["tr", "train po", "train --mode ", "bench ", "bench train --sec", "launch -H h1 --sync ", "eval runs/fi"]
    asked = "; ".join(f'complete -C "zmqrl {line}"; echo .' for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {scripts / 'fish'}; {asked}"],
        cwd=place,
        env=os.environ | {"HOME": str(place)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    offered = [[line.split("\t")[0] for line in part.splitlines() if line] for part in done.stdout.split(".\n")[:-1]]
    assert offered == [
        ["train"],
        ["pong"],
        ["async", "sync"],
        ["train", "wire"],
        ["--seconds"],
        ["none", "wheel"],
        ["runs/first run/"],
    ]


def test_the_scripts_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for name in ("bash", "zsh", "fish"):
        assert f"zmqrl completion {name} > " in page
