"""Complete runs with CURVE: their end, an external worker with its key file, and files that must hold no secrets."""

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from support.network import Eavesdropper
from support.rig import descendants
from support.run_rig import WITHIN_S, Line, Run, outside_worker, trained, training
from zmq.utils import z85

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.commands.run import worker
from zmqrl.config import Config, WireConfig
from zmqrl.errors import UsageError
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.process_id import shard_id
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.sockets import SOCKET_ROLES
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.tasks import RunTasks

pytestmark = pytest.mark.processes
CURVE = ("--wire.transport", "tcp", "--wire.curve")
Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@pytest.mark.slow
def test_a_run_with_curve_ends_normally_and_leaves_no_keys(tmp_path: Path) -> None:
    files = trained(tmp_path / "run", *CURVE, "--updates", "20")
    files.assert_history_exact(20)
    assert files.assert_summary_exact("updates")["contributions"]["rejected"] == 0
    assert not {path.name for path in files.path.iterdir()} & {"keys", "cluster.json"}


@pytest.mark.slow
def test_an_external_worker_joins_with_its_key_file_and_leaks_no_secret(tmp_path: Path) -> None:
    with training(tmp_path / "run", *CURVE, "--external-workers", "1", "--updates", "20") as run:
        run.wait_to_say("rank 1 is open: zmqrl worker")
        cluster, directory = run.files.cluster(), run.files.path
        assert cluster["keys"] == {"1": "keys/worker-1.json"}
        assert mode(directory / "keys") == 0o700
        assert [path.name for path in (directory / "keys").iterdir()] == ["worker-1.json"]
        key_file = directory / cluster["keys"]["1"]
        assert mode(key_file) == 0o600
        keys: Line = json.loads(key_file.read_text(encoding="utf-8"))
        assert (keys["run"], keys["rank"], len(keys["shards"])) == (cluster["run"], 1, 2)
        with outside_worker(run) as worker:
            run.wait_for(1)
            ours = {run.process.pid, *descendants(run.process.pid)}
            assert set(run.pids()) < ours
            for pid in (*ours, worker.pid, *descendants(worker.pid)):
                assert_no_keys_in_public(pid, keys)
            assert worker.wait(WITHIN_S) == 0
            assert run.wait() == 0, run.said()
        run.files.assert_history_exact(20)
        assert all(line["ranks"] == [0, 1] for line in run.files.history(0))
        assert not (directory / "keys").exists()
        assert_no_secret_on_disk(run, keys["secret"])


@pytest.mark.slow
@pytest.mark.parametrize("curve", [False, True])
def test_packets_of_a_run_show_weights_scores_and_names_only_without_curve(
    tmp_path: Path, curve: bool, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    if os.geteuid() != 0:
        skip_or_fail("reading packets needs root")
    options = CURVE if curve else CURVE[:2]
    with (
        Eavesdropper() as eavesdropper,
        training(tmp_path / "run", *options, "--external-workers", "1", "--updates", "30") as run,
    ):
        run.wait_to_say("rank 1 is open: zmqrl worker")
        cluster, directory = run.files.cluster(), run.files.path
        keys: Line = json.loads((directory / cluster["keys"]["1"]).read_text(encoding="utf-8")) if curve else {}
        with outside_worker(run) as worker:
            assert worker.wait(WITHIN_S) == 0
        assert run.wait() == 0, run.said()
    ports = {int(shard[role].rpartition(":")[2]) for shard in cluster["shards"] for role in SOCKET_ROLES}
    overheard = eavesdropper.overheard(ports)
    first, last = (Checkpoint.read(path).vector() for path in checkpoints(directory / "checkpoints"))
    said = {
        "first weights": first[16:32].tobytes(),
        "last weights": last[16:32].tobytes(),
        "protocol": m.PROTOCOL.encode(),
        "run": cluster["run"].encode(),
        "layout": cluster["layout"]["hash"].encode(),
        "metrics": b"policy_loss",
        "roles": b"supervisor",
    }
    # The search finds every text in the packets of a plain run, and none in those of an encrypted run.
    assert [name for name, text in said.items() if text in overheard] == ([] if curve else list(said))
    assert len(overheard) > 30 * 2 * 2 * first.nbytes, "too few slices have passed"
    for key in [keys["public"], keys["secret"], *keys["shards"]] if curve else []:
        assert key.encode() not in overheard
        assert z85.decode(key) not in overheard


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def assert_no_keys_in_public(pid: int, keys: Line) -> None:
    """Assert that a process has no key in its arguments, which any user can read, or in its environment."""
    arguments, environment = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    for key in (keys["secret"], keys["public"], *keys["shards"]):
        assert key.encode() not in arguments + environment
    ours = {value.encode() for value in os.environ.values()}
    for value in (*arguments.split(b"\0"), *(entry.partition(b"=")[2] for entry in environment.split(b"\0"))):
        is_path = value.startswith(b"/")  # one of 40 characters looks like a key
        assert value in ours or is_path or not Z85_KEY.fullmatch(value)


def assert_no_secret_on_disk(run: Run, secret: str) -> None:
    assert secret not in run.said()
    for path in run.files.path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def planned(config: Config, directory: RunDirectory) -> RunTasks:
    return RunTasks(config, directory, Layout.of([("w", (100,))], 2), on_this_machine(config, directory))


def test_an_external_worker_names_its_missing_key_file(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.claim()
    try:
        config = Config(external_workers=1, wire=WireConfig(transport="tcp", curve=True))
        tasks = planned(config, directory)
        place = {"grad": "tcp://127.0.0.1:1", "weights": "tcp://127.0.0.1:2", "control": "tcp://127.0.0.1:3"}
        tasks.write_cluster({0: place, 1: place}, {shard_id(0): 1})  # type: ignore[dict-item]
        directory.key_file(1).unlink()
        with pytest.raises(UsageError, match=r"cannot read .*/run/keys/worker-1\.json, the keys of rank 1: No such"):
            worker.run(worker.Options(cluster=directory.cluster))
    finally:
        directory.release()
    assert not directory.keys.exists()


def test_the_secret_of_a_run_is_in_private_files_even_after_a_kill(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.claim()
    place = {"grad": "ipc://g", "weights": "ipc://w", "control": "ipc://c"}
    planned(Config(), directory).write_cluster({0: place, 1: place}, {shard_id(0): 1})  # type: ignore[dict-item]
    assert mode(directory.cluster) == 0o600
    directory.keep_cluster_as_left()
    assert mode(directory.left) == 0o600
    directory.release()


def test_the_next_claim_removes_the_keys_of_a_killed_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.keys.mkdir(parents=True)
    directory.key_file(1).write_text("{}", encoding="utf-8")
    directory.claim()
    assert not directory.keys.exists()
    directory.release()


def test_every_start_generates_new_keys(tmp_path: Path) -> None:
    config = Config(wire=WireConfig(transport="tcp", curve=True))
    first, second = (planned(config, RunDirectory(tmp_path)) for _ in range(2))
    assert first.keys is not None
    assert second.keys is not None
    ours, theirs = ({p.secret for p in (k.supervisor, *k.workers, *k.shards)} for k in (first.keys, second.keys))
    assert len(ours) == len(theirs) == 1 + 2 + 2
    assert not ours & theirs
    shard = first.shard_task(0, None).job
    assert not [secret for secret in ours if secret in json.dumps(shard) and secret != first.keys.shards[0].secret]
    worker = first.worker_job(1, 0, {}).to_json()
    assert not [secret for secret in ours if secret in json.dumps(worker) and secret != first.keys.workers[1].secret]
