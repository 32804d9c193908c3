"""zmqrl is installed on a host as a wheel, in an environment of its own. In these tests, the host is this machine."""

import base64
import dataclasses
import hashlib
import io
import json
import shlex
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support.commands import ran
from support.rig import ending, eventually, is_alive

import zmqrl
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hostd import environment
from zmqrl.hostd import messages as h
from zmqrl.hosts import inventory, sync
from zmqrl.hosts.connecting import connect
from zmqrl.hosts.link import Link
from zmqrl.hosts.sync import EVERY_EXTRA
from zmqrl.hosts.wheels import PIECE_BYTES, pieces, wheels_for
from zmqrl.learner.games import EnvConfig
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
        asked = sync.request(EVERY_EXTRA) | request | {"variables": self.variables}
        command = [sys.executable, "-c", sync.BOOTSTRAP]
        first = json.dumps(asked).encode() + b"\n"
        return Link("h", command, work="", lease_s=None, first=first, up_within_s=60.0)

    def python(self, link: Link) -> str:
        try:
            assert connect([link], self.hear) == {}
            assert link.made is not None
            return link.made.python
        finally:
            link.cut()

    def hear(self, _: str, event: h.Event) -> None:
        if isinstance(event, h.Making):
            self.said.append(event.line)


@pytest.fixture(autouse=True)
def no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove PYTHONPATH: earlier tests may have put the checkout there, which would hide the wheel."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


def ask(python: str, code: str) -> Any:
    return json.loads(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/", timeout=180).stdout
    )


