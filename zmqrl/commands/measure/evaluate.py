"""``zmqrl eval``: the scores of a policy in whole games, one for each of a fixed list of seeds."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from zmqrl.commands.measure.play import Turn, whole_game
from zmqrl.commands.options import parse
from zmqrl.errors import UsageError, require
from zmqrl.observe.provenance import provenance
from zmqrl.policy import Policy, load_policy
from zmqrl.process import LOOK_UP_EVERY_S, Messages, interruptible, log_to_stderr, read_job, say

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Play whole games with the policy of a run, and say its score."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Whole games to play."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="V")] = None
    """Which version to play; the newest checkpoint if not given."""
    greedy: bool = False
    """Take the most probable action, instead of drawing one."""
    seed: int = 0
    """Seed of the first game; the next ones have the next numbers. A game depends on its own seed only."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Games played at a time; as many as there are cores if not given."""
    json: bool = False
    """Print one JSON object."""


def command(arguments: list[str]) -> int:
    """Run ``zmqrl eval``. Raises ZmqrlError."""
    return run(parse(Options, arguments, "zmqrl eval"))


@interruptible()
def run(options: Options) -> int:
    """Evaluate one checkpoint and print its scores. Raises UsageError."""
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    require(options.episodes >= 1, f"--episodes {options.episodes}: at least 1 game is required.")
    require(threads >= 1, f"--threads {threads}: at least 1 thread is required.")
    require(0 <= options.seed < 2**32, f"--seed {options.seed}: a number from 0 to below 2^32 is required.")
    policy = load_policy(options.run, options.checkpoint)
    seeds = range(options.seed, options.seed + options.episodes)
    with closing(_Progress(len(seeds))) as progress:
        result = evaluate(policy, seeds, greedy=options.greedy, threads=threads, on_game=progress.add)
    sys.stdout.write(json.dumps(result) + "\n" if options.json else _report(result))
    return 0


def evaluate(
    policy: Policy,
    seeds: Sequence[int],
    *,
    greedy: bool,
    threads: int,
    on_game: Callable[[Turn], None] = lambda last: None,
) -> dict[str, Any]:
    """Play the game of each seed, ``threads`` of them at a time; the result as ``--json`` prints it.

    ``on_game`` gets the last turn of each game when it is over. ``ci95`` is the percentile bootstrap of the mean
    (Efron and Tibshirani 1993, chapter 13), with a seed of its own. ``cut_off`` counts the games that a time limit
    ended; their scores count like all others.
    """
    games = play_games(policy, seeds, greedy=greedy, threads=threads, on_game=on_game)
    scores = [game.score for game in games]
    rng = np.random.default_rng(0)
    means = [rng.choice(scores, len(scores)).mean() for _ in range(RESAMPLES)]
    return {
        "env": policy.env_id,
        "version": policy.version,
        "wall_s": policy.wall_s,
        "agent_steps": policy.agent_steps,
        "greedy": greedy,
        "flavour": policy.spec.flavour,
        "episodes": len(scores),
        "mean": float(np.mean(scores)),
        "median": float(np.median(scores)),
        "min": min(scores),
        "max": max(scores),
        "ci95": np.percentile(means, [2.5, 97.5]).tolist(),
        "cut_off": sum(game.cut_off for game in games),
        "scores": scores,
        "seeds": list(seeds),
        "provenance": provenance(),
    }


def play_games(
    policy: Policy, seeds: Sequence[int], *, greedy: bool, threads: int, on_game: Callable[[Turn], None]
) -> list[Turn]:
    """The last turn of the game of each seed, in the order of ``seeds``.

    Each thread plays one game at a time: in float64 a batch of frames costs nearly as much as its frames one by one.
    """
    leave = threading.Event()

    def play(seed: int) -> Turn:
        with closing(whole_game(policy, seed, greedy=greedy)) as turns:
            for turn in turns:
                if leave.is_set():
                    return turn
        return turn

    with ThreadPoolExecutor(threads) as pool:
        games = [pool.submit(play, seed) for seed in seeds]
        try:
            playing: set[Future[Turn]] = set(games)
            while playing:  # in slices: a signal that comes just before a wait does not end it
                over, playing = wait(playing, LOOK_UP_EVERY_S, FIRST_COMPLETED)
                for game in over:
                    on_game(game.result())
        finally:
            leave.set()
            pool.shutdown(cancel_futures=True)
    return [game.result() for game in games]


def main() -> None:
    """Follow a run: evaluate the newest checkpoint that we are told of, again and again."""
    job = read_job(signal.SIGKILL)
    log = log_to_stderr("zmqrl.commands.measure.evaluate")
    told = Messages()
    while True:
        version = told.get()["version"]
        while not told.empty():  # what was told meanwhile is overtaken
            version = told.get()["version"]
        log.info("evaluating version %d", version)
        try:
            policy = load_policy(job["run_dir"], version)
            seeds = range(job["episodes"])
            say({"evaluation": evaluate(policy, seeds, greedy=job["greedy"], threads=job["threads"])})
        except UsageError as error:  # it may have been pruned
            log.info("skipping version %d: %s", version, error, exc_info=error.__cause__)
            say({"skipped": version, "reason": str(error)})


class _Progress:
    """One line on a terminal that says how far the games are; nothing anywhere else."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.scores: list[float] = []
        self._say("no game is over yet")

    def add(self, last: Turn) -> None:
        self.scores.append(last.score)
        self._say(f"{len(self.scores)} of {self.episodes} games, mean score {np.mean(self.scores):.1f}")

    def close(self) -> None:
        self._say("")

    def _say(self, line: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()


def _report(result: dict[str, Any]) -> str:
    low, high = result["ci95"]
    interval = f" (95 % between {low:.1f} and {high:.1f})" if result["episodes"] > 1 else ""
    how = "most probable actions" if result["greedy"] else "drawn actions"
    return (
        f"{result['env']}, version {result['version']} "
        f"({result['wall_s'] / 60:.1f} minutes, {result['agent_steps']:,} agent steps), {how}\n"
        f"{result['episodes']} whole games, seeds {result['seeds'][0]} to {result['seeds'][-1]}: "
        f"mean {result['mean']:.1f}{interval}, median {result['median']:g}, "
        f"min {result['min']:g}, max {result['max']:g}; {result['cut_off']} cut off by a time limit\n"
        f"scores: {result['flavour']}\n"
    )


if __name__ == "__main__":
    main()
