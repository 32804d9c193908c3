"""Wheels for hosts without a network: pip downloads them here, and links carry them in pieces."""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from zmqrl.errors import ClusterError
from zmqrl.hostd import messages as h
from zmqrl.hostd.import_path import VARIABLE, entries_elsewhere
from zmqrl.hosts.link import Link
from zmqrl.process import die_with_parent
from zmqrl.words import counted

PIECE_BYTES = 1 << 20
PIECES_AHEAD = 4  # pieces on their way to a host
DOWNLOAD_WITHIN_S = 1200.0
UNFINISHED = "tmp"  # the first letters of a directory for a download
PYTORCH = "https://download.pytorch.org/whl/"


class Supplier:
    """Sends wheels of packages that hosts lack, in the exact ``versions``. ``say`` gets the progress."""

    def __init__(self, links: Mapping[str, Link], versions: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._links, self._versions, self._say = links, versions, say
        self._pieces: dict[str, Iterator[bytes]] = {}  # by host

    def take(self, host: str, event: h.Event) -> None:
        """Answer an event of a host. Raises ClusterError if a package cannot be downloaded."""
        match event:
            case h.Lacking():
                files = wheels_for(host, event, self._versions, self._say)
                sizes = {file.name: file.stat().st_size for file in files}
                self._say(f"{host}: sending {counted(len(files), 'wheel')}, {sum(sizes.values()) / 1e6:.0f} MB")
                self._pieces[host] = pieces(files)
                self._links[host].send_line(json.dumps({"files": sizes}).encode() + b"\n")
                for _ in range(PIECES_AHEAD):
                    self._send_piece(host)
            case h.Written():
                self._send_piece(host)

    def _send_piece(self, host: str) -> None:
        if (line := next(self._pieces[host], None)) is not None:
            self._links[host].send_line(line)


def pieces(files: Sequence[Path]) -> Iterator[bytes]:
    """The lines that carry ``files``, in order. An empty file has no line."""
    for path in files:
        with path.open("rb") as file:
            while data := file.read(PIECE_BYTES):
                yield json.dumps({"name": path.name, "data": base64.b64encode(data).decode()}).encode() + b"\n"


def wheels_for(host: str, lacking: h.Lacking, versions: Mapping[str, str], say: Callable[[str], None]) -> list[Path]:
    """The wheels of the packages that ``host`` lacks. pip downloads those that are not in the cache. Raises
    ClusterError.
    """
    about = json.dumps([lacking.python, lacking.abis, lacking.platforms])
    directory = cache() / hashlib.sha256(about.encode()).hexdigest()[:16]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if missing := [name for name in lacking.packages if _found(directory, name, versions[name]) is None]:
        say(f"{host}: downloading {counted(len(missing), 'package')} for Python {lacking.python}")
        with _shared(directory), tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory) as here:
            _download([f"{name}=={versions[name]}" for name in missing], lacking, here, host)
            for path in Path(here).iterdir():
                path.replace(directory / path.name)  # a killed launch leaves no partial wheel
    found = [_found(directory, name, versions[name]) for name in lacking.packages]
    return [path for path in found if path is not None]


@contextlib.contextmanager
def _shared(directory: Path) -> Iterator[None]:
    """Share a directory with other downloads during the block. If there are none, remove what killed ones have left."""
    with (directory / "lock").open("ab") as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in directory.glob(f"{UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def cache() -> Path:
    """The directory of downloaded wheels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zmqrl" / "wheels"


def _found(directory: Path, name: str, version: str) -> Path | None:
    """The wheel of a package in ``directory``. Its file name can spell the package differently."""
    wanted = normal(name), version
    names = ((path, path.name.split("-")) for path in sorted(directory.glob("*.whl")))
    return next((path for path, parts in names if (normal(parts[0]), parts[1]) == wanted), None)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _download(wanted: Sequence[str], lacking: h.Lacking, into: str, host: str) -> None:
    """Download wheels for the Python of a host, with pip's configuration here. Raises ClusterError."""
    fits = [f"--python-version={lacking.python}", "--implementation=cp"]
    fits += [f"--abi={abi}" for abi in lacking.abis] + [f"--platform={name}" for name in lacking.platforms]
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", into, *fits, *wanted]
    # Files in the current directory would hide modules from pip.
    environment = {**os.environ, VARIABLE: os.pathsep.join(entries_elsewhere())}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_WITHIN_S,
            preexec_fn=partial(die_with_parent, signal.SIGKILL),
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"--offline: pip did not end within {DOWNLOAD_WITHIN_S:g} s for {host}.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip printed nothing"]
        why = next((line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")), said[-1])
        builds = {package.partition("+")[2] for package in wanted if package.startswith("torch==") and "+" in package}
        advice = "".join(f": set PIP_EXTRA_INDEX_URL={PYTORCH}{build} here" for build in builds)
        raise ClusterError(f"--offline: cannot download packages for {host}: {why.rstrip('.')}{advice}.")
