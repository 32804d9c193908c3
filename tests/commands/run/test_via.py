"""Complete runs on hosts behind ``--via``, and on ``localhost`` without an ssh server."""

import json
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from support.commands import ran_zmqrl
from support.lab import Lab
from support.rig import eventually
from support.run_rig import QUICKLY, Run, started

pytestmark = pytest.mark.processes

# The network of a host of the lab, with the files and the processes of this machine.
NETNS = "ip netns exec {lab}-{{host}} env -u A_TOKEN unshare --uts sh -c 'hostname {{host}}; exec {{command}}'"
STAND_IN = "sh -c 'HOST={host} exec env -u A_TOKEN {command}'"
SECRET = "my-secret-token"
NEEDS_TOKEN = """
import os
from zmqrl.learner.losses import ppo_loss
assert os.environ["A_TOKEN"] == "my-secret-token"
loss = ppo_loss
"""


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options with which a run fails if its workers do not have the environment variable A_TOKEN."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "needs_token.py").write_text(NEEDS_TOKEN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=":")
    monkeypatch.setenv("A_TOKEN", SECRET)
    return ("-x", "A_TOKEN", "--loss", "needs_token:loss")


def launch(path: Path, *options: str) -> AbstractContextManager[Run]:
    command = [sys.executable, "-m", "zmqrl", "launch", "cartpole", "--run-dir", str(path), *QUICKLY, *options]
    return started(command, path, {})


def files_with(words: str, path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and words.encode() in file.read_bytes()]


def left_on(path: Path) -> dict[str, dict[str, Any]]:
    """What a killed run has left, by host."""
    found = json.loads(ran_zmqrl("status", path, "--json").stdout)
    assert found["state"] == "killed"
    hosts: dict[str, dict[str, Any]] = found["hosts"]
    return hosts


def killed_and_resumed(path: Path, hosts: set[str], *options: str) -> None:
    """Launch a run, kill its launcher, and resume it to its end."""
    with launch(path, *options, "--straggle", "0:0.02") as run:
        run.wait_for(5)
        cluster = run.files.cluster()
        assert {each["host"] for role in ("shards", "workers") for each in cluster[role]} == hosts
        found = json.loads(ran_zmqrl("status", path, "--json").stdout)
        assert found["state"] == "running"
        assert files_with(SECRET, path) == []
        pids = run.pids()
        run.signal(signal.SIGKILL)
        run.wait()
        run.assert_nothing_left(pids, 20)
    eventually(lambda: not any(each["alive"] for each in left_on(path).values()), "the end of the daemons", 20)
    assert left_on(path).keys() == hosts
    killed_at = run.files.version()
    options = (*options, "--resume", "--minutes", "0.02")
    token = os.environ.pop("A_TOKEN")
    with launch(path, *options) as run:
        assert run.wait() == 2
        assert "-x A_TOKEN: this variable is not set here. Set it, or remove the option." in run.complaint()
    os.environ["A_TOKEN"] = token
    with launch(path, *options) as run:
        assert run.wait() == 0, run.said()
    resumed_at = int(run.said().partition("resuming from version ")[2].split()[0])
    updates = run.files.summary()["updates"]
    assert 5 <= killed_at <= resumed_at < updates, "the shards kept what the launcher had not seen"
    config = json.loads(run.files.path.joinpath("config.json").read_text(encoding="utf-8"))
    run.files.assert_history_exact(updates, shards=config["shards"], quorum=config["workers"])
    assert files_with(SECRET, path) == []


@pytest.mark.slow
def test_a_run_in_network_namespaces_and_on_this_machine_is_killed_and_resumed(
    lab: Lab, tmp_path: Path, token: tuple[str, ...]
) -> None:
    via = NETNS.format(lab=lab.slot.name)
    hosts = ("-H", "h1,h2,localhost", "--via", via, *token, "--workers", "3", "--shards", "3")
    killed_and_resumed(tmp_path / "run", {"h1", "h2", "localhost"}, *hosts)


def test_the_doctor_finds_the_addresses_of_network_namespaces(lab: Lab) -> None:
    via = NETNS.format(lab=lab.slot.name)
    found = json.loads(ran_zmqrl("doctor", "-H", "h1,h2", "--via", via, "cartpole", "--json").stdout)
    assert found["problems"] == []
    assert {route["address"] for route in found["routes"]} == {lab.address("h1"), lab.address("h2")}


@pytest.mark.slow
def test_a_run_behind_a_command_is_killed_and_resumed(tmp_path: Path, token: tuple[str, ...]) -> None:
    hosts = ("-H", "h1", "--via", STAND_IN, "--address", "h1=127.0.0.1", *token)
    killed_and_resumed(tmp_path / "run", {"h1"}, *hosts)


@pytest.mark.slow
def test_a_run_on_localhost_needs_no_ssh_server(
    tmp_path: Path, token: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")  # the user came over ssh
    killed_and_resumed(tmp_path / "run", {"localhost"}, "-H", "localhost", *token)
