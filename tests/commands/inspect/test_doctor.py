"""``zmqrl doctor`` and the preflight of ``zmqrl launch`` on hosts of the network lab. One test fills a disk."""

import dataclasses
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.lab import Lab
from support.rig import eventually
from support.run_rig import WITHIN_S, launching

import zmqrl
from zmqrl.commands.inspect import doctor
from zmqrl.commands.inspect.doctor import KEYS, Options
from zmqrl.errors import ClusterError
from zmqrl.hosts import daemons, deployment, reach
from zmqrl.hosts.connecting import connect, unusable
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.judging.speed import Expectation, Limit
from zmqrl.hosts.link import Link
from zmqrl.hosts.preflight import Judgement, Survey
from zmqrl.hosts.reach import HostOptions, Reach, over_tcp
from zmqrl.hosts.ways.way import Way
from zmqrl.observe.provenance import code_hash
from zmqrl.recipes import cartpole

pytestmark = pytest.mark.processes

PORTS = ("--port-range", "42000-42009")


def run_doctor(lab: Lab, hosts: str, *options: str) -> subprocess.CompletedProcess[str]:
    where = ("-H", hosts, "--ssh-config", str(lab.ssh_config))
    command = [sys.executable, "-m", "zmqrl", "doctor", *where, "cartpole", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def directories(lab: Lab) -> set[Path]:
    """The directories of doctors on all hosts. Labs share them."""
    return {path for host in lab.hosts for path in Path("/var/tmp/zmqrl-0", host).glob("doctor-*")}


def nothing_left(lab: Lab, made: set[Path]) -> bool:
    """Whether the hosts have no processes, and the directories that were ``made`` are gone."""
    return not any(lab.processes(host) for host in lab.hosts) and not any(path.exists() for path in made)


@contextmanager
def blocked(lab: Lab, host: str, *rule: str) -> Iterator[None]:
    """Add a packet filter rule on ``host`` for the duration of the block."""
    lab.run(host, ["iptables", "-w", "-A", "INPUT", *rule])
    yield
    lab.run(host, ["iptables", "-w", "-D", "INPUT", *rule])


@contextmanager
def small_disk(lab: Lab, host: str, size: str) -> Iterator[Path]:
    """Mount a disk of ``size`` at the path where ``host`` keeps the files of runs."""
    place = Path("/var/tmp/zmqrl-0") / host
    place.mkdir(parents=True, exist_ok=True)
    lab.run(host, ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)])
    try:
        yield place
    finally:
        eventually(lambda: not lab.processes(host), f"the end of all processes of {host}", WITHIN_S)
        lab.run(host, ["umount", str(place)])


