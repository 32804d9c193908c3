"""Makes an environment for this zmqrl on another host.

The host may lack zmqrl, so the launcher sends this file with the request, and the host's own Python runs it. It uses
only the standard library. Each directory in ``~/.cache/zmqrl/envs`` is an environment, named by a hash of its content,
so that runs with the same needs share it. One environment adds packages that the host's Python lacks. A second, small
one on top of it adds zmqrl.
"""

import base64
import ctypes
import fcntl
import hashlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
READY = "ready"  # the file that marks an environment as complete
LINES_KEPT, LINES_TOLD = 30, 3  # of a failed command's output: lines with ERROR, or else the last ones
WHEELS = "wheels"  # a directory in an unfinished environment
ANSWER_WITHIN_S = 60.0
# Which wheels fit, in the words of `pip download`.
FITS = (
    "import json, sys; from pip._vendor.packaging.tags import sys_tags; tags = list(sys_tags()); "
    "version = '%d.%d' % sys.version_info[:2]; own = {'cp' + version.replace('.', ''), 'abi3', 'none'}; "
    "print(json.dumps({'python': version, 'abis': sorted({tag.abi for tag in tags} & own), "
    "'platforms': list(dict.fromkeys(tag.platform for tag in tags if tag.platform != 'any'))}))"
)
SEEN = "import json, sys; print(json.dumps(sys.path))"


class CannotMake(Exception):
    """The environment cannot be made."""


def main(request: Mapping[str, Any]) -> None:
    """Make the environment, report its Python, and wait until the launcher hangs up."""
    sys.stdout.write("\n")  # ends what the startup files of the shell may have printed
    os.environ.update(request["variables"])
    # Files in the current directory would hide modules from venv and pip.
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if os.path.normpath(entry) != os.curdir)
    os.environ["PIP_USER"] = "0"  # with 1 in the user's configuration, pip cannot install into an environment
    try:
        python = environment(request)
    except CannotMake as error:
        return _say({"is": "refused", "why": str(error)})
    except OSError as error:
        return _say({"is": "refused", "why": f"cannot use {error.filename or _root()}: {error.strerror}"})
    _say({"is": "made", "python": str(python)})
    while os.read(0, 4096):
        pass
    return None


def environment(request: Mapping[str, Any]) -> Path:
    """The Python of the environment. Raises CannotMake, OSError."""
    _root().mkdir(mode=0o700, parents=True, exist_ok=True)
    base = sys.executable
    if lacking := _lacking(request["requires"]):
        _tell(f"missing, or of another version: {', '.join(lacking)}")
        # Hosts that share a home can lack different packages, and later the host's Python can lack others.
        key = _key("packages", request["pins"], sorted(_lacking(request["pins"])))
        base = str(_python_of(_made(key, lambda path: _install(path, request))))
    wheel = base64.b64decode(request["wheel"])
    key = _key("zmqrl", hashlib.sha256(wheel).hexdigest(), base)
    return _python_of(_made(key, lambda path: _unpack(path, wheel, base)))


def _lacking(requires: Mapping[str, str]) -> list[str]:
    """The packages that this Python lacks, or has in other versions."""
    lacking = []
    for name, version in requires.items():
        try:
            there = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            there = None
        if there != version:
            lacking.append(name)
    return lacking


