"""The deployment of a run: its launcher, and the host, directory and threads of each process.

All launchers are built here.
"""

import contextlib
import socket as host_socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zmqrl.config import Config
from zmqrl.errors import ClusterError
from zmqrl.hostd.messages import Clean, Up
from zmqrl.hosts.connecting import OnEvent, connect, listed_twice, other_code, unusable
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.hosts.mirror import Mirror
from zmqrl.hosts.placement import Placement, files_needed, place_run
from zmqrl.hosts.probing import probe_ids
from zmqrl.hosts.reach import Reach
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.provenance import code_hash, versions
from zmqrl.process import CORES, check_open_files
from zmqrl.process_id import ProcessId
from zmqrl.rundir import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a process knows about its host."""

    host: str
    directory: RunDirectory
    """The run's directory on this host."""
    address: str
    """The address for TCP: shards bind it, and other hosts connect to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How and on which hosts the processes of a run start."""

    launcher: DaemonLauncher
    sites: Mapping[ProcessId, Site]
    threads: Mapping[ProcessId, int]
    files: Mirror
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What :func:`zmqrl.observe.provenance.versions` finds on each host."""
    given: Mapping[str, Any] | None = None
    """How the user named the hosts, as in :meth:`zmqrl.hosts.reach.HostOptions.to_json`. None: this machine."""
    notices: tuple[str, ...] = ()
    """Sentences for the user."""

    def to_json(self) -> dict[str, Any]:
        """The contents of ``hosts.json``."""
        on: dict[str, list[str]] = {host: [] for host in self.versions}
        for process, site in self.sites.items():
            on[site.host].append(str(process))
        hosts = [{"host": host, **self.versions[host], "processes": processes} for host, processes in on.items()]
        return {"hosts": hosts, "given": self.given}


def placed_here(config: Config) -> Placement:
    """The placement of a whole run on this machine."""
    return place_run(config, [Host(name=LOCALHOST)], {LOCALHOST: CORES})


def on_this_machine(config: Config, directory: RunDirectory) -> Deployment:
    """Deploy a whole run on this machine. Raises UsageError if a process needs more open files than this machine
    allows.
    """
    here = Site(host=host_socket.gethostname(), directory=directory, address=config.wire.address)
    placement = placed_here(config)
    check_open_files(files_needed(config, list(placement.host_of)))
    return Deployment(
        launcher=local_launcher(directory.path),
        sites=dict.fromkeys(placement.host_of, here),
        threads=placement.threads,
        files=Mirror({}, directory, placement.host_of),
        versions={here.host: versions()},
    )


def local_launcher(work: Path) -> DaemonLauncher:
    """A launcher for this machine, whose daemon is a child of this process. ``work`` is the run's directory."""
    command = [sys.executable, *DAEMON]
    return DaemonLauncher(
        {LOCALHOST: Link(LOCALHOST, command, work=str(work), lease_s=None)}, lambda process: LOCALHOST
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedHosts:
    """Hosts whose daemons were contacted. ``failed`` says why a host cannot be used."""

    launcher: DaemonLauncher
    failed: Mapping[str, str]
    at_end: contextlib.ExitStack
    """Ends all links. Call its ``pop_all`` to keep the launcher after the block. The launcher must then be closed."""


@contextlib.contextmanager
def connected(
    links: Mapping[str, Link],
    host_of: Mapping[ProcessId, str],
    files: Mirror | None,
    *,
    news: OnEvent | None = None,
    instead: str | None = None,
    clean: bool = False,
    ending: Callable[[], None] = lambda: None,
) -> Iterator[ConnectedHosts]:
    """Connect to the hosts of ``links``. For ``news`` and ``instead``, see :func:`zmqrl.hosts.connecting.connect`.

    At the end of the block, even if it is interrupted, all links end, after a call of ``ending``. With ``clean``, the
    hosts first remove the directory of the run, even those that are still coming up.
    """
    launcher = DaemonLauncher(links, host_of.__getitem__, files=files)
    with contextlib.ExitStack() as at_end:
        at_end.callback(launcher.close)
        if clean:
            at_end.callback(_clean, links)
        at_end.callback(ending)
        failed = connect(list(links.values()), news, instead=instead)
        yield ConnectedHosts(launcher=launcher, failed=failed, at_end=at_end)


def _clean(links: Mapping[str, Link]) -> None:
    for link in links.values():
        link.send(Clean(whole=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(ConnectedHosts):
    """Hosts that run daemons, and the placement of a run on them."""

    config: Config
    files: Mirror | None
    placement: Placement
    up: Mapping[str, Up]
    """The reports of the daemons, by host."""
    addresses: Mapping[str, str]
    """The address of each host that others connect to."""
    unknown: list[str]
    """A sentence for each unknown address."""
    probes: Mapping[str, ProcessId]
    """The probe of each host."""
    whole: bool
    """Whether to check every host for every role, not only for its own, and to measure bandwidth."""


@contextlib.contextmanager
def connect_and_place(
    reach: Reach,
    config: Config,
    *,
    work: str,
    lease_s: float,
    home: RunDirectory | None = None,
    whole: bool,
    clean: bool,
    show: Callable[[int], None] = lambda connected: None,
    ending: Callable[[], None],
) -> Iterator[Placed]:
    """Connect to all hosts and place the processes of a run. At the end of the block, all links end.

    ``work`` is the name of the run's directory on the hosts. With ``clean``, the hosts remove it at the end. With
    ``home``, the launcher copies files between it and the hosts. ``show`` gets the number of connected hosts.
    ``ending`` is called before the end of the links, which can take seconds.

    With ``whole``, a survey checks the hosts for every role, and the block begins even if some cannot be used.
    Without it, raises ClusterError, which names each host that cannot be used.
    """
    links = {host.name: reach.link(host, work=work, lease_s=lease_s) for host in reach.hosts}
    probes = probe_ids(links)
    host_of = {probe: host for host, probe in probes.items()}  # the other processes follow once they are placed
    files = None if home is None else Mirror(links, home, host_of)

    def news(*_: object) -> None:
        show(sum(link.is_ready for link in links.values()))

    news()
    with connected(links, host_of, files, news=news, instead=reach.instead, clean=clean, ending=ending) as hosts:
        up = {host: link.up for host, link in links.items() if link.up is not None}
        ours = code_hash()
        other = {host: other_code(about, reach.instead) for host, about in up.items() if about.code != ours}
        twice = listed_twice(up)
        if not whole and (failed := {**hosts.failed, **twice}):
            raise unusable(failed, list(links))
        if not whole and other:
            raise ClusterError(f"{', '.join(other)}: {next(iter(other.values()))}.")
        failed = {**hosts.failed, **other, **twice}
        fit = {host: about for host, about in up.items() if host not in failed}
        placement = place_run(config, reach.hosts, reach.cores(up))
        host_of |= placement.host_of
        of_shards = {host for process, host in placement.host_of.items() if process.role == "shard"}
        addresses, unknown = reach.addresses(fit if whole else of_shards, fit)
        yield Placed(
            launcher=hosts.launcher,
            failed=failed,
            at_end=hosts.at_end,
            config=config,
            files=files,
            placement=placement,
            up=up,
            addresses=addresses,
            unknown=unknown,
            probes=probes,
            whole=whole,
        )
