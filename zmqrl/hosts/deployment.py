"""The deployment of a run: its launcher, and the host, directory and threads of each process."""

import socket as host_socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zmqrl.config import Config
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.launcher import Launcher
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.hosts.mirror import Mirror
from zmqrl.hosts.placement import Placement, place_run
from zmqrl.hosts.preflight import files_needed
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.provenance import versions
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

    launcher: Launcher
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


def local_launcher(work: Path) -> Launcher:
    """A launcher for this machine, whose daemon is a child of this process. ``work`` is the run's directory."""
    command = [sys.executable, *DAEMON]
    return DaemonLauncher(
        {LOCALHOST: Link(LOCALHOST, command, work=str(work), lease_s=None)}, lambda process: LOCALHOST
    )
