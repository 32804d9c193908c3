"""Measure updates per second with one slow worker out of four: waiting (N=4, b=0) against a backup (N=3, b=1).

    python benchmarks/straggler.py [--rounds 3] [--minutes 0.5] [--delay-s 1.0] [--output DIR] [RECIPE options ...]

The two settings take turns, so that noise on the machine affects both alike. An update of three workers uses three
quarters of the samples, so the gradients per second are compared too. Writes ``results.json`` into DIR.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_lab import begin, train

SETTINGS = {"N=4, b=0": ["--workers", "4", "--backups", "0"], "N=3, b=1": ["--workers", "3", "--backups", "1"]}
UNITS = {"updates_per_s": "updates/s", "gradients_per_s": "gradients/s"}


def run(options: list[str], minutes: float) -> dict[str, Any]:
    """Train once for ``minutes``. Returns the summary with updates and gradients per second."""
    with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
        directory = Path(scratch) / "run"
        train([*options, "--minutes", str(minutes)], directory, 60 * minutes)
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
        updates_per_s = summary["updates"] / summary["wall_s"]
        return summary | {"updates_per_s": updates_per_s, "gradients_per_s": summary["quorum"] * updates_per_s}


def main() -> None:
    """Print one line per setting: the median and the range over the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--delay-s", type=float, default=1.0)
    parser.add_argument("--output", type=Path)
    arguments, options = parser.parse_known_args()
    origin = begin(parser, arguments.output)
    about = {"command": shlex.join(sys.argv), **origin}
    common = [*(options or ["cartpole"]), "--straggle", f"3:{arguments.delay_s}"]
    rates: dict[str, dict[str, list[float]]] = {unit: {name: [] for name in SETTINGS} for unit in UNITS}
    for _ in range(arguments.rounds):
        for name, setting in SETTINGS.items():
            summary = run([*common, *setting], arguments.minutes)
            for unit in UNITS:
                rates[unit][name].append(summary[unit])
            print(f"{name}: {summary['updates_per_s']:.2f} updates/s, {summary['contributions']}", flush=True)
    for unit, of in rates.items():
        for name, values in of.items():
            median, said = statistics.median(values), UNITS[unit]
            print(f"{name}: median {median:.2f} {said} ({min(values):.2f} to {max(values):.2f})")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        results = {**rates, **about}
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
