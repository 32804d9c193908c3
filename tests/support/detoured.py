"""``zmqrl`` with detours: one worker reaches the shards over the proxies of a test.

DETOUR_RANK is the rank, and DETOURS maps the endpoints of the shards to the endpoints of the proxies, as JSON.
"""

import json
import os
from typing import Any

from zmqrl.__main__ import main  # first, because it handles signals that arrive during other imports
from zmqrl.supervisor.supervisor import Supervisor

RANK, DETOURS = int(os.environ["DETOUR_RANK"]), json.loads(os.environ["DETOURS"])
worker_job = Supervisor._worker_job


def detoured(self: Supervisor, rank: int) -> dict[str, Any]:
    job = worker_job(self, rank)
    if rank == RANK:
        for shard in job["cluster"]["shards"]:
            shard |= {role: DETOURS[at] for role, at in shard.items() if at in DETOURS}
    return job


if __name__ == "__main__":
    Supervisor._worker_job = detoured  # type: ignore[method-assign]
    main()
