"""The program that builds a network lab: steps that a lab cannot show, because they depend on the moment."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from network_lab import building
from network_lab.lab import Lab, Refusal
from support.rig import ending


@pytest.mark.processes
def test_a_process_that_ends_just_before_it_is_killed_does_not_disturb_the_end_of_a_lab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ending(subprocess.Popen(["sleep", "60"])) as process:
        listed = [str(process.pid), ""]

        def ended(pid: int, netns: str) -> bool:
            process.kill()
            process.wait()
            return True

        monkeypatch.setattr(building, "run", lambda *command: SimpleNamespace(stdout=listed.pop(0)))
        monkeypatch.setattr(building, "is_in", ended)
        building.end_processes(["lab"])
        assert process.returncode is not None
        assert not listed


def link_to(directory: Path) -> Path:
    link = directory.with_name("link")
    link.symlink_to(directory)
    return link


def with_a_state_of(text: str, owner: int | None = None) -> Callable[[Path], Path]:
    def prepare(directory: Path) -> Path:
        (directory / "state.json").write_text(text)
        if owner is not None:
            os.chown(directory / "state.json", owner, -1)
        return directory

    return prepare


def with_a_linked_state(directory: Path) -> Path:
    (directory.parent / "state.json").write_text("")
    (directory / "state.json").symlink_to("../state.json")
    return directory


STATE = json.dumps(asdict(Lab(directory="/x", name="zl", subnet="10.77.0", hosts=[], rate=None, shared=[])))
NOBODY = 65534


@pytest.mark.parametrize(
    "prepare",
    [
        link_to,
        with_a_linked_state,
        with_a_state_of('{"not": "a lab"}'),
        with_a_state_of(STATE, NOBODY),
        with_a_state_of("", NOBODY),
    ],
)
def test_a_directory_that_another_user_made_is_not_removed(
    prepare: Callable[[Path], Path], tmp_path: Path, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    precious = tmp_path / "made/precious"
    precious.parent.mkdir()
    precious.write_text("")
    if prepare is link_to:
        (precious.parent / "state.json").write_text(STATE)
    try:
        found = str(prepare(precious.parent))
    except PermissionError:
        skip_or_fail("only root can give a file to another user")
    with pytest.raises(Refusal, match=r"link|state\.json"):
        building.take_down(None, found)
    with pytest.raises(Refusal, match=r"link|state\.json"):
        building.refuse_what_is_taken(Lab(directory=found, name="zl", subnet="10.77.0", hosts=[], rate=None, shared=[]))
    assert precious.exists()


ROUTES = [
    {"dst": "default", "gateway": "192.168.1.1", "dev": "eth0"},
    {"dst": "10.0.0.0/8", "gateway": "192.168.1.7", "dev": "tun0"},
    {"dst": "10.64.0.0/10", "dev": "wg0", "scope": "link"},
]


@pytest.mark.parametrize(
    ("route", "named"),
    [
        ({"dst": "10.77.0.0/16", "dev": "eth1", "protocol": "kernel", "scope": "link"}, "(eth1)"),
        ({"dst": "10.77.0.64/26", "gateway": "192.168.1.9", "dev": "eth0"}, "(eth0)"),
        ({"dst": "10.77.0.9", "dev": "eth2"}, "(eth2)"),
        ({"type": "blackhole", "dst": "10.77.0.0/26"}, "(a route of the type blackhole)"),
        ({"dst": "10.78.0.0/16", "dev": "eth1"}, None),
    ],
)
def test_a_lab_refuses_addresses_that_the_machine_uses(
    route: dict[str, str], named: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {"route": json.dumps([*ROUTES, route]), "list": ""}
    monkeypatch.setattr(building, "run", lambda *command: SimpleNamespace(stdout=said[command[-1]]))
    lab = Lab(directory=str(tmp_path / "lab"), name="zl", subnet="10.77.0", hosts=["h1"], rate=None, shared=[])
    if named is None:
        building.refuse_what_is_taken(lab)
    else:
        with pytest.raises(Refusal, match="in use") as refused:
            building.refuse_what_is_taken(lab)
        assert named in str(refused.value)


@pytest.mark.parametrize("state", [STATE, ""])
def test_the_directory_of_a_lab_is_removed(state: str, tmp_path: Path) -> None:
    building.take_down(None, str(with_a_state_of(state)(tmp_path)))
    assert not tmp_path.exists()
