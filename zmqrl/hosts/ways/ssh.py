"""Hosts over ssh: the user's own OpenSSH client, with the user's settings."""

import shlex
from collections.abc import Sequence
from pathlib import Path


def ssh_command(
    destination: str,
    words: Sequence[str],
    *,
    config: Path | None,
    master: Path | None = None,
    shared: Path | None = None,
) -> list[str]:
    """The command that runs the command ``words`` on ``destination``.

    ssh gets no terminal and cannot ask: the key must be in an ssh agent or have no passphrase, and the host key must be
    known. With the socket ``master``, other commands can share this connection. They pass the same socket as
    ``shared``.
    """
    options = [] if config is None else ["-F", str(config.absolute())]
    alive = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"]
    # Do not share a connection with the user's other sessions: the end of one session would end the other.
    alive += ["-o", f"ControlMaster={'yes' if master else 'no'}", "-o", f"ControlPath={master or shared or 'none'}"]
    # The user's configuration may be for a shell: another session may already have its ports, and run its command.
    alive += ["-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ExitOnForwardFailure=no"]
    remote = f"exec {shlex.join(words)}"
    return ["ssh", *options, "-T", "-o", "BatchMode=yes", *alive, destination, remote]
