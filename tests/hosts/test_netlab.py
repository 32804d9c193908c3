"""launch/netlab: hosts on one machine that are as separate as real ones, with a network that fails on command."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import LONGEST_S, NETLAB, Lab, Slot, netlab, slot
from support.rig import ending, eventually

pytestmark = pytest.mark.processes

PATIENCE_S = 1.0  # how long a test waits for an answer that must not come


def connect(lab: Lab, host: str, within_s: float = LONGEST_S) -> socket.socket:
    """Connect to the SSH server of a host. ``within_s`` also limits how long a test waits for data."""
    return socket.create_connection((lab.address(host), 22), timeout=within_s)


def remains(where: Slot) -> list[str]:
    """The remains of a lab: namespaces, addresses, links, mounts, the directory, and processes that tests of this
    slot started.
    """
    found = [line for line in output("ip", "netns", "list").splitlines() if line.startswith(where.name)]
    found += [line for line in output("ip", "-o", "addr").splitlines() if where.subnet in line]
    found += [line for line in output("ip", "-o", "link").splitlines() if f"{where.name}-" in line]
    found += [line for line in output("mount").splitlines() if str(where.directory) in line]
    return found + [str(path) for path in (where.directory,) if path.exists()] + sleepers(where)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST_S).stdout


def mark(where: Slot) -> str:
    """The argument that identifies the `sleep` of a test. The tests of other slots run at the same time."""
    return f"86399.{where.name.removeprefix('test')}"


def sleepers(where: Slot) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_text().split("\0")[:2] == ["sleep", mark(where)]:
                found.append(str(file))
        except OSError:  # the process has ended
            continue
    return found


@pytest.fixture
def empty_slot(need_a_lab: None) -> Iterator[Slot]:
    with slot() as where:
        yield where


def test_a_python_that_is_too_old_is_refused_in_one_sentence() -> None:
    code = "import runpy, sys; sys.version_info, sys.version = (3, 9, 2), '3.9.2 (main)'; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", code, str(NETLAB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.stderr == "netlab: it needs Python 3.10 or newer, not 3.9.2: use `python3.11 launch/netlab`\n"
    assert done.returncode == 2


# hosts


def test_every_host_is_reached_over_ssh_and_has_its_own_host_key(lab: Lab) -> None:
    assert [lab.ssh(host, ["hostname"]).stdout.strip() for host in lab.hosts] == ["h1", "h2", "h3", "h4"]
    keys = [line.split()[2] for line in (lab.directory / "known_hosts").read_text().splitlines()]
    assert len(set(keys)) == len(lab.hosts)


def test_a_host_with_an_unknown_key_is_refused(lab: Lab, tmp_path: Path) -> None:
    swapped = {"h1,": "h2,", "h2,": "h1,"}
    known = (lab.directory / "known_hosts").read_text().splitlines()
    lines = [swapped.get(line[:3], line[:3]) + line[3:].replace(lab.address("h1"), "x") for line in known]
    (tmp_path / "known_hosts").write_text("\n".join(lines) + "\n")
    options = ("-o", f"UserKnownHostsFile={tmp_path}/known_hosts", "-o", "HostKeyAlias=h1")
    refused = lab.ssh("h1", ["true"], *options, check=False)
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


def test_hosts_reach_each_other_and_the_machine_by_name(lab: Lab) -> None:
    assert lab.ssh("h1", ["ssh", "h2", "hostname"]).stdout == "h2\n"
    with socket.create_server((f"{lab.slot.subnet}.254", 0)) as server:
        server.settimeout(30)
        program = f"import socket; socket.create_connection(('launcher', {server.getsockname()[1]})).sendall(b'hello')"
        lab.run("h3", [sys.executable, "-c", program])
        connection, (address, _) = server.accept()
        with connection:
            assert (connection.recv(5), address) == (b"hello", lab.address("h3"))


@pytest.mark.parametrize("directory", ["/tmp", "/dev/shm", "/root", "/run"])
def test_a_host_has_private_directories(lab: Lab, directory: str) -> None:
    file = f"{directory}/only-on-h1"
    lab.ssh("h1", ["touch", file])
    assert lab.ssh("h1", ["test", "-e", file], check=False).returncode == 0
    assert lab.ssh("h2", ["test", "-e", file], check=False).returncode == 1
    assert not Path(file).exists()


def test_hosts_share_the_checkout_python_and_the_requested_directories(lab: Lab) -> None:
    program = f"from pathlib import Path; Path('{lab.shared}/from-h1').write_text(str(Path('{NETLAB}').is_file()))"
    lab.ssh("h1", [sys.executable, "-c", program])
    assert lab.ssh("h2", ["cat", f"{lab.shared}/from-h1"]).stdout == "True"
    assert (lab.shared / "from-h1").read_text() == "True"


def test_a_host_lists_only_its_own_processes_even_detached_ones(lab: Lab) -> None:
    assert lab.processes("h1") == []
    asleep = f"sleep {mark(lab.slot)}"
    detached = f"setsid --fork unshare --net --pid --fork {asleep}"
    lab.ssh("h1", ["sh", "-c", f"{detached} </dev/null >/dev/null 2>&1"])
    eventually(lambda: asleep in lab.processes("h1"), "a process on h1")
    assert lab.status()["h1"]["processes"] == len(lab.processes("h1")) == 2
    assert lab.processes("h2") == []
    pids = [str(process["pid"]) for process in json.loads(lab("ps", "h1", "--json").stdout)]
    lab.run("h1", ["sh", "-c", f"kill -9 {' '.join(pids)}"])
    eventually(lambda: lab.processes("h1") == [] and sleepers(lab.slot) == [], "the end of the processes on h1")


def test_orphans_that_end_leave_no_zombies(lab: Lab) -> None:
    lab.run("h1", ["sh", "-c", "setsid --fork sh -c 'sleep 0.1 & sleep 0.1 & exit'"])
    states = ["sh", "-c", "cat /proc/[0-9]*/status | grep -c 'State:.Z'"]
    eventually(lambda: lab.run("h1", states, check=False).stdout.strip() == "0", "no zombies on h1")


# faults


def test_a_link_that_is_down_affects_only_its_host(lab: Lab) -> None:
    lab.link("h2", "down")
    assert lab.status()["h2"]["link"] == "down"
    assert lab.run("h2", ["cat", "/sys/class/net/eth0/carrier"]).stdout == "0\n"
    assert lab.address("h2") in lab.run("h2", ["ip", "address"]).stdout
    with pytest.raises(OSError, match=r"timed out|No route to host"):
        connect(lab, "h2", PATIENCE_S)
    assert lab.ssh("h1", ["hostname"]).stdout == "h1\n"
    lab.link("h2", "up")
    assert lab.ssh("h2", ["hostname"]).stdout == "h2\n"


def test_a_blackhole_drops_packets_silently_and_connections_survive_it(lab: Lab) -> None:
    with connect(lab, "h3") as connection, connection.makefile("rb") as received:
        assert received.readline().startswith(b"SSH-")
        lab.blackhole("h3", "on")
        assert lab.status()["h3"]["blackhole"]
        with pytest.raises(TimeoutError):
            connect(lab, "h3", PATIENCE_S)
        connection.sendall(b"SSH-2.0-test\r\n")
        lab.blackhole("h3", "off")
        assert connection.recv(1)  # the server's answer
    assert lab.ssh("h3", ["hostname"]).stdout == "h3\n"


def test_a_reset_breaks_old_and_new_connections_immediately(lab: Lab) -> None:
    with connect(lab, "h4") as connection, connection.makefile("rb") as received:
        assert received.readline().startswith(b"SSH-")
        lab.reset("h4", "on")
        assert lab.status()["h4"]["reset"]
        connection.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(lab, "h4")
    outwards = lab.run("h4", ["ssh", "h1", "true"], check=False)
    assert "Connection refused" in outwards.stderr
    lab.reset("h4", "off")
    assert lab.ssh("h4", ["ssh", "h1", "hostname"]).stdout == "h1\n"


def test_only_the_given_port_is_refused(lab: Lab) -> None:
    lab("refuse", "h1", "20:22", "on")
    assert lab.status()["h1"]["refused"] == ["20:22"]
    with pytest.raises(ConnectionRefusedError):
        connect(lab, "h1")
    assert lab.run("h1", ["ssh", "h2", "hostname"]).stdout == "h2\n"
    lab("refuse", "h1", "20:22", "off")
    assert lab.ssh("h1", ["hostname"]).stdout == "h1\n"


def test_a_rate_limits_traffic_in_both_directions(lab: Lab) -> None:
    lab.rate("h1", "2mbit")
    assert lab.status()["h1"]["rate"] == "2mbit"
    lab.ssh("h1", ["head", "-c", "400000", "/dev/zero"])
    lab.run("h2", ["sh", "-c", "head -c 400000 /dev/zero | ssh h1 'cat > /dev/null'"])
    for netns, device in ((f"{lab.slot.name}-h1", "eth0"), (lab.slot.name, "h1")):
        [limit] = json.loads(output("tc", "-n", netns, "-s", "-j", "qdisc", "show", "dev", device))
        assert limit["kind"] == "tbf"
        assert limit["bytes"] > 400000
        assert limit["overlimits"] > 0, device
    lab.rate("h1", "off")
    assert lab.status()["h1"]["rate"] is None


def test_a_delay_is_set_or_refused_and_leaves_the_rate_unchanged(lab: Lab) -> None:
    lab.rate("h1", "50mbit")
    asked = lab("delay", "h1", "20ms", check=False)
    if asked.returncode == 0:
        assert lab.status()["h1"]["delay"] == "20ms"
    else:
        assert (asked.returncode, asked.stderr) == (
            2,
            "netlab: this kernel has no netem, so it cannot delay packets\n",
        )
    assert lab.status()["h1"]["rate"] == "50mbit"


def test_a_fault_that_was_set_twice_is_undone_by_one_command(lab: Lab) -> None:
    lab.blackhole("h1", "on")
    lab.blackhole("h1", "on")
    lab.blackhole("h1", "off")
    assert lab.ssh("h1", ["hostname"]).stdout == "h1\n"


def test_healing_undoes_every_fault(lab: Lab) -> None:
    healthy = lab.status()
    lab.link("h1", "down")
    lab.blackhole("h2", "on")
    lab.reset("h3", "on")
    lab("refuse", "h3", "22", "on")
    lab.rate("h4", "10mbit")
    assert lab.status() != healthy
    lab.heal()
    assert lab.status() == healthy


# up and down


def test_taking_a_lab_down_ends_every_process_and_leaves_nothing(empty_slot: Slot, tmp_path: Path) -> None:
    empty_slot.up(2, "--rate", "80mbit")
    lab = Lab(empty_slot, tmp_path)
    assert {row["rate"] for row in lab.status().values()} == {"80mbit"}
    assert lab.directory.stat().st_mode & 0o777 == 0o700
    asleep = f"setsid --fork unshare --net --pid --fork sleep {mark(empty_slot)}"
    lab.ssh("h1", ["sh", "-c", f"{asleep} </dev/null >/dev/null 2>&1"])
    eventually(lambda: len(sleepers(empty_slot)) == 1, "a process on h1")
    again = empty_slot.up(2, check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert f"there is a lab in {empty_slot.directory} already" in again.stderr
    empty_slot.down()
    assert remains(empty_slot) == []
    empty_slot.down()
    assert remains(empty_slot) == []


def test_two_labs_can_run_side_by_side(lab: Lab, empty_slot: Slot, tmp_path: Path) -> None:
    empty_slot.up(1)
    other = Lab(empty_slot, tmp_path)
    other.ssh("h1", ["touch", "/tmp/other"])
    assert lab.ssh("h1", ["test", "-e", "/tmp/other"], check=False).returncode == 1
    empty_slot.down()
    assert remains(empty_slot) == []
    assert lab.ssh("h1", ["hostname"]).stdout == "h1\n"


@pytest.mark.parametrize("made", ["", "state.json", "h1/host_key", "h1/pid"])
def test_down_removes_the_remains_of_a_killed_up(empty_slot: Slot, made: str) -> None:
    with starting(empty_slot, made) as process:
        process.kill()
    if made:
        assert empty_slot.up(2, check=False).returncode == 2
    empty_slot.down()
    assert remains(empty_slot) == []


def test_the_next_tests_take_down_a_lab_left_by_killed_tests(need_a_lab: None) -> None:
    with slot() as where:
        pass
    where.up(1)
    with slot() as again:
        assert (again, remains(where)) == (where, [])


def test_networks_that_are_not_of_a_lab_are_refused_and_kept(empty_slot: Slot) -> None:
    name, cable = empty_slot.name, f"{empty_slot.name}-net"
    for kept, make, remove, status in (
        (name, f"netns add {name}", f"netns delete {name}", 2),
        (cable, f"link add {cable} type bridge", f"link delete {cable}", 0),
    ):
        output("ip", *make.split())
        try:
            refused = empty_slot.up(1, check=False)
            assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
            assert f"{kept} already: choose another --name" in refused.stderr
            assert netlab("down", *empty_slot.where, check=False).returncode == status
            assert [line for line in remains(empty_slot) if kept in line]
        finally:
            output("ip", *remove.split())
    assert remains(empty_slot) == []


def test_down_without_the_directory_of_a_lab_says_that_it_is_left(empty_slot: Slot, tmp_path: Path) -> None:
    empty_slot.up(1)
    said = netlab("down", "--name", empty_slot.name, "--dir", str(tmp_path / "other")).stdout
    remedy = "its directory is elsewhere: `netlab down --dir DIR` removes it"
    assert said == f"the lab {empty_slot.name} is down, but {remedy}\n"
    assert remains(empty_slot) == [str(empty_slot.directory)]
    empty_slot.down()
    assert remains(empty_slot) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_up_leaves_nothing(empty_slot: Slot, number: signal.Signals, tmp_path: Path) -> None:
    # h2 runs no SSH server, so `up` is still waiting for it when the signal arrives.
    ip, h2 = shutil.which("ip"), f"netns exec {empty_slot.name}-h2"
    held = f'case "$*" in "{h2} "*) exec {ip} {h2} sleep {mark(empty_slot)};; esac'
    (tmp_path / "ip").write_text(f'#!/bin/sh\n{held}\nexec {ip} "$@"\n')
    (tmp_path / "ip").chmod(0o755)
    with starting(empty_slot, "h1/log", {"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as process:
        process.send_signal(number)
        assert process.wait(LONGEST_S) == 128 + number
    assert remains(empty_slot) == []


@contextlib.contextmanager
def starting(where: Slot, made: str, environment: dict[str, str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `netlab up`. The block begins once the file ``made`` exists."""
    command = [sys.executable, str(NETLAB), "up", "2", *where.where, "--subnet", where.subnet]
    output = subprocess.DEVNULL
    with ending(subprocess.Popen(command, stdout=output, stderr=output, env=environment)) as process:
        eventually((where.directory / made).exists, f"{made} of a lab")
        yield process


