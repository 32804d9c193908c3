"""Runs on the nodes of a Ray cluster."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ray_rig
from support.ray_rig import Addresses, running_ray
from support.rig import eventually, is_alive
from support.run_rig import QUICKLY, started

from zmqrl import cli
from zmqrl.commands.run.launch import Options, run
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.ways import ray_cluster
from zmqrl.hosts.ways.ray_cluster import Node, RayCluster
from zmqrl.recipes import cartpole

WITHIN_S = 120.0


def node(number: int, hostname: str, free_cpus: float = 4) -> dict[str, object]:
    return {"id": f"{number:08x}ffff", "hostname": hostname, "address": f"10.0.0.{number}", "free_cpus": free_cpus}


def test_nodes_are_named_by_their_machines() -> None:
    found = ray_cluster._by_name([node(1, "a"), node(2, "b"), node(3, "b")])
    assert list(found) == ["a", "b-00000002", "b-00000003"]
    assert found["a"] == Node(id="00000001ffff", address="10.0.0.1", free_cpus=4)


def test_a_host_whose_cpus_are_all_in_use_is_refused() -> None:
    cluster = RayCluster(address="head:1", nodes=ray_cluster._by_name([node(1, "a"), node(2, "b", 0)]))
    cluster.check(["a"])
    with pytest.raises(UsageError, match=r"other programs use all CPUs of b\. Leave these hosts out with --exclude b"):
        cluster.check(["a", "b"])


def test_a_cpu_is_reserved_for_each_process_and_never_more_than_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    @contextlib.contextmanager
    def answers(address: str, request: dict[str, object], within_s: float) -> Iterator[dict[str, object]]:
        asked.append(request)
        yield {"reserved": True, "nodes": [node(1, "a", 16), node(2, "b", 2), node(3, "c", 16)]}

    monkeypatch.setattr(ray_cluster, "_asked", answers)
    monkeypatch.setattr(ray_cluster, "require_extra", lambda *_: None)
    reach = Options(ray="auto").reach()
    assert {host.threads for host in reach.hosts} == {1}
    for workers, cpus in ((2, {1: 2, 3: 1}), (40, {1: 16, 2: 2, 3: 16})):
        with reach.reserved(dataclasses.replace(cartpole(), workers=workers, shards=1)):
            assert asked[-1]["cpus"] == {node(number, "")["id"]: count for number, count in cpus.items()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(hosts="h1", ray="auto"), "-H and --ray cannot be combined"),
        (Options(slurm=True, ray="auto"), "--slurm and --ray cannot be combined"),
        (Options(ray="auto", via="docker exec {host}"), "--via and --ray cannot be combined: Ray reaches the nodes"),
        (Options(ray="auto", requeue=True), "--requeue needs --slurm"),
    ],
)
def test_options_that_conflict_are_refused(options: Options, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(options, Config())


def test_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="--ray reserves no GPUs"):
        run(Options(ray="auto"), dataclasses.replace(Config(), device="cuda"))


@pytest.mark.processes
def test_a_cluster_that_does_not_start_is_reported_with_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_rig, "CPUS", ("none",))  # Ray, if it is installed, needs a number
    with pytest.raises(AssertionError, match=r"^Ray did not start; it printed:\nTraceback"), running_ray():
        pytest.fail("it started")


# a real cluster


@pytest.mark.processes
@pytest.mark.slow
def test_an_address_without_a_cluster_is_reported_in_one_sentence(need_modules: Callable[..., None]) -> None:
    need_modules("ray")
    with pytest.raises(ClusterError, match=r"^--ray 127\.0\.0\.1:9: the Ray cluster cannot be used: .*\.$"):
        RayCluster.at("127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_uses_the_free_cpus_of_all_nodes_and_leaves_nothing(
    ray: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = RayCluster.at(ray)
    assert sorted(cluster.cores.values()) == [1, 1], "a head without CPUs is not a host"
    command = [sys.executable, "-m", "zmqrl", "launch", "--ray", ray, "cartpole", "--workers", "2", "--shards", "1"]
    path = tmp_path / "run"
    with started([*command, "--run-dir", str(path), *QUICKLY], path, {}) as training:
        training.eventually(lambda: training.files.version(1) >= 3, "version 3")
        assert {entry["host"] for entry in training.files.cluster()["workers"]} == set(cluster.nodes)
        assert set(RayCluster.at(ray).cores.values()) == {0}, "the run has reserved all CPUs"
        assert cli.run(["status", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "running"
        pids = training.pids()
        training.signal(signal.SIGKILL)
        training.wait()
        training.assert_nothing_left(pids, within_s=WITHIN_S)
    eventually(lambda: set(RayCluster.at(ray).cores.values()) == {1}, "Ray frees the CPUs", WITHIN_S)


@pytest.mark.processes
@pytest.mark.slow
def test_a_cluster_can_be_used_from_another_machine_through_its_client_server(ray_addresses: Addresses) -> None:
    cluster = RayCluster.at(ray_addresses.client)
    assert cluster.nodes == RayCluster.at(ray_addresses.inside).nodes
    name, other = cluster.nodes
    with cluster.reserved({name: 1}):
        assert RayCluster.at(ray_addresses.client).cores == {name: 0, other: 1}
    host = cluster.hosts()[0]
    script = "import os, sys; print(os.environ['ZMQRL_NODE'], sys.stdin.read()); sys.exit(3)"
    command = cluster.command_on(host, [sys.executable, "-c", script])
    done = subprocess.run(command, input="words", capture_output=True, text=True, timeout=WITHIN_S)
    assert (done.returncode, done.stdout) == (3, f"{host.name} words\n"), done.stderr


@pytest.mark.processes
@pytest.mark.slow
def test_a_command_has_its_streams_here_and_ends_with_its_bridge(ray: str) -> None:
    cluster = RayCluster.at(ray)
    host = cluster.hosts()[0]
    script = (
        "import os, sys; print(os.getpid(), os.environ['ZMQRL_NODE'], flush=True); sys.exit(sys.stdin.read() == 'no')"
    )
    done = subprocess.run(
        cluster.command_on(host, [sys.executable, "-c", script]),
        input="no",
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    pid, name = done.stdout.split()
    assert (done.returncode, name) == (1, host.name)
    assert not is_alive(int(pid))
    missing = cluster.command_on(host, ["no-such-python", "-c", "import sys; print(sys.executable)"])
    done = subprocess.run(missing, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WITHIN_S)
    assert (done.returncode, os.path.basename(done.stdout.strip())) == (0, os.path.basename(sys.executable))  # noqa: PTH119
