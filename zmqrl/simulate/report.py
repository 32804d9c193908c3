"""The results of simulations, as text and tables."""

import math
from collections.abc import Sequence

from rich.table import Table

from zmqrl.observe.histogram import or_dash
from zmqrl.observe.tables import plain_table
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.simulated_run import SimulatedRun
from zmqrl.words import counted

COLUMNS = (
    "updates/s",
    "agent steps/s",
    "learned/s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "used",
    "late",
    "skipped",
    "waiting",
    "card",
)


def report(result: SimulatedRun) -> str:
    found, scenario = result.to_json(), result.scenario
    step = found["step_ms"]
    hosts = "hosts of their own" if scenario.hosts is None else counted(scenario.hosts, "host")
    lines = [
        f"{counted(scenario.workers, 'worker')}, {counted(scenario.backups, 'backup')}, "
        f"quorum {scenario.effective_quorum}, {counted(scenario.shards, 'shard')} on {hosts}; seed {scenario.seed}",
        f"{counted(len(result.step_s), 'update')} in {result.elapsed_s:.3f} s of "
        f"{'real' if result.live else 'virtual'} time",
        "",
        f"updates/s      {_rate(result.updates_per_s)}",
        f"agent steps/s  {_rate(result.agent_steps_per_s)}, "
        f"of which {_rate(result.learned_steps_per_s)} led to updates",
        f"step time      {', '.join(f'{name} {or_dash(step[name], 1)}' for name in ('mean', 'p50', 'p90', 'p99'))} ms",
        "contributions  "
        + ", ".join(f"{found[name]} {name}" for name in ("used", "late", "skipped", "duplicate", "rejected")),
        f"workers wait   {result.waiting:.0%} of the time",
        "network cards  "
        + ("not measured" if not result.nics else f"the busiest used {_busiest(result)} of its bandwidth"),
    ]
    return "\n".join(lines)


def assumed(scenario: Scenario) -> str:
    """A line about the hosts and the network of a scenario."""
    hosts = "a host for each process" if scenario.hosts is None else counted(scenario.hosts, "host")
    cores = "a core for each process" if scenario.cores is None else f"{counted(scenario.cores, 'core')} per host"
    finite = math.isfinite(scenario.bandwidth)
    rate = f"{scenario.bandwidth / 1e6:g} MB/s per host" if finite else "unlimited bandwidth"
    return f"assumed: {hosts}, {cores}, {rate}"


def table(results: Sequence[SimulatedRun], swept: Sequence[str], marked: SimulatedRun | None = None) -> Table:
    """One row for each run. ``swept`` lists the settings that differ. The row of ``marked`` gets an arrow."""
    found = plain_table(None, *(name.replace("_", "-") for name in swept), *COLUMNS, *([""] if marked else []))
    for result in results:
        step_ms = result.to_json()["step_ms"]
        found.add_row(
            *(str(_setting(result, name)) for name in swept),
            _rate(result.updates_per_s),
            _rate(result.agent_steps_per_s),
            _rate(result.learned_steps_per_s),
            *(or_dash(step_ms[p], 1) for p in ("p50", "p90", "p99")),
            *(str(getattr(result, name)) for name in ("used", "late", "skipped")),
            f"{result.waiting:.0%}",
            _busiest(result),
            *(["<-"] if result is marked else []),
        )
    return found


def _setting(result: SimulatedRun, name: str) -> object:
    value = getattr(result.scenario, name)
    return result.scenario.effective_quorum if name == "quorum" else f"{value:g}" if isinstance(value, float) else value


def _busiest(result: SimulatedRun) -> str:
    """The share of bandwidth that the busiest direction of any network card used, as text. Empty if not measured."""
    return f"{max(max(use.outgoing, use.incoming) for use in result.nics):.0%}" if result.nics else ""


def _rate(number: float) -> str:
    """A rate as text: with two decimals, or with none from 100."""
    if not math.isfinite(number):
        return "inf"
    return f"{number:.2f}" if number < 100 else f"{number:.0f}"
