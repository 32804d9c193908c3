"""For several numbers of hosts, measure the seconds of each phase between the command and the first update.

    sudo .venv/bin/python benchmarks/start_up.py [RECIPE options ...] [--hosts 1 4 8] [--rounds 3] [--output DIR]

Every host of a network lab on this machine has a shard and three workers. All hosts share the processors of this
machine, and its file cache is warm. Writes `results.json` into the directory after each start, and then the table of
its `README.md`.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import marked
from bench_lab import Lab, begin, directory_on, lab, launched

RESULTS = Path(__file__).parent / "results/start-up"
WORKERS_ON_A_HOST = 3
WITHIN_S = 300.0
DEFAULT = ["pong", "--envs.num-envs", "4", "--ppo.rollout-steps", "16", "--ppo.minibatches", "4"]
SAID = {"imports_s": r"started and imported in ([\d.]+) s", "games_s": r"games and network made in ([\d.]+) s"}


def measure(where: Lab, hosts: int, options: Sequence[str]) -> dict[str, Any]:
    """Start a run once. Returns the seconds of each phase in order, and of each step in a worker's start."""
    names = [f"h{number}" for number in range(1, hosts + 1)]
    workers = WORKERS_ON_A_HOST * hosts
    load_before = os.getloadavg()[0]
    numbers = ["--shards", str(hosts), "--workers", str(workers), "--wire.need-s", "30"]
    with launched(where, ",".join(names), [*options, *numbers]) as run:
        history = directory_on("h1", run.path) / "history/shard-0.jsonl"
        phases: dict[str, Callable[[], bool]] = {
            "command": run.path.exists,  # the supervisor imports modules and draws the first parameters
            "hosts": (run.path / "config.json").exists,  # ssh to all hosts at once, and start a host daemon on each
            "shards": (run.path / "cluster.json").exists,
            "workers": lambda: len(_ready(run.path)) >= workers,
            "first update": lambda: history.exists() and b"\n" in history.read_bytes(),
        }
        took_s, since = {}, run.begun_at
        for phase, is_over in phases.items():
            run.wait_for(is_over, phase, WITHIN_S)
            took_s[phase], since = time.time() - since, time.time()
        logs = _ready(run.path)
    row = {
        "hosts": hosts,
        "processes": hosts + workers,
        "load_before": load_before,  # caused by other work and by the previous run
        "total_s": sum(took_s.values()),
        "phases_s": took_s,
        # A worker logs how long the steps of its own start take. These times are part of the phases.
        "worker": {
            what: statistics.median(float(re.findall(words, said)[0]) for said in logs) for what, words in SAID.items()
        },
    }
    print(f"{hosts} hosts, {row['processes']} processes: {row['total_s']:.1f} s", took_s, row["worker"], flush=True)
    return row


def _ready(run: Path) -> list[str]:
    """The logs of the workers that have made their games and their network."""
    logs = [log.read_text(errors="replace") for log in run.glob("logs/worker-*.log")]
    return [said for said in logs if all(re.search(words, said) for words in SAID.values())]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The medians over the rounds as a Markdown table."""
    phases = list(rows[0]["phases_s"])
    lines = [f"| hosts | processes | total s | {' | '.join(phases)} |", "|---" * (3 + len(phases)) + "|"]
    for hosts in sorted({row["hosts"] for row in rows}):
        mine = [row for row in rows if row["hosts"] == hosts]
        figures = [statistics.median(row["total_s"] for row in mine)]
        figures += [statistics.median(row["phases_s"][phase] for row in mine) for phase in phases]
        shown = " | ".join(f"{figure:.1f}" for figure in figures)
        lines.append(f"| {hosts} | {mine[0]['processes']} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """In each round, measure each number of hosts once. Then write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4, 8], choices=range(1, 9))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments, options = parser.parse_known_args()
    origin = begin(parser, arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    result = {"command": shlex.join(sys.argv), "options": options or DEFAULT, "provenance": origin, "rows": rows}
    with lab(max(arguments.hosts)) as where:
        for hosts in arguments.hosts * arguments.rounds:
            rows.append(measure(where, hosts, options or DEFAULT))
            (arguments.output / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    marked.fill_readme(arguments.output, "start-up", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
