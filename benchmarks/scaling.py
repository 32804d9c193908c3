"""Check that the numbers of workers and shards do not change how a run learns, if each update uses the same number of
agent steps.

    python benchmarks/scaling.py [--recipe cartpole] [--seeds 5] [--agent-steps 150000] [--output DIR]
    python benchmarks/scaling.py --recipe pong --seeds 1 --agent-steps 1000000

Trains the recipe with every setting and seed in turn. The games of the recipe are distributed over the workers of the
quorum, so every update uses the same number of samples. All settings make the same number of updates, and the curves
are over the agent steps that these updates used: version x quorum x batch. So the steps of a backup worker that no
update uses do not count. Adds the recipe to ``results.json``, and draws all recipes of that file in ``scaling.png``.
Writes the tables of ``README.md``. After each training, the file has the scores so far. The picture and the tables have
the seeds of which all settings are trained. If the file already has a result of the recipe, this result stays until the
new one is complete, and has the scores so far under ``next``.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import marked
import matplotlib
import numpy as np
from bench_lab import SLOWEST_STEPS_PER_S, begin, interval_text, train
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zmqrl.config import Config
from zmqrl.observe.curves import curve
from zmqrl.observe.drawing import STYLE, look, save
from zmqrl.observe.records import RunRecord
from zmqrl.recipes import RECIPES

RESULTS: Final = Path(__file__).parent / "results/scaling"
GRID_POINTS: Final = 201
SETTINGS: Final = {
    "1 worker": {"workers": 1, "shards": 1, "backups": 0},
    "2 workers": {"workers": 2, "shards": 1, "backups": 0},
    "4 workers": {"workers": 4, "shards": 1, "backups": 0},
    "2 workers, 4 shards": {"workers": 2, "shards": 4, "backups": 0},
    "2 workers, 1 backup": {"workers": 2, "shards": 1, "backups": 1},
}

Figures: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Mapping[str, Sequence[Sequence[float | None]]]
"""For each setting and seed: the scores at ``GRID_POINTS`` equal distances over the training. None if not known yet."""


def games_of(recipe: Config) -> int:
    """The games of all workers of the quorum."""
    return recipe.effective_quorum * recipe.envs.num_envs


def steps_per_update(recipe: Config) -> float:
    """The agent steps that an update uses: those of the rollouts of the quorum, divided by the updates per rollout."""
    return games_of(recipe) * recipe.algorithm.rollout_steps / recipe.algorithm.updates_per_rollout


def options_of(recipe: Config, numbers: Mapping[str, int], seed: int, updates: int) -> list[str]:
    """The options of `zmqrl train` for one run. Exits if the games cannot be distributed equally."""
    games, workers = games_of(recipe), numbers["workers"]
    if games % workers:
        sys.exit(f"--recipe {recipe.recipe}: its {games} games cannot be distributed equally over {workers} workers")
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    options += ["--envs.num-envs", str(games // workers), "--seed", str(seed)]
    return [*options, "--updates", str(updates)]


def scores_of(recipe: Config, numbers: Mapping[str, int], seed: int, updates: int, scratch: Path) -> list[float | None]:
    """Train once. Returns the scores on the grid."""
    options = [str(recipe.recipe), *options_of(recipe, numbers, seed, updates), "--trackers"]
    train(options, scratch, updates * steps_per_update(recipe) / SLOWEST_STEPS_PER_S)
    return on_grid(RunRecord.read(scratch), updates)


def on_grid(run: RunRecord, updates: int) -> list[float | None]:
    """The mean score of the last 50 games, at ``GRID_POINTS`` versions from 0 to ``updates``."""
    version, score = run.column("version"), run.column("score_mean_50")
    known = np.isfinite(version) & np.isfinite(score)
    if not known.any():
        return [None] * GRID_POINTS
    grid = np.linspace(0, updates, GRID_POINTS)
    found = np.interp(grid, version[known], score[known], left=np.nan)
    return [float(each) if np.isfinite(each) else None for each in found]


def mean_scores(scores: Scores) -> dict[str, Figures]:
    """The mean score of each seed over the training: (seeds,) by setting.

    A mean begins where the scores of all settings and seeds are known. It is NaN if there is no such point.
    """
    figures = {name: np.array(seeds, dtype=np.float64) for name, seeds in scores.items()}
    known = np.isfinite(np.concatenate(list(figures.values()))).all(axis=0)
    return {
        name: each[:, known].mean(axis=1) if known.any() else np.full(len(each), np.nan)
        for name, each in figures.items()
    }


def table(recipe: str, result: Mapping[str, Any]) -> str:
    """The mean score of each setting of a recipe as a Markdown table."""
    lines = [f"| {recipe} | mean score over the training | 95 % interval | seeds |", "|---|---|---|---|"]
    for name, scores in mean_scores(result["scores"]).items():
        interval = interval_text(scores.tolist()) if np.isfinite(scores).all() else "-"
        lines.append(f"| {name} | {scores.mean():.1f} | {interval} | {len(scores)} |")
    return "\n".join(lines) + "\n"


def with_whole_seeds(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the seeds that every setting has, and without the recipes that have no such seed."""
    found = {}
    for recipe, result in results.items():
        if seeds := min(map(len, result["scores"].values())):
            found[recipe] = {**result, "scores": {name: each[:seeds] for name, each in result["scores"].items()}}
    return found


