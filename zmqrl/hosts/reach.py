"""The hosts of a command: how the launcher reaches them, and at which addresses they reach each other."""

import contextlib
import ipaddress
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, Literal, Self

import tyro

from zmqrl.config import Config, WireConfig, is_loopback
from zmqrl.errors import UsageError
from zmqrl.hostd.messages import Up
from zmqrl.hosts.inventory import Host, is_file, read_addresses, read_hosts, select
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.hosts.placement import place_run
from zmqrl.hosts.sync import ANOTHER_PYTHON, extras_of_game, make_environments
from zmqrl.hosts.ways.batch import lsf_hosts, pbs_hosts
from zmqrl.hosts.ways.ray_cluster import RayCluster
from zmqrl.hosts.ways.slurm import allocation, own_address
from zmqrl.hosts.ways.via import read_via, shown
from zmqrl.hosts.ways.way import LOCALHOST, Way, command_on
from zmqrl.observe.forms import decode
from zmqrl.process import unset

NO_ADDRESS = WireConfig().address  # the user chose no address


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The hosts of a command, and how the launcher reaches them."""

    hosts: tuple[Host, ...]
    way: Way
    """How to run a command on a host."""
    home: str
    """The machine or cluster on which the path of the run directory is valid. With this path, it identifies the run."""
    cores_given: Mapping[str, int]
    """The cores that the run may use, if a batch system or Ray limits them."""
    addresses_given: Mapping[str, str]
    """The addresses of ``--address``, by host."""
    iface: str | None
    exported: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables for all processes. Their values can be secret."""
    job: str | None = None
    """The Slurm job of the hosts, if any."""
    ray: RayCluster | None = None
    """The Ray cluster of the hosts, if any."""

    @property
    def instead(self) -> str:
        """The remedy for a host without this zmqrl."""
        if self.job is not None:
            return "install this Python and its zmqrl where all nodes of the job can read them"
        if self.ray is not None:
            return "install it in the Python of the Ray cluster, or use --sync wheel"
        return f"install it there with --sync wheel, or {ANOTHER_PYTHON}"

    def reserved(self, config: Config) -> contextlib.AbstractContextManager[None]:
        """Reserve a CPU of the Ray cluster, if any, for each process of the run in the block. Raises ZmqrlError."""
        if self.ray is None:
            return contextlib.nullcontext()
        return self.ray.reserved(Counter(place_run(config, self.hosts, self.cores_given).host_of.values()))

    def link(self, host: Host, *, work: str, lease_s: float) -> Link:
        """An unopened link to the daemon of ``host``."""
        return Link(
            host.name,
            self.command(host),
            work=work,
            lease_s=lease_s,
            environment={**host.env, **self.exported},
            shown="" if host.name == LOCALHOST else shown(host.via, host.name),
        )

    def command(self, host: Host) -> list[str]:
        """The command that runs a daemon on ``host``."""
        return self.way(host, [host.python or sys.executable, *DAEMON])

    def cores(self, up: Mapping[str, Up]) -> dict[str, int]:
        """The cores that a run may use, by host: those in ``up``, at most ``cores_given``. Without a daemon, each slot
        counts as a core.
        """
        found = {host.name: up[host.name].cores if host.name in up else host.slots or 1 for host in self.hosts}
        return {host: min(cores, self.cores_given.get(host, cores)) for host, cores in found.items()}

    def addresses(self, of: Collection[str], up: Mapping[str, Up]) -> tuple[dict[str, str], list[str]]:
        """The addresses of the hosts named in ``of``, and a sentence for each unknown address."""
        hosts = [host for host in self.hosts if host.name in of]
        return addresses_of(hosts, up, by_hand=self.addresses_given, iface=self.iface)


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """The options of a command that choose its hosts."""

    hosts: Annotated[str | None, tyro.conf.arg(aliases=["-H"])] = None
    """Hosts: a list such as 'h1,node[01-16]:4' (:4 means at most 4 workers), a hostfile, or a .toml file."""
    slurm: bool = False
    """Use the nodes of this Slurm job, through srun."""
    pbs: bool = False
    """Use the nodes of this PBS job, over ssh."""
    lsf: bool = False
    """Use the hosts of this LSF job, through blaunch."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Use the nodes of the Ray cluster at ADDRESS: auto, HEAD:PORT or ray://HEAD:PORT."""
    node_address: str | None = None
    """Pattern of node addresses, with %N for the node's name, such as %N-ib0. None: those that Slurm uses."""
    include: str | None = None
    """Use only these hosts: a list such as 'h1,node[01-04]'. None: all hosts."""
    exclude: str | None = None
    """Leave out these hosts: a list such as 'h1,node[01-04]'."""
    via: str | None = None
    """Command that reaches a host, in place of ssh, such as 'docker exec -i {host}'."""
    ssh_config: Path | None = None
    """File that ssh reads instead of your own configuration."""
    iface: str | None = None
    """Network for gradients and weights: the name of an interface, such as ib0, or a range, such as 10.0.0.0/24."""
    address: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """HOST=ADDRESS: address at which other hosts reach HOST. Can be a list, such as h1=10.0.0.1,h2=10.0.0.2."""

    export: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-x"]), tyro.conf.UseAppendAction] = ()
    """VAR: pass this environment variable to the processes on all hosts."""

    sync: Literal["none", "wheel"] = "none"
    """Use the zmqrl that is installed on the hosts (none), or send this one (wheel)."""
    offline: bool = False
    """With --sync wheel: also send packages that a host lacks. The host needs no network."""

    named: tyro.conf.Suppress[tuple[Host, ...]] = ()
    """The hosts that ``hosts`` names, if they have been read already."""

    @property
    def _sources(self) -> list[str]:
        """The given options that name hosts."""
        sources = {"-H": self.hosts is not None, "--slurm": self.slurm, "--pbs": self.pbs, "--lsf": self.lsf}
        sources["--ray"] = self.ray is not None
        return [option for option, is_given in sources.items() if is_given]

    @property
    def names_hosts(self) -> bool:
        """Whether the user says which hosts to use."""
        return bool(self._sources)

    def read(self) -> Self:
        """These options after reading ``hosts``, which can be a pipe that is read only once."""
        return replace(self, named=self.named or (read_hosts(self.hosts) if self.hosts is not None else ()))

    def to_json(self, but: Collection[str] = ()) -> dict[str, Any]:
        """How the user named the hosts, for :meth:`resumed`: the ``options`` except ``but``. ``variables`` has only the
        names of environment variables, because values can be secret.
        """
        options = _changed(self, but)
        if self.hosts is not None and is_file(self.hosts):
            options["hosts"] = str(Path(self.hosts).absolute())
        if self.ssh_config is not None:
            options["ssh_config"] = str(self.ssh_config.absolute())
        options["named"] = [_changed(host, ("env",)) for host in self.named]
        variables = {host.name: sorted(host.env) for host in self.named if host.env}
        return {"options": options, "variables": variables}

    def resumed(self, given: Mapping[str, Any], where: Path) -> Self:
        """The options of an earlier session, overridden by these options. ``given`` has the form of :meth:`to_json`.

        The hosts file has the values of environment variables. Raises UsageError, which names ``where``, if they cannot
        be read.
        """
        earlier = decode(type(self), given.get("options"), str(where))
        kept = replace(earlier, **_changed(self, ()))
        if given.get("variables"):
            try:
                values = {host.name: host.env for host in read_hosts(kept.hosts or "")}
            except UsageError as error:
                raise UsageError(
                    f"{where} does not have the values of environment variables, and the hosts file, which has them, "
                    f"cannot be read: name the hosts with -H ({error})"
                ) from error
            kept = replace(kept, named=tuple(replace(host, env=values.get(host.name, {})) for host in kept.named))
        return kept

    def reach(self) -> Reach:
        """Resolve the hosts. Raises UsageError for options that contradict each other."""
        if not self._sources:
            raise UsageError("no hosts given: use -H HOSTS, or --slurm, --pbs or --lsf inside a job, or --ray ADDRESS.")
        if len(self._sources) > 1:
            raise UsageError(f"{self._sources[0]} and {self._sources[1]} cannot be combined: use only one of them.")
        for option, value in (("--ssh-config", self.ssh_config), ("--via", self.via)):
            if self.slurm and value is not None:
                raise UsageError(f"{option} and --slurm cannot be combined: srun reaches the nodes.")
            if self.ray is not None and value is not None:
                raise UsageError(f"{option} and --ray cannot be combined: Ray reaches the nodes.")
        if self.lsf and self.ssh_config is not None:
            raise UsageError("--ssh-config and --lsf cannot be combined: blaunch reaches the hosts.")
        if self.via is not None and self.ssh_config is not None:
            raise UsageError("--via and --ssh-config cannot be combined: --via replaces ssh.")
        if self.ssh_config is not None and not self.ssh_config.is_file():
            raise UsageError(f"--ssh-config {self.ssh_config}: no such file.")
        if not self.slurm and self.node_address is not None:
            raise UsageError("--node-address requires --slurm.")
        if self.slurm and self.sync != "none":
            raise UsageError("--sync and --slurm cannot be combined: install zmqrl where all nodes can read it.")
        if self.offline and self.sync == "none":
            raise UsageError("--offline requires --sync wheel.")
        check_interface(self.iface)
        job = allocation() if self.slurm else None
        ray = RayCluster.at(self.ray) if self.ray is not None else None
        nodes = job or ray
        named = job.hosts(self.node_address) if job is not None else ray.hosts() if ray is not None else self._named()
        hosts = select(named, self.include, self.exclude)
        if ray is not None:
            ray.check(host.name for host in hosts)
        cores_given = {host.name: host.slots for host in hosts if host.slots and (self.pbs or self.lsf)}
        return Reach(
            hosts=hosts,
            way=partial(command_on, ssh_config=self.ssh_config) if nodes is None else nodes.command_on,
            # A requeued job may start on other nodes of the cluster.
            home=job.cluster if job is not None else "pbs" if self.pbs else "lsf" if self.lsf else gethostname(),
            cores_given=cores_given if nodes is None else nodes.cores,
            addresses_given=read_addresses(self.address, hosts),
            iface=self.iface,
            exported=read_exported(self.export, unset | os.environ),
            job=None if job is None else job.job,
            ray=ray,
        )

    def _named(self) -> tuple[Host, ...]:
        """The hosts that the options name, with their ``via``."""
        hosts = pbs_hosts() if self.pbs else lsf_hosts() if self.lsf else self.read().named
        if self.via is None:
            return hosts
        return tuple(replace(host, via=read_via(self.via)) for host in hosts)

    def bring(self, reach: Reach, config: Config, say: Callable[[str], None]) -> Reach:
        """The same hosts, after installing this zmqrl on them if ``--sync`` says so. Raises ClusterError.

        The hosts get the packages that the game of ``config`` needs.
        """
        if self.sync == "none":
            return reach
        others = [host for host in reach.hosts if host.name != LOCALHOST]
        extras = extras_of_game(config.env, config.envs)
        pythons = make_environments(others, reach.way, say, reach.exported, extras=extras, offline=self.offline)
        return replace(
            reach, hosts=tuple(replace(host, python=pythons.get(host.name, host.python)) for host in reach.hosts)
        )


