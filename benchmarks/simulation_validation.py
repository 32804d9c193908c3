"""Test the simulator against real processes: calibrate on few workers, predict larger runs, then measure these runs and
compare.

    python benchmarks/simulation_validation.py calibrate   # runs few workers; writes calibration.json
    python benchmarks/simulation_validation.py predict     # simulates the held-out scenarios; writes predictions.json
    git commit ...                                         # so that the predictions are older than the measurements
    python benchmarks/simulation_validation.py run         # runs them; writes results.json and the table in the docs

All measured runs have real shards, sockets and gradients. Their workers sleep for times drawn from a seeded law. In
some scenarios, the workers run on a host of a network lab and share its link to the shards. So ``run`` needs root and
the packages of docs/netlab.md. The machine must be otherwise idle. ``--only NAME`` runs one scenario. ``--updates N``
shortens every run.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from bench_lab import NETLAB, begin, lab
from marked import fill

from zmqrl.hosts.judging.load import cpu_use
from zmqrl.observe.spans import SHARD_SPANS
from zmqrl.ps.wire.codec import payload_bytes
from zmqrl.simulate import ComputeTimes, Scenario, ShardCosts, Work, simulate
from zmqrl.simulate.live.run import Observed, observe
from zmqrl.simulate.times import times_of

STAT: Final = Path("/proc/stat")
RESULTS: Final = Path("benchmarks/results/simulation-validation")
PAGE: Final = Path("docs/simulation.md")
SIZES: Final = (100_000, 331_909)
LAWS: Final = {
    "narrow": "lognormal:0.3:0.1",
    "wide": "constant:0.15+exponential:0.15",
    "rare": "lognormal:0.25:0.1+0.05*constant:0.6",
}
WARM_UP: Final = 5  # versions during which workers join
UPDATES: Final = 150
MOST_CPU: Final = 0.5
MEDIAN_ERROR, WORST_ERROR = 0.10, 0.25

# The share of an Ethernet frame that carries the message. The rate limit of a lab host counts whole frames.
FRAME_SHARE: Final = 1448 / 1514

# workers, backups, shards, size, law, and the Mbit/s of the workers' link. The calibration uses none of these
# scenarios.
HELD_OUT: Final = (
    (2, 1, 1, 0, "rare", None),
    (2, 0, 4, 1, "narrow", None),
    (3, 1, 2, 1, "wide", None),
    (4, 0, 1, 1, "narrow", None),
    (4, 0, 2, 0, "wide", None),
    (4, 2, 4, 1, "rare", None),
    (6, 0, 2, 1, "rare", None),
    (6, 2, 1, 0, "wide", None),
    (6, 3, 3, 1, "narrow", None),
    (8, 0, 1, 1, "wide", None),
    (8, 1, 4, 0, "rare", None),
    (8, 2, 2, 1, "narrow", None),
    (10, 0, 4, 1, "rare", None),
    (10, 3, 1, 0, "narrow", None),
    (12, 0, 2, 0, "wide", None),
    (12, 3, 4, 1, "wide", None),
    (14, 2, 2, 1, "rare", None),
    (16, 0, 1, 1, "narrow", None),
    (16, 0, 4, 0, "rare", None),
    (13, 3, 3, 1, "wide", None),
    (3, 0, 1, 0, "wide", 50),
    (4, 1, 2, 1, "narrow", 200),
)


def held_out(updates: int) -> dict[str, Scenario]:
    """The scenarios that are predicted, by name."""
    found = {}
    for number, (workers, backups, shards, size, law, mbit) in enumerate(HELD_OUT):
        scenario = Scenario(
            workers=workers,
            backups=backups,
            shards=shards,
            parameters=SIZES[size],
            compute=LAWS[law],
            updates=updates,
            busy=0.0,
            seed=100 + number,
        )
        if mbit is not None:
            scenario = replace(
                scenario,
                hosts=2,
                shard_hosts=(0,) * shards,
                worker_hosts=(1,) * scenario.ranks,
                bandwidth=FRAME_SHARE * mbit * 1e6 / 8,
            )
        link = f"{mbit}mbit" if mbit else "none"
        found[f"N{workers}-b{backups}-S{shards}-{SIZES[size] // 1000}k-{law}-{link}"] = scenario
    return found


# calibration


def calibrate(updates: int, origin: dict[str, Any]) -> None:
    """Measure runs of one to three workers whose work always takes the same time, and fit the costs."""
    rows = []
    for workers, shards, parameters in itertools.product((1, 2, 3), (1, 2), SIZES):
        scenario = Scenario(
            workers=workers, shards=shards, parameters=parameters, compute="constant:0.1", updates=updates, busy=0.0
        )
        observed = observe(scenario)
        rows.append(measured(scenario, observed))
        print(rows[-1], flush=True)
    found = {"provenance": origin, "rows": rows, **fit(rows)}
    write("calibration.json", found)


def measured(scenario: Scenario, observed: Observed) -> dict[str, Any]:
    """The measurements that the fit needs from one run."""
    return {
        "workers": scenario.workers,
        "shards": scenario.shards,
        "parameters": scenario.parameters,
        "slice_bytes": payload_bytes(scenario.codec, scenario.parameters // scenario.shards),
        "median_s": statistics.median(observed.result.step_s[WARM_UP:]),
        "shard_s": observed.shard_s,
        "worker_cpu_s": observed.worker_cpu_s,
    }


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit lines to the spans, and to the part of a step that the spans do not explain.

    A cost is ``[at 0 bytes, per byte]`` of a slice. ``receive`` and ``accumulate`` are the costs of one contribution.
    ``rest`` has three terms: seconds per step, seconds per byte of a slice, and seconds per byte of a slice for each
    subscriber.
    """
    bytes_of = [row["slice_bytes"] for row in rows]
    costs = {}
    for name in SHARD_SPANS:
        each = [row["workers"] if name in ("receive", "accumulate") else 1 for row in rows]
        costs[name] = line(bytes_of, [row["shard_s"][name] / n for row, n in zip(rows, each, strict=True)])
    worker = line([4 * row["parameters"] for row in rows], [row["worker_cpu_s"] for row in rows])
    calibration = {"costs": costs, "worker": worker, "rest": [0.0, 0.0, 0.0]}
    unexplained = []
    for row in rows:
        scenario = Scenario(
            workers=row["workers"],
            shards=row["shards"],
            parameters=row["parameters"],
            compute="constant:0.1",
            updates=20,
            busy=0.0,
        )
        unexplained.append(row["median_s"] - statistics.median(predicted(scenario, calibration)[WARM_UP:]))
    terms = np.array([[1.0, row["slice_bytes"], row["workers"] * row["slice_bytes"]] for row in rows])
    return calibration | {"rest": not_negative(terms, np.array(unexplained))}


