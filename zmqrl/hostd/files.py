"""The directory of a run on a host, its lock and its files.

Paths of files are relative to the run's directory.
"""

import base64
import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from zmqrl.hostd.messages import Piece, Seen
from zmqrl.json_lines import open_file
from zmqrl.rundir import DAEMON_LOCK, is_locked

PIECE_BYTES = 1 << 20
TRIES = 5
MOST_NAMES_BYTES = 1 << 18


def _base() -> Path:
    return Path(f"/var/tmp/zmqrl-{os.getuid()}")


def _path(work: str) -> Path:
    return _base() / (node_name() or socket.gethostname()) / work  # an absolute `work` replaces the rest


def node_name() -> str:
    """The name of this host as a node of Ray or Slurm. One machine can be several nodes."""
    return os.environ.get("ZMQRL_NODE") or os.environ.get("SLURMD_NODENAME", "")


def open_directory(work: str) -> tuple[Path, int]:
    """Create the directory if necessary. Returns its path, and a descriptor of the file to lock. Raises OSError.

    ``work`` is a path, or a name in the user's directory on this host. Hosts that share a disk have different
    directories.
    """
    path = _path(work)
    for tries_left in reversed(range(TRIES)):
        try:
            _make(path)
            return path, _open_lock(path)
        except FileNotFoundError:  # an ending daemon may have just removed the directory or a parent
            if tries_left == 0:
                raise
    raise AssertionError


def _make(path: Path) -> None:
    base = _base()
    if not path.is_relative_to(base):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(base))
    within = path.relative_to(base)
    for directory in (*reversed(within.parents), within):
        if directory != Path():  # checked above
            (base / directory).mkdir(mode=0o700, exist_ok=True)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path / DAEMON_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        if path.is_relative_to(_base()):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def take(path: Path, lock: int) -> bool:
    """Take the lock of a directory. Returns False if another process has it, or has just removed the directory."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_lock_of(path, lock)
    except (BlockingIOError, FileNotFoundError):
        return False


def _is_lock_of(path: Path, lock: int) -> bool:
    """Whether ``lock`` is still the lock in the directory. Another process may have removed or replaced it."""
    return os.path.samestat((path / DAEMON_LOCK).stat(), os.fstat(lock))


def leave(path: Path, lock: int) -> None:
    """Remove a directory that the caller has locked, unless it has files or the user chose it."""
    if path.is_relative_to(_base()):
        with contextlib.suppress(OSError):
            has_no_files = all(
                file.name == DAEMON_LOCK or (file.is_dir() and not file.is_symlink()) for file in path.rglob("*")
            )
            if has_no_files and _is_lock_of(path, lock):
                clean(path, whole=True)


def leave_base() -> None:
    """Remove this user's and this host's directories if they are empty."""
    for directory in (_path(""), _base()):
        with contextlib.suppress(OSError):
            directory.rmdir()


def set_user(lock: int, user: str) -> None:
    """Write ``user`` into the file ``lock``, for waiting daemons. If the disk is full, they wait longer."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, user.encode(errors="surrogateescape"), 0)


def user_of(lock: int) -> str:
    """The last user of the file ``lock``, or an empty string."""
    return os.pread(lock, 4096, 0).decode(errors="surrogateescape")


def look(work: str) -> Seen:
    """The run's directory, whether a daemon uses it, and its files: the first ones if there are many."""
    path = _path(work)
    alive, files = is_locked(path / DAEMON_LOCK), list[str]()
    with contextlib.suppress(OSError):
        files = sorted(
            str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != DAEMON_LOCK
        )
    ends = itertools.accumulate(len(json.dumps(name)) for name in files)
    named = [name for name, end in zip(files, ends, strict=True) if end <= MOST_NAMES_BYTES]
    return Seen(str(path), alive, named, len(files) - len(named))


def clean(root: Path, *, whole: bool) -> None:
    """Remove the content of the run's directory, and if ``whole`` also its lock and the directory itself."""
    with contextlib.suppress(OSError):
        for path in root.iterdir():
            if path.name == DAEMON_LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if whole:
            (root / DAEMON_LOCK).unlink()
            root.rmdir()


def sizes(root: Path, under: Sequence[str]) -> dict[str, int]:
    """The sizes in bytes of the files in these directories, without subdirectories."""
    found = {}
    for directory in under:
        with contextlib.suppress(OSError):
            for path in sorted((root / directory).iterdir()):
                found[f"{directory}/{path.name}"] = path.stat().st_size
    return found


def read(root: Path, path: str, offset: int) -> Piece:
    """Read a piece of a file, of at most ``PIECE_BYTES``."""
    data, size = b"", 0
    with contextlib.suppress(OSError), open_file(root / path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        data = file.read(max(0, min(PIECE_BYTES, size - offset)))  # the file may have grown meanwhile
    return Piece(path, offset, size, base64.b64encode(data).decode())


def write(root: Path, path: str, offset: int, data: bytes, unless: int | None = None) -> str | None:
    """Write a piece of a file. A piece at offset 0 replaces the file. Returns the error in words, or None.

    Leave a file with ``unless`` bytes or more unchanged.
    """
    try:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if unless is not None and (root / path).exists() and (root / path).stat().st_size >= unless:
            return None
        with (root / path).open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)
    except OSError as error:
        return error.strerror
    return None
