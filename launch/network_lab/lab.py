"""A lab and its hosts. Their state always comes from the kernel and is never stored."""

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Refusal(Exception):
    """The request is impossible. Nothing was changed."""


class Failure(Exception):
    """A step of the request failed."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The options of `netlab up`. `state.json` in the lab's directory holds them.

    The switch is a network namespace named after the lab, hidden from packet filters of the machine, such as Docker's.
    It has a port per host, named after the host.
    """

    directory: str
    name: str
    subnet: str
    hosts: list[str]
    rate: str | None
    shared: list[str]

    @property
    def cable(self) -> str:
        """The machine's end of its cable to the switch."""
        return f"{self.name}-net"

    def netns(self, host: str) -> str:
        return f"{self.name}-{host}"

    def address(self, host: str) -> str:
        return f"{self.subnet}.{host[1:]}"

    def path(self, name: str) -> Path:
        return Path(self.directory, name)


def run(*command: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a program. If it fails and `check` is on, raises `Failure` with the end of its output."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if check and done.returncode:
        raise Failure(f"`{shlex.join(command)}` failed: {' '.join(done.stderr.split())[-300:]}")
    return done


def ip(*lines: str, netns: str = "") -> None:
    """Runs commands of the program `ip` in one process."""
    run("ip", *(("-n", netns) if netns else ()), "-batch", "-", stdin="\n".join(lines))


def read_state(directory: str) -> str | None:
    """The text of `state.json` in a directory, or None if there is no such file. It can be empty (see `take_down`).

    Raises `Refusal` if this user did not make it: anyone can make a directory in /tmp that looks like a lab, or a link.
    """
    if Path(directory).is_symlink():
        raise Refusal(f"{directory} is a link, and not a lab: remove it, or choose another --dir")
    file = Path(directory, "state.json")
    try:
        about = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
        text = file.read_text(errors="replace")
        if not text or lab_of(text):
            return text
    raise Refusal(f"{file} is not that of a lab: remove the directory, or choose another --dir")


def lab_of(state: str) -> Lab | None:
    """The lab with this state, or None if it has another form."""
    try:
        return Lab(**json.loads(state))
    except (ValueError, TypeError):
        return None


def read_lab(directory: str) -> Lab | None:
    """The lab in a directory, or None if there is none or its state was not written. Raises `Refusal`."""
    return lab_of(read_state(directory) or "")


def is_in(pid: int, netns: str) -> bool:
    """Whether a process is in the network namespace of this name."""
    try:
        return Path(f"/proc/{pid}/ns/net").samefile(f"/run/netns/{netns}")
    except OSError:
        return False


def first_process(lab: Lab, host: str) -> int:
    """The machine's pid of a host's first process. Raises `Refusal` if the host is not running."""
    try:
        pid = int(lab.path(f"{host}/pid").read_text())
    except (OSError, ValueError):
        pid = 0
    if not is_in(pid, lab.netns(host)):
        raise Refusal(f"{host} is not running: take the lab down and make it again")
    return pid


def processes(lab: Lab, host: str) -> Iterator[dict[str, Any]]:
    """The processes on a host, except its first one and its SSH server. The pids are those that the host sees."""
    # The host's /proc also has processes in namespaces that the host made itself.
    proc = Path(f"/proc/{first_process(lab, host)}/root/proc")
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        try:
            program = (proc / f"{pid}/exe").readlink().name
            argv = (proc / f"{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        except OSError:  # it has ended
            continue
        if pid != 1 and not program.startswith("sshd"):
            yield {"pid": pid, "argv": argv}
