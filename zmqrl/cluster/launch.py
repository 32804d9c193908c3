"""``zmqrl launch``: the same run as ``zmqrl train``, on the hosts of a list or a file, over ssh."""

import dataclasses
import hashlib
import os
import shlex
import socket as host_socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from zmqrl.cluster.agents import Agents
from zmqrl.cluster.deployment import Deployment, Site, place_run
from zmqrl.cluster.hosts import Host, read_hosts, select
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.cluster.run import train_on
from zmqrl.cluster.ssh import connect_all, ssh_command
from zmqrl.cluster.sync import PYTHON, make_environments
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.provenance import code_hash
from zmqrl.rundir import RunDirectory

LEAST_LEASE_S, LONGEST_LEASE_S = 3.0, 12.0  # renewed each second; with the time to end, agents wait 20 s for each other


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on several hosts, reached by ssh. All options of `zmqrl train` go with it."""

    hosts: Annotated[str, tyro.conf.arg(aliases=["-H"])]
    """Hosts: a list such as h1,node[01-16]:4 (workers behind the colon), a hostfile, or a .toml file."""
    include: str | None = None
    """Only these of the hosts, as a list."""
    exclude: str | None = None
    """All but these of the hosts, as a list."""
    dry_run: bool = False
    """Print what would be started where, and start nothing."""
    ssh_config: Path | None = None
    """File that ssh is to read instead of your own ssh_config."""
    sync: Literal["none", "wheel"] = "none"
    """Bring this zmqrl to the hosts as a wheel, or take what is installed there."""
    lease_s: float = 8.0
    """Processes on a host end when nothing was heard from here for so long."""


def run(options: Options, config: Config) -> int:
    """Launch a run; the exit status. Raises ZmqrlError."""
    hosts = select(read_hosts(options.hosts), options.include, options.exclude)
    if not LEAST_LEASE_S <= options.lease_s <= LONGEST_LEASE_S:
        raise UsageError(f"--lease-s {options.lease_s}: must be from {LEAST_LEASE_S:g} to {LONGEST_LEASE_S:g}.")
    config = dataclasses.replace(config, wire=dataclasses.replace(config.wire, transport="tcp"))
    if options.dry_run:
        _print_plan(options, hosts, config)
        return 0
    return train_on(config, partial(over_ssh, options, hosts))


def over_ssh(options: Options, hosts: Sequence[Host], config: Config, directory: RunDirectory) -> Deployment:
    """Connect to all ``hosts`` and place the processes on them. Raises ClusterError that names each that fails."""
    if options.sync == "wheel":
        pythons = make_environments(hosts, options.ssh_config)
        hosts = [dataclasses.replace(host, python=pythons[host.name]) for host in hosts]
    links = {host.name: _link(options, host, directory) for host in hosts}
    try:
        facts = connect_all(list(links.values()))
        _check_code(facts)
        placement = place_run(config, hosts, {name: up["cores"] for name, up in facts.items()})
        places = {name: RunDirectory(Path(up["work"])) for name, up in facts.items()}
        addresses = {host.name: host.address or facts[host.name]["address"] for host in hosts}
        unknown = [name for name, address in addresses.items() if address is None]
        if unknown:
            raise ClusterError(f"where do the others reach {', '.join(unknown)}? Give `address` in the hosts file.")
    except BaseException:
        for link in links.values():
            link.hang_up()
        raise
    sites = {
        name: Site(host=host, directory=places[host], address=addresses[host])
        for name, host in placement.host_of.items()
    }
    files = Mirror(links, directory, placement.host_of)
    if not config.resume:
        files.clean(whole=False)  # of an earlier run in a directory of this name
    environments = {host.name: host.env for host in hosts}
    launcher = Agents(links, lambda name: placement.host_of[name], environments=environments, files=files)
    return Deployment(launcher=launcher, sites=sites, threads=placement.threads, files=files, notices=placement.notices)


def _link(options: Options, host: Host, directory: RunDirectory) -> Link:
    return Link(host.name, _command(options, host), work=place_of(directory), lease_s=options.lease_s)


def _command(options: Options, host: Host) -> list[str]:
    python = host.python or (PYTHON if options.sync == "wheel" else sys.executable)
    return ssh_command(host.name, python, config=options.ssh_config)


def place_of(directory: RunDirectory) -> str:
    """The name of this run's place on any host: the same for every sitting of the run, and for no other run."""
    identity = f"{host_socket.gethostname()}:{directory.path}"
    return f"{directory.path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _check_code(facts: Mapping[str, Mapping[str, str]]) -> None:
    ours = code_hash()
    other = [name for name, up in facts.items() if up["code"] != ours]
    if other:
        raise ClusterError(
            f"{', '.join(other)}: zmqrl there ({facts[other[0]]['zmqrl']}, code {facts[other[0]]['code'][:8]}) is not "
            f"the one here (code {ours[:8]}): bring it there with --sync wheel, or let `python` in the hosts file name "
            "another one."
        )


def _print_plan(options: Options, hosts: Sequence[Host], config: Config) -> None:
    """What a dry run prints. No host is asked, so those without slots are taken to have as many cores as this one."""
    cores = len(os.sched_getaffinity(0))
    placement = place_run(config, hosts, {host.name: host.slots or cores for host in hosts})
    commands = [shlex.join(_command(options, host)) for host in hosts]
    lines = [placement.table(), *placement.notices, "", *commands]
    sys.stdout.write("\n".join(lines) + "\n")
