"""``zmqrl`` with detours: one worker reaches the shards over the proxies of a test.

DETOUR_RANK is the rank, and DETOURS maps the endpoints of the shards to the endpoints of the proxies, as JSON.
"""

import json
import os
from dataclasses import replace

from zmqrl.__main__ import main  # first, because it handles signals that arrive during other imports
from zmqrl.start.jobs import WorkerJob
from zmqrl.supervisor.supervisor import Supervisor

RANK, DETOURS = int(os.environ["DETOUR_RANK"]), json.loads(os.environ["DETOURS"])
worker_job = Supervisor._worker_job


def detoured(self: Supervisor, rank: int) -> WorkerJob:
    job = worker_job(self, rank)
    if rank != RANK:
        return job
    endpoints = tuple({role: DETOURS.get(at, at) for role, at in shard.items()} for shard in job.cluster.endpoints)
    return replace(job, cluster=replace(job.cluster, endpoints=endpoints))


if __name__ == "__main__":
    Supervisor._worker_job = detoured  # type: ignore[method-assign]
    main()
