"""Hosts that are the nodes of a PBS or LSF job, from the environment of the job.

LSF reaches a node with blaunch, its own ssh. PBS nodes need ssh, because pbsdsh and pbs_tmrsh of PBS do not pass on
standard input.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from zmqrl.errors import UsageError, require
from zmqrl.hosts.inventory import Host, host_names, is_file, read_hosts

BLAUNCH: Final = ("blaunch", "-no-shell", "{host}")


def pbs_hosts(environment: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """The nodes of the PBS job that runs this process. A node that is listed n times has n slots, but one
    that is listed once has no limit: for each chunk, PBS lists a node mpiprocs times, by default once, whatever ncpus.

    Raises UsageError outside a job, and for a malformed file.
    """
    path = environment.get("PBS_NODEFILE")
    if path is None:
        raise UsageError("--pbs: not inside a PBS job. Submit a script with qsub, or get nodes with qsub -I first.")
    return _in_file("--pbs: PBS_NODEFILE", path)


def lsf_hosts(environment: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """The hosts of the LSF job that runs this process, with their slots.

    Raises UsageError outside a job, and for a malformed list or file.
    """
    path, listed = environment.get("LSB_DJOB_HOSTFILE"), environment.get("LSB_MCPU_HOSTS")
    if path is not None and (listed is None or is_file(path)):
        hosts = _in_file("--lsf: LSB_DJOB_HOSTFILE", path)
    elif listed is not None:
        hosts = _in_list(listed)
    else:
        raise UsageError("--lsf: not inside an LSF job. Submit a script with bsub, or get hosts with bsub -Is first.")
    return tuple(replace(host, via=BLAUNCH, slots=host.slots or 1) for host in hosts)


def _in_file(where: str, path: str) -> tuple[Host, ...]:
    """The hosts in the file ``path``. Raises a UsageError that begins with ``where``."""
    require(
        is_file(path),
        f"{where} is {shlex.quote(path)}, and there is no such file here: start zmqrl on the first node of the job.",
    )
    try:
        return read_hosts(path)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _in_list(listed: str) -> tuple[Host, ...]:
    """The hosts in a list such as ``hostA 4 hostB 2``. Raises UsageError."""
    where = "--lsf: LSB_MCPU_HOSTS"
    words = listed.split()
    names, numbers = words[::2], words[1::2]
    is_list = len(names) == len(numbers) > 0 and all(re.fullmatch("[1-9][0-9]{0,8}", number) for number in numbers)
    require(is_list, f"{where} is {listed!r:.60}, but must list hosts with their slots, such as 'hostA 4 hostB 2'.")
    slots: Counter[str] = Counter()
    for name, number in zip(names, numbers, strict=True):
        slots.update(dict.fromkeys(host_names(name, where), int(number)))
    return tuple(Host(name=name, slots=number) for name, number in slots.items())
