"""Check that the numbers of workers and shards do not change how a run learns, if each update uses the same number of
agent steps.

    python benchmarks/scaling.py [--seeds 5] [--agent-steps 150000] [--output benchmarks/results/scaling]

Trains CartPole with every setting and seed in turn. The games are distributed over the workers of the quorum, so every
update uses the same number of samples. The agent steps of a backup worker count too, even if no update uses them.
Writes ``results.json``, ``scaling.png`` and the table of ``README.md`` into the directory.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from numpy.typing import NDArray

from zmqrl.observe.curves import curve
from zmqrl.observe.drawing import STYLE, look, save
from zmqrl.observe.provenance import provenance
from zmqrl.observe.records import RunRecord
from zmqrl.results.bootstrap import mean_interval

RESULTS = Path(__file__).parent / "results/scaling"
TABLE = re.compile(r"(?<=<!-- scaling -->\n).*?(?=<!-- end -->)", re.DOTALL)
GAMES = 16
GRID_POINTS = 1001
SETTINGS = {
    "1 worker": {"workers": 1, "shards": 1, "backups": 0},
    "2 workers": {"workers": 2, "shards": 1, "backups": 0},
    "4 workers": {"workers": 4, "shards": 1, "backups": 0},
    "2 workers, 4 shards": {"workers": 2, "shards": 4, "backups": 0},
    "2 workers, 1 backup": {"workers": 2, "shards": 1, "backups": 1},
}

Figures: TypeAlias = NDArray[np.float64]
Curves: TypeAlias = Mapping[str, Sequence[tuple[Figures, Figures]]]
"""For each setting: agent steps and scores of each seed."""


def train(numbers: Mapping[str, int], seed: int, agent_steps: int, scratch: Path) -> tuple[Figures, Figures]:
    """Train once. Returns agent steps and the mean score of the last 50 games, shape (rows,) each."""
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    options += ["--envs.num-envs", str(GAMES // numbers["workers"]), "--seed", str(seed)]
    options += ["--agent-steps", str(agent_steps)]
    command = [sys.executable, "-m", "zmqrl", "train", "cartpole", *options, "--run-dir", str(scratch), "--trackers"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = RunRecord.read(scratch)
    return run.column("agent_steps"), run.column("score_mean_50")


def mean_scores(curves: Sequence[tuple[Figures, Figures]], agent_steps: int) -> Figures:
    """The mean score of each seed over the training, shape (seeds,). Before the first known score, the score is 0."""
    grid = np.linspace(0, agent_steps, GRID_POINTS)
    known = ((steps[np.isfinite(score)], score[np.isfinite(score)]) for steps, score in curves)
    return np.array([np.interp(grid, steps, score, left=0.0).mean() for steps, score in known])


def table(curves: Curves, agent_steps: int) -> str:
    """The mean score of each setting as a Markdown table."""
    lines = ["| setting | mean score over the training | 95 % interval | seeds |", "|---|---|---|---|"]
    for name, seeds in curves.items():
        scores = mean_scores(seeds, agent_steps)
        low, high = mean_interval(scores.tolist())
        lines.append(f"| {name} | {scores.mean():.0f} | {low:.0f} to {high:.0f} | {len(scores)} |")
    return "\n".join(lines) + "\n"


def draw(curves: Curves, path: Path) -> None:
    """Draw the mean and the spread of each setting over the agent steps."""
    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        for number, (name, seeds) in enumerate(curves.items()):
            line = curve(seeds)
            axes.plot(line.x, line.mean, label=name, **look(number))
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=look(number)["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("agent steps")
        axes.set_ylabel("mean score of the last 50 games")
        axes.legend(loc="lower right")
        save(figure, path)


def main() -> None:
    """Train with every setting in turn, and write the results after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agent-steps", type=int, default=150_000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in SETTINGS}
    for seed in range(1, arguments.seeds + 1):
        for name, numbers in SETTINGS.items():
            with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
                curves[name].append(train(numbers, seed, arguments.agent_steps, Path(scratch) / "run"))
            mean = mean_scores(curves[name][-1:], arguments.agent_steps)[0]
            print(f"seed {seed}, {name}: mean score over the training {mean:.0f}", flush=True)
        result: dict[str, Any] = {
            "agent_steps": arguments.agent_steps,
            "mean_scores": {name: mean_scores(seeds, arguments.agent_steps).tolist() for name, seeds in curves.items()},
            "load": os.getloadavg()[0],
            **provenance(),
        }
        (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(curves, output / "scaling.png")
    page = output / "README.md"
    if page.exists():
        text = page.read_text(encoding="utf-8")
        page.write_text(TABLE.sub(lambda _: table(curves, arguments.agent_steps), text), encoding="utf-8")
    print(table(curves, arguments.agent_steps))


if __name__ == "__main__":
    main()
