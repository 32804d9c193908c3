"""How the launcher reaches a host: directly, with ``via`` or with ssh."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from zmqrl.hosts.inventory import Host
from zmqrl.hosts.ways.ssh import ssh_command
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
