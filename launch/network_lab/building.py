"""Make a lab and take it down.

The names of all parts of a lab contain its name, so that `netlab down` finds what a killed `netlab up` left.
"""

import contextlib
import ipaddress
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

from network_lab import host as host_program
from network_lab.faults import shape
from network_lab.lab import Failure, Lab, Refusal, ip, is_in, read_state, run

GATE = 254  # the last part of the machine's own address
UP_WITHIN_S = 30.0
DOWN_WITHIN_S = 20.0
POLL_S = 0.02
CHECKOUT = Path(__file__).resolve().parents[2]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def bring_up(lab: Lab) -> None:
    """Makes a lab. After a failure or a signal other than `kill -9`, removes it again.

    Raises `Refusal` if the directory, the name or the addresses are taken, and `Failure` if a step fails.
    """
    refuse_what_is_taken(lab)
    for number in STOPPING:
        signal.signal(number, stop)
    try:
        Path(lab.directory).mkdir(mode=0o700)
    except OSError as error:
        raise Refusal(f"the directory {lab.directory} cannot be made: {error.strerror}") from None
    try:
        lab.path("state.json").write_text(json.dumps(asdict(lab)))
        write_ssh_files(lab)
        build_network(lab)
        start_hosts(lab)
    except BaseException:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        take_down(lab.name, lab.directory)
        raise


def stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def refuse_what_is_taken(lab: Lab) -> None:
    if read_state(lab.directory) is not None:
        raise Refusal(f"there is a lab in {lab.directory} already: `netlab down --dir {lab.directory}` takes it down")
    if Path(lab.directory).exists():
        raise Refusal(f"{lab.directory} exists and is not a lab: choose another --dir")
    if spaces := namespaces(lab.name):
        if not are_a_lab(spaces):
            raise Refusal(f"there is a network namespace {spaces[0]} already: choose another --name")
        raise Refusal(f"there is a lab named {lab.name} already: take it down, or choose another --name")
    if Path("/sys/class/net", lab.cable).exists():
        raise Refusal(f"there is a network interface {lab.cable} already: choose another --name")
    network = ipaddress.IPv4Network(f"{lab.subnet}.0/24")
    for route in json.loads(run("ip", "-j", "-4", "route").stdout or "[]"):
        if route["dst"] != "default" and hides(network, route):
            user = route.get("dev") or f"a route of the type {route['type']}"
            raise Refusal(f"{network} is in use on this machine ({user}): choose another --subnet")


def hides(network: ipaddress.IPv4Network, route: dict[str, str]) -> bool:
    """Whether the machine could no longer use a route if this were the network of a lab.

    A larger network, such as that of a VPN, loses only a part, unless this machine has an address in it.
    """
    used = ipaddress.IPv4Network(route["dst"])
    return used.subnet_of(network) or (used.supernet_of(network) and route.get("protocol") == "kernel")


def shared_directories(asked: list[str]) -> list[str]:
    """The directories that hosts must share, because each host's own directories would hide them.

    These can be the checkout, Python's directories, and those that the user `asked` for.

    Raises `Refusal` for a directory that cannot be shared.
    """
    paths = {os.path.realpath(path) for path in asked}
    for path in paths:
        if not Path(path).is_dir():
            raise Refusal(f"{path} cannot be shared: it is not a directory")
        if any(Path(own).is_relative_to(path) for own in host_program.OWN):
            raise Refusal(f"{path} cannot be shared: each host has its own directory there")
    paths |= {str(CHECKOUT), sys.prefix, sys.base_prefix}
    if (python := CHECKOUT / ".venv/bin/python").exists():
        paths.add(str(python.resolve().parents[1]))
    return sorted(path for path in paths if any(Path(path).is_relative_to(own) for own in host_program.OWN))


def write_ssh_files(lab: Lab) -> None:
    """Writes keys for the user and each host, and the files that list all hosts with their keys."""
    for host in lab.hosts:
        lab.path(host).mkdir()
    for key in ("id_ed25519", *(f"{host}/host_key" for host in lab.hosts)):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"netlab-{lab.name}", "-f", str(lab.path(key)))
    hosts = f"127.0.0.1 localhost\n{lab.subnet}.{GATE} {socket.gethostname()} launcher\n"
    known = config = ""
    for host in lab.hosts:
        hosts += f"{lab.address(host)} {host}\n"
        known += f"{host},{lab.address(host)} {lab.path(f'{host}/host_key.pub').read_text()}"
        config += f"Host {host}\n  HostName {lab.address(host)}\n\n"
    config += f"""Host {" ".join(lab.hosts)}
  User root
  IdentityFile "{lab.path("id_ed25519")}"
  IdentitiesOnly yes
  UserKnownHostsFile "{lab.path("known_hosts")}"
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  UpdateHostKeys no
  BatchMode yes
"""
    for name, text in (("hosts", hosts), ("known_hosts", known), ("ssh_config", config)):
        lab.path(name).write_text(text)
        lab.path(name).chmod(0o600)
    # After `sudo netlab up`, the user can log in without sudo.
    if user := os.environ.get("SUDO_UID"):
        for name in (".", "id_ed25519", "known_hosts", "ssh_config"):
            os.chown(lab.path(name), int(user), -1)


