"""Writes and reads checkpoints: parameters and optimizer state as safetensors, then a manifest."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from zmqrl.errors import UsageError
from zmqrl.json_lines import open_file, read_json
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.codec import FloatVector

MODEL = "model.safetensors"
MANIFEST = "manifest.json"
T = TypeVar("T")
_NAME = re.compile(r"v\d{8,}(\.replaced)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The complete state of a run at one version.

    ``states`` has, for each shard, the weights of its slice, then its optimizer state in the order of ``state_names``,
    all as little-endian float32. ``versions`` has the version of each shard if they differ, as in asynchronous mode.
    ``version`` is then the lowest.
    """

    layout: Layout
    generation: int
    version: int
    optimizer: str
    state_names: tuple[str, ...]
    states: tuple[bytes, ...]
    counters: dict[str, Any]
    versions: tuple[int, ...] = ()

    @classmethod
    def initial(cls, layout: Layout, vector: FloatVector, optimizer: str, state_names: tuple[str, ...]) -> "Checkpoint":
        """Version 0: the given parameters, and an optimizer state of zeros."""
        zeros = [np.zeros(cut.count * len(state_names), np.float32) for cut in layout.slices]
        states = [
            vector[cut.start : cut.stop].tobytes() + zero.tobytes()
            for cut, zero in zip(layout.slices, zeros, strict=True)
        ]
        return cls(
            layout=layout,
            generation=0,
            version=0,
            optimizer=optimizer,
            state_names=state_names,
            states=tuple(states),
            counters={},
        )

    @property
    def name(self) -> str:
        return name_of(self.version)

    def version_of(self, shard: int) -> int:
        return self.versions[shard] if self.versions else self.version

    def vector(self) -> FloatVector:
        """The parameter vector: float32 (count,)."""
        slices = [
            np.frombuffer(state, "<f4", cut.count) for state, cut in zip(self.states, self.layout.slices, strict=True)
        ]
        return np.concatenate(slices)

    def params_sha256(self) -> str:
        """SHA-256 of the whole parameter vector as little-endian float32."""
        return hashlib.sha256(self.vector().tobytes()).hexdigest()

    def write(self, root: Path) -> Path:
        """Write the directory ``root/v<version>``. Once complete, it replaces an old directory of this name.

        Makes ``root``, but not the directory above: if that is gone, a user may have moved the run.
        """
        finished = root / self.name
        path = root / f".{finished.name}"
        _remove(path)
        root.mkdir(exist_ok=True)
        path.mkdir()
        try:
            self._write_into(path)
        except OSError:
            _remove(path)
            raise
        replaced = finished.with_name(f"{finished.name}.replaced")
        if finished.exists():
            _remove(replaced)
            finished.rename(replaced)
        path.rename(finished)
        _sync_names(root)  # before the caller removes older checkpoints
        _remove(replaced)
        return finished

    def _write_into(self, path: Path) -> None:
        (path / MODEL).write_bytes(save(tensors_of(self.layout, self.vector())))
        for shard, (state, cut) in enumerate(zip(self.states, self.layout.slices, strict=True)):
            arrays = np.frombuffer(state, "<f4").reshape(-1, cut.count)[1:]
            (path / _optimizer_file(shard)).write_bytes(save(dict(zip(self.state_names, arrays, strict=True))))
        files = [MODEL, *(_optimizer_file(shard) for shard in range(len(self.states)))]
        manifest = {
            "version": self.version,
            "generation": self.generation,
            "layout": self.layout.to_json(),
            "optimizer": {"name": self.optimizer, "state": list(self.state_names)},
            "params_sha256": self.params_sha256(),
            "files": {name: _sha256(path / name) for name in files},
            "counters": self.counters,
        } | ({"versions": list(self.versions)} if self.versions else {})
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for name in [*files, MANIFEST]:
            _sync(path / name)
        _sync_names(path)

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read a checkpoint directory. Raises a UsageError that names the missing or damaged file."""
        with _naming(path):
            manifest = _read_manifest(path / MANIFEST)
            weights = _weights(path, manifest)
            names = tuple(manifest["optimizer"]["state"])
            states = []
            for cut in weights.layout.slices:
                _check(path, manifest, _optimizer_file(cut.shard))
                arrays = load_file(path / _optimizer_file(cut.shard))
                whole = [weights.vector[cut.start : cut.stop], *(arrays[name] for name in names)]
                states.append(b"".join(array.tobytes() for array in whole))
            return cls(
                layout=weights.layout,
                generation=manifest["generation"],
                version=weights.version,
                optimizer=manifest["optimizer"]["name"],
                state_names=names,
                states=tuple(states),
                counters=dict(manifest["counters"]),
                versions=_versions(path / MANIFEST, manifest, weights),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWeights:
    """The part of a checkpoint that a policy needs. The files with the optimizer state need not exist.

    ``vector`` is the parameter vector, float32 (count,). ``wall_s`` is the training time so far.
    """

    layout: Layout
    version: int
    wall_s: float
    agent_steps: int
    vector: FloatVector

    @staticmethod
    def read(path: Path) -> "PolicyWeights":
        """Read a checkpoint directory. Raises a UsageError that names the missing or damaged file."""
        with _naming(path):
            return _weights(path, _read_manifest(path / MANIFEST))


def _weights(path: Path, manifest: Mapping[str, Any]) -> PolicyWeights:
    _check(path, manifest, MODEL)
    layout = _read_layout(path / MANIFEST, manifest["layout"])
    model = load_file(path / MODEL)
    vector = np.concatenate([model[name].reshape(-1) for name, _ in layout.tensors])
    counters, version = dict(manifest["counters"]), manifest["version"]
    if type(version) is not int or (_NAME.fullmatch(path.name) and path.stem != name_of(version)):
        raise UsageError(f"{path / MANIFEST} is damaged: it belongs to version {version!r:.60}.")
    return PolicyWeights(
        layout=layout,
        version=version,
        wall_s=float(counters.get("wall_s", 0.0)),
        agent_steps=int(counters.get("agent_steps", 0)),
        vector=vector,
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn every error from reading the checkpoint ``path`` into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise UsageError(f"{path} is not a valid checkpoint: {error}.") from error


def _check(path: Path, manifest: Mapping[str, Any], name: str) -> None:
    if _sha256(path / name) != manifest["files"][name]:
        raise UsageError(f"{path / name} is damaged: its checksum differs from the one in {MANIFEST}.")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UsageError(f"{path} is not the manifest of a checkpoint.")
    return manifest


def _versions(path: Path, manifest: Mapping[str, Any], weights: PolicyWeights) -> tuple[int, ...]:
    versions = tuple(manifest.get("versions", ()))
    whole = len(versions) == weights.layout.shards and all(type(version) is int for version in versions)
    if versions and not (whole and min(versions) == weights.version):
        raise UsageError(f"{path} is damaged: {manifest['versions']} cannot be the versions of its shards.")
    return versions


def _read_layout(path: Path, layout: Any) -> Layout:
    try:
        return Layout.from_json(layout)
    except UsageError as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def name_of(version: int) -> str:
    return f"v{version:08d}"


def checkpoints(root: Path) -> list[Path]:
    """The finished checkpoints under ``root``, oldest first.

    If the writer was killed while it replaced a checkpoint, the old one is listed.
    """
    named = (path.parent for path in root.glob(f"v*/{MANIFEST}") if _NAME.fullmatch(path.parent.name))
    found = sorted(named, key=lambda path: int(path.stem[1:]))  # as text, v100000000 would come before v99999999
    return [path for path in found if not (path.suffix and path.with_suffix("") in found)]


def newest(root: Path, read: Callable[[Path], T], advice: Callable[[Path, Sequence[Path]], str]) -> T | None:
    """Read the newest checkpoint under ``root`` with ``read``. Returns None if there is no checkpoint.

    Raises UsageError if it is damaged. If an older one is intact, the error ends with ``advice(intact, damaged)``.
    """
    damaged: list[Path] = []
    first: UsageError | None = None
    for path in reversed(checkpoints(root)):
        try:
            found = read(path)
        except UsageError as error:
            first = first or error
            damaged.append(path)
            continue
        if first is None:
            return found
        raise UsageError(f"{first} {advice(path, damaged)}") from first
    if first is not None:
        raise first
    return None


def prune(root: Path, keep: int) -> None:
    """Remove the remains of unfinished writes, and all but the newest ``keep`` checkpoints."""
    for path in [*checkpoints(root)[:-keep], *root.glob(".v*"), *root.glob("v*.replaced")]:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint if it exists. The manifest goes first: without one, a directory is not a checkpoint."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def tensors_of(layout: Layout, vector: FloatVector) -> dict[str, FloatVector]:
    """Cut the parameter vector into named tensors."""
    return {name: vector[piece].reshape(shape) for name, shape, piece in layout.pieces()}


def _optimizer_file(shard: int) -> str:
    return f"optimizer-shard-{shard:02d}.safetensors"


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_names(directory: Path) -> None:
    """Make the names in a directory survive a power failure, if its file system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
