"""Measure how training speed depends on the number of parameter servers if the network is the bottleneck.

    sudo .venv/bin/python benchmarks/central_graph.py [RECIPE options ...] [--shards 1 2 4] [--workers 4]
        [--rate 50mbit off] [--seconds 60] [--updates 50] [--output DIR]

Each shard and each worker has its own host in a network lab on this machine. The rate limits the network of each host
in each direction. By default, each worker learns Pong from rollouts of five steps in four games, so an update loads the
network much more than the processors. A measurement continues after its seconds until it has counted the updates, but
takes at most ten times as long. After each one, writes `results.json`, `central-graph.png` and the table of
`README.md`.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marked
import matplotlib
from bench_lab import Lab, begin, lab, launched
from matplotlib.figure import Figure

from zmqrl.observe.drawing import COLOURS, STYLE

RESULTS = Path(__file__).parent / "results/central-graph"
MOST_HOSTS = 8
FIRST_ROW_WITHIN_S = 180.0
WARM_UP_S = 10.0
LONGEST = 10  # times as long as the asked seconds
DEFAULT = ["pong", "--algo", "ba3c", "--model", "nature", "--envs.num-envs", "4", "--ba3c.rollout-steps", "5"]
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def measure(
    where: Lab, shards: int, workers: int, rate: str, options: Sequence[str], seconds: float, updates: int
) -> dict[str, Any]:
    """Train once. Returns updates and agent steps per second, and how busy the links and the processors were."""
    used = [f"h{number}" for number in range(1, shards + workers + 1)]
    for host in used:
        where("rate", host, rate)
    hosts = "".join(
        f'[[host]]\nname = "{host}"\n{"shards" if index < shards else "workers"} = 1\nthreads = 1\n'
        for index, host in enumerate(used)
    )
    load_before = os.getloadavg()[0]
    numbers = ["--shards", str(shards), "--workers", str(workers)]
    with launched(where, hosts, [*options, *numbers]) as run:
        first = run.wait_for(lambda: run.row_after(WARM_UP_S), "row of metrics", FIRST_ROW_WITHIN_S)
        before, begun_at = Sample(where), time.monotonic()
        run.wait_for(lambda: time.monotonic() - begun_at >= seconds, "measurement", 2 * seconds)

        def is_over() -> bool:
            counted = run.rows()[-1]["version"] - first["version"]
            return counted >= updates or time.monotonic() - begun_at >= LONGEST * seconds

        run.wait_for(is_over, "measurement", (LONGEST + 1) * seconds, every_s=1.0)
        after, elapsed_s = Sample(where), time.monotonic() - begun_at
        last = run.rows()[-1]
        parameters = json.loads((run.path / "cluster.json").read_text())["layout"]["count"]
    wall_s = last["wall_s"] - first["wall_s"]
    busiest = {
        host: max(now - then for now, then in zip(after.links[host], before.links[host], strict=True)) * 8 / elapsed_s
        for host in used
    }
    host = max(busiest, key=lambda host: busiest[host])
    row = {
        "shards": shards,
        "workers": workers,
        "rate": rate,
        "parameters": parameters,
        "updates_per_s": (last["version"] - first["version"]) / wall_s,
        "agent_steps_per_s": (last["agent_steps"] - first["agent_steps"]) / wall_s,
        "measured_s": wall_s,
        "agent_steps_per_update": last["agent_steps"] / max(1, last["version"]),
        "busiest_host": host,
        "busiest_link_mbit_per_s": busiest[host] / 1e6,
        "links_in_turn_updates_per_s": links_in_turn(parameters, shards, workers, rate),
        "load_before": load_before,  # caused by other work and by the previous run
        "processors_busy": (after.busy_s - before.busy_s) / (elapsed_s * (os.cpu_count() or 1)),
        "split_s": last["split_s"],
    }
    print(
        f"{shards} shards, {workers} workers, {rate}: {row['updates_per_s']:.2f} updates/s, "
        f"{row['agent_steps_per_s']:.0f} agent steps/s; busiest link {row['busiest_link_mbit_per_s']:.0f} Mbit/s "
        f"({row['busiest_host']}), processors {row['processors_busy']:.0%} busy",
        flush=True,
    )
    return row


class Sample:
    """Counters that never decrease: bytes by host and direction, and the busy seconds of all processors together."""

    def __init__(self, where: Lab) -> None:
        self.links = where.bytes_by_host()
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        self.busy_s = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def links_in_turn(parameters: int, shards: int, workers: int, rate: str) -> float | None:
    """Updates per second if the busiest link caused the only delay, and carried all gradients before any weights.

    The real number can be higher: some workers already play and send while others still receive weights.
    """
    if rate == "off":
        return None
    bytes_each_way = 4 * parameters * max(workers / shards, 1.0)
    return bits_per_s(rate) / (2 * 8 * bytes_each_way)


def bits_per_s(rate: str) -> float:
    """Convert a netlab rate, such as 50mbit, to bits per second."""
    return float(rate[:-4]) * UNITS[rate[-4:]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as a Markdown table. A row counts against the first one with the same links and workers."""
    fewest = "one shard" if rows[0]["shards"] == 1 else f"{rows[0]['shards']} shards"
    lines = [f"| shards | workers | link of each host | updates | updates/s | agent steps/s | against {fewest} "]
    lines[0] += "| link alone | busiest link, Mbit/s | processors |"
    lines.append("|---" * 10 + "|")
    first: dict[tuple[str, int], float] = {}
    for row in rows:
        rate, alone = row["updates_per_s"], row["links_in_turn_updates_per_s"]
        cells = [
            row["shards"],
            row["workers"],
            link(row["rate"]),
            round(rate * row["measured_s"]),
            f"{rate:.2f}",
            f"{row['agent_steps_per_s']:.1f}",
            f"{rate / first.setdefault((row['rate'], row['workers']), rate):.1f}",
            "" if alone is None else f"{alone:.2f}",
            f"{row['busiest_link_mbit_per_s']:.0f}",
            f"{100 * row['processors_busy']:.0f} % busy",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def link(rate: str) -> str:
    """Words for a netlab rate."""
    return "no limit" if rate == "off" else f"{rate[:-4]} {rate[-4].upper()}bit/s"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw agent steps per second against the number of shards: one panel per rate, one curve per number of workers."""
    with matplotlib.rc_context(STYLE):
        rates = list(dict.fromkeys(row["rate"] for row in rows))
        figure = Figure(figsize=(4.6 * len(rates), 3.8))
        panels = figure.subplots(1, len(rates), squeeze=False)
        for axes, rate in zip(panels[0], rates, strict=True):
            for colour, workers in zip(COLOURS, sorted({row["workers"] for row in rows}), strict=False):
                mine = [row for row in rows if (row["rate"], row["workers"]) == (rate, workers)]
                mine.sort(key=lambda row: row["shards"])
                shards = [row["shards"] for row in mine]
                made = [row["agent_steps_per_s"] for row in mine]
                axes.plot(shards, made, "o-", color=colour, label=f"{workers} workers")
                if rate != "off":
                    alone = [row["links_in_turn_updates_per_s"] * row["agent_steps_per_update"] for row in mine]
                    axes.plot(shards, alone, ":", color=colour, label="links alone: gradients, then weights")
            axes.set_title(link(rate) if rate == "off" else f"{link(rate)} for each host")
            axes.set_xticks(sorted({row["shards"] for row in rows}))
            axes.set_xlabel("shards, each on its own host")
            axes.set_ylabel("agent steps/s")
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.legend(loc="lower right")
        figure.savefig(path)


def main() -> None:
    """Measure each setting in turn, and write the results after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[4])
    parser.add_argument("--rate", nargs="+", default=["50mbit", "off"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments, options = parser.parse_known_args()
    origin = begin(parser, arguments.output)
    hosts = max(arguments.shards) + max(arguments.workers)
    if hosts > MOST_HOSTS:
        parser.error(f"{hosts} hosts are needed, but a lab has {MOST_HOSTS} at most")
    # A slice takes seconds on a slow network. During that time, shards must not ask for the slice again.
    options = [*(options or DEFAULT), "--wire.need-s", "10", "--trackers"]
    arguments.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "options": options,
        "provenance": origin,
        "rows": [],
    }
    with lab(hosts) as where:
        for rate, workers, shards in itertools.product(arguments.rate, arguments.workers, arguments.shards):
            result["rows"].append(measure(where, shards, workers, rate, options, arguments.seconds, arguments.updates))
            (arguments.output / "results.json").write_text(json.dumps(result, indent=2) + "\n")
            draw(result["rows"], arguments.output / "central-graph.png")
            marked.fill_readme(arguments.output, "central-graph", table(result["rows"]))
    print(arguments.output / "central-graph.png")


if __name__ == "__main__":
    main()
