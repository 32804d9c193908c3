"""``zmqrl recipes``: the recipes, with their recorded scores, training times and machines."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import tyro

from zmqrl.commands.options import parse
from zmqrl.commands.output import print_json
from zmqrl.recipes import RECIPES, require_recipe

WITH_AVX512: Final = "2 cores of an AMD EPYC with AVX-512 and bfloat16"
WITH_AMX: Final = "2 cores of an Intel Xeon with AVX-512, AMX and bfloat16"
WITHOUT_AVX512: Final = "2 cores of an x86-64 processor without AVX-512"
BUSY: Final = "2 cores of an AMD EPYC that other programs also used"
ATARI: Final = (
    "sticky 0, life loss ends returns, no-ops 30, fire at the start, skip 4, stack 4, grey 84x84, at most 108000 "
    "frames, rewards clipped for learning, scores unclipped"
)
STICKY: Final = ATARI.replace("sticky 0,", "sticky 0.25,")
DBA3C: Final = (
    "sticky 0.25, lives ignored, no-ops 0, no fire at the start, random skip 2-4 without max-pooling, stack 4, RGB "
    "84x84, at most 30000 frames, rewards clipped for learning, scores unclipped"
)
AS_REGISTERED: Final = "played as registered, scores are sums of true rewards"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """A measured run of a recipe on ``machine``. ``source`` is where the repository has the figures.

    ``evaluation`` is the mean of ``games`` full games with the last checkpoint. ``score`` is the mean of the last 50
    games in training, or the ``--stop-score`` that ended the run. ``options`` are those of `zmqrl train`. ``flavour``
    is the flavour of the games. An unmeasured figure is None.
    """

    score: float
    evaluation: float | None
    minutes: float
    agent_steps_per_s: float | None
    options: str
    machine: str
    source: str
    flavour: str
    games: int = 50

    def sentence(self) -> str:
        """The result in words, with the evaluation first."""
        full = "" if self.evaluation is None else f"{self.evaluation:.1f} in {self.games} full games; "
        time = f"{60 * self.minutes:.0f} s" if self.minutes < 2 else f"{self.minutes:.0f} minutes"
        pace = "" if self.agent_steps_per_s is None else f"{self.agent_steps_per_s:,.0f} agent steps/s; "
        score = f"reached {self.score:g}" if "--stop-score" in self.options else f"{self.score:.1f}"
        training = f"{score} in training after {time}"
        return f"{full}{training} ({self.options}; {pace}{self.machine}; {self.source})"


def _kept(
    name: str,
    options: str = "",
    *,
    score: float,
    evaluation: float,
    agent_steps_per_s: float,
    minutes: float = 60.0,
    games: int = 50,
    machine: str = WITH_AVX512,
    flavour: str = ATARI,
) -> MeasuredRun:
    """The run that ``benchmarks/results/NAME`` has. ``options`` are those beside ``--minutes``."""
    return MeasuredRun(
        score=score,
        evaluation=evaluation,
        minutes=minutes,
        agent_steps_per_s=agent_steps_per_s,
        options=f"--minutes {minutes:g} {options}".rstrip(),
        machine=machine,
        source=f"benchmarks/results/{name}",
        flavour=flavour,
        games=games,
    )


def _continuous(*runs: tuple[int, int, float, int]) -> tuple[MeasuredRun, ...]:
    """Runs of ``benchmarks/continuous.py``: the seed, the agent steps, the score and the seconds of each."""
    return tuple(
        MeasuredRun(
            score=score,
            evaluation=None,
            minutes=seconds / 60,
            agent_steps_per_s=None,
            options=f"--agent-steps {agent_steps} --seed {seed}",
            machine=BUSY,
            source="benchmarks/results/continuous",
            flavour=AS_REGISTERED,
        )
        for seed, agent_steps, score, seconds in runs
    )


# Recipes that are not here have not been measured.
RESULTS: Final[Mapping[str, tuple[MeasuredRun, ...]]] = {
    "breakout": (
        _kept("breakout/seed-1", "--seed 1", score=451.62, evaluation=431.35, games=100, agent_steps_per_s=1849.0),
        _kept("breakout/seed-2", "--seed 2", score=492.92, evaluation=524.46, games=100, agent_steps_per_s=1863.0),
        _kept("breakout/seed-3", "--seed 3", score=526.64, evaluation=509.47, games=100, agent_steps_per_s=1883.0),
        _kept(
            "breakout-sticky/amd-epyc",
            "--seed 1 --envs.sticky-actions 0.25",
            score=342.94,
            evaluation=345.0,
            games=100,
            agent_steps_per_s=1801.0,
            flavour=STICKY,
        ),
        _kept(
            "breakout-sticky/intel-xeon",
            "--seed 1 --envs.sticky-actions 0.25",
            score=377.24,
            evaluation=361.44,
            games=100,
            agent_steps_per_s=1679.0,
            machine=WITH_AMX,
            flavour=STICKY,
        ),
        _kept(
            "breakout-rmsprop/seed-1",
            "--seed 1 --optimizer.name rmsprop",
            score=369.52,
            evaluation=366.6,
            games=100,
            agent_steps_per_s=835.0,
            machine=WITHOUT_AVX512,
        ),
        _kept(
            "breakout-rmsprop/seed-2",
            "--seed 2 --optimizer.name rmsprop",
            score=440.12,
            evaluation=434.16,
            games=100,
            agent_steps_per_s=1597.0,
        ),
    ),
    "breakout-ppo": (_kept("breakout-ppo", score=176.04, evaluation=132.92, agent_steps_per_s=957.0),),
    "pong": (_kept("pong", minutes=12.0, score=18.96, evaluation=19.48, agent_steps_per_s=1479.0),),
    "cartpole": tuple(
        MeasuredRun(
            score=475.0,
            evaluation=None,
            minutes=seconds / 60,
            agent_steps_per_s=None,
            options="--workers 2 --backups 1 --shards 3 --stop-score 475",
            machine=WITHOUT_AVX512,
            source="README.md",
            flavour=AS_REGISTERED,
        )
        for seconds in (57, 82)
    ),
    "gymnasium": (
        _kept("gymnasium", minutes=2.0, score=500.0, evaluation=500.0, agent_steps_per_s=2014.0, flavour=AS_REGISTERED),
    ),
    "pendulum": _continuous(
        (1, 102_400, -195.9, 230),
        (2, 102_400, -206.1, 98),
        (3, 102_400, -189.2, 76),
        (1, 204_800, -145.1, 610),
    ),
    "bipedalwalker": _continuous(
        (1, 500_000, 253.7, 814),
        (2, 500_000, 234.8, 1156),
        (3, 500_000, 229.2, 605),
    ),
    "hopper": _continuous(
        (1, 1_000_000, 1927.7, 1781),
        (2, 1_000_000, 2587.9, 1987),
        (3, 1_000_000, 2763.1, 1522),
    ),
    "dba3c-breakout": (
        _kept("dba3c-breakout", minutes=20.0, score=5.8, evaluation=6.84, agent_steps_per_s=246.0, flavour=DBA3C),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the recipes of `zmqrl train`, with their recorded scores, training times and machines."""

    recipe: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[RECIPE]")] = None
    """Show only this recipe."""
    json: bool = False
    """Print a list of JSON objects."""


