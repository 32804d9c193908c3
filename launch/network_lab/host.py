"""The first process of a host of the network lab. `netlab up` starts it in new namespaces:

    python host.py DIR HOST ADDRESS [SHARED ...]

It gives the host its own directories and name, starts the host's SSH server, and sleeps.
"""

import ctypes
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HOME = pwd.getpwuid(0).pw_dir
# The directories that each host has for itself, and their modes.
OWN = {HOME: "0700", "/tmp": "1777", "/dev/shm": "1777", "/run": "0755"}
OWN = {os.path.realpath(path): mode for path, mode in OWN.items()}
FILES = Path("/run/netlab")
MS_BIND, MS_REC = 0x1000, 0x4000  # <linux/mount.h>
SSHD_CONFIG = f"""\
HostKey {FILES}/host_key
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


def is_a_host() -> bool:
    return (FILES / "host_key").exists()


def main() -> NoReturn:
    lab, host, address, *shared = sys.argv[1:]
    os.umask(0o022)
    # /proc is still that of the machine, and so is this pid.
    Path(lab, host, "pid").write_text(Path("/proc/self").readlink().name)
    files = host_files(Path(lab), host, address)
    # The host's own directories may hide shared ones. These descriptors still reach them.
    doors = {path: os.open(path, os.O_PATH) for path in shared}
    mount("proc", "/proc", "proc")
    for own, mode in OWN.items():
        mount("tmpfs", own, "tmpfs", options=f"mode={mode}")
    Path("/run/sshd").mkdir()
    # Write these files before shared directories are mounted, so that no file ends up in one of them.
    for file, (permissions, text) in files.items():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch(permissions)
        file.write_text(text)
    for path, door in doors.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{door}", path, flags=MS_BIND | MS_REC)
        os.close(door)
    for name in ("hosts", "shadow"):
        mount(str(FILES / name), f"/etc/{name}", flags=MS_BIND)
    socket.sethostname(host)
    os.chdir("/")
    subprocess.Popen([str(shutil.which("sshd")), "-D", "-e", "-f", str(FILES / "sshd_config")])
    # The kernel then reaps the orphans that this process inherits.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.execvp("sleep", ["sleep", "infinity"])


def host_files(lab: Path, host: str, address: str) -> dict[Path, tuple[int, str]]:
    """The host's own files with their modes, read from the lab's directory before it is hidden."""
    ssh = Path(HOME, ".ssh")
    key = lab / "id_ed25519"
    return {
        ssh / key.name: (0o600, key.read_text()),
        ssh / "authorized_keys": (0o600, key.with_suffix(".pub").read_text()),
        ssh / "known_hosts": (0o600, (lab / "known_hosts").read_text()),
        ssh / "config": (0o600, "Host h*\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  BatchMode yes\n"),
        FILES / "host_key": (0o600, (lab / host / "host_key").read_text()),
        FILES / "sshd_config": (0o600, f"ListenAddress {address}\n{SSHD_CONFIG}"),
        FILES / "hosts": (0o644, (lab / "hosts").read_text()),
        # Without PAM, sshd refuses logins to a locked account, and root's is locked on Ubuntu.
        FILES / "shadow": (0o600, re.sub(r"(?m)^root:!", "root:*", Path("/etc/shadow").read_text())),
    }


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount {source}: {os.strerror(ctypes.get_errno())}", target)


if __name__ == "__main__":
    main()
