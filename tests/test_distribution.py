"""The wheel and the source distribution: complete, described, and the same bytes each time."""

import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NoReturn

import pytest
from hatchling import build
from support.paths import ROOT

from zmqrl import __version__

NAME = f"zmqrl-{__version__}"
DATE = "1700000000"  # seconds since 1970


@pytest.fixture
def checkout(need_programs: Callable[..., None], skip_or_fail: Callable[[str], NoReturn]) -> None:
    """Skips the test in a copy of the project without git, such as the unpacked source distribution."""
    need_programs("git")
    if not (ROOT / ".git").exists():
        skip_or_fail(f"{ROOT} is not a git checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    where, here = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)
    try:
        return zipfile.ZipFile(where / build.build_wheel(str(where)))
    finally:
        os.chdir(here)


@pytest.fixture
def about(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "zmqrl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"zmqrl/py.typed", "zmqrl/recipes.py", "zmqrl/page/static/index.html"} <= files
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files


def test_the_wheel_has_the_licences_and_the_command(wheel: zipfile.ZipFile) -> None:
    for licence in ("LICENSE", "zmqrl/page/static/uplot/LICENSE"):
        assert wheel.read(f"{NAME}.dist-info/licenses/{licence}") == (ROOT / licence).read_bytes()
    assert b"zmqrl = zmqrl.__main__:main" in wheel.read(f"{NAME}.dist-info/entry_points.txt")


def test_the_metadata_is_complete(about: Message) -> None:
    assert (about["Version"], about["License-Expression"]) == (__version__, "MIT")
    assert about["Description-Content-Type"] == "text/markdown"
    named = {line.partition(",")[0] for line in about.get_all("Project-URL", [])}
    assert named >= {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    classifiers = about.get_all("Classifier", [])
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(classifiers)
    lowest = about["Requires-Python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in classifiers


@pytest.mark.usefixtures("checkout")
def test_the_version_is_written_in_one_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    lines = subprocess.run(
        ["git", "-C", ROOT, "grep", "-nE", rf"version.*\b{re.escape(__version__)}\b"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(("benchmarks/results/", "tests/"))] == [
        "zmqrl/__init__.py"
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("make", [build.build_wheel, build.build_sdist])
def test_two_checkouts_of_the_same_commit_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    tree = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], capture_output=True, check=True, timeout=60).stdout
    found = []
    for number, mask in enumerate((0o022, 0o077)):
        checkout, before = tmp_path / str(number), os.umask(mask)
        try:
            checkout.mkdir()
            subprocess.run(["tar", "-x", "-m", "-C", checkout], input=tree, check=True, timeout=60)
            monkeypatch.chdir(checkout)
            (tmp_path / f"made-{number}").mkdir()
            name = make(str(tmp_path / f"made-{number}"))
        finally:
            os.umask(before)
        found.append((tmp_path / f"made-{number}" / name).read_bytes())
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_source_distribution_can_be_built_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as packed:
        names = set(packed.getnames())
    needed = ("pyproject.toml", "constraints.txt", "LICENSE", "README.md", "Makefile", "tests/conftest.py")
    assert {f"{NAME}/{name}" for name in needed} <= names
