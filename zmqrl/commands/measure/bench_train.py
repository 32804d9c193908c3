"""``zmqrl bench train``: how fast this machine trains, and how fast it could, as a table or JSON."""

from dataclasses import dataclass

from zmqrl.bench.train import check, measure, to_json
from zmqrl.commands.measure.bench import machine
from zmqrl.commands.measure.train_figures import headline, notes, table
from zmqrl.commands.options import parse_known
from zmqrl.commands.output import print_json, prints_to_stderr, show_line
from zmqrl.commands.run.train import RECIPE, config_from
from zmqrl.config import Config
from zmqrl.observe.provenance import provenance
from zmqrl.observe.tables import page
from zmqrl.process import interruptible


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on this machine, and measure the parts of training alone, in turn. Compare the two.

    Accepts the options of `zmqrl train`, except those that end or resume a run.
    """

    seconds: float = 60.0
    """Minimum training time to measure, in seconds. The parts take the same time again."""
    rounds: int = 3
    """Number of runs. The parts are measured before each run."""
    json: bool = False
    """Print one JSON object instead of a table."""


def command(arguments: list[str]) -> int:
    options, rest = parse_known(Options, arguments, f"zmqrl bench train {RECIPE}")
    return run(options, config_from(rest, program="zmqrl bench train", own=Options))


@interruptible()
def run(options: Options, config: Config) -> int:
    """Measure, and print the result."""
    before = machine()
    with prints_to_stderr():
        check(config, seconds=options.seconds, rounds=options.rounds)
        measured = measure(config, seconds=options.seconds, rounds=options.rounds, begin=show_line)
        show_line("")
    if options.json:
        print_json(to_json(config, measured) | {"provenance": provenance()}, indent=1)
    else:
        console = page()
        console.print(before, headline(config, measured), table(measured), *notes(measured), sep="\n")
    return 0
