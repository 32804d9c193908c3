"""The place of a run on a host, and the files in it, as its agent looks after them. Standard library only.

Paths of files are relative to the place.
"""

import base64
import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zmqrl.rundir import is_locked

PIECE_BYTES = 1 << 20
LOCK = ".agent"


def _base() -> Path:
    return Path(f"/var/tmp/zmqrl-{os.getuid()}")


def _path(place: str) -> Path:
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # a host may be several nodes of Slurm
    return _base() / host / place  # which is `place` itself if that is a path


def open_place(place: str) -> tuple[Path, int]:
    """The directory, made if it is not there, and a descriptor of the file that its agent is to lock. Raises OSError.

    ``place`` is a path, or only a name: then it is in a directory of the user's own, on a disk of the host, and apart
    from those of other hosts that may share it.
    """
    base, path = _base(), _path(place)
    if path.is_relative_to(base):
        base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to somebody else", str(base))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path, os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def look(place: str) -> dict[str, Any]:
    """Which directory the place is, whether an agent has it now, and the files in it."""
    path = _path(place)
    alive, files = is_locked(path / LOCK), list[str]()
    with contextlib.suppress(OSError):
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != LOCK)
    return {"directory": str(path), "alive": alive, "files": files}


def clean(place: Path, *, whole: bool) -> None:
    """Remove what is in the place; and the place itself, if ``whole``: its agent is not to be asked for more then."""
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if whole:
            (place / LOCK).unlink()
            place.rmdir()


def sizes(place: Path, under: Sequence[str]) -> dict[str, int]:
    """Every file directly in these directories, and how long it is."""
    found = {}
    for directory in under:
        with contextlib.suppress(OSError):
            for path in sorted((place / directory).iterdir()):
                found[f"{directory}/{path.name}"] = path.stat().st_size
    return found


def read(place: Path, path: str, offset: int) -> dict[str, Any]:
    """A piece of a file in base64, and how long the file is: 0 if there is none."""
    data, size = b"", 0
    with contextlib.suppress(OSError), (place / path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        data = file.read(max(0, min(PIECE_BYTES, size - offset)))  # it may have grown meanwhile
    return {"path": path, "offset": offset, "size": size, "data": base64.b64encode(data).decode()}


def write(place: Path, path: str, offset: int, data: bytes, unless: int | None = None) -> str | None:
    """Write a piece of a file; at 0 the file begins anew. Why it could not be, if it could not.

    Nothing is done where the file has ``unless`` bytes or more already.
    """
    try:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if unless is not None and (place / path).exists() and (place / path).stat().st_size >= unless:
            return None
        with (place / path).open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)
    except OSError as error:
        return error.strerror
    return None
