"""Compare real runs with changed settings to what `zmqrl profile` predicts for these settings.

    python benchmarks/what_if.py [--rounds 1] [--only TEXT] [--json FILE]

Each prediction uses only the profile of the baseline run. The baseline and the changed run of a case take turns.
`waiting` cases use hardly any processor time. In `computing` cases the workers compete for the cores of this machine.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench_lab import begin, train

from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.replay import Variation, replay
from zmqrl.simulate.times import recorded_run


@dataclass(frozen=True)
class Case:
    """A change of settings, and the options of `zmqrl train` with and without this change."""

    name: str
    baseline: str
    variation: Variation
    changed: str


WITHIN_S = 1800.0
WAITING = "cartpole --updates 160"
THREE = "--workers 3 --shards 2 --straggle 0:0.06 --straggle 1:0.1 --straggle 2:0.2"
BACKED = "--workers 2 --backups 1 --shards 2 --straggle 0:0.06 --straggle 1:0.1 --straggle 2:0.2"
COMPUTING = "pong --updates 128 --model small --envs.num-envs 4"
CASES = (
    Case(
        "without rank 2, the slowest",
        f"{WAITING} {THREE}",
        Variation(without=2),
        f"{WAITING} --workers 2 --shards 2 --straggle 0:0.06 --straggle 1:0.1",
    ),
    Case(
        "without rank 0, the fastest",
        f"{WAITING} {THREE}",
        Variation(without=0),
        f"{WAITING} --workers 2 --shards 2 --straggle 0:0.1 --straggle 1:0.2",
    ),
    Case(
        "one backup more, like rank 1",
        f"{WAITING} {THREE}",
        Variation(backups=1),
        f"{WAITING} {THREE} --backups 1 --straggle 3:0.1",
    ),
    Case(
        "pauses half as long",
        f"{WAITING} {THREE}",
        Variation(spans={"straggle": 0.5}),
        f"{WAITING} --workers 3 --shards 2 --straggle 0:0.03 --straggle 1:0.05 --straggle 2:0.1",
    ),
    Case(
        "twice as many shards",
        f"{WAITING} {THREE}",
        Variation(shards=2),
        f"{WAITING} {THREE.replace('2 --st', '4 --st', 1)}",
    ),
    Case(
        "one backup fewer",
        f"{WAITING} {BACKED}",
        Variation(backups=-1),
        f"{WAITING} --workers 2 --shards 2 --straggle 0:0.06 --straggle 1:0.1",
    ),
    Case(
        "computing: without rank 1",
        f"{COMPUTING} --workers 2 --shards 2",
        Variation(without=1),
        f"{COMPUTING} --workers 1 --shards 2",
    ),
    Case(
        "computing: one backup more",
        f"{COMPUTING} --workers 2 --shards 2",
        Variation(backups=1),
        f"{COMPUTING} --workers 2 --backups 1 --shards 2",
    ),
    Case(
        "computing: twice as many shards",
        f"{COMPUTING} --workers 2 --shards 2",
        Variation(shards=2),
        f"{COMPUTING} --workers 2 --shards 4",
    ),
)


def profiled(options: str, directory: Path) -> RecordedRun:
    """Train once. Returns the profile of the run."""
    train(options.split(), directory, WITHIN_S)
    recorded = recorded_run(directory)
    assert isinstance(recorded, RecordedRun), recorded
    return recorded


def main() -> None:
    """Print a row for each case, then the median and the largest error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="only the cases whose name contains this text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    origin = begin(parser, arguments.json)
    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        parser.error(f"--only {arguments.only}: no case has this in its name")
    rows = []
    print(
        "| change | before | replay of before | predicted | measured | error |\n|---|---|---|---|---|---|", flush=True
    )
    for case in cases:
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
                baseline = profiled(case.baseline, Path(scratch) / "baseline")
                before, again, predicted = baseline.measured, replay(baseline), replay(baseline, case.variation)
                measured = profiled(case.changed, Path(scratch) / "changed").measured
            error = predicted / measured - 1
            rows.append(
                {"change": case.name, "before": before, "replay": again, "predicted": predicted, "measured": measured}
                | {"error": error}
            )
            numbers = f"{before:.2f} | {again:.2f} | {predicted:.2f} | {measured:.2f} | {error:+.1%}"
            print(f"| {case.name} | {numbers} |", flush=True)
    errors = [abs(float(str(row["error"]))) for row in rows]
    print(f"\nmedian error {statistics.median(errors):.1%}, largest {max(errors):.1%}, of {len(rows)} predictions")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