def test_a_failed_up_leaves_nothing_and_gives_the_reason(empty_slot: Slot, tmp_path: Path) -> None:
    (tmp_path / "tc").write_text("#!/bin/sh\necho no room >&2; exit 1\n")
    (tmp_path / "tc").chmod(0o755)
    failed = empty_slot.up(2, "--rate", "1mbit", check=False, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert failed.returncode == 1
    assert "no room" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert remains(empty_slot) == []


def test_a_lab_refuses_a_directory_a_name_or_addresses_in_use(lab: Lab, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    free = ("--name", "free", "--subnet", "10.79.0")
    new = str(tmp_path / "new")
    for arguments, sentence in (
        (["--dir", str(tmp_path), *free], "exists and is not a lab"),
        (["--dir", f"{tmp_path}/no/where", *free], "cannot be made: No such file or directory"),
        (["--dir", new, "--subnet", "10.79.0", "--name", lab.slot.name], f"there is a lab named {lab.slot.name}"),
        (["--dir", new, "--name", "free", "--subnet", lab.slot.subnet], "in use on this machine"),
        (["--dir", new, *free, "--share", "/tmp"], "/tmp cannot be shared"),
    ):
        refused = netlab("up", "1", *arguments, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert sentence in refused.stderr
    assert list(tmp_path.iterdir()) == [precious]
    netlab("down", "--dir", str(tmp_path))
    assert precious.exists()


# bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["up", "0"], "'0' is not a number of hosts from 1 to 8"),
        (["up", "9"], "'9' is not a number of hosts from 1 to 8"),
        (["up", "--subnet", "8.8.8"], "'8.8.8' is not the first three parts of private addresses"),
        (["up", "--name", "A-b"], "'A-b' is not a name of up to 8 lower-case letters and digits"),
        (["up", "--rate", "fast"], "'fast' is not a rate such as 50mbit"),
        (["link", "h1", "sideways"], "'sideways' is not up or down"),
        (["blackhole", "h1", "maybe"], "'maybe' is not on or off"),
        (["refuse", "h1", "0", "on"], "'0' is not within 1:65535"),
        (["refuse", "h1", "9:3", "on"], "'9:3' is not within 1:65535, with the lower port first"),
        (["rate", "h1", "0mbit"], "'0mbit' is not a rate such as 50mbit"),
        (["delay", "h1", "20"], "'20' is not a delay such as 20ms"),
        (["exec", "h1"], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    refused = netlab(*arguments, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("netlab: ")
    assert refused.stderr.count("\n") == 1
    assert sentence in refused.stderr


def test_an_error_names_a_missing_host_or_lab(lab: Lab, tmp_path: Path) -> None:
    refused = lab("rate", "h9", "1mbit", check=False)
    assert (refused.returncode, refused.stderr) == (2, "netlab: there is no host h9: the lab has h1, h2, h3, h4\n")
    refused = netlab("status", "--dir", str(tmp_path / "none"), check=False)
    assert refused.returncode == 2
    assert f"there is no lab in {tmp_path}/none" in refused.stderr


def test_a_host_without_its_first_process_is_reported_as_not_running(empty_slot: Slot, tmp_path: Path) -> None:
    empty_slot.up(1)
    os.kill(int((empty_slot.directory / "h1/pid").read_text()), signal.SIGKILL)
    lab = Lab(empty_slot, tmp_path)
    eventually(lambda: not lab.status()["h1"]["running"], "the end of h1")
    refused = lab("exec", "h1", "true", check=False)
    assert (refused.returncode, "h1 is not running" in refused.stderr) == (2, True)


def test_a_lab_is_not_taken_down_from_one_of_its_hosts(lab: Lab) -> None:
    refused = lab.run("h1", [sys.executable, str(NETLAB), "down", *lab.slot.where], check=False)
    assert (refused.returncode, "use netlab outside" in refused.stderr) == (2, True)
    assert lab.ssh("h1", ["hostname"]).stdout == "h1\n"


def test_a_user_who_is_not_root_gets_a_clear_error(need_a_lab: None) -> None:
    command = ["unshare", "--user", sys.executable, str(NETLAB), "status"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    assert (refused.returncode, "must be root" in refused.stderr) == (2, True)


def test_missing_programs_are_named_with_their_packages(need_a_lab: None, tmp_path: Path) -> None:
    for program in ("ip", "tc", "iptables", "unshare", "ssh-keygen", "sshd"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    refused = netlab("status", check=False, env={"PATH": str(tmp_path)})
    assert refused.returncode == 2
    assert refused.stderr == "netlab: nsenter cannot be found: apt-get install util-linux\n"
