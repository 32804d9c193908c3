"""How the launcher reaches a host: directly, with ``via`` or with ssh."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from zmqrl.hosts.inventory import Host
from zmqrl.hosts.ways.via import via_command

LOCALHOST: Final = "localhost"

Way: TypeAlias = Callable[[Host, Sequence[str]], list[str]]
"""Turns a host and the words of a command into a command for this machine, which runs the words on the host and passes
on their standard streams.
"""


def command_on(host: Host, words: Sequence[str], *, ssh_config: Path | None = None) -> list[str]:
    """The command that runs ``words`` on ``host``: a :data:`Way`."""
    if host.name == LOCALHOST:
        return list(words)
    if host.via:
        return via_command(host.via, host.name, words)
    return ssh_command(host.name, words, config=ssh_config)


def ssh_command(
    destination: str,
    words: Sequence[str],
    *,
    config: Path | None,
    master: Path | None = None,
    shared: Path | None = None,
) -> list[str]:
    """The command that runs ``words`` on ``destination``, with the user's own OpenSSH client and settings.

    ssh cannot ask: the key must be in an ssh agent or have no passphrase, and the host key must be known. Other
    commands can share this connection if they pass its socket ``master`` as ``shared``.
    """
    options = [] if config is None else ["-F", str(config.absolute())]
    alive = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"]
    # A connection shared with the user's other sessions would end with them. A persistent one would never end.
    alive += ["-o", f"ControlMaster={'yes' if master else 'no'}", "-o", f"ControlPath={master or shared or 'none'}"]
    alive += ["-o", "ControlPersist=no"]
    # The user's forwarded ports and RemoteCommand are for a shell. Another session may already have the ports.
    alive += ["-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ExitOnForwardFailure=no"]
    # Other values would end the session or its input. OpenSSH before 8.7 does not know these settings. Our list of
    # settings to ignore replaces the user's, so it must have everything that the user's list has.
    alive += ["-o", "IgnoreUnknown=*", "-o", "SessionType=default", "-o", "StdinNull=no"]
    alive += ["-o", "ForkAfterAuthentication=no"]
    remote = f"exec {shlex.join(words)}"
    return ["ssh", *options, "-T", "-o", "BatchMode=yes", *alive, destination, remote]
