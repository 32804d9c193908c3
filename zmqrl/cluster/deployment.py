"""Where a run takes place: its launcher, and for each process the host, its files there, and its threads."""

import os
import socket as host_socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zmqrl.cluster.agents import Agents
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.config import Config
from zmqrl.rundir import RunDirectory

HERE = "localhost"
EVALUATOR, RECORDER = "evaluator-0", "recorder-0"


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


def process_names(config: Config) -> list[str]:
    """Every process that a run starts."""
    shards = [f"shard-{shard}" for shard in range(config.shards)]
    workers = [f"worker-{rank}" for rank in range(config.ranks - config.external_workers)]
    followers = [EVALUATOR] * config.evaluator + [RECORDER] * config.recorder
    return shards + workers + followers


def on_this_machine(config: Config, directory: RunDirectory) -> Deployment:
    """All of a run here."""
    names = process_names(config)
    here = Site(host=host_socket.gethostname(), directory=directory, address=config.wire.address)
    workers = config.ranks - config.external_workers
    share = max(1, len(os.sched_getaffinity(0)) // max(1, workers))
    return Deployment(
        launcher=local_launcher(directory.path),
        sites=dict.fromkeys(names, here),
        threads={name: 1 if name.startswith("shard-") else share for name in names},
        files=Mirror({}, directory, {}),
    )


def local_launcher(work: Path) -> Agents:
    """Runs tasks on this machine, under an agent that is a child of this process. ``work`` is the run's directory."""
    command = [sys.executable, "-m", "zmqrl.cluster.agent"]
    return Agents({HERE: Link(HERE, command, work=str(work), lease_s=None)}, lambda name: HERE)
