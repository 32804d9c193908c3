"""A Ray cluster on this machine: ``python tests/support/a_ray_cluster.py CPUS...`` starts a node for each number.

It prints the addresses of the cluster and of its Ray Client server once the cluster is up. The cluster ends when
standard input ends. The kernel ends the processes of Ray even if this process is killed.
"""

import os
import sys

from ray.cluster_utils import Cluster
from support.network import free_ports

OBJECT_STORE_BYTES = 80 << 20  # the smallest that Ray allows


def main() -> None:
    """Start the nodes, and wait."""
    out = os.dup(1)
    os.dup2(2, 1)  # Ray prints
    (port,) = free_ports(1)
    cluster = Cluster()
    for number, cpus in enumerate(map(int, sys.argv[1:])):
        head = {} if number else {"ray_client_server_port": port}
        cluster.add_node(num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **head)
    os.write(out, f"{cluster.address} ray://127.0.0.1:{port}\n".encode())
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
