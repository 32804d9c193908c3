"""Which hosts a command is about, and how they are reached: over ssh, or as the nodes of a Slurm job."""

import socket as host_socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zmqrl.agent.envs import describe_env
from zmqrl.cluster.addresses import addresses_of, check_interface
from zmqrl.cluster.deployment import place_run
from zmqrl.cluster.hosts import Host, read_addresses, read_hosts, select
from zmqrl.cluster.link import Link
from zmqrl.cluster.slurm import Allocation, allocation, srun_command
from zmqrl.cluster.ssh import ssh_command
from zmqrl.cluster.sync import ANOTHER_PYTHON, make_environments
from zmqrl.config import Config, WireConfig
from zmqrl.errors import UsageError

NO_ADDRESS = WireConfig().address  # none that was chosen


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The hosts of a command, and how they are reached."""

    hosts: tuple[Host, ...]
    command: Callable[[Host], list[str]]
    """Runs an agent on a host."""
    home: str
    """The machine, or the machines, on which the path of a run directory means one directory."""
    cores_given: Mapping[str, int]
    """How many cores of a host we may use, where that is said and not found out."""
    addresses_given: Mapping[str, str]
    """Where the others reach a host, by hand."""
    iface: str | None
    job: str | None = None
    """The Slurm job whose nodes they are."""

    @property
    def instead(self) -> str:
        """What to do where zmqrl is not there, or is not the one here."""
        if self.job is not None:
            return "the Python of here, with its zmqrl, is to be where all nodes of the job see it"
        return f"bring it there with --sync wheel, or {ANOTHER_PYTHON}"

    def link(self, host: Host, *, work: str, lease_s: float) -> Link:
        """The connection to the agent of ``host``, not made yet."""
        return Link(host.name, self.command(host), work=work, lease_s=lease_s, environment=host.env)

    def cores(self, up: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """How many cores each host has for a run, as agents said in ``up``; of one that has not come up, its slots."""
        found = {host.name: up[host.name]["cores"] if host.name in up else host.slots or 1 for host in self.hosts}
        return {host: min(cores, self.cores_given.get(host, cores)) for host, cores in found.items()}

    def addresses(self, of: Collection[str], up: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
        """Where the others reach the hosts ``of``, as agents said in ``up``; a sentence for each that is unknown."""
        hosts = [host for host in self.hosts if host.name in of]
        return addresses_of(hosts, up, by_hand=self.addresses_given, iface=self.iface)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Options that say which hosts, and how they are reached."""

    hosts: Annotated[str | None, tyro.conf.arg(aliases=["-H"])] = None
    """Hosts: a list such as h1,node[01-16]:4 (workers behind the colon), a hostfile, or a .toml file."""
    slurm: bool = False
    """On the nodes of this Slurm job, by srun."""
    node_address: str | None = None
    """Where other nodes reach a node, with %N for its name, such as %N-ib0; by default where Slurm does."""
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

    sync: Literal["none", "wheel"] = "none"
    """Bring this zmqrl to the hosts as a wheel, or take what is installed there."""

    def reach(self) -> Reach:
        """The hosts. Raises UsageError for what cannot be."""
        if self.slurm == (self.hosts is not None):
            raise UsageError(
                "where to? Say -H HOSTS for hosts that ssh reaches, or --slurm for the nodes of a Slurm job."
            )
        if self.slurm and self.ssh_config is not None:
            raise UsageError("--ssh-config goes with -H only: --slurm uses no ssh.")
        if self.ssh_config is not None and not self.ssh_config.is_file():
            raise UsageError(f"--ssh-config {self.ssh_config}: there is no such file.")
        if not self.slurm and self.node_address is not None:
            raise UsageError("--node-address goes with --slurm only.")
        if self.slurm and self.sync != "none":
            raise UsageError("--sync goes with -H only: nodes of a job share a file system, and zmqrl is to be there.")
        check_interface(self.iface)
        job = allocation() if self.slurm else None
        named = read_hosts(self.hosts) if self.hosts is not None else ()
        hosts = select(named if job is None else job.hosts(self.node_address), self.include, self.exclude)
        return Reach(
            hosts=hosts,
            command=partial(self._command, job),
            # The next start of a job may be on other nodes, which have the same file systems.
            home=host_socket.gethostname() if job is None else job.cluster,
            cores_given={} if job is None else job.cores,
            addresses_given=read_addresses(self.address, hosts),
            iface=self.iface,
            job=None if job is None else job.job,
        )

    def bring(self, reach: Reach, say: Callable[[str], None]) -> Reach:
        """The same hosts with the zmqrl that they are to use, made there if --sync says so. Raises ClusterError."""
        if self.sync == "none":
            return reach
        pythons = make_environments(reach.hosts, self.ssh_config, say)
        return replace(reach, hosts=tuple(replace(host, python=pythons[host.name]) for host in reach.hosts))

    def _command(self, job: Allocation | None, host: Host) -> list[str]:
        if job is not None:
            return srun_command(job.job, host.name, sys.executable)
        return ssh_command(host.name, host.python or sys.executable, config=self.ssh_config)


def over_tcp(config: Config) -> Config:
    """These settings for a run whose processes are on several hosts, where options have not been read yet."""
    return replace(config, wire=replace(config.wire, transport="tcp", address=NO_ADDRESS))


def check(config: Config, hosts: Sequence[Host]) -> None:
    """Raise UsageError for what cannot be, or cannot be on ``hosts``, as far as they need not be asked for that."""
    if config.wire.transport == "ipc":
        raise UsageError("--wire.transport ipc is for one machine: leave it out, hosts reach each other by TCP.")
    if config.wire.address != NO_ADDRESS:
        raise UsageError(
            f"--wire.address {config.wire.address} is for `zmqrl train`: where a host is reached is said by --iface, "
            "--address HOST=ADDRESS or `address` in the hosts file."
        )
    config.check()
    describe_env(config.env, config.envs)
    place_run(config, hosts, {host.name: 1 for host in hosts})
