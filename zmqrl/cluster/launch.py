"""``zmqrl launch``: the same run as ``zmqrl train``, on other hosts: over ssh, or on the nodes of a Slurm job."""

import dataclasses
import hashlib
import os
import shlex
import socket as host_socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.cluster import requeue, slurm
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.deployment import Deployment, Site, place_run
from zmqrl.cluster.hosts import Host, read_hosts, select
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.cluster.run import train_on
from zmqrl.cluster.ssh import connect, ssh_command
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.provenance import code_hash
from zmqrl.rundir import RunDirectory

LEAST_LEASE_S, LONGEST_LEASE_S = 3.0, 12.0  # renewed each second; with the time to end, agents wait 20 s for each other


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on several hosts: those of -H over ssh, or with --slurm the nodes of the Slurm job that this runs in.

    All options of `zmqrl train` go with it.
    """

    hosts: Annotated[str | None, tyro.conf.arg(aliases=["-H"])] = None
    """Hosts: a list such as h1,node[01-16]:4 (workers behind the colon), a hostfile, or a .toml file."""
    slurm: bool = False
    """On the nodes of this Slurm job, by srun."""
    requeue: bool = False
    """When Slurm sends USR1 ahead of a time limit, put the job back into the queue; its next start goes on."""
    node_address: str | None = None
    """Where other nodes reach a node, with %N for its name, such as %N-ib0; by default where Slurm does."""
    include: str | None = None
    """Only these of the hosts, as a list."""
    exclude: str | None = None
    """All but these of the hosts, as a list."""
    dry_run: bool = False
    """Print what would be started where, and start nothing."""
    ssh_config: Path | None = None
    """File that ssh is to read instead of your own ssh_config."""
    lease_s: float = 8.0
    """Processes on a host end when nothing was heard from here for so long."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The hosts of a run, and how they are reached."""

    hosts: tuple[Host, ...]
    command: Callable[[Host], list[str]]
    """Runs an agent on a host."""
    cores: Mapping[str, int]
    """How many cores of a host we may use, where that is said and not found out."""
    home: str
    """The machine, or the machines, on which the path of a run directory means one directory."""


def run(options: Options, config: Config) -> int:
    """Launch a run; the exit status. Raises ZmqrlError."""
    if options.slurm == (options.hosts is not None):
        raise UsageError("where to? Say -H HOSTS for hosts that ssh reaches, or --slurm for the nodes of a Slurm job.")
    if not options.slurm and (options.requeue or options.node_address is not None):
        raise UsageError("--requeue and --node-address go with --slurm only.")
    if not LEAST_LEASE_S <= options.lease_s <= LONGEST_LEASE_S:
        raise UsageError(f"--lease-s {options.lease_s}: must be from {LEAST_LEASE_S:g} to {LONGEST_LEASE_S:g}.")
    config = dataclasses.replace(config, wire=dataclasses.replace(config.wire, transport="tcp"))
    job = slurm.allocation() if options.slurm else None
    reach = _by_ssh(options) if job is None else _by_slurm(options, job)
    if options.requeue and job is not None:
        requeue.check(job.job, config)
        config = requeue.left_of(config)
    if options.dry_run:
        _print_plan(reach, config)
        return 0
    train = partial(train_on, config, partial(on_hosts, options, reach))
    return train() if job is None else requeue.requeued(job.job if options.requeue else None, train)


def _by_ssh(options: Options) -> Reach:
    assert options.hosts is not None
    return Reach(
        hosts=select(read_hosts(options.hosts), options.include, options.exclude),
        command=lambda host: ssh_command(host.name, host.python or sys.executable, config=options.ssh_config),
        cores={},
        home=host_socket.gethostname(),
    )


def _by_slurm(options: Options, job: slurm.Allocation) -> Reach:
    return Reach(
        hosts=select(job.hosts(options.node_address), options.include, options.exclude),
        command=lambda host: slurm.srun_command(job.job, host.name, sys.executable),
        cores=job.cores,
        home=job.cluster,  # its next start may be on other nodes, which have the same file systems
    )


def on_hosts(options: Options, reach: Reach, config: Config, directory: RunDirectory) -> Deployment:
    """Connect to all hosts and place the processes on them. Raises ClusterError that names each that fails."""
    hosts, work = reach.hosts, place_of(directory, reach.home)
    links = {host.name: Link(host.name, reach.command(host), work=work, lease_s=options.lease_s) for host in hosts}
    try:
        failed = connect(list(links.values()))
        if failed:
            told = "".join(f"\n  {host}: {why}" for host, why in failed.items())
            raise ClusterError(f"{len(failed)} of {len(hosts)} hosts cannot be used:{told}")
        facts = {name: link.up for name, link in links.items() if link.up is not None}
        _check_code(facts)
        cores = {name: min(up["cores"], reach.cores.get(name, up["cores"])) for name, up in facts.items()}
        placement = place_run(config, hosts, cores)
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


def place_of(directory: RunDirectory, home: str) -> str:
    """The name of this run's place on any host: the same for every sitting of the run, and for no other run.

    ``home`` says on which machine the directory is.
    """
    identity = f"{home}:{directory.path}"
    return f"{directory.path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _check_code(facts: Mapping[str, Mapping[str, str]]) -> None:
    ours = code_hash()
    other = [name for name, up in facts.items() if up["code"] != ours]
    if other:
        raise ClusterError(
            f"{', '.join(other)}: zmqrl there ({facts[other[0]]['zmqrl']}, code {facts[other[0]]['code'][:8]}) is not "
            f"the one here (code {ours[:8]}): install the same, or let `python` in the hosts file name another one."
        )


def _print_plan(reach: Reach, config: Config) -> None:
    """What a dry run prints. No host is asked: it is taken to have as many cores as slots, or else as this one."""
    cores = {host.name: reach.cores.get(host.name, host.slots or len(os.sched_getaffinity(0))) for host in reach.hosts}
    placement = place_run(config, reach.hosts, cores)
    commands = [shlex.join(reach.command(host)) for host in reach.hosts]
    lines = [placement.table(), *placement.notices, "", *commands]
    sys.stdout.write("\n".join(lines) + "\n")