def small_wheel(directory: Path, name: str, padding: int = 0) -> None:
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"THERE, PADDING = True, {'x' * padding!r}\n")
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
    required, pinned = sync.requirements(EVERY_EXTRA), sync.pins(EVERY_EXTRA)
    assert {"torch", "pyzmq", "numpy", "msgpack"} <= set(required) <= set(pinned)
    assert "jinja2" in pinned, "a requirement of torch"
    assert "pytest" not in pinned, "a requirement of an extra"
    assert {"ale-py", "imageio-ffmpeg"} <= set(required), "the extras that processes on hosts can need"
    assert not any("+" in version for version in pinned.values())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The requirements of each installed package, by name. All versions are 1.0, and each package is also a module."""
    found: dict[str, list[str]] = {
        "zmqrl": [
            "Gymnasium>=1.1",
            "ale-py>=0.12; extra == 'atari'",
            "gymnasium[box2d]>=1.1; extra == 'box2d'",
            "gymnasium[mujoco]>=1.1; extra == 'mujoco'",
            "wandb; extra == 'wandb'",
            "pytest; extra == 'dev'",
        ],
        "gymnasium": [
            "numpy",
            'pygame-ce>=2; extra == "box2d"',
            'Box2D==2.3; python_version < "3.14" and extra == "box2d"',
            'box2d_py==2.3; python_version >= "3.14" and extra == "box2d"',
            'mujoco>=2; extra == "mujoco"',
            'packaging; extra == "mujoco"',
            "gymnasium[box2d,mujoco]; extra == 'all'",
        ],
        "mujoco": ["etils[epath, enp]"],
        "etils": ['fsspec; extra == "epath"', 'jax; extra == "eapp"', "etils[epath]; extra == 'all'"],
        **{
            name: []
            for name in ("numpy", "pygame-ce", "box2d", "packaging", "fsspec", "jax", "ale-py", "pytest", "wandb")
        },
    }

    def of(name: str) -> list[str]:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "requires", of)
    monkeypatch.setattr(metadata, "version", lambda name: "1.0+cpu" if of(name) is not None else "")
    monkeypatch.setattr(sync, "is_installed", lambda module: module.lower() in found)
    return found


@pytest.mark.usefixtures("installed")
def test_hosts_get_the_packages_of_the_environments_that_are_installed_here() -> None:
    direct = dict.fromkeys(("gymnasium", "ale-py", "pygame-ce", "box2d", "mujoco", "packaging"), "1.0")
    assert sync.requirements(EVERY_EXTRA) == direct
    assert sync.pins(EVERY_EXTRA) == direct | dict.fromkeys(("numpy", "etils", "fsspec"), "1.0"), (
        "also extras of indirect ones"
    )


def test_hosts_get_the_package_that_draws_environments_if_it_is_installed_here(
    installed: dict[str, list[str]],
) -> None:
    installed["zmqrl"].append("gymnasium[classic-control]>=1.1; extra == 'video'")
    installed["gymnasium"].append('pygame-ce>=2; extra == "classic-control"')
    assert set(sync.requirements(())) == {"gymnasium", "ale-py", "pygame-ce"}
    del installed["pygame-ce"]
    assert set(sync.requirements(())) == {"gymnasium", "ale-py"}


@pytest.mark.usefixtures("installed")
def test_hosts_get_only_the_packages_of_the_game_of_the_run() -> None:
    assert set(sync.requirements(())) == {"gymnasium", "ale-py"}
    assert set(sync.requirements(["mujoco"])) == {"gymnasium", "ale-py", "mujoco", "packaging"}
    assert set(sync.pins(())) == {"gymnasium", "ale-py", "numpy"}
    assert set(sync.requirements(["mujoco", "wandb"])) == {*sync.requirements(["mujoco"]), "wandb"}


@pytest.mark.parametrize(
    ("env_id", "envs", "extras"),
    [
        ("ALE/Pong-v5", EnvConfig(), ()),
        ("CartPole-v1", EnvConfig(), ()),
        ("LunarLander-v3", EnvConfig(), ("box2d",)),
        ("Hopper-v5", EnvConfig(), ("mujoco",)),
        ("CartPole-v1", EnvConfig(wrappers=("mine:wrap",)), ("box2d", "mujoco")),
        ("mine:Own-v0", EnvConfig(), ("box2d", "mujoco")),
    ],
)
def test_the_extras_of_a_game_are_known_from_its_registration(
    env_id: str, envs: EnvConfig, extras: tuple[str, ...]
) -> None:
    assert sync.extras_of_game(env_id, envs) == extras


def test_hosts_do_not_get_the_packages_of_environments_that_are_not_installed_here(
    installed: dict[str, list[str]],
) -> None:
    """Other programs may have installed some of their packages."""
    del installed["mujoco"], installed["box2d"]
    assert set(sync.requirements(EVERY_EXTRA)) == {"gymnasium", "ale-py"}
    assert set(sync.pins(EVERY_EXTRA)) == {"gymnasium", "ale-py", "numpy"}


def test_an_environment_runs_our_code_and_is_reused_unless_it_is_incomplete(tmp_path: Path) -> None:
    host = Host(tmp_path)
    python = host.python(host.link())
    assert python.startswith(str(tmp_path))
    assert host.said == [f"making {Path(python).parent.parent}"], "all packages are installed already"
    assert (tmp_path / "zmqrl" / "envs").stat().st_mode & 0o777 == 0o700
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


def test_each_host_that_cannot_make_an_environment_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "python")
    hosts = [inventory.Host(name=name, python=missing) for name in ("h1", "h2")]
    with pytest.raises(ClusterError) as error:
        sync.make_environments(hosts, lambda _, words: list(words), print, {}, extras=())
    why = f"cannot run {missing}: No such file or directory: {sync.ANOTHER_PYTHON}"
    assert str(error.value) == f"2 of 2 hosts cannot be used:\n  h1: {why}\n  h2: {why}"


def test_two_simultaneous_launches_make_one_environment(tmp_path: Path) -> None:
    host = Host(tmp_path)
    links = [host.link(), host.link()]
    links[1].host = "i"
    try:
        assert connect(links, host.hear) == {}
        pythons = {link.made.python for link in links if link.made is not None}
    finally:
        for link in links:
            link.cut()
    assert len(pythons) == 1
    assert sum(line.startswith("making") for line in host.said) == 1


def test_hosts_that_share_a_home_share_packages_only_if_they_lack_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    def packages(**installed: str) -> str:
        there.clear()
        there.update(installed)
        made: list[Path] = []

        def remember(path: Path, make: object) -> Path:
            made.append(path)
            return path

        monkeypatch.setattr(environment, "_made", remember)
        environment.environment({"requires": {"torch": "2.9", "numpy": "2.0"}, "pins": pins, "wheel": ""})
        return made[0].name

    pins = {"torch": "2.9", "numpy": "2.0", "jinja2": "3.1"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(metadata, "version", version)
    lacks_numpy = packages(torch="2.9+cpu", jinja2="3.1")
    assert lacks_numpy.startswith("packages-")
    assert packages(torch="2.9", jinja2="3.1", other="1") == lacks_numpy
    others = {packages(torch="2.8", jinja2="3.1"), packages(torch="2.9", jinja2="3.0"), packages()}
    assert len(others | {lacks_numpy}) == 4


@pytest.mark.slow
def test_pip_installs_only_the_packages_that_a_host_lacks(tmp_path: Path) -> None:
    small_wheel(tmp_path, "zmqrl_small")
    host = Host(tmp_path / "cache", PIP_FIND_LINKS=str(tmp_path), PIP_USER="1")
    lacking = {"zmqrl-small": "1.0"}
    link = host.link(requires=sync.requirements(EVERY_EXTRA) | lacking, pins=sync.pins(EVERY_EXTRA) | lacking)
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
    done = ran([sys.executable, "-c", old], status=1, stdin=subprocess.DEVNULL)
    assert "zmqrl needs 3.11 or newer" in done.stderr


@pytest.mark.parametrize("sends", ["", json.dumps({"program": "import time\ndef main(ask): time.sleep(600)"}) + "\n"])
def test_a_host_whose_launcher_is_lost_without_a_word_stops_making_the_environment(sends: str) -> None:
    impatient = sync.BOOTSTRAP.replace(f"alarm({sync.ENDS_AFTER_S})", "alarm(1)")
    with ending(subprocess.Popen([sys.executable, "-c", impatient], stdin=subprocess.PIPE, text=True)) as process:
        assert process.stdin is not None
        process.stdin.write(sends)
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGALRM


@pytest.mark.parametrize("redirected", ["exec {} </dev/null", ": | {}"])
def test_a_command_that_does_not_pass_standard_input_on_is_reported(redirected: str) -> None:
    command = redirected.format(shlex.join([sys.executable, "-c", sync.BOOTSTRAP]))
    assert connect([Link("h", ["sh", "-c", command], work="", lease_s=None, first=b"{}\n")]) == {"h": h.NO_INPUT}


def test_a_package_missing_here_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UsageError, match="is not installed here"):
        sync.request(EVERY_EXTRA)


# hosts without a network

LACKING = h.Lacking(packages=["a-package"], python="3.11", abis=["cp311"], platforms=["linux_x86_64"])


@pytest.fixture
def small_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make zmqrl require a package that no host has."""
    required, pinned, lacking = sync.requirements(EVERY_EXTRA), sync.pins(EVERY_EXTRA), {"zmqrl-small": "1.0"}
    monkeypatch.setattr(sync, "requirements", lambda extras: required | lacking)
    monkeypatch.setattr(sync, "pins", lambda extras: pinned | lacking)
    monkeypatch.setattr(sync, "exact_versions", lambda extras: lacking)


