"""Run ``zmqrl bench train`` for the recipes of Breakout with several networks, and compare them with their parts.

    python benchmarks/efficiency.py [--output DIR] [options of `zmqrl bench train` ...]

Takes about 20 minutes. Nothing else may run on the machine. Writes `results.json` into the directory after each case,
and then the table of its `README.md`.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import marked
from bench_lab import begin

RESULTS = Path(__file__).parent / "results/efficiency"
RECIPES = ("breakout", "breakout-ppo")
MODELS = ("narrow", "small", "nature")
PARTS = {"env_step": "environment", "act": "acting", "gradient": "gradient", "wait": "waiting", "rest": "rest"}
WITHIN_S = 1200.0


def measure(recipe: str, model: str, options: list[str]) -> dict[str, Any]:
    """The output of one ``zmqrl bench train --json``."""
    command = [sys.executable, "-m", "zmqrl", "bench", "train", recipe, "--model", model, "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=WITHIN_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each recipe and network."""
    lines = [
        "| training | agent steps/s | limit | efficiency | " + " | ".join(PARTS.values()) + " |",
        "|---|---|---|---|" + "---|" * len(PARTS),
    ]
    for name, row in found.items():
        rounds = [each["efficiency"] for each in row["rounds"]]
        micros = [
            f"{1e6 * row['split_s'][part]:.0f}"
            + (f" ({1e6 * row['bare_s'][part]:.0f})" if part in row["bare_s"] else "")
            for part in PARTS
        ]
        lines.append(
            f"| {name} | {row['agent_steps_per_s']:,.0f} | {row['component_limit_steps_per_s']:,.0f} | "
            f"{row['efficiency']:.2f} ({min(rounds):.2f} to {max(rounds):.2f}) | {' | '.join(micros)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each case, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments, options = parser.parse_known_args()
    origin = begin(parser, arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = {}
    for recipe, model in itertools.product(RECIPES, MODELS):
        found[f"{recipe} --model {model}"] = measure(recipe, model, options) | {"provenance": origin}
        (arguments.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    marked.fill_readme(arguments.output, "efficiency", table(found))
    print(table(found), end="")


if __name__ == "__main__":
    main()
