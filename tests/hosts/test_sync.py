"""zmqrl is installed on a host as a wheel, in an environment of its own. In these tests, the host is this machine."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import zmqrl
from zmqrl.errors import UsageError
from zmqrl.hostd import messages as h
from zmqrl.hosts import sync
from zmqrl.hosts.connecting import connect, connect_all
from zmqrl.hosts.link import Link
from zmqrl.observe.provenance import code_hash

pytestmark = pytest.mark.processes


class Host:
    """A host that has its own cache and uses this machine's Python. ``said`` has the messages from the host."""

    def __init__(self, cache: Path, **variables: str) -> None:
        self.said: list[str] = []
        self.variables = {
            "XDG_CACHE_HOME": str(cache),
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
            **variables,
        }

    def link(self, **request: Any) -> Link:
        asked = sync.request() | request | {"variables": self.variables}
        command = [sys.executable, "-c", sync.BOOTSTRAP]
        first = json.dumps(asked).encode() + b"\n"
        return Link("h", command, work="", lease_s=None, first=first, up_within_s=60.0)

    def python(self, link: Link) -> str:
        try:
            connect_all([link], self.hear)
            assert link.made is not None
            return link.made.python
        finally:
            link.cut()

    def hear(self, _: str, event: h.Event) -> None:
        if isinstance(event, h.Making):
            self.said.append(event.line)


@pytest.fixture(autouse=True)
def no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process leaves a path to the checkout, which would hide the wheel."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


def ask(python: str, code: str) -> Any:
    return json.loads(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/", timeout=180).stdout
    )


def small_wheel(directory: Path, name: str) -> None:
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "THERE = True\n")
        about = f"{name}-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")


def test_the_wheel_holds_the_running_package_and_is_reproducible() -> None:
    packed = sync.wheel()
    assert packed == sync.wheel()
    archive = zipfile.ZipFile(io.BytesIO(packed))
    package = Path(zmqrl.__file__).parent
    assert archive.read("zmqrl/errors.py") == (package / "errors.py").read_bytes()
    assert {"zmqrl/py.typed", f"zmqrl-{zmqrl.__version__}.dist-info/entry_points.txt"} <= set(archive.namelist())
    (record,) = (name for name in archive.namelist() if name.endswith("RECORD"))
    for line in archive.read(record).decode().splitlines()[:-1]:
        name, digest, size = line.rsplit(",", 2)
        data = archive.read(name)
        assert len(data) == int(size)
        assert base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=") == hashlib.sha256(data).digest()


def test_every_requirement_is_pinned_to_the_version_installed_here() -> None:
    required, pinned = sync.requirements(), sync.pins()
    assert {"torch", "pyzmq", "numpy", "msgpack"} <= set(required) <= set(pinned)
    assert "jinja2" in pinned, "a requirement of torch"
    assert "pytest" not in pinned, "a requirement of an extra"
    assert not any("+" in version for version in pinned.values())


def test_an_environment_runs_our_code_and_is_reused_unless_it_is_incomplete(tmp_path: Path) -> None:
    host = Host(tmp_path)
    python = host.python(host.link())
    assert python.startswith(str(tmp_path))
    assert host.said == [f"making {Path(python).parent.parent}"], "all packages are installed already"
    facts = (
        "import json, zmqrl, numpy, zmqrl.observe.provenance as p; print(json.dumps([zmqrl.__file__, p.code_hash()]))"
    )
    where, code = ask(python, facts)
    assert where.startswith(str(tmp_path))
    assert code == code_hash()
    assert host.python(host.link()) == python
    assert len(host.said) == 1, "the environment must be reused"
    Path(python).parent.parent.joinpath("ready").unlink()
    Path(where).write_text("from a killed launch")
    assert host.python(host.link()) == python
    assert ask(python, facts) == [where, code]


def test_two_simultaneous_launches_make_one_environment(tmp_path: Path) -> None:
    host = Host(tmp_path)
    links = [host.link(), host.link()]
    links[1].host = "i"
    try:
        connect_all(links, host.hear)
        pythons = {link.made.python for link in links if link.made is not None}
    finally:
        for link in links:
            link.cut()
    assert len(pythons) == 1
    assert sum(line.startswith("making") for line in host.said) == 1


@pytest.mark.slow
def test_pip_installs_only_the_packages_that_a_host_lacks(tmp_path: Path) -> None:
    small_wheel(tmp_path, "zmqrl_small")
    host = Host(tmp_path / "cache", PIP_FIND_LINKS=str(tmp_path), PIP_USER="1")
    lacking = {"zmqrl-small": "1.0"}
    link = host.link(requires=sync.requirements() | lacking, pins=sync.pins() | lacking)
    python = host.python(link)
    assert host.said[0] == "missing, or of another version: zmqrl-small"
    assert ask(python, "import json, zmqrl, numpy, zmqrl_small; print(json.dumps(zmqrl_small.THERE))") is True
    assert not any("Collecting numpy" in line for line in host.said)


@pytest.mark.slow
def test_a_host_where_pip_fails_reports_why_and_keeps_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    lacking = {"zmqrl-small": "1.0"}
    link = host.link(requires=lacking, pins=lacking)
    why = connect([link])["h"]
    assert "No matching distribution found for zmqrl-small==1.0" in why
    assert not [path for path in (tmp_path / "zmqrl" / "envs").iterdir() if path.is_dir()]


def test_a_host_whose_launcher_is_gone_stops_building_and_keeps_nothing(tmp_path: Path) -> None:
    small_wheel(tmp_path, "zmqrl_small")
    host = Host(tmp_path / "cache", PIP_FIND_LINKS=str(tmp_path))
    lacking = {"zmqrl-small": "1.0"}
    link = host.link(requires=lacking, pins=lacking)
    link.open()
    process = link.process
    assert process is not None
    while len(host.said) < 2:
        for event in link.poll():
            host.hear("h", event)
    link.hang_up()
    assert process.wait(30) == 0
    link.cut()
    assert not [path for path in (tmp_path / "cache" / "zmqrl" / "envs").iterdir() if path.is_dir()]


def test_a_host_with_an_old_python_is_reported(tmp_path: Path) -> None:
    old = sync.BOOTSTRAP.replace("sys.version_info", "(3, 9)")
    done = subprocess.run(
        [sys.executable, "-c", old], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180
    )
    assert done.returncode == 1
    assert "zmqrl needs 3.11 or newer" in done.stderr


def test_a_package_missing_here_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UsageError, match="is not installed here"):
        sync.request()
