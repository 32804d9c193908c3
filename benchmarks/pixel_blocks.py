"""Measure gradients with frames and with blocks of pixels as the input of the first convolution.

    python benchmarks/pixel_blocks.py [--seconds 0.2] [--rounds 40]

Prints microseconds per sample for Breakout, in bfloat16. One thread computes with frames and with blocks in turn, each
for ``--seconds`` in each round. For ``breakout``, only the backward pass counts, because acting has computed the rest.
Nothing else may run on the machine.
"""

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import efficiency
from bench_lab import begin

from zmqrl.bench.bare import BareGradient
from zmqrl.hosts.daemons import MALLOC, environment_of
from zmqrl.learner import networks
from zmqrl.learner.settings import NetworkConfig
from zmqrl.recipes import RECIPES

HAS_AMX = {"frames": False, "blocks": True}


def measured(recipe: str, model: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Microseconds per sample in each round, with frames and with blocks."""
    config = replace(RECIPES[recipe](), model=model, network=NetworkConfig(compute="bfloat16"))
    gradient = BareGradient(config=config.to_json(), rank=0, threads=1)
    found: dict[str, list[float]] = {name: [] for name in HAS_AMX}
    for number, place in itertools.product(range(rounds), range(2)):
        name, has_amx = list(HAS_AMX.items())[(number + place) % 2]  # in every second round, blocks come first
        networks.has_amx = lambda has_amx=has_amx: has_amx  # type: ignore[assignment]
        took = gradient.run(seconds)
        found[name].append(1e6 * took["seconds"] / took["steps"])
    return found


def row(name: str, frames: Sequence[float], blocks: Sequence[float]) -> str:
    """Medians, and the median of the ratios with the range of their middle half."""
    ratios = [each / other for each, other in zip(blocks, frames, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return (
        f"| {name} | {statistics.median(frames):.0f} | {statistics.median(blocks):.0f} | "
        f"{ratio:.2f} ({low:.2f} to {high:.2f}) |"
    )


def main() -> None:
    """Measure each recipe with each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2")
    origin = begin(parser)
    if os.environ.keys().isdisjoint(MALLOC):  # a process of a run starts with these variables
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment_of(1)})
    print(f"{origin['cpu']}, commit {origin['commit']}\n")
    print("| gradient | frames | blocks | ratio (middle half) |\n|---|---|---|---|")
    for recipe, model in itertools.product(efficiency.RECIPES, efficiency.MODELS):
        found = measured(recipe, model, arguments.seconds, arguments.rounds)
        print(row(f"{recipe} --model {model}", **found), flush=True)


if __name__ == "__main__":
    main()
