"""Hosts that are the nodes of a PBS or LSF job, from the environment of the job.

LSF reaches a node with blaunch, its own ssh. The programs of PBS for this, pbsdsh and pbs_tmrsh, do not pass standard
input on, so nodes of PBS are reached by ssh.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import Host, read_hosts

BLAUNCH: Final = ("blaunch", "-no-shell", "{host}")


def pbs_hosts(environment: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """The nodes of the PBS job that runs this process. A node that is listed n times has n slots.

    Raises UsageError outside a job.
    """
    path = environment.get("PBS_NODEFILE")
    if path is None:
        raise UsageError("--pbs: not inside a PBS job: submit a script with qsub, or get nodes with qsub -I first.")
    if not Path(path).is_file():
        raise UsageError(f"--pbs: there is no {path} here: start zmqrl on the first node of the job.")
    return read_hosts(path)


def lsf_hosts(environment: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """The hosts of the LSF job that runs this process, with their slots. Raises UsageError outside a job."""
    path, listed = environment.get("LSB_DJOB_HOSTFILE"), environment.get("LSB_MCPU_HOSTS")
    if path is not None and Path(path).is_file():
        hosts = read_hosts(path)
    elif listed is not None and listed.strip():
        words = listed.split()  # such as "hostA 4 hostB 2"
        hosts = read_hosts(",".join(map(":".join, zip(words[::2], words[1::2], strict=True))))
    else:
        raise UsageError("--lsf: not inside an LSF job: submit a script with bsub, or get hosts with bsub -Is first.")
    return tuple(replace(host, via=BLAUNCH) for host in hosts)
