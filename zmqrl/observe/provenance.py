"""The origin of a result: the versions, commit and hardware that are needed to reproduce it."""

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import zmqrl
from zmqrl.local.resources import cpu_facts
from zmqrl.process import CORES

VERSIONS = ("zmqrl", "code", "python", "torch", "cores")  # of a host
PACKAGES = ("torch", "numpy", "pyzmq", "gymnasium", "ale-py")


def provenance() -> dict[str, Any]:
    """Package versions, commit, processor and cores."""
    return {
        "zmqrl": zmqrl.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {package: found for package in PACKAGES if (found := version_of(package)) is not None},
        "cpu": _cpu(),
        "cores": CORES,
    }


@functools.cache
def commit() -> str | None:
    """The commit of the package at the first call, with ``+`` if files differed from it. None outside a git checkout.

    Call this at the beginning of long work: the files can change later.
    """
    root = Path(zmqrl.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, Any]:
    found = zmqrl.__version__, code_hash(), platform.python_version(), version_of("torch"), CORES
    return dict(zip(VERSIONS, found, strict=True))


def code_hash() -> str:
    """SHA-256 of the code of the package, to compare the code on different hosts."""
    root = Path(zmqrl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def code_id() -> str:
    """Version and hash of the code, for people to read. Shards compare their own id with those of workers."""
    return f"{zmqrl.__version__}+{code_hash()[:12]}"


def _cpu() -> str:
    return cpu_facts().get("model name") or platform.processor() or platform.machine()
