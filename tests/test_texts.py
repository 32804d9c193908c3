"""Paths that are long, not ASCII or not even text, and the names of runs that begin at the same time."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_rig import RunFiles

from zmqrl.commands.run.launch import directory_name
from zmqrl.errors import UsageError
from zmqrl.rundir import RunDirectory, directory_for_sockets, holds_sockets
from zmqrl.words import as_word

WITHIN_S = 180.0
NOT_TEXT = os.fsdecode(b"run-\xff\xfe")
# Python without its UTF-8 mode, as it is under a locale such as en_US.ISO-8859-1.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=100))
def test_a_directory_holds_sockets_if_their_paths_are_short_in_bytes(name: str) -> None:
    path = Path("/tmp") / name
    # The address of a socket has 107 bytes. In the directory for sockets, the longest name is that of the control
    # socket of shard 1023.
    assert holds_sockets(path) == (len(os.fsencode(path)) <= 90)
    if holds_sockets(path):
        assert len(os.fsencode(path / "1023-control")) <= 107


@pytest.mark.parametrize("name", ["ü" * 30, "日" * 20, NOT_TEXT, "x" * 100])
def test_sockets_work_in_a_run_directory_of_any_name(tmp_path: Path, name: str) -> None:
    long = tmp_path / name / ("y" * 30)
    directory = RunDirectory(long)
    directory.claim()
    try:
        place = directory.sockets() / "1023-control"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place).encode())
        assert place.parent.stat().st_mode & 0o777 == 0o700
    finally:
        directory.release()
    assert not long.exists()


@pytest.mark.parametrize("name", ["ü" * 60, NOT_TEXT])
def test_sockets_fit_in_a_temporary_directory_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with directory_for_sockets() as place:
        assert holds_sockets(Path(place))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["läuft", NOT_TEXT])
@pytest.mark.parametrize("locale", [{}, ASCII])
def test_a_run_directory_may_have_any_name(tmp_path: Path, name: str, locale: dict[str, str]) -> None:
    environment = {**os.environ, **locale}
    path = tmp_path / name
    copied, copied_summary = (
        as_word(os.fsencode(each).decode("ascii", "surrogateescape")) if locale or name == NOT_TEXT else str(each)
        for each in (path, path / "summary.json")
    )

    def zmqrl(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "zmqrl", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=WITHIN_S, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        return done.stdout.decode()

    told = zmqrl("train", "cartpole", "--updates", "4", "--ppo.rollout-steps", "32", "--run-dir", path)
    assert f"run directory {copied}; game: " in told
    assert f"ended (updates) at version 4; see {copied_summary}\n" in told
    assert "without tensorboard" not in told
    assert list((path / "tensorboard").glob("events.*"))
    assert RunFiles(path).summary()["updates"] == 4
    assert "failed" not in (path / "logs" / "supervisor.log").read_text()
    assert json.loads(zmqrl("eval", path, "--episodes", "1", "--json"))["version"] == 4
    for command in ("status", "check-history", "logs", "profile"):
        zmqrl(command, path)
    zmqrl("train", "--resume", "--run-dir", path, "--updates", "8")
    assert RunFiles(path).newest().version == 8


@pytest.mark.processes
@pytest.mark.parametrize("locale", [{}, ASCII])
def test_a_path_that_cannot_be_printed_is_named_in_one_sentence(locale: dict[str, str]) -> None:
    environment = {**os.environ, **locale}
    command = [sys.executable, "-m", "zmqrl", "status", NOT_TEXT]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=WITHIN_S, check=False)
    said = b"zmqrl: run-\\xff\\xfe is not a run directory: there is no config.json in it.\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_the_directory_on_hosts_does_not_depend_on_the_locale() -> None:
    names = ("ü", "ü".encode().decode("ascii", "surrogateescape"), NOT_TEXT)
    hashes = [directory_name(RunDirectory(Path("/") / name), "home").rpartition("-")[2] for name in names]
    assert hashes[0] == hashes[1] != hashes[2]


def test_runs_that_begin_at_the_same_time_have_different_names(tmp_path: Path) -> None:
    def begin(_: int) -> RunDirectory:
        directory = RunDirectory(tmp_path / "runs" / "cartpole-20261128-120000", new=True)
        directory.claim()
        return directory

    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(begin, range(8)))
    numbers = ("", *(f"-{number}" for number in range(2, 9)))
    assert {each.path.name for each in begun} == {f"cartpole-20261128-120000{number}" for number in numbers}
    for directory in begun:
        directory.release()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_name_chosen_by_the_user_does_not_change(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.claim()
    with pytest.raises(UsageError, match="is in use by a run that is still alive"):
        second.claim()
    first.release()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="File exists"):
        RunDirectory(tmp_path / "file").claim()
