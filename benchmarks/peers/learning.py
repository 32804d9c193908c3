"""Train Breakout with Stable-Baselines3, and draw its score beside that of zmqrl, against minutes.

    python benchmarks/peers/learning.py --peer ppo --minutes 60 --run runs/breakout [--output DIR] [--environments DIR]
    python benchmarks/peers/learning.py --run runs/breakout      # draw again, without training

The runs of zmqrl must come from this machine, with no other load, like the training of the peer. The clock of the peer
starts when its games exist. Writes ``sb3-PEER.jsonl``: a line about the training, and a row every 10 s.
Then draws all such files of the directory in ``score.svg``, and fills the scores of its ``README.md``.
"""

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from measure import HERE, PACKAGES, RESULTS, begin, fill_readme, python_of, train_with
from numpy.typing import NDArray
from scores import SB3_FLAVOUR

from zmqrl.observe.drawing import STYLE, look, save
from zmqrl.observe.records import RunRecord
from zmqrl.results.flavour import flavour_lines

SB3: Final = next(package for package in PACKAGES["sb3"] if package.startswith("stable-baselines3"))
NOTE_LETTERS: Final = 150  # in a line below the picture

Figures: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The scores of one training: minutes, agent steps and the mean score of the last 50 games, (rows,) each."""

    name: str
    flavour: str
    machine: str
    minutes: Figures
    agent_steps: Figures
    score: Figures

    @classmethod
    def of_zmqrl(cls, path: Path) -> Self:
        """Read a run directory. Raises UsageError."""
        run = RunRecord.read(path)
        summary = run.summary or {}
        return cls(
            name=f"zmqrl {run.settings.get('recipe', run.name)}",
            flavour=summary.get("flavour", "unknown"),
            machine=_machine(summary.get("provenance", {})),
            minutes=run.column("wall_s") / 60,
            agent_steps=run.column("agent_steps"),
            score=run.column("score_mean_50"),
        )

    @classmethod
    def of_peer(cls, path: Path) -> Self:
        """Read a file that :func:`train` has written."""
        about, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        columns = {
            name: np.array([row[name] for row in rows], dtype=np.float64)
            for name in ("wall_s", "agent_steps", "score_mean_50")
        }
        return cls(
            name=about["peer"],
            flavour=about["flavour"],
            machine=_machine(about),
            minutes=columns["wall_s"] / 60,
            agent_steps=columns["agent_steps"],
            score=columns["score_mean_50"],
        )

    def row(self) -> str:
        """A row of the table: the last score."""
        known = np.flatnonzero(np.isfinite(self.score))
        if not len(known):
            return f"| {self.name} | - | - | - | {self.flavour} | {self.machine} |"
        last = known[-1]
        figures = f"{self.minutes[last]:.0f} | {self.agent_steps[last]:,.0f} | {self.score[last]:.1f}"
        return f"| {self.name} | {figures} | {self.flavour} | {self.machine} |"


def _machine(about: dict[str, Any]) -> str:
    return f"{about.get('cpu', 'unknown')}, {about.get('cores', '?')} cores"


def train(
    peer: str, minutes: float, output: Path, environments: Path, origin: dict[str, Any], *, subprocesses: bool
) -> None:
    """Train with Stable-Baselines3. Writes its scores into ``output``."""
    python = python_of("sb3", environments)
    file = output / f"sb3-{peer}{'-subprocesses' * subprocesses}.jsonl"
    options = [peer, "--minutes", str(minutes), *(["--subprocesses"] if subprocesses else [])]
    about = {
        "peer": f"{SB3.replace('==', ' ').replace('stable-baselines3', 'Stable-Baselines3')} {peer.upper()}",
        "flavour": SB3_FLAVOUR,
        "seed": 1,
        "options": options,
        "packages_of_peer": PACKAGES["sb3"],
        **origin,
    }
    file.write_text(json.dumps(about) + "\n", encoding="utf-8")
    train_with([python, HERE / "sb3_atari.py", *options, "--scores", str(file.resolve())], 60 * minutes)


def draw(trainings: Sequence[Training], path: Path) -> None:
    """Draw the scores against minutes. The flavours are below the picture."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6))
        axes = figure.subplots()
        for number, each in enumerate(trainings):
            axes.plot(each.minutes, each.score, label=each.name, **look(number))
        axes.set_xlabel("minutes")
        axes.set_ylabel("mean score of the last 50 games of training")
        axes.legend(loc="upper left")
        notes = flavour_lines(dict.fromkeys((each.name, each.flavour) for each in trainings))
        lines = [line for note in notes for line in textwrap.wrap(note, NOTE_LETTERS)]
        figure.supxlabel("\n".join(lines), fontsize=5.5, x=0.01, ha="left")
        save(figure, path)


def table(trainings: Sequence[Training]) -> str:
    """The picture, and the last score of each training as a Markdown table."""
    lines = ["![score against minutes](score.svg)", ""]
    lines += ["| Breakout, one seed each | minutes | agent steps | mean of the last 50 games | flavour | machine |"]
    return "\n".join([*lines, "|---|---|---|---|---|---|", *(each.row() for each in trainings)]) + "\n"


def main() -> None:
    """Train if ``--peer`` is given. Then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["a2c", "ppo"], help="algorithm of Stable-Baselines3. None: only draw")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--subprocesses", action="store_true", help="a process for each game of the peer")
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="runs of zmqrl on this machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/zmqrl/peers")
    arguments = parser.parse_args()
    output: Path = arguments.output
    origin = begin(parser, output)
    ours = [Training.of_zmqrl(path) for path in arguments.run]
    output.mkdir(parents=True, exist_ok=True)
    if arguments.peer is not None:
        train(
            arguments.peer,
            arguments.minutes,
            output,
            arguments.environments,
            origin,
            subprocesses=arguments.subprocesses,
        )
    trainings = [*ours, *(Training.of_peer(path) for path in sorted(output.glob("sb3-*.jsonl")))]
    draw(trainings, output / "score.svg")
    fill_readme(output, "scores", table(trainings))
    print(table(trainings))


if __name__ == "__main__":
    main()
