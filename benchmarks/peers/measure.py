"""Measure how fast zmqrl and other libraries train Breakout on this machine, in agent steps per second.

    python benchmarks/peers/measure.py [--seconds 60] [--rounds 3] [--only WORDS] [--output DIR] [--environments DIR]

The first call installs every library in an environment of its own (about 1.3 GB each). In each round, the trainings run
one at a time, with no other load on the machine. Two comparisons:

- ``like for like``: PPO with the same network (nature, float32), epochs, batches, games and shape of the frames.
- ``as shipped``: each library with its own settings for Atari games. zmqrl uses its recipes. A library counts against
  the recipe with the same algorithm: A2C against ``breakout`` with the small network, PPO and APPO against
  ``breakout-ppo``. This recipe makes four epochs, as Stable-Baselines3 and Sample Factory do.

Agent steps are told in whole rollouts, so a measurement begins and ends when their number changes. Writes
``results.json`` into the directory, and the tables of its ``README.md``. With ``--only``, it writes nothing unless you
give ``--output``.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # a script has only its own folder on the path

from bench_lab import begin as begin  # noqa: E402
from bench_lab import train_with as train_with  # noqa: E402
from marked import fill_readme as fill_readme  # noqa: E402

RESULTS = HERE.parent / "results/peers"
TORCH, ALE = "torch==2.13.0", "ale-py==0.12.1"
PACKAGES = {
    "sb3": (TORCH, ALE, "stable-baselines3==2.9.2", "gymnasium==1.4.0", "opencv-python-headless==5.0.0.93"),
    # Newer versions of ale-py need Gymnasium 1, and Sample Factory needs an older one.
    "sample-factory": (TORCH, "ale-py==0.9.1", "sample-factory==2.1.1"),
    "envpool": (TORCH, "envpool==1.2.5", "gymnasium==1.4.0"),
    "gloo": (TORCH, ALE, "gymnasium==1.4.0", "opencv-python-headless==5.0.0.93"),
}
FIRST_WITHIN_S = 180.0  # until the first agent steps
WARM_UP_S = 10.0
ENDS_WITHIN_S = 10.0
FEWEST_LINES = 24  # of a library that tells its agent steps rarely

ZMQRL = ("-m", "zmqrl", "train")
LIKE_FOR_LIKE = (
    *("--algo", "ppo", "--model", "nature", "--network.compute", "float32", "--workers", "2", "--envs.num-envs", "4"),
    *("--ppo.rollout-steps", "128", "--ppo.epochs", "4", "--ppo.minibatches", "4"),
)
SAMPLE_FACTORY = (
    *("sample_factory_atari.py", "--env=atari_breakout", "--device=cpu", "--log_to_file=False"),
    *("--summaries_use_frameskip=False", "--decorrelate_envs_on_one_worker=False"),
    *("--decorrelate_experience_max_seconds=0", "--train_dir={scratch}"),
)
SAME_AS_OTHERS = (
    *("--num_workers=2", "--num_envs_per_worker=4", "--normalize_input=False", "--normalize_returns=False"),
)
FRAMES = r"Total num frames: (\d+)"


@dataclass(frozen=True, slots=True)
class Training:
    """A command, and the environment that runs it. The command prints its agent steps in lines that contain
    ``pattern``.

    ``{scratch}`` in the command stands for a temporary directory.
    """

    environment: str | None  # None: the environment of zmqrl
    command: tuple[str, ...]
    pattern: str = r"agent steps: (\d+)"
    against: str | None = None  # the training of zmqrl to compare with. None: a training of zmqrl
    told_every_s: float = 1.0


COMPARISONS = {
    "like for like": {
        "zmqrl": Training(None, (*ZMQRL, "breakout-ppo", *LIKE_FOR_LIKE), r'"agent_steps": (\d+)'),
        "PyTorch with gloo": Training("gloo", ("gloo_ppo.py",), against="zmqrl"),
        "Stable-Baselines3 PPO": Training("sb3", ("sb3_atari.py", "ppo"), against="zmqrl"),
        "the same, each game in a process": Training("sb3", ("sb3_atari.py", "ppo", "--subprocesses"), against="zmqrl"),
        "EnvPool and PPO in one file": Training("envpool", ("envpool_ppo.py",), against="zmqrl"),
        "Sample Factory": Training(
            "sample-factory", (*SAMPLE_FACTORY, *SAME_AS_OTHERS), FRAMES, against="zmqrl", told_every_s=5.0
        ),
    },
    "as shipped": {
        "zmqrl breakout, small": Training(None, (*ZMQRL, "breakout", "--model", "small"), r'"agent_steps": (\d+)'),
        "zmqrl breakout": Training(None, (*ZMQRL, "breakout"), r'"agent_steps": (\d+)'),
        "zmqrl breakout-ppo": Training(None, (*ZMQRL, "breakout-ppo"), r'"agent_steps": (\d+)'),
        "Stable-Baselines3 A2C": Training("sb3", ("sb3_atari.py", "a2c"), against="zmqrl breakout, small"),
        "Stable-Baselines3 PPO": Training("sb3", ("sb3_atari.py", "ppo"), against="zmqrl breakout-ppo"),
        "Sample Factory": Training(
            "sample-factory", SAMPLE_FACTORY, FRAMES, against="zmqrl breakout-ppo", told_every_s=5.0
        ),
    },
}


def python_of(environment: str | None, environments: Path) -> Path:
    """The Python of an environment. Makes the environment if it is missing."""
    if environment is None:
        return Path(sys.executable)
    place = environments / environment
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        print(f"installing {', '.join(PACKAGES[environment])}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES[environment]], check=True)
        (place / "ready").touch()
    return python


def seconds_of(training: Training, seconds: float) -> float:
    """For how long to measure: ``seconds``, or longer if the training tells its agent steps rarely."""
    return max(seconds, FEWEST_LINES * training.told_every_s)


def measure(training: Training, python: Path, seconds: float) -> float:
    """Train for ``seconds`` or more after the warm-up. Returns the agent steps per second."""
    seconds = seconds_of(training, seconds)
    with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
        output = Path(scratch) / "output"
        command = [str(python), *(word.replace("{scratch}", scratch) for word in training.command)]
        told = output
        if training.environment is None:
            command += ["--run-dir", f"{scratch}/run", "--trackers"]
            told = Path(scratch) / "run/metrics.jsonl"
        with started(command, output):
            lines = steps_told(told, re.compile(training.pattern))
            first = wait_for(lines, 0.0, FIRST_WITHIN_S, output)
            begun = wait_for(lines, first[0] + WARM_UP_S, FIRST_WITHIN_S, output)
            ended = wait_for(lines, begun[0] + seconds, 2 * seconds + FIRST_WITHIN_S, output)
    return (ended[1] - begun[1]) / (ended[0] - begun[0])


@contextlib.contextmanager
def started(command: Sequence[str], output: Path) -> Iterator[None]:
    """Run ``command`` with its output in a file. Ends the whole process group."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield
    finally:
        # Each library ends its processes when it gets SIGINT. The second signal is for those that do not.
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_WITHIN_S)


