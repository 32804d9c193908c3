"""The jobs of the workflow install what their tests need, and run the documented commands."""

import ast
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import ran
from support.extras import extra_of
from support.paths import ROOT
from support.sources import ABOUT_SOURCES, TEST_FILES, calls, nodes_of, tree_of

pytestmark = ABOUT_SOURCES

DECLARED: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
SCRIPT = ROOT / ".ci" / "run"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A test or a fixture: its file, the optional modules that it names, the fixtures that it uses, and its marks."""

    path: Path
    name: str
    line: int
    modules: frozenset[str]
    uses: frozenset[str]
    marks: frozenset[str]
    is_fixture: bool


def marks_in(*nodes: ast.AST) -> frozenset[str]:
    """The names of the marks ``pytest.mark.NAME`` in ``nodes``."""
    found = (each for node in nodes for each in ast.walk(node) if isinstance(each, ast.Attribute))
    return frozenset(
        each.attr
        for each in found
        if isinstance(each.value, ast.Attribute) and ast.unparse(each.value) == "pytest.mark"
    )


def texts_in(names: Iterable[str], *nodes: ast.AST) -> frozenset[str]:
    """The literal arguments of all calls of functions with one of ``names`` in ``nodes``."""
    found = [call for node in nodes for call in calls(ast.walk(node), *names)]
    texts = [argument.value for call in found for argument in call.args if isinstance(argument, ast.Constant)]
    assert len(texts) == sum(len(call.args) for call in found), "write the arguments as literal strings"
    return frozenset(map(str, texts))


def functions_of(path: Path) -> Iterator[Function]:
    """The functions in one file."""
    of_file = [
        each for each in tree_of(path).body if isinstance(each, ast.Assign) and "pytestmark" in ast.unparse(each)
    ]
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef):
            around = (*of_file, *node.decorator_list)
            parameters = {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
            yield Function(
                path=path,
                name=node.name,
                line=node.lineno,
                modules=texts_in(("need_modules",), node),
                uses=texts_in(("usefixtures",), *around) | parameters,
                marks=marks_in(*around),
                is_fixture=any(ast.unparse(each).startswith("pytest.fixture") for each in node.decorator_list),
            )


@cache
def functions() -> tuple[Function, ...]:
    """All functions in the files of tests, but not in the packages that tests install there."""
    return tuple(each for path in TEST_FILES for each in functions_of(path))


@cache
def fixtures() -> dict[tuple[Path, str], Function]:
    """The fixtures by file and name."""
    return {(each.path, each.name): each for each in functions() if each.is_fixture}


def modules_of(function: Function) -> frozenset[str]:
    """The optional modules of ``function`` and of all fixtures that it uses."""
    places = [function.path, *(parent / "conftest.py" for parent in function.path.parents)]
    found = (fixtures()[place, name] for name in function.uses for place in places if (place, name) in fixtures())
    return function.modules.union(*(modules_of(each) for each in found if each is not function))


def needed(skipped: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The place of each test without one of the marks ``skipped``, and the extra of each module that it needs."""
    for each in functions():
        if not each.is_fixture and not each.marks & skipped:
            place = f"{each.path.relative_to(ROOT)}:{each.line}"
            yield from ((place, extra_of(module)) for module in modules_of(each))


def with_implied(extras: set[str]) -> set[str]:
    """``extras`` and those that they contain, as ``dev`` contains ``all``."""
    found: set[str] = set()
    todo = list(extras)
    while todo:
        if (extra := todo.pop()) not in found:
            found.add(extra)
            inner = (re.match(r"zmqrl\[(.*)\]", each) for each in DECLARED[extra])
            todo += [name for each in inner if each for name in each[1].split(",")]
    return found