def command(arguments: list[str]) -> int:
    options = parse(Options, arguments, "zmqrl recipes")
    if options.recipe is not None:
        require_recipe(options.recipe)
    found = [about(name) for name in RECIPES if options.recipe in (None, name)]
    if options.json:
        print_json(found)
        return 0
    for recipe in found:
        results = RESULTS.get(recipe["recipe"], ())
        told = [result.sentence() for result in results] or ["not measured"]
        told += [f"games: {flavour}" for flavour in dict.fromkeys(result.flavour for result in results)]
        lines = [f"{recipe['recipe']}: {recipe['purpose']}", *(f"  {line}" for line in told), ""]
        sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(
        "zmqrl train RECIPE trains one of them. A score in full games is the mean of an evaluation of the last "
        "checkpoint. A score in training is the mean of the last 50 games.\n"
    )
    return 0


def about(name: str) -> dict[str, Any]:
    """The recipe ``name`` as plain data. ``results`` is empty without measurements."""
    config = RECIPES[name]()
    return {
        "recipe": name,
        "purpose": (RECIPES[name].__doc__ or "").partition("\n")[0],
        "env": config.env,
        "algo": config.algo,
        "model": config.model,
        "workers": config.workers,
        "results": [asdict(result) for result in RESULTS.get(name, ())],
    }
