"""Hosts that are the nodes of a Ray cluster. Ray starts their daemons, and a bridge connects each to its link
(:mod:`zmqrl.hosts.ways.ray_bridge`).
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError, require
from zmqrl.hosts.inventory import Host
from zmqrl.local.extras import require_extra
from zmqrl.words import counted

HOLDER, BRIDGE = "zmqrl.hosts.ways.ray_holder", "zmqrl.hosts.ways.ray_bridge"
CONNECTED_WITHIN_S = 60.0
RESERVED_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a Ray cluster. No program has reserved its ``free_cpus``."""

    id: str
    address: str
    free_cpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """The nodes of the Ray cluster at ``address``, by their names as hosts."""

    address: str
    nodes: Mapping[str, Node]

    @classmethod
    def at(cls, address: str) -> Self:
        """Ask the cluster for its nodes. Raises UsageError without Ray, and ClusterError without an answer."""
        require_extra("ray", "--ray needs")
        with _asked(address, {}, CONNECTED_WITHIN_S) as answer:
            return cls(address=address, nodes=_by_name(answer["nodes"]))

    def hosts(self) -> tuple[Host, ...]:
        """The nodes as hosts. A process has one thread, because :meth:`reserved` reserves one CPU for it."""
        return tuple(Host(name=name, address=node.address, threads=1) for name, node in self.nodes.items())

    @property
    def cores(self) -> dict[str, int]:
        """The free CPUs of each host."""
        return {name: node.free_cpus for name, node in self.nodes.items()}

    def command_on(self, host: Host, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on a node: a :data:`zmqrl.hosts.ways.way.Way`."""
        return [sys.executable, "-P", "-m", BRIDGE, self.address, self.nodes[host.name].id, host.name, *words]

    def check(self, hosts: Iterable[str]) -> None:
        """Raise UsageError if one of ``hosts`` has no free CPU."""
        busy = ",".join(name for name in hosts if not self.nodes[name].free_cpus)
        require(not busy, f"--ray: other programs use all CPUs of {busy}. Leave these hosts out with --exclude {busy}.")

    @contextlib.contextmanager
    def reserved(self, processes: Mapping[str, int]) -> Iterator[None]:
        """Reserve a CPU for each of the ``processes`` of a host, as far as it has them, with one placement group.

        Ray frees them at the end of the block, or if this process is killed. Raises ClusterError if other programs have
        taken some of them.
        """
        cpus = {self.nodes[name].id: min(count, self.nodes[name].free_cpus) for name, count in processes.items()}
        with _asked(self.address, {"cpus": cpus, "within_s": RESERVED_WITHIN_S}, 2 * CONNECTED_WITHIN_S) as answer:
            if not answer["reserved"]:
                wanted = f"{counted(sum(cpus.values()), 'CPU')} on {counted(len(cpus), 'node')}"
                raise ClusterError(
                    f"--ray: Ray did not reserve {wanted} within {RESERVED_WITHIN_S:g} s, because other programs "
                    "use them. Try again, or leave out nodes with --exclude."
                )
            yield


@contextlib.contextmanager
def _asked(address: str, request: dict[str, Any], within_s: float) -> Iterator[dict[str, Any]]:
    """The answer of a process that is connected to the cluster until the block ends. Raises ClusterError."""
    holder = ChildProcess("the connection to Ray", ["-m", HOLDER], {"address": address, **request})
    try:
        answer = holder.hear(within_s) or {"error": f"no answer within {within_s:g} s"}
        if why := answer.get("error"):
            raise ClusterError(f"--ray {address}: the Ray cluster cannot be used: {why}.")
        yield answer
    finally:
        holder.kill()


def _by_name(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Node]:
    """The nodes by host name. If a machine has several nodes, their names end with the first digits of their ids."""
    times = Counter(node["hostname"] for node in nodes)
    return {
        node["hostname"] if times[node["hostname"]] == 1 else f"{node['hostname']}-{node['id'][:8]}": Node(
            id=node["id"], address=node["address"], free_cpus=int(node["free_cpus"])
        )
        for node in nodes
    }
