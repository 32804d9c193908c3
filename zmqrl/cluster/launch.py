"""``zmqrl launch``: the same run as ``zmqrl train``, on the hosts of a list or a file, over ssh."""

import dataclasses
import hashlib
import os
import shlex
import socket as host_socket
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zmqrl.cluster import preflight
from zmqrl.cluster.addresses import addresses_of, check_interface
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.deployment import Deployment, Site, place_run
from zmqrl.cluster.hosts import Host, read_addresses, read_hosts, select
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.cluster.probes import probe_on
from zmqrl.cluster.run import train_on
from zmqrl.cluster.ssh import connect_all, ssh_command
from zmqrl.cluster.sync import PYTHON, make_environments
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.provenance import code_hash
from zmqrl.rundir import RunDirectory

LEAST_LEASE_S, LONGEST_LEASE_S = 3.0, 12.0  # renewed each second; with the time to end, agents wait 20 s for each other


@dataclass(frozen=True, kw_only=True)
class Where:
    """Hosts, and how they are reached."""

    hosts: Annotated[str, tyro.conf.arg(aliases=["-H"])]
    """Hosts: a list such as h1,node[01-16]:4 (workers behind the colon), a hostfile, or a .toml file."""
    include: str | None = None
    """Only these of the hosts, as a list."""
    exclude: str | None = None
    """All but these of the hosts, as a list."""
    ssh_config: Path | None = None
    """File that ssh is to read instead of your own ssh_config."""
    iface: str | None = None
    """Network for gradients and weights: the interface of every host, such as ib0, or a network as 10.0.0.0/24."""
    address: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """HOST=ADDRESS: where the others reach a host. May be repeated, or be a list."""

    def chosen(self) -> tuple[Host, ...]:
        """The hosts. Raises UsageError for what cannot be."""
        hosts = select(read_hosts(self.hosts), self.include, self.exclude)
        check_interface(self.iface)
        read_addresses(self.address, hosts)
        return hosts

    def link(self, host: Host, *, work: str, lease_s: float) -> Link:
        """The connection to the agent of ``host``, not made yet."""
        return Link(host.name, self.command(host), work=work, lease_s=lease_s)

    def command(self, host: Host) -> list[str]:
        """What starts the agent of ``host``."""
        return ssh_command(host.name, host.python or sys.executable, config=self.ssh_config)

    def addresses(
        self, hosts: Sequence[Host], of: Collection[str], up: Mapping[str, Mapping[str, Any]]
    ) -> tuple[dict[str, str], list[str]]:
        """Where the others reach the hosts ``of``, as agents said in ``up``; a sentence for each that is unknown."""
        by_hand = read_addresses(self.address, hosts)
        return addresses_of([host for host in hosts if host.name in of], up, by_hand=by_hand, iface=self.iface)


@dataclass(frozen=True, kw_only=True)
class Options(Where):
    """Train on several hosts, reached by ssh. All options of `zmqrl train` go with it."""

    dry_run: bool = False
    """Print what would be started where, and start nothing."""
    preflight: bool = True
    """Look first whether the hosts have what the run needs, and reach each other, as `zmqrl doctor` does."""
    sync: Literal["none", "wheel"] = "none"
    """Bring this zmqrl to the hosts as a wheel, or take what is installed there."""
    lease_s: float = 8.0
    """Processes on a host end when nothing was heard from here for so long."""

    def command(self, host: Host) -> list[str]:
        """What starts the agent of ``host``."""
        if self.sync == "wheel" and host.python is None:
            host = dataclasses.replace(host, python=PYTHON)
        return super().command(host)


def run(options: Options, config: Config) -> int:
    """Launch a run; the exit status. Raises ZmqrlError."""
    hosts = options.chosen()
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
    links = {host.name: options.link(host, work=place_of(directory), lease_s=options.lease_s) for host in hosts}
    try:
        facts = connect_all(list(links.values()))
        _check_code(facts)
        placement = place_run(config, hosts, {name: up["cores"] for name, up in facts.items()})
        host_of = placement.host_of
        of_shards = {host_of[f"shard-{shard}"] for shard in range(config.shards)}
        addresses, unknown = options.addresses(hosts, of_shards, facts)
        preflight.Verdict(unknown).check()
        files = Mirror(links, directory, host_of)
        if not config.resume:
            files.clean(whole=False)  # of an earlier run in a directory of this name
        places = dict(host_of) | {probe_on(host): host for host in links}
        environments = {host.name: host.env for host in hosts}
        launcher = Agents(links, places.__getitem__, environments=environments, files=files)
        notices = placement.notices
        if options.preflight:
            found = preflight.survey(launcher, config, placement, facts, addresses, whole=False)
            verdict = preflight.judge(found, config, placement)
            verdict.check()
            notices += tuple(verdict.warnings)
    except BaseException:
        for link in links.values():
            if not config.resume:
                link.send({"do": "clean", "whole": True})
            link.hang_up()
        raise
    directories = {name: RunDirectory(Path(up["work"])) for name, up in facts.items()}
    sites = {
        name: Site(host=host, directory=directories[host], address=addresses.get(host, host))
        for name, host in host_of.items()
    }
    return Deployment(launcher=launcher, sites=sites, threads=placement.threads, files=files, notices=notices)


def place_of(directory: RunDirectory) -> str:
    """The name of this run's place on any host: the same for every sitting of the run, and for no other run."""
    identity = f"{host_socket.gethostname()}:{directory.path}"
    return f"{directory.path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _check_code(facts: Mapping[str, Mapping[str, str]]) -> None:
    other = [name for name, up in facts.items() if up["code"] != code_hash()]
    if other:
        raise ClusterError(f"{', '.join(other)}: {other_code(facts[other[0]])}.")


def other_code(up: Mapping[str, str]) -> str:
    """What is wrong with a host that has not the code that is here, and what to do about it."""
    return (
        f"zmqrl there ({up['zmqrl']}, code {up['code'][:8]}) is not the one here (code {code_hash()[:8]}): "
        "bring it there with --sync wheel, or let `python` in the hosts file name another one"
    )


def _print_plan(options: Options, hosts: Sequence[Host], config: Config) -> None:
    """What a dry run prints. No host is asked, so those without slots are taken to have as many cores as this one."""
    cores = len(os.sched_getaffinity(0))
    placement = place_run(config, hosts, {host.name: host.slots or cores for host in hosts})
    commands = [shlex.join(options.command(host)) for host in hosts]
    first = ["with an environment for this zmqrl made first, whose Python then takes the place of the one here:"]
    lines = [placement.table(), *placement.notices, "", *(first if options.sync == "wheel" else []), *commands]
    sys.stdout.write("\n".join(lines) + "\n")