def line(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Fit offset and slope by least squares. Neither can be negative."""
    return not_negative(np.array([[1.0, x] for x in xs]), np.array(ys))


def not_negative(terms: Any, values: Any) -> list[float]:
    """Fit coefficients by least squares. Leave out each term whose coefficient would be negative."""
    kept = list(range(terms.shape[1]))
    while kept:
        scale = np.abs(terms[:, kept]).max(axis=0)
        found = np.linalg.lstsq(terms[:, kept] / scale, values, rcond=None)[0] / scale
        if (found >= 0).all():
            return [float(found[kept.index(n)]) if n in kept else 0.0 for n in range(terms.shape[1])]
        kept.remove(kept[int(np.argmin(found * scale))])
    return [0.0] * terms.shape[1]


# prediction


def predicted(scenario: Scenario, calibration: dict[str, Any]) -> list[float]:
    """Simulate ``scenario`` on this machine with the calibrated costs. Returns the step times in seconds."""
    size = payload_bytes(scenario.codec, scenario.parameters // scenario.shards)
    cost_s = {name: at_0 + per_byte * size for name, (at_0, per_byte) in calibration["costs"].items()}
    every_step_s, per_byte, per_subscriber_byte = calibration["rest"]
    at_0, worker_per_byte = calibration["worker"]
    worker_s = at_0 + worker_per_byte * payload_bytes(scenario.codec, scenario.parameters)
    here = replace(
        scenario,
        hosts=scenario.hosts or 1,
        cores=os.cpu_count(),
        loopback=2 / per_byte if per_byte else float("inf"),  # in each step, a slice crosses the loopback device twice
        costs=ShardCosts(
            receive_s=cost_s["receive"],
            accumulate_s=cost_s["accumulate"],
            optimize_s=cost_s["optimize"],
            commit_s=cost_s["commit"],
            publish_s=cost_s["publish"],
            send_s=per_subscriber_byte * size,
        ),
    )
    drawn = times_of(scenario)
    times = ComputeTimes(
        tuple(Work([worker_s], [each + every_step_s for each in work.idle_s]) for work in drawn.gradient)
    )
    return list(simulate(here, compute=times).step_s)


def without_costs_s(scenario: Scenario) -> float:
    """The median step time if nothing but the drawn times of the workers took time: the K-th draw."""
    return statistics.median(simulate(replace(scenario, hosts=None, bandwidth=math.inf)).step_s[WARM_UP:])


def predict(updates: int) -> None:
    """Simulate every held-out scenario and save the predicted times of its steps."""
    calibration = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    found = {name: predicted(scenario, calibration) for name, scenario in held_out(updates).items()}
    write("predictions.json", {name: [round(step_s, 6) for step_s in steps] for name, steps in found.items()})
    for name, steps in found.items():
        print(f"{name}: median {1000 * statistics.median(steps[WARM_UP:]):.1f} ms")


# measurement


def run(updates: int, only: str | None, origin: dict[str, Any]) -> None:
    """Run the held-out scenarios, compare the results with the predictions, and write the table."""
    commit = commit_of(RESULTS / "predictions.json")
    if only is None and commit is None:
        sys.exit("predictions.json has uncommitted changes: commit it before you run the scenarios.")
    predictions = json.loads((RESULTS / "predictions.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for name, scenario in held_out(updates).items():
        if only is not None and name != only:
            continue
        before = STAT.read_text(encoding="utf-8")
        steps = measure(scenario).result.step_s[WARM_UP:]
        use = cpu_use(before, STAT.read_text(encoding="utf-8"))
        busy = use["busy_cores"] / use["machine_cores"] + use["steal_share"]
        row = compared(name, predictions[name][WARM_UP:updates], steps)
        row |= {"cpu": busy, "without_costs_s": without_costs_s(scenario)}
        rows.append(row)
        print({key: value for key, value in row.items() if key != "steps_s"}, flush=True)
    if only is None:
        write("results.json", {"provenance": origin, "predictions": commit, "rows": rows})
        fill(PAGE, "validation", table(rows))


def measure(scenario: Scenario) -> Observed:
    """Run a scenario: on this machine, or with the workers on a lab host whose link has the required rate."""
    if not math.isfinite(scenario.bandwidth):
        return observe(scenario)
    with lab(1) as where:
        where("rate", "h1", f"{round(scenario.bandwidth * 8 / FRAME_SHARE / 1e6)}mbit")
        address = json.loads(where("status", "--json"))["subnet"] + ".254"
        through = [sys.executable, "-B", str(NETLAB), "exec", "--dir", str(where.directory), "h1"]
        return observe(scenario, address=address, workers_through=through)


def compared(name: str, prediction: Sequence[float], steps: Sequence[float]) -> dict[str, Any]:
    """The medians, the relative error of the prediction, and the Kolmogorov-Smirnov distance of the distributions."""
    foreseen_s, median_s = statistics.median(prediction), statistics.median(steps)
    return {
        "name": name,
        "predicted_s": foreseen_s,
        "median_s": median_s,
        "error": foreseen_s / median_s - 1,
        "ks": ks_distance(prediction, steps),
        "steps_s": [round(step_s, 6) for step_s in steps],
    }


def ks_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """The largest difference between the two empirical distribution functions."""
    one, two = np.sort(first), np.sort(second)
    places = np.concatenate([one, two])
    shares = [np.searchsorted(each, places, side="right") / len(each) for each in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page, and whether the errors of the rows that were not too busy are within their limits."""
    counted = [row for row in rows if row["cpu"] <= MOST_CPU]
    errors = [abs(row["error"]) for row in counted]
    alone = [abs(row["without_costs_s"] / row["median_s"] - 1) for row in counted]
    median, worst = statistics.median(errors), max(errors)
    met = median <= MEDIAN_ERROR and worst <= WORST_ERROR
    columns = (
        "workers | backups | shards | parameters | law | link | draws ms | predicted ms | measured ms | error | KS"
    )
    lines = [
        f"| {columns} | CPU |",
        "|---" * 12 + "|",
        *(
            f"| {' | '.join(name_parts(row['name']))} | {1000 * row['without_costs_s']:.0f} "
            f"| {1000 * row['predicted_s']:.0f} | {1000 * row['median_s']:.0f} "
            f"| {row['error']:+.1%}{' **missed**' if abs(row['error']) > WORST_ERROR else ''} | {row['ks']:.2f} "
            f"| {row['cpu']:.0%}{' **too busy**' if row['cpu'] > MOST_CPU else ''} |"
            for row in rows
        ),
        "",
        f"Rows that count: {len(counted)}. Median error {median:.1%} (limit {MEDIAN_ERROR:.0%}), "
        f"worst {worst:.1%} (limit {WORST_ERROR:.0%}): {'met' if met else '**missed**'}.",
        f"With the draws alone: median error {statistics.median(alone):.1%}, worst {max(alone):.1%}.",
        f"Median Kolmogorov-Smirnov distance {statistics.median(row['ks'] for row in counted):.2f}.",
    ]
    return "\n".join([*lines, ""])


def name_parts(name: str) -> list[str]:
    """The cells of the table that come from the name of a scenario."""
    workers, backups, shards, size, law, link = name.split("-")
    return [workers[1:], backups[1:], shards[1:], size, LAWS[law], link]


def commit_of(path: Path) -> str | None:
    """The commit that last changed a file, and the time of that commit. None if the file has uncommitted changes."""
    ask = ["git", "log", "-1", "--format=%h of %cI", "--", str(path)]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(path)], check=False, timeout=60).returncode == 0
    return commit if commit and same else None


def write(name: str, found: Any) -> None:
    """Write a result file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run one of the three commands: calibrate, predict or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("calibrate", "predict", "run"))
    parser.add_argument("--only", help="run this scenario only, and write nothing")
    parser.add_argument("--updates", type=int, default=UPDATES)
    arguments = parser.parse_args()
    origin = begin(parser, None if arguments.only else RESULTS)
    os.environ.setdefault("ZMQRL_LOG_LEVEL", "warning")
    if arguments.only not in (None, *held_out(UPDATES)):
        sys.exit(f"--only {arguments.only}: no such scenario; choose one of {', '.join(held_out(UPDATES))}.")
    if arguments.part == "calibrate":
        calibrate(arguments.updates, origin)
    elif arguments.part == "predict":
        predict(arguments.updates)
    else:
        run(arguments.updates, arguments.only, origin)


if __name__ == "__main__":
    main()
