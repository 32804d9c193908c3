"""Where a run takes place: its launcher, and for each process the host, its files there, and its threads."""

import os
import socket as host_socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zmqrl import open_files
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.hosts import Host
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.cluster.placement import Placement, place
from zmqrl.cluster.preflight import files_needed
from zmqrl.config import Config
from zmqrl.rundir import RunDirectory

HERE = "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A host as the processes of a run see it."""

    host: str
    """Its name."""
    directory: RunDirectory
    """Where the run has its files there."""
    address: str
    """Where shards bind if they use TCP, and where all others reach them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """``sites`` and ``threads`` are by the name of a process, such as ``worker-3``."""

    launcher: Agents
    sites: Mapping[str, Site]
    threads: Mapping[str, int]
    files: Mirror
    notices: tuple[str, ...] = ()
    """Sentences that the user should read."""


def place_run(config: Config, hosts: Sequence[Host], cores: Mapping[str, int]) -> Placement:
    """Where the processes that a run starts are to be, on ``hosts`` with so many ``cores``. Raises UsageError."""
    return place(
        hosts,
        cores,
        shards=config.shards,
        workers=config.ranks - config.external_workers,
        evaluator=config.evaluator,
        recorder=config.recorder,
    )


def on_this_machine(config: Config, directory: RunDirectory) -> Deployment:
    """All of a run here. Raises UsageError when a process cannot open as many files as it needs."""
    here = Site(host=host_socket.gethostname(), directory=directory, address=config.wire.address)
    placement = place_run(config, [Host(name=HERE)], {HERE: len(os.sched_getaffinity(0))})
    open_files.check(files_needed(config, list(placement.host_of)))
    return Deployment(
        launcher=local_launcher(directory.path),
        sites=dict.fromkeys(placement.host_of, here),
        threads=placement.threads,
        files=Mirror({}, directory, placement.host_of),
    )


def local_launcher(work: Path) -> Agents:
    """Runs tasks on this machine, under an agent that is a child of this process. ``work`` is the run's directory."""
    command = [sys.executable, "-m", "zmqrl.cluster.agent"]
    return Agents({HERE: Link(HERE, command, work=str(work), lease_s=None)}, lambda name: HERE)