def tables(results: Mapping[str, Any]) -> str:
    """The picture, and the table of each recipe."""
    shown = with_whole_seeds(results)
    if not shown:
        return "Not measured yet.\n"
    parts = ["![score against the agent steps that updates used](scaling.png)\n"]
    return "\n".join([*parts, *(table(recipe, result) for recipe, result in shown.items())])


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the mean and the spread of each setting over the used agent steps, in one panel for each recipe."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 5.4 * len(results), 4.0))
        panels = figure.subplots(1, len(results), squeeze=False)
        for axes, (recipe, result) in zip(panels[0], results.items(), strict=True):
            grid = np.linspace(0, result["agent_steps"], GRID_POINTS)
            for number, (name, seeds) in enumerate(result["scores"].items()):
                line = curve([(grid, np.array(seed, dtype=np.float64)) for seed in seeds])
                axes.plot(line.x, line.mean, label=name, **look(number))
                if line.low is not None and line.high is not None:
                    axes.fill_between(line.x, line.low, line.high, color=look(number)["color"], alpha=0.12, linewidth=0)
            count = max(map(len, result["scores"].values()))
            axes.set_title(f"{recipe}, {count} seeds" if count > 1 else f"{recipe}, a single seed")
            axes.set_xlabel("agent steps that updates used")
        panels[0][0].set_ylabel("mean score of the last 50 games")
        panels[0][-1].legend(loc="lower right")
        save(figure, path)


def write(output: Path, results: Mapping[str, Any]) -> None:
    """Write the results, the picture, and the tables of the page."""
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if shown := with_whole_seeds(results):
        draw(shown, output / "scaling.png")
    marked.fill_readme(output, "scaling", tables(results))


def main() -> None:
    """Train with every setting in turn, and write the results after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="cartpole")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agent-steps", type=int, default=150_000, help="used by the updates of a run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    origin = begin(parser, arguments.output)
    recipe = RECIPES[arguments.recipe]()
    updates = math.ceil(arguments.agent_steps / steps_per_update(recipe))
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    earlier = results.get(arguments.recipe)
    scores: dict[str, list[list[float | None]]] = {name: [] for name in SETTINGS}
    for seed in range(1, arguments.seeds + 1):
        for name, numbers in SETTINGS.items():
            with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
                scores[name].append(scores_of(recipe, numbers, seed, updates, Path(scratch) / "run"))
            print(f"seed {seed}, {name}: score at the end {scores[name][-1][-1]}", flush=True)
            result = {
                "updates": updates,
                "agent_steps": updates * steps_per_update(recipe),
                "scores": scores,
                **origin,
            }
            is_complete = all(len(seeds) == arguments.seeds for seeds in scores.values())
            results[arguments.recipe] = result if earlier is None or is_complete else {**earlier, "next": result}
            write(output, results)
    print(tables(results))


if __name__ == "__main__":
    main()
