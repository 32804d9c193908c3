"""A worker that sleeps instead of computing, but pulls real weights and pushes real gradients.

``python -m zmqrl.simulate.live.sleeper`` reads a job from standard input, reports that the worker is up, and waits for
the message to begin. At the end of the run, the worker reports its counts.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import dataclasses
import signal
import sys
import time
from typing import Any

from zmqrl.errors import ZmqrlError
from zmqrl.process import Messages, ended_by_sigterm, log_to_stderr, read_job, say
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.worker.connection import Connection, PulledWeights

LOOK_S = 0.001  # how often a worker that drops late work checks whether its work is late


@dataclasses.dataclass(slots=True)
class Counts:
    gradients: int = 0
    rollouts: int = 0
    abandoned: int = 0
    abandoned_rollouts: int = 0


def work(connection: Connection, job: dict[str, Any]) -> tuple[Counts, list[tuple[float, float]]]:
    """Contribute until the run ends, as ``zmqrl.worker.work`` does, but sleep instead of computing.

    Returns the counts, and the start and end of each wait for weights (``time.monotonic``). Raises ClusterError.
    """
    gradient_s, rollout_s, per_rollout = job["gradient_s"], job["rollout_s"], job["updates_per_rollout"]
    counts, waits = Counts(), list[tuple[float, float]]()

    def pull(above: int = -1) -> PulledWeights | None:
        began_at = time.monotonic()
        weights = connection.pull(above)
        waits.append((began_at, time.monotonic()))
        return weights

    weights = pull()
    while weights is not None:
        generation, acted, iteration = weights.generation, weights.version, weights.version // per_rollout
        if rollout_s:
            time.sleep(rollout_s[iteration % len(rollout_s)])
            weights = pull(acted - 1)
            if weights is None:  # the run ended during the rollout, which does not count
                break
            counts.rollouts += 1
            iteration = weights.version // per_rollout
            if weights.generation != generation or iteration > acted // per_rollout + 1:
                counts.abandoned_rollouts += 1
                continue
        while weights is not None and (weights.generation, weights.version // per_rollout) == (generation, iteration):
            if slept(connection, gradient_s[weights.version % len(gradient_s)], weights.version, job["drops"]):
                connection.push(weights, connection.gradient_buffer())
                counts.gradients += 1
            else:
                counts.abandoned += 1
            weights = pull(weights.version)
    return counts, waits


def slept(connection: Connection, seconds: float, version: int, drops: bool) -> bool:
    """Sleep. Returns False if the sleep was cut short because every shard is past ``version``."""
    if not drops:
        time.sleep(seconds)
        return True
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, LOOK_S))
        if connection.passed(version):
            return False
    return True


def main() -> None:
    job = read_job(signal.SIGKILL)
    log = log_to_stderr("zmqrl.simulate.live.sleeper")
    messages = Messages()
    say({"ready": True})
    messages.get()
    begun_s = time.process_time()
    try:
        cluster = Cluster.from_json(job["cluster"])
        with (
            ended_by_sigterm(),
            Connection(cluster, job["rank"], incarnation=job["incarnation"], log=log) as connection,
        ):
            counts, waits = work(connection, job)
            tally = dataclasses.asdict(connection.tally())
        cpu_s = time.process_time() - begun_s
        say({"counts": dataclasses.asdict(counts), "tally": tally, "waits": waits, "cpu_s": cpu_s})
    except ZmqrlError as error:
        log.error("%s", error)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
