"""The result of ``zmqrl bench train`` as a table and sentences."""

from rich.table import Table

from zmqrl.bench.efficiency import PARTS, SPLIT
from zmqrl.bench.train import Measured
from zmqrl.config import Config
from zmqrl.observe.tables import ruled_table
from zmqrl.words import counted

LABELS = {"env_step": "environment", "act": "acting", "gradient": "gradient", "wait": "waiting", "rest": "rest"}


def headline(config: Config, measured: Measured) -> str:
    workers, shards = counted(config.ranks, "worker"), counted(config.shards, "shard")
    games = f"{counted(config.envs.num_envs, 'game')} of {config.env}"
    return (
        f"{config.algo}, network {config.model} in {measured.facts['compute']}, {workers} with {games} and "
        f"{counted(measured.threads, 'thread')} each, {shards}"
    )


def table(measured: Measured) -> Table:
    """The parts of the time of an agent step, in microseconds of one worker."""
    result, known = measured.efficiency, measured.references
    bare_s, split_s = result.bare_s, result.split_s
    columns = ("in training", "alone", "alone / in training", "reference", "alone / reference")
    shown = ruled_table("microseconds per agent step and worker", "part", *columns)
    for name in SPLIT:
        row = [LABELS[name], _us(split_s[name])]
        if name in PARTS:
            row += [_us(bare_s[name]), f"{bare_s[name] / split_s[name]:.2f}"]
        if name in known:
            row += [_us(known[name].seconds), f"{bare_s[name] / known[name].seconds:.2f}"]
        shown.add_row(*row)
    shown.add_section()
    total_s, limit_s = sum(split_s.values()), sum(bare_s.values())
    shown.add_row("sum", _us(total_s), _us(limit_s), f"{limit_s / total_s:.2f}")
    return shown


def notes(measured: Measured) -> list[str]:
    """The result in sentences, and what the columns mean."""
    result, facts, known = measured.efficiency, measured.facts, measured.references
    each = [result.of_round(number).efficiency for number in range(len(result.rounds))]
    spread = f" ({min(each):.2f} to {max(each):.2f} in {counted(len(each), 'round')})" if len(each) > 1 else ""
    share = result.steps_per_s / result.environment_steps_per_s
    passes = f"{measured.passes:g} passes per sample" if measured.passes != 1 else "1 pass per sample"
    kept = ", backward only: acting has already computed the forward pass" if facts["backward_only"] else ""
    machines = {
        machine: [LABELS[name] for name in PARTS if name in known and known[name].machine == machine]
        for machine in sorted({reference.machine for reference in known.values()})
    }
    return [
        f"training: {result.steps_per_s:,.0f} agent steps/s",
        f"component limit: {result.limit_steps_per_s:,.0f} agent steps/s",
        f"efficiency: {result.efficiency:.2f}{spread}",
        f"bare environment: {result.environment_steps_per_s:,.0f} agent steps/s; training reaches {share:.2f} of this",
        f"alone: one part at a time on all workers; acting and gradient in batches of {facts['batch']}; {passes}{kept}",
        *(f"reference of {', '.join(parts)}: {machine}" for machine, parts in machines.items()),
    ]


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"