@pytest.mark.slow
@pytest.mark.usefixtures("small_is_required")
def test_a_host_without_a_network_gets_the_packages_that_it_lacks_from_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_wheel(tmp_path, "zmqrl_small", padding=5 * PIECE_BYTES // 2)
    for name, value in Host(tmp_path / "here", PIP_FIND_LINKS=str(tmp_path)).variables.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    there, host = Host(tmp_path / "there"), inventory.Host(name="h", python=sys.executable)
    made = sync.make_environments(
        [host], lambda _, words: list(words), said.append, there.variables, extras=EVERY_EXTRA, offline=True
    )
    code = "import json, zmqrl_small; print(json.dumps([zmqrl_small.__file__, len(zmqrl_small.PADDING)]))"
    where, size = ask(made["h"], code)
    assert where.startswith(str(tmp_path / "there"))
    assert size == 5 * PIECE_BYTES // 2
    assert not [path for path in (tmp_path / "there").rglob("*.whl") if "ensurepip" not in str(path)]
    assert "h: missing, or of another version: zmqrl-small" in said
    assert "h: sending 1 wheel, 3 MB" in said


@pytest.mark.slow
@pytest.mark.usefixtures("small_is_required")
def test_a_package_that_cannot_be_downloaded_for_a_host_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in Host(tmp_path / "here").variables.items():
        monkeypatch.setenv(name, value)
    there, host = Host(tmp_path / "there"), inventory.Host(name="h", python=sys.executable)
    with pytest.raises(ClusterError) as error:
        sync.make_environments(
            [host], lambda _, words: list(words), print, there.variables, extras=EVERY_EXTRA, offline=True
        )
    assert str(error.value) == (
        "--offline: cannot download packages for h: Could not find a version that satisfies the requirement "
        "zmqrl-small==1.0 (from versions: none)."
    )


def test_a_package_is_downloaded_once_for_all_hosts_with_the_same_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def download(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / "A_Package-1.0-py3-none-any.whl").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    newer = dataclasses.replace(LACKING, python="3.12", abis=["cp312"])
    for host, about in (("h1", LACKING), ("h2", LACKING), ("h3", newer)):
        (wheel,) = wheels_for(host, about, {"a-package": "1.0"}, print)
        assert wheel.name == "A_Package-1.0-py3-none-any.whl"
    assert [command[-1] for command in calls] == ["a-package==1.0"] * 2
    assert ["--python-version=3.12" in command for command in calls] == [False, True]


KILLED = """
import sys
from zmqrl.hosts.wheels import wheels_for
from zmqrl.hostd.messages import Lacking
sys.executable = sys.argv[1]
lacking = Lacking(packages=["a-package"], python="3.11", abis=["cp311"], platforms=["linux_x86_64"])
wheels_for("h1", lacking, {"a-package": "1.0"}, print)
"""


def test_a_killed_launch_leaves_no_pip_and_the_next_one_removes_what_it_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip, pid = tmp_path / "pip", tmp_path / "pid"
    pip.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600\n")
    pip.chmod(0o755)
    with ending(subprocess.Popen([sys.executable, "-c", KILLED, str(pip)], stdout=subprocess.DEVNULL)) as launch:
        eventually(pid.exists, "the start of pip")
        (left,) = (tmp_path / "zmqrl" / "wheels").glob("*/tmp*")
        failed = subprocess.CompletedProcess([], 1, "", "ERROR: nothing")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(ClusterError):
            wheels_for("h2", LACKING, {"a-package": "1.0"}, print)
        assert left.exists(), "another launch uses it"
        launch.kill()
        eventually(lambda: not is_alive(int(pid.read_text())), "the end of pip")
    with pytest.raises(ClusterError):
        wheels_for("h2", LACKING, {"a-package": "1.0"}, print)
    assert not left.exists()


def test_pieces_carry_files_in_order(tmp_path: Path) -> None:
    contents = {"a.whl": b"x" * (PIECE_BYTES + 1), "b.whl": b"", "c.whl": b"y" * PIECE_BYTES}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    lines = [json.loads(line) for line in pieces([tmp_path / name for name in contents])]
    assert [line["name"] for line in lines] == ["a.whl", "a.whl", "c.whl"]
    for name, data in contents.items():
        assert b"".join(base64.b64decode(line["data"]) for line in lines if line["name"] == name) == data


@pytest.mark.parametrize(
    ("build", "advice"),
    [("2.9.0+cpu", ": set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu here"), ("2.9.0", "")],
)
def test_the_index_of_a_build_of_torch_is_named(
    build: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", f"a warning\nERROR: No torch=={build}.\nERROR: Impossible\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lacking = h.Lacking(packages=["torch"], python="3.11", abis=["cp311"], platforms=["linux_x86_64"])
    with pytest.raises(ClusterError) as error:
        wheels_for("h", lacking, {"torch": build}, print)
    assert str(error.value) == f"--offline: cannot download packages for h: No torch=={build}{advice}."
