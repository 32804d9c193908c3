"""``zmqrl plan``: find the best numbers of workers, backups and shards by simulation."""

from dataclasses import dataclass, field

import tyro

from zmqrl.commands.measure.simulate import Source, settings_from, tell_of_means
from zmqrl.commands.options import parse
from zmqrl.commands.output import print_json
from zmqrl.observe.tables import page
from zmqrl.process import interruptible
from zmqrl.simulate.plan import plan
from zmqrl.simulate.report import table
from zmqrl.simulate.scenario import Scenario

PROGRAM = "zmqrl plan"


@dataclass(frozen=True, kw_only=True)
class Options(Source):
    """Find the numbers of workers, backups and shards that learn from the most agent steps/s.

    zmqrl plan [FILE] --workers-up-to N [options]. Options describe hosts, network and work, as in zmqrl simulate.
    """

    workers_up_to: int
    """Maximum number of workers, including backups."""
    json: bool = False
    """Print one JSON object."""
    settings: tyro.conf.OmitArgPrefixes[Scenario] = field(default_factory=Scenario)


def command(arguments: list[str]) -> int:
    """Run ``zmqrl plan``. Raises ZmqrlError."""
    settings, rest = settings_from(arguments, PROGRAM)
    return run(parse(Options, rest, PROGRAM, Options(workers_up_to=tyro.MISSING, settings=settings)))


@interruptible()
def run(options: Options) -> int:
    """Search, and print every run that was tried. Raises ZmqrlError."""
    tell_of_means(options.settings)
    found = plan(options.settings, options.workers_up_to)
    if options.json:
        names = ("workers", "backups", "quorum", "shards")
        best = found.best.to_json()
        recommended = {name: best[name] for name in names}
        plain = {"recommended": recommended, "reasons": found.reasons, "tried": [r.to_json() for r in found.tried]}
        print_json(plain)
    else:
        tried = table(found.tried, ["workers", "backups", "shards"], marked=found.best)
        page().print(tried, "", *found.reasons, sep="\n")
    return 0
