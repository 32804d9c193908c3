"""This machine as a host: its agent is a child of this process."""

import sys
from pathlib import Path

from zmqrl.cluster.agents import Agents
from zmqrl.cluster.link import Link

HERE = "localhost"


def local_launcher(work: Path) -> Agents:
    """Runs tasks on this machine. ``work`` is the directory of the run."""
    command = [sys.executable, "-m", "zmqrl.cluster.agent"]
    return Agents([Link(HERE, command, work=str(work), lease_s=None)], lambda name: HERE)
