"""Measure the seconds from the command to the first update on this machine, with and without the fork server.

    python benchmarks/start_up_here.py [RECIPE options ...] [--workers 1 2] [--rounds 3]

The file cache should be warm, so the first start is not measured.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_lab import begin

from zmqrl.supervisor.tasks import FORK

DEFAULT = ["pong", "--envs.num-envs", "4", "--ppo.rollout-steps", "16", "--ppo.minibatches", "4"]
LOOK_EVERY_S = 0.01
WITHIN_S = 120.0


def first_update_s(workers: int, fork: str, options: Sequence[str]) -> float:
    """Start a run. Returns the seconds until the history of the shard has a line."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run"
        command = [sys.executable, "-P", "-m", "zmqrl", "train", *options]
        command += ["--workers", str(workers), "--run-dir", str(path)]
        history, begun_at = path / "history/shard-0.jsonl", time.monotonic()
        with subprocess.Popen(command, env=os.environ | {FORK: fork}, stdout=subprocess.DEVNULL) as run:
            try:
                while not (history.exists() and b"\n" in history.read_bytes()):
                    if run.poll() is not None or time.monotonic() - begun_at > WITHIN_S:
                        raise RuntimeError(f"{' '.join(command)} made no update")
                    time.sleep(LOOK_EVERY_S)
                return time.monotonic() - begun_at
            finally:
                for _ in range(2):  # the second Ctrl-C ends the run at once
                    run.send_signal(signal.SIGINT)
                    time.sleep(1.0)


def main() -> None:
    """In each round, measure each number of workers with and without the fork server. Then print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments, options = parser.parse_known_args()
    begin(parser)
    options = options or DEFAULT
    first_update_s(1, "on", options)
    cases = [(workers, fork) for workers in arguments.workers for fork in ("on", "off")]
    found: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case in cases:
            found[case].append(first_update_s(*case, options))
            print(f"workers {case[0]}, fork server {case[1]}: {found[case][-1]:.2f} s", flush=True)
    for (workers, fork), seconds in found.items():
        print(f"median, workers {workers}, fork server {fork}: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
