"""Simulate published figures about parameter servers and backup workers, and compare the numbers.

    python benchmarks/published_figures.py [--figures servers machines backups last_gradients]

The simulation takes several minutes on one core, and the seed determines every result. docs/simulation.md shows the
results.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from zmqrl.observe.drawing import COLOURS, STYLE
from zmqrl.simulate import Scenario, simulate

# DBA3C's best run: each update uses 60 of 64 workers and batches of 32 samples; 331 909 parameters.
# A batch costs about 126 million multiply-adds x 32 samples x 4 (act 1, forward 1, backward 2): 32 GFLOP,
# or 0.3 s at 100 GFLOP/s of 12 Haswell cores. The spread of this time is not published: we assume 15 %.
DBA3C = Scenario(
    workers=60,
    backups=4,
    shards=4,
    updates=60,
    compute="lognormal:0.3:0.15",
    agent_steps_per_rollout=32,
    parameters=331_909,
    latency=50e-6,
)
GIGABIT = 125e6  # bytes per second
SERVERS = (1, 2, 4, 8, 16)
MACHINES = (1, 2, 4, 8, 16, 32, 64)
ONE_MACHINE_H = 15.0  # implied for 12 cores by deepsense.ai's article of 2017
PUBLISHED_64_MIN = 20.0

# Inception-v3 on 50 workers and 17 parameter servers (Abadi et al. 2016, section 6.3). The network is assumed to have
# 10 Gbit/s. The law is chosen to give a median step of about 2.3 s without backups. The published step with 4 backups
# is 1.93 s.
INCEPTION = Scenario(
    workers=50,
    shards=17,
    updates=60,
    compute="constant:0.95+exponential:0.2",
    agent_steps_per_rollout=32,
    parameters=23_900_000,
    bandwidth=10 * GIGABIT,
    latency=50e-6,
    need_s=8.0,
)
BACKUPS = tuple(range(7))
# Chen et al. 2016: of 100 gradients, the second-to-last arrives within 2 s in 80 % of the updates, the last in 30 %.
# The law is fitted to the last gradient: 1.2 % of all gradients take longer than 2 s.
LAST_OF_100 = Scenario(
    workers=100,
    shards=1,
    updates=300,
    compute="lognormal:1.4:0.04+0.04*exponential:0.5",
    abandon="immediately",
)
PUBLISHED_BACKUPS = {"step_s": {4: 1.93}, "speed_up": {3: 0.095}}


def servers_against_throughput() -> list[dict[str, Any]]:
    """Samples learned per second against the number of parameter servers, for three networks."""
    rows = []
    for gigabits in (1, 10, 56):
        for servers in SERVERS:
            result = simulate(replace(DBA3C, shards=servers, bandwidth=gigabits * GIGABIT))
            rows.append({"gigabits": gigabits, "servers": servers, "samples_per_s": result.learned_steps_per_s})
            print(rows[-1], flush=True)
    return rows


def machines_against_time() -> list[dict[str, Any]]:
    """Hours for a fixed number of samples against the number of machines. One machine needs 15 h."""
    rows: list[dict[str, Any]] = []
    for machines in MACHINES:
        backups = machines // 16
        scenario = replace(DBA3C, workers=machines - backups, backups=backups, bandwidth=10 * GIGABIT)
        rate = simulate(scenario).learned_steps_per_s
        one = rows[0]["samples_per_s"] if rows else rate
        hours = ONE_MACHINE_H * one / rate
        efficiency = ONE_MACHINE_H / machines / hours
        rows.append({"machines": machines, "samples_per_s": rate, "hours": hours, "efficiency": efficiency})
        print(rows[-1], flush=True)
    return rows


def backups_against_step() -> list[dict[str, Any]]:
    """The median step, and the speed-up normalized by the number of machines: t(0)/t(b) x 50/(50 + b) - 1."""
    rows: list[dict[str, Any]] = []
    for backups in BACKUPS:
        result = simulate(replace(INCEPTION, backups=backups))
        median_s = statistics.median(result.step_s)
        first_s = rows[0]["median_s"] if rows else median_s
        speed_up = first_s / median_s * INCEPTION.workers / (INCEPTION.workers + backups) - 1
        p90_s = result.to_json()["step_ms"]["p90"] / 1000
        rows.append({"backups": backups, "median_s": median_s, "p90_s": p90_s, "normalised_speed_up": speed_up})
        print(rows[-1], flush=True)
    return rows


def last_gradients() -> dict[str, float]:
    """How often the last and the second-to-last of 100 gradients arrive within 2 s on an unlimited network."""
    found = {}
    for name, backups in (("last", 0), ("second_last", 1)):
        result = simulate(replace(LAST_OF_100, workers=100 - backups, backups=backups))
        found[name] = sum(step_s < 2.0 for step_s in result.step_s) / len(result.step_s)
    print(found)
    return found


def draw_servers(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for number, gigabits in enumerate(sorted({row["gigabits"] for row in rows})):
        mine = [row for row in rows if row["gigabits"] == gigabits]
        servers, rates = [row["servers"] for row in mine], [row["samples_per_s"] for row in mine]
        axes.plot(servers, rates, "o-", color=COLOURS[number], label=f"{gigabits} Gbit/s")
    axes.set_xscale("log", base=2)
    _plain(axes, "parameter servers", "samples learned per second")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def draw_machines(axes: Axes, rows: list[dict[str, Any]]) -> None:
    machines = [row["machines"] for row in rows]
    axes.plot(machines, [row["hours"] for row in rows], "o-", color=COLOURS[0], label="simulated")
    axes.plot(
        machines, [ONE_MACHINE_H / each for each in machines], "--", color="#666666", label="theoretical: 15 h / n"
    )
    axes.plot([64], [PUBLISHED_64_MIN / 60], "s", color=COLOURS[1], label="published: 20 min on 64")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _plain(axes, "machines", "hours to the same number of samples")
    axes.legend()


def draw_backups(axes: Axes, rows: list[dict[str, Any]]) -> None:
    backups = [row["backups"] for row in rows]
    axes.bar(backups, [row["median_s"] for row in rows], color="#D9D9D9", label="median step, simulated")
    published = PUBLISHED_BACKUPS["step_s"]
    axes.plot(list(published), list(published.values()), "s", color=COLOURS[1], label="median step, published")
    axes.set_xlabel("backup workers, with 50 workers")
    axes.set_ylabel("median step (s)")
    axes.set_ylim(0, 1.35 * rows[0]["median_s"])
    axes.legend(loc="upper left", fontsize="small")
    right = axes.twinx()
    gains = [100 * row["normalised_speed_up"] for row in rows]
    right.plot(backups, gains, "o-", color=COLOURS[0], label="normalised speed-up, simulated")
    gain = PUBLISHED_BACKUPS["speed_up"]
    right.plot(list(gain), [100 * each for each in gain.values()], "D", color=COLOURS[2], label="the same, published")
    right.set_ylabel("normalised speed-up (%)")
    right.set_ylim(0, 2.2 * max(gains))
    right.grid(visible=False)
    right.legend(loc="upper right", fontsize="small")


def _plain(axes: Axes, x: str, y: str) -> None:
    """Label the axes with plain numbers, not with powers of two."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


FIGURES: dict[str, tuple[Callable[[], Any], Callable[[Axes, Any], None] | None]] = {
    "servers": (servers_against_throughput, draw_servers),
    "machines": (machines_against_time, draw_machines),
    "backups": (backups_against_step, draw_backups),
    "last_gradients": (last_gradients, None),
}


def main() -> None:
    """Simulate the figures, and write the numbers and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/published-figures"))
    parser.add_argument("--figures", nargs="*", choices=FIGURES, default=list(FIGURES))
    arguments = parser.parse_args()
    results = arguments.output / "results.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    for directory in (arguments.output, arguments.images):
        directory.mkdir(parents=True, exist_ok=True)
    for name in arguments.figures:
        simulated, draw = FIGURES[name]
        found[name] = simulated()
        results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if draw is not None:
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(7.5, 4.2))
                draw(figure.subplots(), found[name])
                figure.savefig(arguments.images / f"simulated-{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