def _changed(options: Any, but: Collection[str]) -> dict[str, Any]:
    """The fields of a dataclass, except ``but``, that differ from their defaults."""
    values = {each.name: (getattr(options, each.name), each.default) for each in fields(options)}
    return {name: value for name, (value, default) in values.items() if name not in but and value != default}


def read_exported(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environment`` that ``-x`` names. Raises UsageError for a bad name or an unset variable."""
    for name in names:
        if "=" in name:
            start = name.partition("=")[0]
            raise UsageError(
                f"-x {start}=...: other users can read the arguments of a command. "
                f"Set {start} in the environment, and use -x {start}."
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"-x {name}: not the name of an environment variable.")
        if name not in environment:
            raise UsageError(f"-x {name}: this variable is not set here. Set it, or remove the option.")
    return {name: environment[name] for name in names}


def over_tcp(config: Config) -> Config:
    """``config`` with TCP as the default transport, which options can still override."""
    return replace(config, wire=replace(config.wire, transport="tcp", address=NO_ADDRESS))


def check(config: Config, hosts: Sequence[Host]) -> None:
    """Raise UsageError for settings that cannot run on ``hosts``. Neither tries the game nor contacts the hosts."""
    if (transport := config.wire.transport) != "tcp":
        raise UsageError(f"--wire.transport {transport} works on one machine only: remove the option to use TCP.")
    if config.wire.address != NO_ADDRESS:
        raise UsageError(
            f"--wire.address {config.wire.address} is an option of `zmqrl train`: use --iface, --address HOST=ADDRESS "
            "or `address` in the hosts file."
        )
    config.check()
    place_run(config, hosts, {host.name: 1 for host in hosts})


def check_interface(iface: str | None) -> None:
    """Raise UsageError if ``iface`` is neither the name of an interface nor a network such as ``10.0.0.0/24``."""
    if iface is None:
        return
    try:
        if "/" in iface:
            ipaddress.IPv4Network(iface, strict=False)
            return
        ipaddress.ip_address(iface.strip("[]"))
    except ValueError:
        if "/" not in iface and ":" not in iface:  # an interface, such as ib0 or eth0.12
            return
    raise UsageError(f"--iface {iface}: not an interface or an IPv4 network such as 10.0.0.0/24.")


def addresses_of(
    hosts: Sequence[Host], up: Mapping[str, Up], *, by_hand: Mapping[str, str], iface: str | None
) -> tuple[dict[str, str], list[str]]:
    """The addresses of ``hosts``, by name, and a sentence for each host without a usable address.

    ``up`` has the reports of all daemons, and ``by_hand`` the addresses of ``--address``. ``iface`` is an interface or
    network.
    """
    found: dict[str, str] = {}
    unknown = []
    for host in hosts:
        instead = _instead(host.name)
        interfaces = up[host.name].interfaces
        address: str | None = by_hand.get(host.name)
        if address is None and iface is not None:
            address = next(iter(_on(iface, interfaces)), None)
        elif address is None:
            address = host.address or up[host.name].address or _by_interfaces(host, up)
        if address is None and iface is not None:
            unknown.append(f"{host.name}: no interface or network {iface}, only {listed(interfaces)}: {instead}.")
        elif address is None:
            unknown.append(
                f"{host.name}: the address at which other hosts reach it is unknown, as it has {listed(interfaces)}: "
                f"{instead}."
            )
        elif ":" in address:  # ssh reached the host at this address
            unknown.append(f"{host.name}: {address} is an IPv6 address, but zmqrl needs an IPv4 address: {instead}.")
        elif is_loopback(address) and len({_network(about) for about in up.values()}) > 1:
            unknown.append(only_itself(host.name, address))
        else:
            found[host.name] = address
    return found, unknown


def _network(about: Up) -> tuple[str, ...]:
    """An id of a host's network. Nodes on one machine can share it, and reach each other at loopback addresses."""
    words = about.machine.split(" ")
    return (words[0], words[2]) if len(words) > 2 else (about.host,)


def _by_interfaces(host: Host, up: Mapping[str, Up]) -> str | None:
    """The address of a host that is reached without ssh, if it has only one.

    For this machine: the address from which it reaches another host, or else loopback.
    """
    if host.name != LOCALHOST:
        return _sole(up[host.name].interfaces)
    others = (about.address or _sole(about.interfaces) for name, about in up.items() if name != LOCALHOST)
    with contextlib.suppress(OSError):
        return own_address(next(filter(None, others), NO_ADDRESS))
    return None


def _sole(interfaces: Mapping[str, list[str]]) -> str | None:
    """The only address that is not a loopback address."""
    found = [each for addresses in interfaces.values() for each in addresses if not is_loopback(each)]
    return found[0] if len(found) == 1 else None


def only_itself(host: str, address: str) -> str:
    """A sentence about a loopback ``address`` of ``host``."""
    return f"{host}: {address} is a loopback address that other hosts cannot reach: {_instead(host)}."


def _instead(host: str) -> str:
    return f"choose one with --iface, --address {host}=ADDRESS or `address` in the hosts file"


def listed(interfaces: Mapping[str, list[str]]) -> str:
    """The interfaces of a host in words, such as ``lo 127.0.0.1, ib0 10.0.0.1``."""
    return ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in interfaces.items()) or "none"


def _on(iface: str, interfaces: Mapping[str, list[str]]) -> list[str]:
    """The addresses on an interface, or in a network."""
    if "/" not in iface:
        return interfaces.get(iface, [])
    network = ipaddress.IPv4Network(iface, strict=False)
    return [each for addresses in interfaces.values() for each in addresses if ipaddress.IPv4Address(each) in network]