def _install(path: Path, request: Mapping[str, Any]) -> None:
    """Install all packages that this Python does not have in the right version."""
    requires, pins = request["requires"], request["pins"]
    _run([sys.executable, "-P", "-m", "venv", str(path)])
    pip = [str(_python_of(path)), "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "uninstall", "--yes", "setuptools"])  # it would hide the version that packages require
    _let_see(path, sys.executable)
    constraints = path / "constraints.txt"
    constraints.write_text("".join(f"{name}=={pins[name]}\n" for name in sorted(pins.keys() - requires.keys())))
    wanted = [f"{name}=={version}" for name, version in requires.items()]
    source = ["--no-index", "--find-links", str(_receive(path, pins))] if request.get("offline") else []
    _run([*pip, "install", "--progress-bar", "off", "--constraint", str(constraints), *source, *wanted])
    shutil.rmtree(path / WHEELS, ignore_errors=True)


def _receive(path: Path, pins: Mapping[str, str]) -> Path:
    """Ask the launcher for wheels of all packages that this Python lacks. Returns their directory."""
    wheels = path / WHEELS
    wheels.mkdir()
    fits = subprocess.run([_python_of(path), "-P", "-c", FITS], capture_output=True, text=True, timeout=ANSWER_WITHIN_S)
    if fits.returncode:
        raise CannotMake(f"pip cannot tell which wheels fit: {' '.join(fits.stderr.split())[-300:]}")
    _say({"is": "lacking", "packages": _lacking(pins)} | json.loads(fits.stdout))
    sizes = _heard()["files"]
    for name, size in sizes.items():
        (wheels / name).touch()
        while (wheels / name).stat().st_size < size:
            piece = _heard()
            with (wheels / piece["name"]).open("ab") as file:
                file.write(base64.b64decode(piece["data"]))
            _say({"is": "put", "path": piece["name"], "error": None})
            received = sum(each.stat().st_size for each in wheels.iterdir())
            _tell(f"received {received / 1e6:.0f} of {sum(sizes.values()) / 1e6:.0f} MB")
    return wheels


def _heard() -> dict[str, Any]:
    """The next message of the launcher. Raises CannotMake."""
    if not (line := sys.stdin.readline()):
        raise CannotMake("the launcher hung up")
    message: dict[str, Any] = json.loads(line)
    return message


def _unpack(path: Path, wheel: bytes, base: str) -> None:
    """Make an environment with zmqrl that also finds the packages of the Python ``base``."""
    _run([sys.executable, "-P", "-m", "venv", "--without-pip", str(path)])
    _let_see(path, base)
    zipfile.ZipFile(io.BytesIO(wheel)).extractall(_site_packages(path))


def _let_see(path: Path, base: str) -> None:
    """Make an environment find its own packages first, then those of the Python ``base``."""
    bare, seen = (_seen(base, *options) for options in (("-I", "-S"), ("-P",)))
    lines = [f"{path}\n" for path in seen if path not in bare and Path(path).is_dir()]
    (_site_packages(path) / "base.pth").write_text("".join(lines))


def _seen(python: str, *options: str) -> list[str]:
    """The directories in which a Python looks for packages. Raises CannotMake."""
    command = [python, *options, "-c", SEEN]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_WITHIN_S)
    except subprocess.SubprocessError as error:
        raise CannotMake(f"cannot list the packages of {python}: {error}") from None
    paths: list[str] = json.loads(done.stdout)
    return paths


def _site_packages(path: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)}))


def _python_of(path: Path) -> Path:
    return path / "bin" / "python"


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zmqrl" / "envs"


def _key(name: str, *made_of: Any) -> Path:
    """The directory of an environment. Its name has a hash of this Python and of the content ``made_of``."""
    about = json.dumps([sys.executable, sys.version, sysconfig.get_platform(), *made_of], sort_keys=True)
    return _root() / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Call ``make`` for the environment ``path``, unless it is complete. Only one process does this at a time."""
    with Path(f"{path}.lock").open("ab") as lock:
        _lock(lock.fileno(), path)
        if not (path / READY).exists():
            _tell(f"making {path}")
            shutil.rmtree(path, ignore_errors=True)
            try:
                make(path)
            except (CannotMake, OSError):
                shutil.rmtree(path, ignore_errors=True)
                raise
        (path / READY).touch()  # its modification time shows the last use
    return path


def _lock(lock: int, path: Path) -> None:
    waiting = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                waiting = True
                _tell(f"another launch is creating {path}")
            if _hung_up(200):
                raise CannotMake("the launcher hung up") from None


def _run(argv: list[str]) -> None:
    """Run a command and forward its output. It ends when the launcher hangs up. Raises CannotMake."""
    last: deque[str] = deque(maxlen=LINES_KEPT)
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    ) as process:
        assert process.stdout is not None
        try:
            for line in _lines(process.stdout.fileno()):
                last.append(line)
                _tell(line)
            while process.poll() is None:  # the command has closed its output but still runs
                if _hung_up(100):
                    raise CannotMake("the launcher hung up")
        except CannotMake:
            os.killpg(process.pid, signal.SIGKILL)  # no other process can get its id before it is reaped
            raise
    if process.returncode != 0:
        told = [line for line in last if line.startswith("ERROR")] or list(last)
        raise CannotMake(" / ".join(told[-LINES_TOLD:]) or f"{argv[3]} ended with status {process.returncode}")


def _lines(pipe: int) -> Iterator[str]:
    """Yield the lines that are not empty. Raises CannotMake when the launcher hangs up."""
    rest = b""
    while True:
        ready = _ready(pipe, 0)
        if 0 in ready:
            raise CannotMake("the launcher hung up")
        if pipe not in ready:
            continue
        piece = os.read(pipe, 65536)
        *lines, rest = (rest + piece + (b"" if piece else b"\n")).split(b"\n")
        yield from (text for line in lines if (text := line.decode(errors="replace").strip()))
        if not piece:
            return


def _ready(*descriptors: int, within_ms: int = 1000) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(within_ms)}


def _hung_up(within_ms: int) -> bool:
    """Whether the launcher has hung up. Call this only while the launcher sends nothing."""
    return bool(_ready(0, within_ms=within_ms))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _tell(line: str) -> None:
    _say({"is": "making", "line": line})


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
