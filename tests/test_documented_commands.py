"""zmqrl accepts every command line in the documents, the help and the files of ``launch/``."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.paths import ROOT

from zmqrl import cli
from zmqrl.commands import COMMANDS, completion
from zmqrl.commands.inspect import this_machine
from zmqrl.commands.measure import bench_train, bench_wire, simulate
from zmqrl.commands.run import help, launch, train
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.recipes import RECIPES
from zmqrl.simulate.scenario import Scenario
from zmqrl.supervisor import run

CALL = re.compile(rf"(?:^|[\s/])zmqrl (?P<line>(?:{'|'.join(COMMANDS)})(?: .*|$))", re.MULTILINE)
# Code between backticks is often only a part of a command line.
IS_WHOLE = re.compile(rf" (?:{'|'.join(RECIPES)}|\S+/\S+)(?: |$)")
PATTERNS = ("*.md", "docs/**/*.md", "docs/examples/*.py", "launch/**/*", "benchmarks/**/*.md", "packaging/**/*.yaml")
FOUND = {path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()}
PAGES = sorted(path for path in FOUND if path.suffix != ".pyc")


class Accepted(Exception):
    """A command line was accepted."""


def lines_of(page: Path) -> Iterator[str]:
    """The command lines of a page, each without the word zmqrl."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    if page.suffix == ".md":
        code = re.findall(r"^ *```.*?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        marked = [" ".join(each.split()) for each in re.findall(r"`(zmqrl [^`]+)`", text)]
    else:
        code, marked = [line.lstrip("#- ") for line in text.splitlines() if not re.match(r"# \S|.*[`\[]", line)], []
    for each in (*code, *filter(IS_WHOLE.search, marked)):
        for found in CALL.finditer(each):
            yield found["line"]


def words_of(line: str) -> list[str]:
    """The words of the first command in a shell line."""
    words = shlex.split(re.sub(r"<\(.*?\)", "hosts", line), comments=True)
    ends = (n for n, word in enumerate(words) if word in ("&&", "|", ";", ">"))
    return words[: next(ends, None)]


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command raises Accepted when it has read its command line. All files that a line names seem to exist."""

    def stop(*arguments: Any, **options: Any) -> NoReturn:
        for config in arguments:
            if isinstance(config, Config):
                config.with_schedule().check()
        raise Accepted

    modules = [importlib.import_module(f"zmqrl.commands.{about.module}") for about in COMMANDS.values()]
    for module in (*modules, bench_train, bench_wire, this_machine):
        if hasattr(module, "run"):
            monkeypatch.setattr(module, "run", stop)
    monkeypatch.setattr(train, "_print_plan", stop)
    monkeypatch.setattr(train, "detach", stop)
    monkeypatch.setattr(run, "train", stop)
    monkeypatch.setattr(launch, "detach", stop)
    monkeypatch.setattr(launch, "submit", stop)
    monkeypatch.setattr(launch, "_as_before", lambda options, config: options)
    monkeypatch.setattr(completion, "completions", stop)
    monkeypatch.setattr(simulate, "scenario_of", lambda run: Scenario())
    monkeypatch.setattr(Scenario, "read_named", lambda path: (Scenario(), frozenset()))
    monkeypatch.setattr(Config, "read", lambda path: RECIPES.get(path.parent.name, RECIPES["cartpole"])())


def accept(line: str) -> None:
    try:
        assert cli.run(words_of(line)) == 0, line
    except Accepted:
        pass
    except UsageError as error:
        pytest.fail(f"zmqrl {line}: {error}")


@pytest.mark.processes  # takes seconds for all pages together
@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_of_a_page_is_accepted(page: Path) -> None:
    for line in dict.fromkeys(lines_of(page)):
        accept(line)


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("example", [*help.TRAIN, *help.LAUNCH])
def test_every_example_of_the_help_is_accepted(example: str) -> None:
    accept(example.removeprefix("zmqrl "))


def test_the_command_lines_of_the_pages_are_found() -> None:
    found = {line: page.name for page in PAGES for line in lines_of(page)}
    assert len(found) > 100
    commands = {line.split()[0] for line in found}
    assert commands == set(COMMANDS), "a command is in no example"
    assert any(line.startswith("train --detach breakout --minutes 600 ") for line in found)
    assert {"three.toml", "containers.toml", "Containerfile", "own_learner.py", "recipe.yaml"} <= set(found.values())


def test_a_job_on_a_login_node_has_several_cores_on_each_of_its_nodes() -> None:
    found = [line for page in PAGES for line in lines_of(page) if "--slurm-login" in line]
    assert len(found) >= 2
    for line in found:
        (options,) = (shlex.split(word.partition("=")[2]) for word in words_of(line) if word.startswith("--sbatch="))
        assert {"--nodes", "--cpus-per-task"} <= set(options), line


def test_names_with_brackets_are_quoted_because_zsh_would_expand_them() -> None:
    for page in PAGES:
        for line in lines_of(page):
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^|\s)#.*", "", line)
            assert not re.search(r"\S\[[0-9]", bare), f"{page.name}: {line}"


def test_the_help_of_launch_quotes_names_with_brackets_and_asks_slurm_for_cores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch.command(["--help"]) == 0
    said = capsys.readouterr().out
    names = re.findall(r"\S+\[[0-9]\S*", said)
    assert names
    assert all(name.startswith("'") for name in names), names
    assert "--sbatch='--nodes 4 --cpus-per-task 16'" in " ".join(said.split())


@pytest.mark.usefixtures("parsing")
@pytest.mark.parametrize("line", ["train --detach brekout", "launch -H h1 --fast cartpole", "eval", "plan s.toml"])
def test_a_command_line_that_zmqrl_refuses_is_noticed(line: str) -> None:
    with pytest.raises(pytest.fail.Exception):
        accept(line)
