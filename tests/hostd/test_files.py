"""The directory of a run on a host: only one daemon uses it, and no empty directory is left."""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rig import eventually

from zmqrl.hostd import files
from zmqrl.hostd import messages as h
from zmqrl.hosts.connecting import connect
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.rundir import DAEMON_LOCK


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for the runs of this user."""
    monkeypatch.setattr(files, "_base", lambda: tmp_path / "base")
    return tmp_path / "base"


def test_a_directory_without_files_is_removed_with_the_empty_directories_that_contain_it(base: Path) -> None:
    path, lock = files.open_directory("run")
    assert files.take(path, lock)
    (path / "state").mkdir()
    files.leave(path, lock)
    files.leave_base()
    os.close(lock)
    assert not base.exists()


@pytest.mark.parametrize("kept", ["file", "link"])
def test_a_directory_with_files_stays(base: Path, kept: str) -> None:
    path, lock = files.open_directory("run")
    (path / "state").mkdir()
    if kept == "file":
        (path / "state" / "shard-0.slots").touch()
    else:
        (path / "state" / "elsewhere").symlink_to(base.parent)
    files.leave(path, lock)
    files.leave_base()
    os.close(lock)
    assert len(list((path / "state").iterdir())) == 1
    assert (path / DAEMON_LOCK).exists()


def test_a_directory_that_the_user_chose_stays(base: Path, tmp_path: Path) -> None:
    path, lock = files.open_directory(str(tmp_path / "mine"))
    files.leave(path, lock)
    os.close(lock)
    assert path.exists()


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
def test_a_pipe_is_an_empty_file_for_the_launcher(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    piece = files.read(tmp_path, "pipe", 0)
    assert (piece.data, piece.size) == ("", 0)


def test_only_the_lock_that_is_in_the_directory_counts(base: Path) -> None:
    path, first = files.open_directory("run")
    _, waiting = files.open_directory("run")
    assert files.take(path, first)
    assert not files.take(path, waiting)
    files.leave(path, first)
    os.close(first)
    assert not files.take(path, waiting), "the daemon that waited must open the directory again"
    os.close(waiting)
    path, again = files.open_directory("run")
    assert files.take(path, again)
    os.close(again)


def test_a_daemon_whose_directory_was_removed_leaves_the_directory_of_the_next_daemon(base: Path) -> None:
    path, old = files.open_directory("run")
    assert files.take(path, old)
    files.clean(path, whole=True)
    _, new = files.open_directory("run")
    assert files.take(path, new)
    files.leave(path, old)
    assert (path / DAEMON_LOCK).exists()
    files.leave(path, new)
    assert not path.exists()
    os.close(old)
    os.close(new)


@pytest.mark.parametrize("made", ["base", "host"])
def test_a_base_that_another_daemon_removes_meanwhile_is_made_again(
    base: Path, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, removed = Path.mkdir, list[Path]()

    def mkdir_and_lose_it(path: Path, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        if not removed and path == (base if made == "base" else files._path("")):
            removed.append(path)
            files.leave_base()

    monkeypatch.setattr(Path, "mkdir", mkdir_and_lose_it)
    path, lock = files.open_directory("run")
    os.close(lock)
    assert base.stat().st_mode & 0o777 == 0o700
    assert path.is_dir()


# daemons


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a run that no other test uses."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    assert not files.look(name).files


def daemon(name: str, host: str = "h1") -> Link:
    return Link(host, [sys.executable, *DAEMON], work=name, lease_s=None)


def end(link: Link) -> None:
    process = link.process
    assert process is not None
    link.hang_up()
    eventually(lambda: process.poll() is not None, "the end of the daemon")
    link.cut()


@pytest.mark.processes
def test_a_daemon_leaves_no_empty_directory(name: str) -> None:
    link = daemon(name)
    assert connect([link]) == {}
    path = Path(files.look(name).directory)
    assert path.is_dir()
    end(link)
    assert not path.exists()


@pytest.mark.processes
def test_a_daemon_leaves_the_state_of_a_run_until_it_is_told_to_remove_it(name: str) -> None:
    link = daemon(name)
    assert connect([link]) == {}
    link.send(h.Put("state/shard-0.slots", 0, ""))
    end(link)
    assert files.look(name).files == ["state/shard-0.slots"]
    assert connect([link]) == {}
    link.send(h.Clean(whole=True))
    end(link)
    assert not Path(files.look(name).directory).exists()


@pytest.mark.processes
def test_a_refused_daemon_leaves_the_directory_to_the_daemon_that_uses_it(name: str) -> None:
    links = [daemon(name, host) for host in ("h1", "h1.cluster")]
    path = Path(files.look(name).directory)
    failed = connect(links)
    assert len(failed) == 1
    assert files.look(name).alive
    for link in links:
        if link.process is not None:
            end(link)
    assert not path.exists()