def build_network(lab: Lab) -> None:
    # `addrgenmode none` turns IPv6 off, because the packet filters of faults would not stop it.
    ip(
        f"netns add {lab.name}",
        *(f"netns add {lab.netns(host)}" for host in lab.hosts),
        f"link add {lab.cable} type veth peer name machine netns {lab.name}",
        f"link set {lab.cable} addrgenmode none",
        f"addr add {lab.subnet}.{GATE}/24 dev {lab.cable}",
        f"link set {lab.cable} up",
    )
    ip(
        "link add switch type bridge",
        "link set switch addrgenmode none up",
        *(f"link add {host} type veth peer name eth0 netns {lab.netns(host)}" for host in lab.hosts),
        *(f"link set {port} addrgenmode none master switch up" for port in ("machine", *lab.hosts)),
        netns=lab.name,
    )
    for host in lab.hosts:
        address = f"addr add {lab.address(host)}/24 dev eth0"
        ip("link set lo up", "link set eth0 addrgenmode none", address, "link set eth0 up", netns=lab.netns(host))
        if lab.rate:
            shape(lab, host, lab.rate, None)


def start_hosts(lab: Lab) -> None:
    started = {host: start_host(lab, host) for host in lab.hosts}
    deadline = time.monotonic() + UP_WITHIN_S
    for host, process in started.items():
        while not has_ssh(lab.address(host)):
            if process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(lab.path(f"{host}/log").read_text().split())[-500:]
                raise Failure(f"{host} does not answer on {lab.address(host)}:22: {said or 'its log is empty'}")
            time.sleep(POLL_S)


def start_host(lab: Lab, host: str) -> subprocess.Popen[bytes]:
    # `ip netns exec` also gives the host a /sys of its own network.
    unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    command = ["ip", "netns", "exec", lab.netns(host), *unshare, sys.executable, "-I", "-S", host_program.__file__]
    command += [lab.directory, host, lab.address(host), *lab.shared]
    with lab.path(f"{host}/log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def has_ssh(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def take_down(name: str | None, directory: str) -> bool:
    """Ends and removes a lab of this name, or what is left of it, and its directory. Returns whether it had namespaces.

    Raises `Refusal` if the directory or a network namespace belongs to others, and `Failure` if a step fails.
    """
    # The state is the first file of a lab. It is empty if `netlab up` was killed while writing it.
    state = read_state(directory)
    spaces = namespaces(name) if name else []
    if not state and spaces and not are_a_lab(spaces):
        remedy = f"`ip netns delete {spaces[0]}` removes it"
        raise Refusal(f"the network namespace {spaces[0]} is not that of a lab: {remedy}, or choose another --name")
    if name and (state or spaces):
        end_processes(spaces)
        # Links disappear some time after their namespace. Until then, they would block the next lab.
        run("ip", "link", "delete", f"{name}-net", check=False)
        for netns in spaces:
            run("ip", "netns", "delete", netns)
    path = Path(directory)
    if state is not None:
        shutil.rmtree(path)
    elif path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    return bool(spaces)


def namespaces(name: str) -> list[str]:
    """The network namespaces of a lab of this name."""
    listed = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines()]
    return [netns for netns in listed if re.fullmatch(rf"{name}(-h\d)?", netns)]


def are_a_lab(spaces: list[str]) -> bool:
    """Whether these are the namespaces of a switch and a host. The name of a switch alone could be that of anything."""
    return min(spaces, key=len) + "-h1" in spaces


def end_processes(spaces: list[str]) -> None:
    """Kills the processes in these network namespaces.

    When the first process of a host ends, the kernel ends its other processes, whatever namespace they moved to.
    """
    deadline = time.monotonic() + DOWN_WITHIN_S
    while pids := {int(pid) for netns in spaces for pid in run("ip", "netns", "pids", netns).stdout.split()}:
        if time.monotonic() > deadline:
            raise Failure(f"these processes did not end within {DOWN_WITHIN_S:.0f} s: {sorted(pids)}")
        ends = select.poll()
        handles = []
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            handles.append(handle)
            # The pid may have been reused before, but not from now on.
            if any(is_in(pid, netns) for netns in spaces):
                ends.register(handle, select.POLLIN)
                with contextlib.suppress(ProcessLookupError):  # it has ended since
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        ends.poll(100)
        for handle in handles:
            os.close(handle)
