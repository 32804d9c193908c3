"""``zmqrl eval``: the scores of a policy in full games, one game per seed."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

import zmqrl
from zmqrl.commands.measure.play import Turn, whole_game
from zmqrl.commands.options import RunPath
from zmqrl.commands.output import print_json, prints_to_stderr, show_line
from zmqrl.config import require_games
from zmqrl.errors import UsageError, closing, require
from zmqrl.observe.provenance import commit, provenance
from zmqrl.process import CORES, LOOK_UP_EVERY_S, Messages, interruptible, log_to_stderr, read_job, say
from zmqrl.results.bootstrap import mean_interval
from zmqrl.start.jobs import Evaluated, EvaluationRequest, FollowerJob, Skipped
from zmqrl.words import counted, figure, mean_words

if TYPE_CHECKING:
    from zmqrl.policy import Policy

LEAVE_WITHIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Play full games with the policy of a run and print the scores."""

    run: RunPath
    """The run directory."""
    episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 50
    """Number of full games."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="V")] = None
    """Version of the checkpoint to play. None: the newest."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""
    seed: int = 0
    """Seed of the first game. The next games use the next numbers."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of games played in parallel. None: one per core."""
    json: bool = False
    """Print one JSON object."""


@interruptible()
def run(options: Options) -> int:
    """Play one checkpoint and print its scores."""
    threads = CORES if options.threads is None else options.threads
    require_games("--episodes", options.episodes)
    require(threads >= 1, f"--threads {threads}: must be 1 or more.")
    require(0 <= options.seed < 2**32, f"--seed {options.seed}: must be at least 0 and below 2^32.")
    seeds = range(options.seed, options.seed + options.episodes)
    with prints_to_stderr():
        policy = zmqrl.load_policy(options.run, options.checkpoint)
        with closing(_Progress(len(seeds))) as progress:
            result = evaluate(policy, seeds, greedy=options.greedy, threads=threads, on_game=progress.add)
    if options.json:
        print_json(result)
    else:
        sys.stdout.write(_report(result))
    return 0


def evaluate(
    policy: "Policy",
    seeds: Sequence[int],
    *,
    greedy: bool,
    threads: int,
    on_game: Callable[[Turn], None] = lambda last: None,
) -> dict[str, Any]:
    """Play a game per seed, ``threads`` in parallel. Returns the result as ``--json`` prints it.

    ``on_game`` gets the last turn of each game at its end. ``ci95`` is the bootstrap interval of the mean. ``cut_off``
    counts games that a time limit ended: their scores count, too. ``distinct`` counts different games, by what the
    policy saw and did: without sticky actions, greedy games of different seeds can be the same.
    """
    origin = provenance()
    played = play_games(policy, seeds, greedy=greedy, threads=threads, on_game=on_game)
    games = [game.last for game in played]
    scores = [game.score for game in games]
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
        "ci95": mean_interval(scores),
        "cut_off": sum(game.cut_off for game in games),
        "distinct": len({(game.last.score, game.course) for game in played}),
        "scores": scores,
        "seeds": list(seeds),
        "provenance": origin,
    }


@dataclass(frozen=True, slots=True)
class Played:
    """A game: its ``last`` turn, and a hash of all its observations and actions."""

    last: Turn
    course: bytes


def play_games(
    policy: "Policy", seeds: Sequence[int], *, greedy: bool, threads: int, on_game: Callable[[Turn], None]
) -> list[Played]:
    """Play a game per seed. Returns the games in the order of ``seeds``.

    Each thread plays one game at a time: in float64, batches are hardly faster than single frames. After an error or
    Ctrl-C, games have ``LEAVE_WITHIN_S`` to end their current step.
    """
    leave = threading.Event()
    idle: SimpleQueue[Policy] = SimpleQueue()
    idle.put(policy)
    for _ in range(1, min(threads, len(seeds))):
        idle.put(policy.for_another_thread())

    def play(seed: int) -> Played:
        course, own = blake2b(digest_size=16), idle.get()
        try:
            with closing(whole_game(own, seed, greedy=greedy)) as turns:
                for turn in turns:
                    for seen_or_done in (turn.observation, turn.action):
                        course.update(np.asarray(seen_or_done).tobytes())
                    if leave.is_set():
                        break
        finally:
            idle.put(own)
        return Played(turn, course.digest())

    pool = ThreadPoolExecutor(threads)
    games = [pool.submit(play, seed) for seed in seeds]
    try:
        playing: set[Future[Played]] = set(games)
        while playing:  # wait briefly: a signal just before a wait does not end it
            over, playing = wait(playing, LOOK_UP_EVERY_S, FIRST_COMPLETED)
            for game in over:
                on_game(game.result().last)
    finally:
        leave.set()
        pool.shutdown(wait=False, cancel_futures=True)
        left = wait([game for game in games if not game.done()], LEAVE_WITHIN_S).not_done
        if not left:  # otherwise, a step of a game may never return
            pool.shutdown()
    return [game.result() for game in games]


def main() -> None:
    """Evaluate checkpoints of a run: always the newest one that the supervisor has named."""
    job = FollowerJob.from_json(read_job(signal.SIGKILL))
    log = log_to_stderr("zmqrl.commands.measure.evaluate")
    commit()  # remembers the commit for all evaluations: the files can change later
    told = Messages()
    while True:
        message = told.get()
        while not told.empty():  # skip to the newest message
            message = told.get()
        request = EvaluationRequest.from_json(message)
        log.info("evaluating version %d", request.version)
        try:
            policy = zmqrl.load_policy(job.run_dir, request.version)
            episodes = job.episodes if request.episodes is None else request.episodes
            seeds = range(request.seed, request.seed + episodes)
            greedy = job.greedy and not request.samples
            say(Evaluated(evaluate(policy, seeds, greedy=greedy, threads=job.threads)).to_json())
        except UsageError as error:  # perhaps it was pruned
            log.info("skipping version %d: %s", request.version, error, exc_info=error.__cause__)
            say(Skipped(request.version, str(error)).to_json())


class _Progress:
    """Shows the progress of the games on one line, if there is a terminal."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.scores: list[float] = []
        show_line("no game has ended yet")

    def add(self, last: Turn) -> None:
        self.scores.append(last.score)
        show_line(f"{len(self.scores)} of {counted(self.episodes, 'game')}, mean score {np.mean(self.scores):.1f}")

    def close(self) -> None:
        show_line("")


def _report(result: dict[str, Any]) -> str:
    mean = mean_words(result["mean"], result["ci95"] if result["episodes"] > 1 else None)
    how = "greedy actions" if result["greedy"] else "sampled actions"
    again = ""
    if result["distinct"] < result["episodes"]:
        again = f"{result['distinct']} different games: other seeds repeat one of them\n"
        if result["distinct"] == 1:
            again = "all games are the same, so the interval says nothing about the policy in other games\n"
    return (
        f"{result['env']}, version {result['version']} "
        f"({result['wall_s'] / 60:.1f} minutes, {result['agent_steps']:,} agent steps), {how}\n"
        f"{counted(result['episodes'], 'full game')}, seeds {result['seeds'][0]} to {result['seeds'][-1]}: "
        f"mean {mean}, median {figure(result['median'])}, "
        f"min {figure(result['min'])}, max {figure(result['max'])}; {result['cut_off']} cut off by a time limit\n"
        f"{again}game: {result['flavour']}\n"
    )


if __name__ == "__main__":
    main()
