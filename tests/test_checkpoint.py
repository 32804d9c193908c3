"""The files of a run: incomplete checkpoints are ignored, and a directory belongs to one run at a time."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from support.rig import file_size_limit

from zmqrl import checkpoint as checkpoint_module
from zmqrl import rundir
from zmqrl.checkpoint import Checkpoint, PolicyWeights, checkpoints, prune
from zmqrl.errors import ClusterError, UnwritableError, UsageError
from zmqrl.ps.layout import Layout
from zmqrl.rundir import LOCK, LONGEST_SOCKET_PATH, RunDirectory, make_new, reserve, write_json
from zmqrl.supervisor.checkpointer import Checkpointer

LAYOUT = Layout.of([("hidden.weight", (7, 5)), ("hidden.bias", (7,)), ("scale", ())], 2)
ADAM = ("exp_avg", "exp_avg_sq")


def example(version: int = 3, layout: Layout = LAYOUT, seed: int = 0) -> Checkpoint:
    numbers = np.random.default_rng(seed)
    states = [numbers.standard_normal(3 * cut.count).astype("<f4").tobytes() for cut in layout.slices]
    return Checkpoint(
        layout=layout,
        generation=2,
        version=version,
        optimizer="adam",
        state_names=ADAM,
        states=tuple(states),
        counters={"agent_steps": 17},
    )


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = example().write(tmp_path)
    assert path == tmp_path / "v00000003"
    assert Checkpoint.read(path) == example()
    assert {entry.name for entry in tmp_path.iterdir()} == {"v00000003"}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure, a checkpoint is complete or does not exist."""
    synced: list[tuple[str, bool]] = []
    finished = tmp_path / "v00000003"

    def sync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, finished.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    path = example().write(tmp_path)
    assert sorted(synced[:-2]) == sorted((file.name, False) for file in path.iterdir())
    assert synced[-2:] == [(f".{finished.name}", False), (tmp_path.name, True)]


def test_a_checkpoint_of_asynchronous_mode_has_the_version_of_each_shard(tmp_path: Path) -> None:
    checkpoint = replace(example(3), versions=(5, 3))
    path = checkpoint.write(tmp_path)
    assert path.name == "v00000003"
    assert Checkpoint.read(path) == checkpoint
    assert [checkpoint.version_of(shard) for shard in (0, 1)] == [5, 3]
    assert [example(3).version_of(shard) for shard in (0, 1)] == [3, 3]


@pytest.mark.parametrize("versions", [[5], [5, 4], [3, 5, 5], "33", 3, [3, "5"], [3, None]])
def test_a_manifest_with_wrong_shard_versions_is_damaged(tmp_path: Path, versions: Any) -> None:
    path = example(3).write(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / "manifest.json").write_text(json.dumps(manifest | {"versions": versions}), encoding="utf-8")
    with pytest.raises(UsageError, match=str(path)):
        Checkpoint.read(path)


def test_the_vector_is_cut_into_named_tensors_and_optimizer_state_per_shard(tmp_path: Path) -> None:
    checkpoint = example()
    path = checkpoint.write(tmp_path)
    model = load_file(path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in model.items()} == dict(LAYOUT.tensors)
    whole = np.concatenate([model[name].reshape(-1) for name, _ in LAYOUT.tensors])
    np.testing.assert_array_equal(whole, checkpoint.vector())
    for cut in LAYOUT.slices:
        state = load_file(path / f"optimizer-shard-{cut.shard:02d}.safetensors")
        assert {name: array.shape for name, array in state.items()} == dict.fromkeys(ADAM, (cut.count,))


def test_the_first_checkpoint_has_the_parameters_and_a_fresh_optimizer() -> None:
    vector = np.arange(LAYOUT.count, dtype=np.float32)
    checkpoint = Checkpoint.initial(LAYOUT, vector, "adam", ADAM)
    np.testing.assert_array_equal(checkpoint.vector(), vector)
    for state, cut in zip(checkpoint.states, LAYOUT.slices, strict=True):
        assert not np.frombuffer(state, "<f4")[cut.count :].any()


def test_the_hash_of_the_parameters_does_not_depend_on_the_number_of_shards() -> None:
    vector = np.arange(LAYOUT.count, dtype=np.float32)
    hashes = {
        Checkpoint.initial(Layout(LAYOUT.tensors, shards), vector, "sgd", ()).params_sha256() for shards in (1, 2, 3)
    }
    assert len(hashes) == 1


FILES = ["manifest.json", "model.safetensors", "optimizer-shard-00.safetensors", "optimizer-shard-01.safetensors"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, cut_short, flip_a_bit])
def test_an_error_names_a_missing_or_damaged_file(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = example().write(tmp_path)
    damage(path / name)
    with pytest.raises(UsageError, match=name):
        Checkpoint.read(path)


@pytest.mark.parametrize("manifest", [[], {}, {"files": []}, {"files": {}}, {"files": {}, "layout": 3}])
def test_a_manifest_of_another_format_is_refused(tmp_path: Path, manifest: Any) -> None:
    path = example().write(tmp_path)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match=str(path)):
        Checkpoint.read(path)


