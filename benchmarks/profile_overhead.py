"""Measure the cost of recording a profile: nanoseconds per span, and the speed of runs with and without a profile.

    python benchmarks/profile_overhead.py [--rounds 10] [--updates 1000] [RECIPE options ...]

The cost per update is the cost of a span times the number of spans in an update. The speed of the runs also reflects
all other costs. The ratio of their speeds has a 95 % confidence interval by Student's t over at least three rounds.
"""

import argparse
import json
import statistics
import tempfile
import timeit
from collections.abc import Sequence
from pathlib import Path

from bench_lab import begin, train, trainings_interval

from zmqrl.observe.spans import Spans
from zmqrl.profile.profiler import segments
from zmqrl.profile.run_tables import RunTables
from zmqrl.results.bootstrap import FEWEST_TRAININGS

SPANS = 200_000
SLOWEST_UPDATE_S = 2.0  # a run with longer updates hangs
SETTINGS = ("on", "off")


def span_ns() -> float:
    """The nanoseconds that an empty span takes. The time of the loop itself is subtracted."""
    spans = Spans()

    def with_span() -> None:
        with spans("act"):
            pass

    with_span_s = min(timeit.repeat(with_span, number=SPANS, repeat=5))
    without_s = min(timeit.repeat(lambda: None, number=SPANS, repeat=5))
    spans.fold()
    return 1e9 * (with_span_s - without_s) / SPANS


def run(options: list[str], updates: int, setting: str, directory: Path) -> float:
    """Train once. Returns the updates per second after the first tenth of the run. The last row does not count, because
    it includes the end of the run.
    """
    train([*options, "--updates", str(updates)], directory, SLOWEST_UPDATE_S * updates, ZMQRL_PROFILE=setting)
    *rows, _ = [json.loads(row) for row in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = rows[-1]
    first = next(row for row in rows if row["version"] >= last["version"] / 10)
    return float((last["version"] - first["version"]) / (last["wall_s"] - first["wall_s"]))


def main() -> None:
    """Print the cost of a span, the number of spans in an update, and the speed of runs with and without a profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=1000)
    arguments, options = parser.parse_known_args()
    begin(parser)
    each_ns = span_ns()
    print(f"a span costs {each_ns:.0f} ns", flush=True)
    rates: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for number in range(arguments.rounds):
        for setting in SETTINGS if number % 2 == 0 else SETTINGS[::-1]:
            with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
                directory = Path(scratch) / "run"
                rates[setting].append(run(options or ["cartpole"], arguments.updates, setting, directory))
                if setting == "on" and number == 0:
                    describe(directory, each_ns, arguments.updates)
            print(f"round {number + 1}, {setting}: {rates[setting][-1]:.2f} updates/s", flush=True)
    print(compared([on / off for on, off in zip(rates["on"], rates["off"], strict=True)]))


def compared(ratios: Sequence[float]) -> str:
    """The mean and the median of the ratios of all rounds, with the interval of the mean if there are enough rounds."""
    interval = ""
    if len(ratios) >= FEWEST_TRAININGS:
        low, high = trainings_interval(ratios)
        interval = f" (95 % {low:.4f} to {high:.4f})"
    return f"on/off: {statistics.fmean(ratios):.4f}{interval}, median {statistics.median(ratios):.4f}"


def describe(directory: Path, each_ns: float, updates: int) -> None:
    """Print which share of an update's time is spent on recording spans, and the bytes per version and rank."""
    tables = RunTables.read(directory / "profile")
    workers = list(tables.of_role("worker"))
    spans = (
        sum(histogram.count for each in workers for histogram in each.histograms().values()) / len(workers) / updates
    )
    cycles = workers[0].table("cycles")["pushed_at_us"]
    update_us = float(cycles[-1] - cycles[0]) / (len(cycles) - 1)
    size = sum(path.stat().st_size for path in segments(directory / "profile"))
    print(f"{spans:.1f} spans per update of {update_us / 1e3:.2f} ms: {spans * each_ns / 1e3 / update_us:.3%}")
    print(f"{size / updates / len(workers):.1f} bytes per version and rank")


if __name__ == "__main__":
    main()
