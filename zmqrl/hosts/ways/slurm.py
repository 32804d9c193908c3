"""Hosts that are the nodes of a Slurm job: srun starts their daemons as steps of the job, without ssh."""

import os
import re
import socket as host_socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zmqrl.config import is_loopback
from zmqrl.errors import ClusterError, UsageError, require
from zmqrl.hosts.inventory import Host, host_names
from zmqrl.words import counted

ANSWER_WITHIN_S = 30.0
NODE = "%N"  # stands for the name of a node, as in srun
# srun prints one of these when a job has ended, or a requeued job no longer has the node.
OVER_WORDS = ("Expired or invalid job", "Requested node configuration is not available")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The allocation of the job that runs this process."""

    job: str
    cluster: str
    cores: Mapping[str, int]
    """The cores of each node, in order."""

    def hosts(self, node_address: str | None) -> tuple[Host, ...]:
        """The nodes as hosts, at the addresses that Slurm uses, or at ``node_address`` with the node's name for %N."""
        if node_address is None:
            told = scontrol("show", "node", "--oneliner", ",".join(self.cores))
            names = dict(re.findall(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", told, re.MULTILINE))
        else:
            names = {node: node_address.replace(NODE, node) for node in self.cores}
        addresses = resolve({node: names.get(node, node) for node in self.cores})
        return tuple(Host(name=node, address=address) for node, address in addresses.items())

    def command_on(self, host: Host, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on a node: a :data:`zmqrl.hosts.ways.way.Way`."""
        return srun_command(self.job, host.name, words)


def allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """The job that runs this process.

    Raises UsageError outside a job and for malformed variables, and ClusterError if Slurm has no such nodes.
    """
    job, nodes = environment.get("SLURM_JOB_ID"), environment.get("SLURM_JOB_NODELIST")
    if job is None or nodes is None:
        raise UsageError(
            "--slurm: not inside a Slurm job. Submit launch/slurm/train.sbatch with sbatch, "
            "or get nodes with salloc first."
        )
    if (tasks := _number_in(environment, "SLURM_STEP_NUM_TASKS")) > 1:
        raise UsageError(f"--slurm: srun started this command {tasks} times. Run it without srun.")
    if (parts := _number_in(environment, "SLURM_HET_SIZE")) > 1:
        raise UsageError(
            f"--slurm: job {job} is heterogeneous, but zmqrl can use only the first of its {parts} parts. "
            "Submit it as one part, without `:` or `#SBATCH hetjob`."
        )
    names = names_in(nodes)
    cores = cores_of(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    if len(cores) != len(names):
        listed = counted(len(cores), "node")
        raise UsageError(f"--slurm: SLURM_JOB_CPUS_PER_NODE lists {listed}, but the job has {len(names)}.")
    cluster = environment.get("SLURM_CLUSTER_NAME", "slurm")
    return Allocation(job=job, cluster=cluster, cores=dict(zip(names, cores, strict=True)))


def names_in(nodes: str) -> list[str]:
    """The nodes in SLURM_JOB_NODELIST, such as ``n[1-3]``. Raises UsageError, or ClusterError if Slurm fails."""
    where = "--slurm: SLURM_JOB_NODELIST"
    require(bool(nodes.strip()), f"{where} is empty, but must list the nodes of the job.")
    try:
        told = scontrol("show", "hostnames", nodes).split()
    except ClusterError as error:
        raise ClusterError(f"{where} is {nodes!r:.60}: {error}") from error
    return [name for each in told for name in host_names(each, where)]


def cores_of(text: str) -> list[int]:
    """Parse SLURM_JOB_CPUS_PER_NODE, such as ``8(x2),16``. Raises UsageError."""
    cores: list[int] = []
    for item in text.split(","):
        found = re.fullmatch(r"([1-9][0-9]{0,5})(?:\(x([1-9][0-9]{0,5})\))?", item)
        if found is None:
            raise UsageError(
                f"--slurm: SLURM_JOB_CPUS_PER_NODE is {text!r:.60}, but must list cores, such as '8(x2),16'."
            )
        cores += [int(found[1])] * int(found[2] or 1)
    return cores


def _number_in(environment: Mapping[str, str], name: str) -> int:
    """The number in a variable, or 1 if it is not set. Raises UsageError."""
    text = environment.get(name, "1")
    require(re.fullmatch("[0-9]{1,9}", text) is not None, f"--slurm: {name} is {text!r:.60}, but must be a number.")
    return int(text)


def resolve(names: Mapping[str, str]) -> dict[str, str]:
    """The IPv4 addresses of nodes, from names or addresses. Raises UsageError for an unknown name.

    Many machines resolve their own name to loopback. The result then has the address from which this machine reaches
    another node.
    """
    addresses = {}
    for node, name in names.items():
        try:
            addresses[node] = str(host_socket.getaddrinfo(name, None, host_socket.AF_INET)[0][4][0])
        except OSError as error:
            raise UsageError(
                f"node {node}: its address {name} is unknown here ({error.strerror}). "
                f"Set --node-address, such as {NODE}.cluster or {NODE}-ib0."
            ) from error
    others = [address for address in addresses.values() if not is_loopback(address)]
    if len(others) in (0, len(addresses)):
        return addresses
    try:
        own = own_address(others[0])
    except OSError as error:
        raise UsageError(f"{others[0]} cannot be reached from here: {error.strerror}; use --node-address.") from error
    return {node: own if is_loopback(address) else address for node, address in addresses.items()}


def own_address(other: str) -> str:
    """The address from which this machine reaches ``other``. Raises OSError if there is none."""
    with host_socket.socket(host_socket.AF_INET, host_socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # with UDP, connect sends nothing
        return str(probe.getsockname()[0])


def srun_command(job: str, node: str, words: Sequence[str]) -> list[str]:
    """The command that runs ``words`` on a node of ``job``, and shares its resources with other steps."""
    where = ["--jobid", job, "--nodelist", node, "--nodes", "1", "--ntasks", "1", "--ntasks-per-node", "1"]
    how = ["--overlap", "--cpu-bind", "none", "--mpi", "none", "--export", "ALL"]
    return ["srun", *where, *how, *words]


def is_over(why: str) -> bool:
    """Whether srun failed, for the reason ``why``, because the job has ended."""
    return any(words in why for words in OVER_WORDS)


def scontrol(*arguments: str) -> str:
    """The output of scontrol. Raises UsageError if scontrol is missing, and ClusterError if it fails."""
    command = ["scontrol", *arguments]
    asked = " ".join(command[:3])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S)
    except FileNotFoundError as error:
        raise UsageError("--slurm: scontrol is not on the PATH of this machine.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{asked}: Slurm did not answer within {ANSWER_WITHIN_S:g} s.") from error
    if done.returncode > 0:
        raise ClusterError(f"{asked}: {(done.stderr or done.stdout).strip()}.")
    return done.stdout
