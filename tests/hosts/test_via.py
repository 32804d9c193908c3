"""Hosts behind any command: the commands that zmqrl runs for ``--via``, and for ``via`` in a hosts file."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT

from zmqrl.errors import UsageError
from zmqrl.hostd.messages import NO_INPUT, Up
from zmqrl.hosts import reach
from zmqrl.hosts.connecting import connect
from zmqrl.hosts.inventory import Host, read_hosts
from zmqrl.hosts.reach import HostOptions, addresses_of
from zmqrl.hosts.ways.via import read_via, shown, via_command
from zmqrl.hosts.ways.way import command_on

WORDS = ["/opt/my python", "-c", "print('a b')", "$HOME"]
QUOTED = """'/opt/my python' -c 'print('"'"'a b'"'"')' '$HOME'"""


@pytest.mark.parametrize(
    ("via", "command"),
    [
        ("docker exec -i {host}", ["docker", "exec", "-i", "h1", *WORDS]),
        ("kubectl exec -i pod/{host} --", ["kubectl", "exec", "-i", "pod/h1", "--", *WORDS]),
        ("ip netns exec {host}", ["ip", "netns", "exec", "h1", *WORDS]),
        ("mpirun -host {host} -n 1", ["mpirun", "-host", "h1", "-n", "1", *WORDS]),
        ("gcloud compute ssh {host} --command", ["gcloud", "compute", "ssh", "h1", "--command", QUOTED]),
        ("gcloud compute ssh --command={command} {host}", ["gcloud", "compute", "ssh", f"--command={QUOTED}", "h1"]),
        ("ssh -J gate {host}", ["ssh", "-J", "gate", "h1", QUOTED]),
        ("/usr/bin/ssh -n {host}", ["/usr/bin/ssh", "-n", "h1", QUOTED]),
        ("sshpass -f file ssh {host}", ["sshpass", "-f", "file", "ssh", "h1", QUOTED]),
        ("proxychains4 -q ssh {host}", ["proxychains4", "-q", "ssh", "h1", QUOTED]),
        ("gcloud compute ssh {host} --", ["gcloud", "compute", "ssh", "h1", "--", QUOTED]),
        ("docker exec -i gate ssh {host}", ["docker", "exec", "-i", "gate", "ssh", "h1", QUOTED]),
        ("kubectl exec -i gate -- ssh {host}", ["kubectl", "exec", "-i", "gate", "--", "ssh", "h1", QUOTED]),
        ("kubectl exec -i {host} -c ssh --", ["kubectl", "exec", "-i", "h1", "-c", "ssh", "--", *WORDS]),
        ("kubectl -n ssh exec -i {host} --", ["kubectl", "-n", "ssh", "exec", "-i", "h1", "--", *WORDS]),
        ("docker exec -u ssh -i {host}", ["docker", "exec", "-u", "ssh", "-i", "h1", *WORDS]),
        ("lxc exec {host} -- bash -lc", ["lxc", "exec", "h1", "--", "bash", "-lc", QUOTED]),
        ("sh -c 'cd /{host} && {command}'", ["sh", "-c", f"cd /h1 && {QUOTED}"]),
    ],
)
def test_the_command_follows_as_words_or_as_one_word_for_a_shell_on_the_host(via: str, command: list[str]) -> None:
    assert via_command(read_via(via), "h1", WORDS) == command


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_a_shell_on_the_host_reads_the_same_words(words: list[str]) -> None:
    *_, one = via_command(read_via("ssh {host}"), "h1", words)
    assert shlex.split(one) == words


@given(st.text("{}hostcmand "), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", fullmatch=True))
def test_a_name_replaces_only_its_own_place(text: str, host: str) -> None:
    literal = text.replace("{host}", "").replace("{command}", "")
    if "{host}" not in literal and "{command}" not in literal:
        assert via_command(["run", literal, "{host}"], host, ["python"]) == ["run", literal, host, "python"]


@pytest.mark.parametrize(
    ("via", "sentence"),
    [
        ("docker exec -i", "--via 'docker exec -i': {host} is missing. Write it where the name of the host belongs."),
        ("", "--via '': {host} is missing"),
        ("docker exec '{host}", "no closing quotation."),
    ],
)
def test_a_command_that_cannot_reach_each_host_is_refused(via: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        read_via(via)
    assert sentence in str(error.value)


def test_a_hosts_file_sets_the_command_for_all_hosts_or_for_one(tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(
        """
        [defaults]
        via = ["docker", "exec", "-i", "{host}"]
        [[host]]
        name = "c[1-2]"
        [[host]]
        name = "pod"
        via = ["kubectl", "exec", "-i", "pod-0", "--"]
        [[host]]
        name = "localhost"
        """,
        encoding="utf-8",
    )
    found = HostOptions(hosts=str(file)).reach()
    begin = [" ".join(found.command(host)[:5]) for host in found.hosts]
    assert begin[:2] == [f"docker exec -i c{number} {sys.executable}" for number in (1, 2)]
    assert begin[2] == "kubectl exec -i pod-0 --"
    assert begin[3].startswith(f"{sys.executable} -P -m")
    links = [found.link(host, work="run", lease_s=8.0) for host in found.hosts]
    assert [link.shown for link in links[1:]] == ["docker exec -i c2", "kubectl exec -i pod-0 --", ""]
    found = HostOptions(hosts=str(file), via="podman exec -i {host}").reach()
    assert [found.command(host)[0] for host in found.hosts] == ["podman"] * 3 + [sys.executable]


def test_the_example_reaches_each_host_in_its_way() -> None:
    found = HostOptions(hosts=str(ROOT / "launch" / "hosts" / "containers.toml")).reach()
    begin = {host.name: " ".join(found.command(host)).partition(" -P ")[0] for host in found.hosts}
    assert begin == {
        "c1": "docker exec -i c1 /opt/zmqrl/bin/python",
        "c2": "docker exec -i c2 /opt/zmqrl/bin/python",
        "zmqrl-0": "kubectl exec -i zmqrl-0 -- /opt/zmqrl/bin/python",
        "localhost": "/home/me/zmqrl/.venv/bin/python",
    }


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ('[defaults]\nvia = ["docker", "exec"]', "[defaults]: via: {host} is missing"),
        ('[[host]]\nname = "h1"\nvia = "docker exec"', 'it must be a list of strings, such as ["docker"'),
        ('[[host]]\nname = "h[1-2]"\nvia = ["docker", "exec"]', "via needs {host}, because it reaches 2 hosts."),
        ('[[host]]\nname = "h1"\nvia = []', "it must be a list of strings"),
    ],
)
def test_a_wrong_command_in_a_hosts_file_is_refused(tmp_path: Path, toml: str, sentence: str) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_hosts(str(file))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (HostOptions(slurm=True, via="docker exec {host}"), "--via and --slurm cannot be combined"),
        (HostOptions(hosts="h1", via="docker exec {host}", ssh_config=Path(__file__)), "--via replaces ssh."),
        (HostOptions(lsf=True, ssh_config=Path(__file__)), "--ssh-config and --lsf cannot be combined: blaunch"),
    ],
)
def test_options_of_different_ways_cannot_be_combined(options: HostOptions, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        options.reach()


def test_without_via_a_host_is_reached_by_ssh_and_this_machine_directly() -> None:
    assert command_on(Host(name="h1"), ["true"])[0] == "ssh"
    assert command_on(Host(name="me@localhost"), ["true"])[0] == "ssh"
    assert command_on(Host(name="localhost", via=("docker", "{host}")), ["true"]) == ["true"]


# addresses


def up(**interfaces: str) -> Up:
    """The report of a daemon that ssh did not start."""
    found = {"lo": ["127.0.0.1"], **{name: [address] for name, address in interfaces.items()}}
    about: dict[str, Any] = {
        "pid": 1,
        "zmqrl": "1",
        "code": "0",
        "python": "3",
        "cores": 1,
        "address": None,
        "work": "/w",
    }
    return Up(host="here", interfaces=found, **about)


def addresses(**daemons: Up) -> tuple[dict[str, str], list[str]]:
    return addresses_of([Host(name=name) for name in daemons], daemons, by_hand={}, iface=None)


def test_a_host_without_ssh_uses_its_only_address() -> None:
    assert addresses(c1=up(eth0="10.0.0.1"), c2=up(eth0="10.0.0.2")) == ({"c1": "10.0.0.1", "c2": "10.0.0.2"}, [])


@pytest.mark.parametrize("interfaces", [{}, {"eth0": "10.0.0.1", "eth1": "10.1.0.1"}], ids=["none", "two"])
def test_a_host_without_ssh_and_without_an_obvious_address_is_named_with_its_addresses(
    interfaces: dict[str, str],
) -> None:
    found, (sentence,) = addresses(c1=up(**interfaces))
    assert found == {}
    listed = ", ".join(f"{name} {address}" for name, address in {"lo": "127.0.0.1", **interfaces}.items())
    assert sentence == (
        f"c1: the address at which other hosts reach it is unknown, as it has {listed}: choose one with --iface, "
        "--address c1=ADDRESS or `address` in the hosts file."
    )


def test_this_machine_has_the_address_from_which_it_reaches_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    here = up(eth0="192.168.0.1", docker0="172.17.0.1")
    assert addresses(localhost=here) == ({"localhost": "127.0.0.1"}, [])
    monkeypatch.setattr(reach, "own_address", {"172.17.0.2": "172.17.0.1"}.__getitem__)
    found = {"localhost": "172.17.0.1", "c1": "172.17.0.2"}
    assert addresses(localhost=here, c1=up(eth0="172.17.0.2")) == (found, [])


# processes


@pytest.mark.processes
@pytest.mark.parametrize(
    ("via", "why"),
    [
        ("sh -c 'echo no such container: {host} >&2; exit 1'", "no such container: h1"),
        ("sh -c 'exit 7; {host}'", "exit status 7, and it printed nothing"),
        ("env ON={host} /nowhere/python", "env: .*python.*: No such file or directory: install it"),
        ("sh -c 'exec {command} </dev/null' {host}", f"zmqrl hostd: {NO_INPUT}"),
        ("sh -c ': | {command}' {host}", f"zmqrl hostd: {NO_INPUT}"),
    ],
)
def test_an_error_names_the_host_and_the_command(tmp_path: Path, via: str, why: str) -> None:
    found = HostOptions(hosts="h1", via=via).reach()
    link = found.link(found.hosts[0], work=str(tmp_path / "work"), lease_s=5.0)
    failed = connect([link], instead="install it")
    assert failed.keys() == {"h1"}
    begin = f"{shown(read_via(via), 'h1')}: "
    assert failed["h1"].startswith(begin)
    assert re.fullmatch(why, failed["h1"].removeprefix(begin)), failed["h1"]


@pytest.mark.processes
def test_an_error_names_the_host_and_a_missing_program(tmp_path: Path) -> None:
    found = HostOptions(hosts="h1", via="/nowhere/docker exec -i {host}").reach()
    link = found.link(found.hosts[0], work=str(tmp_path / "work"), lease_s=5.0)
    assert connect([link]) == {"h1": "cannot run /nowhere/docker: No such file or directory"}


@pytest.mark.processes
def test_a_shell_on_the_host_runs_exactly_the_words(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    command = via_command(
        read_via("sh -c 'cd {host} && {command}'"), str(tmp_path), [sys.executable, "-c", code, *WORDS]
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{WORDS}\n"
