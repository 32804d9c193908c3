"""Where a result comes from."""

import subprocess
from pathlib import Path

import pytest

import zmqrl
from zmqrl.observe.provenance import commit

AUTHOR = ("-c", "user.name=n", "-c", "user.email=e")


def test_the_commit_is_that_of_the_start_even_if_files_change_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "zmqrl/__init__.py"
    package.parent.mkdir()
    package.write_text("")
    for command in (
        ["init", "-q"],
        ["add", "."],
        [*AUTHOR, "commit", "-qm", "First"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, timeout=60)
    monkeypatch.setattr(zmqrl, "__file__", str(package))
    try:
        commit.cache_clear()
        first = commit()
        package.write_text("# changed")
        assert commit() == first
        commit.cache_clear()
        assert commit() == f"{first}+"
    finally:
        commit.cache_clear()