def steps_told(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[float, int]]:
    """Read a growing file again and again. Each time, yield the time and the agent steps of each new line that contains
    ``pattern`` and more agent steps than all lines before, and then the time and -1.
    """
    read, torn, most = 0, "", 0
    while True:
        text = ""
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
            file.seek(read)
            text = file.read()
            read = file.tell()
        *lines, torn = (torn + text).split("\n")
        now = time.monotonic()
        for line in lines:
            if (found := pattern.search(line)) and int(found[1]) > most:
                most = int(found[1])
                yield now, most
        yield now, -1
        time.sleep(0.05)


def wait_for(lines: Iterator[tuple[float, int]], at: float, within_s: float, output: Path) -> tuple[float, int]:
    """The first line at the time ``at`` or later. Exits if there is no such line within ``within_s``."""
    deadline = time.monotonic() + within_s
    for now, steps in lines:
        if steps >= 0 and now >= at:
            return now, steps
        if now > deadline:
            sys.exit(f"no progress within {within_s:g} s:\n{output.read_text(errors='replace')[-2000:]}")
    raise AssertionError


def tables(rates: dict[str, dict[str, list[float]]]) -> str:
    """One Markdown table for each comparison. A ratio compares a library with the training of zmqrl that it names."""
    parts = []
    for comparison, of in rates.items():
        medians = {name: statistics.median(each) for name, each in of.items() if each}
        lines = [f"| {comparison} | agent steps/s | lowest to highest | zmqrl / this library |", "|---|---|---|---|"]
        for name, rate in medians.items():
            against = COMPARISONS[comparison][name].against
            ratio = f"{medians[against] / rate:.2f} ({against})" if against in medians else ""
            lines.append(f"| {name} | {rate:.0f} | {min(of[name]):.0f} to {max(of[name]):.0f} | {ratio} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def write(output: Path, rates: dict[str, dict[str, list[float]]], seconds: float, origin: dict[str, Any]) -> None:
    """Write the results so far, and the tables of the page."""
    output.mkdir(parents=True, exist_ok=True)
    measured_s = {
        comparison: {name: seconds_of(COMPARISONS[comparison][name], seconds) for name in of}
        for comparison, of in rates.items()
    }
    result = {"agent_steps_per_s": rates, "seconds": measured_s, "packages_of_peers": PACKAGES, **origin}
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fill_readme(output, "peers", tables(rates))


def main() -> None:
    """Measure every training in turn, and write the results after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure only trainings whose name contains this")
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS} without --only")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/zmqrl/peers")
    arguments = parser.parse_args()
    output: Path | None = arguments.output or (None if arguments.only else RESULTS)
    origin = begin(parser, output)
    chosen = {
        comparison: {name: training for name, training in of.items() if arguments.only in name}
        for comparison, of in COMPARISONS.items()
    }
    trainings = [training for of in chosen.values() for training in of.values()]
    pythons = {each: python_of(each, arguments.environments) for each in {of.environment for of in trainings}}
    rates: dict[str, dict[str, list[float]]] = {
        comparison: {name: [] for name in of} for comparison, of in chosen.items()
    }
    for number in range(1, arguments.rounds + 1):
        for comparison, of in chosen.items():
            for name, training in of.items():
                rate = measure(training, pythons[training.environment], arguments.seconds)
                rates[comparison][name].append(rate)
                print(f"round {number}, {comparison}, {name}: {rate:.0f} agent steps/s", flush=True)
        if output is not None:
            write(output, rates, arguments.seconds, origin)
    print(tables(rates))


if __name__ == "__main__":
    main()