def write_program(path: Path, line: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def programs_of_the_script() -> list[str]:
    """The programs that ``.ci/run`` looks for."""
    return re.findall(r"^(?:.* \|\| )?need (\S+)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


def run_the_script(scratch: Path, *arguments: str, status: int = 0, **instead: str) -> str:
    """What a copy of ``.ci/run`` writes in the directory ``scratch``.

    Stand-ins replace all other programs: they do nothing, or what ``instead`` says. The program `fish` is missing.
    """
    script = scratch / ".ci" / "run"
    script.parent.mkdir()
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new in (("/usr/sbin/policy-rc.d", "policy-rc.d"), ("need fish ", "need a-missing-program ")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    write_program(scratch / ".venv" / "bin" / "pip", 'printf "%s\\n" "$@" > "$0.said"')
    for name in (*programs_of_the_script(), "apt-get", "make"):
        write_program(scratch / "bin" / name, instead.get(name.replace("-", "_"), ""))
    environment = os.environ | {"PATH": f"{scratch / 'bin'}:{os.environ['PATH']}"}
    return ran([script, *arguments], status=status, env=environment).stdout


def installed(scratch: Path, *arguments: str) -> set[str]:
    """The extras that ``.ci/run`` installs, besides those of ``make setup``."""
    run_the_script(scratch, *arguments)
    said = (scratch / ".venv" / "bin" / "pip.said").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^\.\[(.*)\]$", said, re.MULTILINE)
    return set(extras.split(","))


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return found


def arguments_of(job: str) -> list[str]:
    """The arguments that the workflow gives to ``.ci/run`` in ``job``."""
    (line,) = [step["run"] for step in jobs()[job]["steps"] if ".ci/run" in step.get("run", "")]
    return str(line).partition(".ci/run")[2].split()


def documented(heading: str) -> list[str]:
    """The lines of the first block of code under ``heading`` in docs/install.md."""
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    return page.partition(f"\n## {heading}\n")[2].partition("```sh\n")[2].partition("```")[0].splitlines()


@pytest.mark.parametrize(("job", "heading"), [("uv", "With uv"), ("conda", "With conda")])
def test_a_job_runs_the_documented_commands_for_an_installer(job: str, heading: str) -> None:
    lines = [line for step in jobs()[job]["steps"] for line in step.get("run", "").splitlines()]
    # The job makes a few updates. The documented training is longer.
    assert [re.sub("--updates .*", "--stop-score 475", line) for line in lines] == documented(heading)


def test_the_jobs_that_run_the_tests_have_the_whole_history() -> None:
    """A test compares the kept results with their commits."""
    found = [job["steps"] for job in jobs().values() if re.search(r"\.ci/run|make coverage", str(job["steps"]))]
    assert len(found) == 3
    for steps in found:
        assert {"uses": "actions/checkout@v4", "with": {"fetch-depth": 0}} in steps


def test_make_setup_installs_the_extra_dev() -> None:
    assert "$(PIP) -e '.[dev]'" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("job", "skipped"),
    [("tests", frozenset({"slow", "soak"})), ("nightly", frozenset({"soak"}))],
    ids=lambda each: each,
)
def test_a_job_installs_the_extras_of_all_its_tests(job: str, skipped: frozenset[str], tmp_path: Path) -> None:
    have = with_implied({"dev", *installed(tmp_path, *arguments_of(job))})
    wanted = list(needed(skipped))
    assert len({extra for _, extra in wanted}) > 5, "the search no longer finds the modules of tests"
    assert not [f"{place} needs the extra {extra}" for place, extra in wanted if extra not in have]


def test_the_script_installs_the_programs_that_tests_name() -> None:
    found = (
        each for path in TEST_FILES for call in calls(ast.walk(tree_of(path)), "need_programs") for each in call.args
    )
    named = {each.value for each in found if isinstance(each, ast.Constant)}
    assert len(named) > 5, "the search no longer finds the programs of tests"
    given = {"git", "ssh", "ssh-keygen"}  # the checkout needs git, and the package with sshd needs that with ssh
    assert named - given <= set(programs_of_the_script())


@pytest.mark.processes
def test_the_script_lets_services_start_again_after_it_has_installed_packages(tmp_path: Path) -> None:
    said = run_the_script(tmp_path, apt_get='echo "$@: $(tail -n 1 policy-rc.d)"')
    assert said.splitlines() == ["update -qq: exit 101", "install -y -qq fish: exit 101"]
    assert not (tmp_path / "policy-rc.d").exists()


@pytest.mark.processes
def test_the_script_ends_after_apt_get_even_if_the_setup_fails(tmp_path: Path) -> None:
    failing = "while [ ! -e began ]; do sleep 0.1; done; exit 7"
    said = run_the_script(tmp_path, status=7, make=failing, apt_get='touch began; sleep 0.5; echo "$1"')
    assert said.splitlines() == ["update", "install"]
    assert not (tmp_path / "policy-rc.d").exists()


def test_only_slow_tests_need_ray() -> None:
    places = [place for place, extra in needed(frozenset({"soak"})) if extra == "ray"]
    assert len(places) >= 3
    assert not [place for place, extra in needed(frozenset({"slow", "soak"})) if extra == "ray"]


def test_every_extra_is_declared_and_every_game_of_a_recipe_with_an_extra_is_tested() -> None:
    found = {extra for _, extra in needed(frozenset())}
    assert found <= set(DECLARED)
    assert {"box2d", "mujoco"} <= found
