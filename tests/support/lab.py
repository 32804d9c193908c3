"""The network lab for tests: each host has its own network, SSH server and processes (docs/netlab.md).

A test with the fixture `lab` gets four hosts. All changes that the test makes to the network of the hosts are undone
afterwards.
"""

import fcntl
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.paths import ROOT

NETLAB = ROOT / "launch/netlab"
PROGRAMS = ("ip", "tc", "iptables", "unshare", "nsenter", "ssh", "ssh-keygen", "sshd")
SLOTS = 8  # the number of labs that tests can use at the same time on one machine
LONGEST_S = 60.0


def netlab(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(NETLAB), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, **options)
    assert not check or done.returncode == 0, f"netlab {shlex.join(arguments)}: {done.stderr}"
    return done


@dataclass(frozen=True)
class Slot:
    """A name, a subnet and a directory that no other test uses now."""

    name: str
    subnet: str
    directory: Path

    @property
    def where(self) -> tuple[str, ...]:
        return ("--dir", str(self.directory), "--name", self.name)

    def up(self, count: int, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return netlab("up", str(count), *self.where, "--subnet", self.subnet, *options, **more)

    def down(self) -> None:
        netlab("down", *self.where)


@contextmanager
def slot() -> Iterator[Slot]:
    """A slot for a lab. Takes down any lab that earlier tests left in the slot.

    When the block ends, takes down the new lab.
    """
    with ExitStack() as stack:
        for number in range(SLOTS):
            file = stack.enter_context(Path(f"/tmp/zmqrl-test-lab-{number}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found = Slot(f"test{number}", f"10.78.{number}", Path(f"/tmp/zmqrl-test-lab-{number}"))
            stack.callback(found.down)
            found.down()
            yield found
            return
        raise AssertionError(f"all {SLOTS} labs for tests are in use")


class Lab:
    """A lab that is up. Its methods set the faults of `netlab`, and `heal` undoes all faults."""

    def __init__(self, where: Slot, shared: Path) -> None:
        self.slot = where
        self.directory = where.directory
        self.ssh_config = where.directory / "ssh_config"
        self.shared = shared  # a directory that the tests and all hosts see
        self.hosts: list[str] = list(self.status())

    def __call__(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a netlab command on this lab."""
        return netlab(command, *self.slot.where, *arguments, check=check)

    def run(self, host: str, argv: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a host. This works even if the network of the host is down."""
        return self("exec", host, *argv, check=check)

    def ssh(self, host: str, argv: list[str], *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a host over SSH from this machine."""
        command = ["ssh", "-F", str(self.ssh_config), *options, host, shlex.join(argv)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
        assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        return done

    def processes(self, host: str) -> list[str]:
        """The command lines of the processes on a host, without its SSH server and SSH sessions."""
        return [shlex.join(process["argv"]) for process in json.loads(self("ps", host, "--json").stdout)]

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["host"]: row for row in json.loads(self("status", "--json").stdout)["hosts"]}

    def address(self, host: str) -> str:
        return f"{self.slot.subnet}.{host[1:]}"

    def link(self, host: str, state: str) -> None:
        self("link", host, state)

    def blackhole(self, host: str, state: str) -> None:
        self("blackhole", host, state)

    def reset(self, host: str, state: str) -> None:
        self("reset", host, state)

    def rate(self, host: str, rate: str) -> None:
        self("rate", host, rate)

    def heal(self) -> None:
        self("heal")


@contextmanager
def running_lab(count: int, shared: Path) -> Iterator[Lab]:
    with slot() as where:
        where.up(count, "--share", str(shared))
        yield Lab(where, shared)
