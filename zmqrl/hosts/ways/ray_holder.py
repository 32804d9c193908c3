"""A process that lists the nodes of a Ray cluster, or holds a reservation of CPUs until it ends.

The job is ``{"address"}``, and for a reservation also ``{"cpus": {NODE_ID: CPUS}, "within_s"}``.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import signal
from typing import Any

import ray
from ray.util.placement_group import placement_group

from zmqrl.hosts.ways.ray_bridge import connect
from zmqrl.process import Messages, read_job, say


def main() -> None:
    """Answer the job, and stay until the parent hangs up."""
    job = read_job(signal.SIGKILL)
    answer: dict[str, Any]
    try:
        connect(job["address"])
        answer = {"reserved": _reserve(job["cpus"], job["within_s"])} if "cpus" in job else {"nodes": _nodes()}
    except Exception as error:  # Ray raises errors of many kinds
        answer = {"error": " ".join(str(error).split()).rstrip(".") or type(error).__name__}
    say(answer)
    Messages().get()


def _nodes() -> list[dict[str, Any]]:
    """The living nodes that have CPUs."""
    free = ray.get(ray.remote(num_cpus=0)(_free).remote())
    return [
        {
            "id": node["NodeID"],
            "hostname": node["NodeManagerHostname"],
            "address": node["NodeManagerAddress"],
            "free_cpus": int(free.get(node["NodeID"], {}).get("CPU", 0)),
        }
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


def _free() -> dict[str, dict[str, float]]:
    """The free resources of each node, by id. Runs in the cluster, because a Ray client cannot ask for them."""
    from ray._private.state import available_resources_per_node

    found: dict[str, dict[str, float]] = available_resources_per_node()
    return found


def _reserve(cpus: dict[str, int], within_s: float) -> bool:
    """Reserve CPUs on each node, all at once or not at all. The reservation ends with this process."""
    group = placement_group(
        [{"CPU": count} for count in cpus.values()],
        strategy="STRICT_SPREAD",
        bundle_label_selector=[{"ray.io/node-id": node} for node in cpus],
    )
    return bool(group.wait(within_s))


if __name__ == "__main__":
    main()