def other_python(lab: Lab, name: str, changes: Callable[[Path], object]) -> Path:
    """Write a command that runs Python on a host with a different zmqrl."""
    package = lab.shared / name / "zmqrl"
    shutil.copytree(
        Path(zmqrl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    changes(package)
    python = lab.shared / f"python-{name}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={lab.shared}/{name} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_usable_hosts_are_shown_with_every_route(lab: Lab) -> None:
    lab.rate("h3", "8mbit")
    before = directories(lab)
    done = run_doctor(lab, "h1,h2,h3", *PORTS, "--json")
    made = directories(lab) - before  # also those of doctors in other labs, which remove them too
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"hosts", "routes", "expected", "problems", "warnings"}
    assert found["problems"] == []
    for host in found["hosts"]:
        assert set(host) == {"host", *KEYS}
        assert host["game_error"] is None
        assert host["cores"] > 0
        assert abs(host["clock_ahead_s"]) < 1
        assert lab.address(host["host"]) in host["interfaces"]["eth0"]
    ends = {(route["from"], route["to"]) for route in found["routes"]}
    assert ends == {(a, b) for a in ("launcher", "h1", "h2", "h3") for b in ("h1", "h2", "h3") if a != b}
    for route in found["routes"]:
        assert route["address"] == lab.address(route["to"])
        assert set(route["ports"]) <= set(range(42000, 42010))
        assert route["round_trip_s"] > 0
        assert route["bytes_per_s"] > 0
        if "h3" in (route["from"], route["to"]):
            assert route["bytes_per_s"] < 2e6, route
    slow = [text.partition(",")[0] for text in found["warnings"] if text.startswith("h3: it ")]
    assert [text.rpartition(" at most ")[0] for text in slow] == ["h3: it sends", "h3: it receives"]
    assert found["expected"]["updates_per_s"] > 0
    assert "sending data over 9 routes" in done.stderr
    eventually(lambda: nothing_left(lab, made), "the end of all that the doctor started", WITHIN_S)


@pytest.mark.slow
def test_a_run_on_a_slow_link_is_about_as_fast_as_the_doctor_expects(lab: Lab, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.toml"
    hosts.write_text('[[host]]\nname = "h1"\nshards = 1\n[[host]]\nname = "h2"\nworkers = 1\n')
    # A slice of 1 MB is longer than the burst that the link lets through, and takes 0.2 s in each direction.
    options = ("--workers", "1", "--shards", "1", "--network.hidden", "512")
    lab.rate("h2", "40mbit")
    done = run_doctor(lab, str(hosts), *options, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = json.loads(done.stdout)["expected"]
    assert expected["limit"]["over"] in ("h2 -> h1", "h1 -> h2", "out of h2", "into h2")
    with launching(lab, tmp_path / "run", *options, "--updates", "40", hosts=str(hosts)) as run:
        assert run.wait(within_s=120) == 0, run.said()
    first, *_, last = (row for row in run.files.metrics() if row["version"] >= 5)
    updates_per_s = (last["version"] - first["version"]) / (last["wall_s"] - first["wall_s"])
    # The link limits how fast any machine can be.
    slice_s = 8 * 4 * run.files.newest().layout.count / 40e6
    assert 0.6 * expected["updates_per_s"] <= 1 / (2 * slice_s)
    assert updates_per_s <= 1.2 * expected["updates_per_s"]


def test_every_problem_of_the_hosts_is_reported_with_its_remedy(lab: Lab, tmp_path: Path) -> None:
    no_games = other_python(lab, "no-games", lambda package: None)  # the same code, but without the games
    (lab.shared / "no-games" / "ale_py").mkdir(exist_ok=True)
    (lab.shared / "no-games" / "ale_py" / "__init__.py").write_text("raise ImportError('ale_py is not installed')\n")
    other = other_python(lab, "other", lambda package: (package / "later.py").write_text("# another version\n"))
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(
        f'[[host]]\nname = "h4"\npython = "{other}"\n[[host]]\nname = "h1"\n'
        f'[[host]]\nname = "h2"\npython = "{no_games}"\n[[host]]\nname = "h3"\n'
    )
    h1, h2, h3 = (lab.address(host) for host in ("h1", "h2", "h3"))
    refusing = blocked(lab, "h1", "-s", h2, "-p", "tcp", "--dport", "42004", "-j", "REJECT")
    silent = blocked(lab, "h1", "-s", h3, "-p", "tcp", "--dport", "42000:42009", "-j", "DROP")
    with small_disk(lab, "h3", "1m"), refusing, silent:
        done = run_doctor(lab, str(hosts), *PORTS)
    assert done.returncode == 3, done.stdout + done.stderr
    problems = [line.removeprefix("problem: ") for line in done.stdout.splitlines() if line.startswith("problem: ")]
    way_out = "allow TCP connections from {} to ports 42000-42009 of h1, or choose another --port-range."
    assert f"h2 -> h1 ({h1}:42004): refused: {way_out.format('h2')}" in problems
    assert f"h3 -> h1 ({h1}:42003): no answer within 3 s: {way_out.format('h3')}" in problems
    assert "h2: CartPole-v1 cannot be played there: ale_py is not installed." in problems
    assert any(
        text.startswith("h3: the disk of /var/tmp/zmqrl-0/h3/doctor-") and " is full " in text for text in problems
    )
    assert any(text.startswith("h4: ") and text.endswith("to a Python that has it.") for text in problems)
    assert len(problems) == 5, problems


def test_a_launch_with_problems_is_refused_before_anything_starts_unless_preflight_is_off(
    lab: Lab, tmp_path: Path
) -> None:
    # The shards are on h1 and h2, the workers on h3 and h4.
    with (
        blocked(lab, "h2", "-s", lab.address("h3"), "-p", "tcp", "--dport", "42005", "-j", "REJECT"),
        launching(lab, tmp_path / "run", *PORTS, "--workers", "2") as run,
    ):
        assert run.wait() == 3
        route = f"h3 -> h2 ({lab.address('h2')}:42005): refused"
        remedy = "allow TCP connections from h3 to ports 42000-42009 of h2, or choose another --port-range."
        assert run.complaint() == f"zmqrl: the run cannot start:\n  {route}: {remedy}\n"
        assert not (run.files.path / "config.json").exists()
    eventually(lambda: nothing_left(lab, set()), "the end of all probes", WITHIN_S)
    with launching(lab, tmp_path / "run", "--iface", "eth9", "--insecure-plaintext") as run:
        assert run.wait() == 3
        assert "h1: no interface or network eth9, only lo 127.0.0.1, eth0 " in run.complaint()


def test_options_set_the_addresses_of_shards(lab: Lab, tmp_path: Path) -> None:
    # h1 is the only host with an address in this network. This machine has none.
    lab.run("h1", ["ip", "address", "add", "10.99.0.1/24", "dev", "eth0"])
    try:
        options = ("--iface", "10.99.0.0/24", "--address", f"h2={lab.address('h2')}")
        with launching(lab, tmp_path / "run", *options, hosts="h1,h2") as run:
            assert run.wait() == 3
    finally:
        lab.run("h1", ["ip", "address", "del", "10.99.0.1/24", "dev", "eth0"])
    # h2 has no route to it. If a router of this machine's network refuses it for the same reason, one line names both.
    assert re.search(r"\n  launcher(, h2)? -> h1 \(10\.99\.0\.1:", run.complaint())
    assert "-> h2" not in run.complaint()


def test_a_run_waits_for_space_on_the_disk_of_a_host_and_continues(lab: Lab, tmp_path: Path) -> None:
    with small_disk(lab, "h1", "200m") as place, launching(lab, tmp_path / "run", "--workers", "2") as run:
        run.wait_to_say("contributions")
        lab.run("h1", ["sh", "-c", f"cat /dev/zero > {place}/fill; true"])
        run.wait_to_say("[h1 shard-0] has a full disk; the run waits 300 s for space")
        run.wait_to_say(f"cannot write {place}/")
        stood = run.files.metrics()[-1]["version"]  # the copies of the histories are out of date
        lab.run("h1", ["rm", f"{place}/fill"])
        run.eventually(lambda: run.files.metrics()[-1]["version"] > stood + 100, "new versions")
        run.interrupt(within_s=90)
        run.files.assert_history_exact(run.files.assert_summary_exact("interrupted")["updates"])


@pytest.mark.usefixtures("ssh_to_here")
def test_a_host_without_python_or_zmqrl_is_reported_with_the_remedy(tmp_path: Path) -> None:
    bare = tmp_path / "python-without"
    bare.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'zmqrl'\" >&2; exit 1\n")
    bare.chmod(0o755)
    hosts = tmp_path / "hosts.toml"
    missing = tmp_path / "none" / "bin" / "python"
    hosts.write_text(f'[[host]]\nname = "h1"\npython = "{missing}"\n[[host]]\nname = "h2"\npython = "{bare}"\n')
    where = HostOptions(hosts=str(hosts))
    reach = where.reach()
    links = [reach.link(host, work="doctor-test", lease_s=5.0) for host in reach.hosts]
    error = unusable(connect(links, instead=reach.instead), [link.host for link in links])
    way_out = ": install it there with --sync wheel, or set `python` in the hosts file to a Python that has it"
    h1, h2 = sorted(str(error).splitlines()[1:])
    assert str(missing) in h1
    assert h1.endswith(way_out)
    assert h2 == f"  h2: ModuleNotFoundError: No module named 'zmqrl'{way_out}"


@pytest.mark.usefixtures("ssh_to_here")
def test_a_host_with_older_code_is_reported_like_one_with_different_code(tmp_path: Path) -> None:
    older = tmp_path / "python-older"
    older.write_text("#!/bin/sh\necho \"(ModuleNotFoundError: No module named 'zmqrl.hostd')\" >&2; exit 1\n")
    older.chmod(0o755)
    (tmp_path / "hosts.toml").write_text(f'[[host]]\nname = "h1"\npython = "{older}"\n')
    reach = HostOptions(hosts=str(tmp_path / "hosts.toml")).reach()
    link = reach.link(reach.hosts[0], work="doctor-test", lease_s=5.0)
    failed = connect([link], instead=reach.instead)
    sentence = f"zmqrl there (an older one) differs from zmqrl here (code {code_hash()[:8]}): install it there with"
    assert sentence in failed["h1"]


def test_doctor_syncs_zmqrl_to_hosts_as_launch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def made(hosts: Sequence[Host], way: Way, say: Callable[[str], None], *_: object, **__: object) -> dict[str, str]:
        assert way(hosts[0], ["true"])[0] == "ssh"
        say("h1: making it")
        return {host.name: "/envs/python" for host in hosts}

    def examined(reach: Reach, *_: object) -> None:
        assert [host.python for host in reach.hosts] == ["/envs/python"]
        raise ClusterError("seen")

    monkeypatch.setattr(reach, "make_environments", made)
    monkeypatch.setattr(doctor, "examine", examined)
    monkeypatch.setattr(doctor, "_say", said.append)
    with pytest.raises(ClusterError, match="seen"):
        doctor.run(Options(hosts="h1", sync="wheel"), over_tcp(dataclasses.replace(cartpole(), workers=1)))
    assert said == ["h1: making it"]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the doctor of this test makes on this machine."""
    name = secrets.token_hex(6)
    monkeypatch.setattr(doctor, "secrets", SimpleNamespace(token_hex=lambda _: name))
    return Path(f"/var/tmp/zmqrl-{os.getuid()}", socket.gethostname(), f"doctor-{name}")


def test_an_interrupted_doctor_tells_a_host_that_is_coming_up_to_remove_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, opened = tmp_path / "heard", list[subprocess.Popen[bytes]]()

    def interrupted(links: list[Link], *_: object, **__: object) -> None:
        for link in links:
            link.open()
            assert link.process is not None
            opened.append(link.process)
        eventually(lambda: heard.exists() and b"\n" in heard.read_bytes(), "the host has heard of the run", WITHIN_S)
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "connect", interrupted)
    monkeypatch.setattr(daemons, "END_COMING_UP_WITHIN_S", WITHIN_S)
    config = over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    with pytest.raises(KeyboardInterrupt):
        doctor.run(Options(hosts="h1", via=f"sh -c 'exec cat > {heard}' {{host}}"), config)
    asked = [json.loads(line) for line in heard.read_text().splitlines()]
    assert [request["do"] for request in asked] == ["begin", "clean"]
    assert asked[-1]["whole"]
    assert [process.poll() for process in opened] == [0], "it was killed before it could clean"


@pytest.mark.parametrize(
    ("warnings", "verdict"),
    [
        ([], "no problems found: this job can run on h1, h2\n"),
        (["h2 is slow."], "warning: h2 is slow.\nthis job can run on h1, h2, with 1 warning (see above)\n"),
    ],
)
def test_the_last_line_says_whether_there_are_warnings(
    warnings: list[str], verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: ({}, Survey(facts={}), Judgement([], warnings), None))
    config = over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    assert doctor.run(Options(hosts="h1,h2"), config) == 0
    assert capsys.readouterr().out.endswith(f"\n{verdict}")


@pytest.mark.usefixtures("ssh_to_here")
def test_a_network_that_allows_few_updates_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = Limit(what="weights", over="h1 -> h2", shards=(0,), bytes_per_update=1e6, seconds=2.0)
    slow = Expectation(updates_per_s=0.5, bytes_per_update=1e6, limit=limit)
    monkeypatch.setattr(doctor, "expect", lambda *_, **__: slow)
    config = over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    assert doctor.run(Options(hosts="h1", address=("h1=127.0.0.1",), json=True), config) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][-1:] == slow.warnings()


@pytest.mark.usefixtures("ssh_to_here")
def test_an_interrupted_doctor_leaves_nothing_on_hosts_that_are_coming_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(links: list[Link], *_: object, **__: object) -> None:
        """Ctrl-C after the daemons have made their directories, and before anything has read their reports."""
        for link in links:
            link.open()
        eventually(directory.exists, "a directory on the host", WITHIN_S)
        assert not any(link.is_ready for link in links)
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "connect", interrupted)
    config = over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    with pytest.raises(KeyboardInterrupt):
        doctor.run(Options(hosts="h1"), config)
    eventually(lambda: not directory.exists(), "the end of the daemon", WITHIN_S)


@pytest.mark.usefixtures("ssh_to_here")
def test_an_interrupted_doctor_leaves_nothing_on_hosts_that_are_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert directory.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "place_run", interrupted)
    config = over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    with pytest.raises(KeyboardInterrupt):
        doctor.run(Options(hosts="h1"), config)
    assert not directory.exists()