@pytest.mark.parametrize("version", [4, "3", None, 3.0, [], -3])
@pytest.mark.parametrize("read", [Checkpoint.read, PolicyWeights.read])
def test_a_manifest_whose_version_differs_from_its_directory_is_damaged(
    tmp_path: Path, read: Callable[[Path], object], version: Any
) -> None:
    path = example().write(tmp_path)
    read(path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": version}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"manifest\.json is damaged: it belongs to version ") as refused:
        read(path)
    assert str(refused.value).endswith(f"{version!r}.")


def test_checkpoints_are_listed_oldest_first_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    versions = (200, 3, 100_000_010, 99_999_990, 40)
    for version in versions:
        example(version).write(tmp_path)
    (tmp_path / "v00000300").mkdir()
    (tmp_path / ".v00000400").mkdir()
    (tmp_path / ".v00000400" / "manifest.json").write_text("{}", encoding="utf-8")
    for name in ("v00000500.bad", "v5", "damaged-v00000600"):
        shutil.copytree(tmp_path / "v00000200", tmp_path / name)
    assert [path.name for path in checkpoints(tmp_path)] == [f"v{version:08d}" for version in sorted(versions)]
    assert checkpoints(tmp_path / "nowhere") == []


class Killed(Exception):
    """Stands in for the end of the process."""


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_at_any_moment_of_writing_leaves_a_complete_checkpoint_of_that_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    old, new = example(seed=1), example(seed=2)
    old.write(tmp_path)
    steps = iter(range(100))

    def may_die(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(steps) == moment:
                raise Killed
            return step(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "save", may_die(save))
        patched.setattr(checkpoint_module, "_sync", may_die(checkpoint_module._sync))
        patched.setattr(shutil, "rmtree", may_die(shutil.rmtree))
        patched.setattr(Path, "rename", may_die(Path.rename))
        try:
            new.write(tmp_path)
            died = False
        except Killed:
            died = True
    assert Checkpoint.read(checkpoints(tmp_path)[-1]) in ((old, new) if died else (new,))
    new.write(tmp_path)
    assert [Checkpoint.read(path) for path in checkpoints(tmp_path)] == [new]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for version in range(99_999_995, 100_000_003):
        example(version).write(tmp_path)
    kept_aside = tmp_path / "v99999995.damaged"
    (tmp_path / "v99999995").rename(kept_aside)
    prune(tmp_path, 3)
    kept = ["v100000000", "v100000001", "v100000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept, kept_aside.name]
    prune(tmp_path, 5)
    assert [path.name for path in checkpoints(tmp_path)] == kept


# taking a checkpoint while the shards continue


class Shards:
    """Stands in for the control connections: answers fetches with the states of an example."""

    def __init__(self) -> None:
        self.gone = False

    def fetch(self, shard: int, version: int) -> bytes:
        if self.gone:
            raise ClusterError(f"shard {shard} no longer keeps a copy of version {version}.")
        return example(version).states[shard]


@pytest.fixture
def shards() -> Shards:
    return Shards()


@pytest.fixture
def checkpointer(tmp_path: Path, shards: Shards) -> Checkpointer:
    return Checkpointer(
        control=shards,  # type: ignore[arg-type]
        directory=RunDirectory(tmp_path),
        model=example(0),
        keep=2,
    )


def test_a_version_that_all_shards_captured_is_written_and_the_oldest_is_removed(checkpointer: Checkpointer) -> None:
    root = checkpointer.directory.checkpoints
    for version in (8, 70, 600):
        written = checkpointer.write({0: version, 1: version}, 2, {"agent_steps": 17})
        assert written == example(version)
        assert Checkpoint.read(checkpoints(root)[-1]) == written
    assert len(checkpoints(root)) == 2


def test_a_run_directory_that_was_moved_is_not_made_again(tmp_path: Path, shards: Shards) -> None:
    directory = RunDirectory(tmp_path / "run")
    moved = Checkpointer(control=shards, directory=directory, model=example(0), keep=2)  # type: ignore[arg-type]
    with pytest.raises(UnwritableError, match=r"^cannot write .*/run/checkpoints: No such file or directory\.$"):
        moved.write({0: 9, 1: 9}, 2, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_checkpoint_leaves_no_files(checkpointer: Checkpointer, shards: Shards) -> None:
    shards.gone = True
    with pytest.raises(ClusterError, match="version 9"):
        checkpointer.write({0: 9, 1: 9}, 2, {})
    assert checkpoints(checkpointer.directory.checkpoints) == []


def test_a_checkpoint_on_a_full_disk_leaves_no_files(checkpointer: Checkpointer, tmp_path: Path) -> None:
    with file_size_limit(64), pytest.raises(UnwritableError, match="/checkpoints: File too large: raise"):
        checkpointer.write({0: 7, 1: 7}, 1, {})
    assert list(checkpointer.directory.checkpoints.iterdir()) == []


def test_an_error_says_why_a_checkpoint_cannot_be_written(checkpointer: Checkpointer, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way", encoding="utf-8")
    with pytest.raises(UnwritableError, match="/checkpoints: Not a directory: move the file"):
        checkpointer.write({0: 9, 1: 9}, 2, {})


# the run directory


@pytest.fixture
def held(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.claim()
    yield directory
    directory.release()


def test_a_run_directory_serves_one_run_at_a_time(held: RunDirectory) -> None:
    with pytest.raises(UsageError, match="in use by a run that is still alive"):
        RunDirectory(held.path).claim()
    held.release()
    again = RunDirectory(held.path)
    again.claim()
    again.release()


def test_a_command_that_looks_at_a_run_does_not_keep_it_from_being_resumed(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.release()
    looker = os.open(held.path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looker, fcntl.LOCK_SH)  # as is_locked does, for a moment
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: os.close(looker))
    monkeypatch.setattr(rundir, "time", clock)
    held.claim()
    assert held.in_use()


def test_a_file_is_written_to_the_space_that_was_reserved_for_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    reserve(path, 1 << 16)
    (reserved,) = tmp_path.iterdir()
    about = reserved.stat()
    assert about.st_blocks * 512 >= 1 << 16
    write_json(path, {"updates": 3})
    assert path.read_text(encoding="utf-8") == '{\n "updates": 3\n}\n'
    assert path.stat().st_ino == about.st_ino
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_complete_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "config.json", list[tuple[str, str]]()
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((Path(f"/proc/self/fd/{file}").read_text(), path.read_text()))
    )
    write_json(path, {"updates": 3})
    assert synced == [('{\n "updates": 3\n}\n', "old")]
    write_json(path, {"updates": 4}, lasting=False)
    assert len(synced) == 1


def test_claiming_removes_the_space_that_a_killed_run_reserved(held: RunDirectory) -> None:
    held.release()
    reserve(held.summary, 1 << 12)
    held.claim()
    assert {path.name for path in held.path.iterdir()} == {".lock"}


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
def test_a_lock_that_is_a_pipe_is_refused(held: RunDirectory) -> None:
    directory = RunDirectory(held.path.with_name("other"))
    directory.path.mkdir()
    os.mkfifo(directory.path / ".lock")
    assert not directory.in_use()
    with pytest.raises(UsageError, match=r"cannot write .*other/\.lock: not a regular file: choose another --run-dir"):
        directory.claim()


@pytest.mark.processes
def test_the_lock_does_not_outlive_a_killed_holder(held: RunDirectory) -> None:
    held.release()
    script = "import os, pathlib, sys; from zmqrl.rundir import RunDirectory\n"
    script += "RunDirectory(pathlib.Path(sys.argv[1])).claim(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script, str(held.path)], timeout=180).returncode == -9
    held.claim()


def test_claiming_removes_the_cluster_file_of_a_killed_run(held: RunDirectory) -> None:
    held.release()
    held.cluster.write_text("{}", encoding="utf-8")
    held.claim()
    assert not held.cluster.exists()


def test_releasing_removes_files_that_only_a_live_run_needs(held: RunDirectory) -> None:
    (held.sockets() / "0-grad").touch()
    held.cluster.touch()
    held.config.touch()
    held.state(0).parent.mkdir()
    held.release()
    assert {path.name for path in held.path.iterdir()} == {".lock", "config.json"}


def test_releasing_keeps_the_state_of_shards_that_did_not_end(held: RunDirectory) -> None:
    held.state(0).parent.mkdir()
    held.state(0).touch()
    held.release()
    assert held.state(0).exists()


def test_a_new_run_directory_is_removed_if_the_run_does_not_start(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs" / "run")
    for begun in (False, True):
        directory.claim()
        if begun:
            directory.config.touch()
        directory.release()
        assert directory.path.exists() == begun
    mine = RunDirectory(tmp_path)
    mine.claim()
    mine.release()
    assert mine.path.exists(), "the directory existed before"


def test_a_new_run_in_a_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        make_new(tmp_path / "runs" / "run")


@pytest.mark.parametrize("length", [1, LONGEST_SOCKET_PATH])
def test_sockets_are_in_a_private_directory_with_a_short_path(tmp_path: Path, length: int) -> None:
    directory = RunDirectory(tmp_path / ("x" * length))
    directory.claim()
    try:
        place = directory.sockets()
        assert place == directory.sockets()
        assert len(str(place)) <= LONGEST_SOCKET_PATH
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    finally:
        directory.release()
    assert not place.exists()


def test_json_is_replaced_atomically_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    write_json(path, {"run": 1}, mode=0o600)
    before = path.open(encoding="utf-8")
    write_json(path, {"run": 2}, mode=0o600)
    with before:
        assert json.load(before) == {"run": 1}
    assert json.loads(path.read_text(encoding="utf-8")) == {"run": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"updates": 1})
    with pytest.raises(TypeError):
        write_json(path, {"updates": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"updates": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
