"""``zmqrl plan``: find the best numbers of workers, backups and shards by simulation."""

import sys
from dataclasses import asdict, dataclass, field

import tyro

from zmqrl.commands.measure.simulate import Source, settings_from, tell_of_loss, tell_of_profile
from zmqrl.commands.options import asks_for_help, parse, parse_known
from zmqrl.commands.output import print_json
from zmqrl.errors import require
from zmqrl.observe.tables import page
from zmqrl.process import interruptible
from zmqrl.simulate.plan import SHARDS, plan
from zmqrl.simulate.report import assumed, table
from zmqrl.simulate.scenario import Scenario

PROGRAM = "zmqrl plan"
LEFT_OUT = ("failures", "worker_hosts", "shard_hosts", "host_cores")


@dataclass(frozen=True, kw_only=True)
class Options(Source):
    """Find the numbers of workers, backups and shards with which a run learns from the most agent steps per second.

    zmqrl plan [FILE] --workers-up-to N [options]. Options describe hosts, network and work, as in zmqrl simulate.
    """

    workers_up_to: int
    """Maximum number of workers, including backups."""
    json: bool = False
    """Print one JSON object."""
    settings: tyro.conf.OmitArgPrefixes[Scenario] = field(default_factory=Scenario)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The settings that the plan chooses."""

    workers: str | None = None
    backups: str | None = None
    shards: str | None = None
    quorum: str | None = None


def command(arguments: list[str]) -> int:
    settings, rest = settings_from(arguments, PROGRAM, Options)
    if not asks_for_help(rest):
        chosen, _ = parse_known(Chosen, rest, PROGRAM)
        for name, value in asdict(chosen).items():
            require(value is None, f"--{name} {value}: zmqrl plan chooses this number itself. Remove --{name}.")
    return run(parse(Options, rest, PROGRAM, Options(workers_up_to=tyro.MISSING, settings=settings)))


@interruptible()
def run(options: Options) -> int:
    """Search, and print every run that was tried."""
    tell_of_profile(options.settings, SHARDS)
    tell_of_loss([options.settings])
    if left_out := [name for name in LEFT_OUT if getattr(options.settings, name)]:
        sys.stderr.write(f"a plan does not use these settings of the scenario: {', '.join(left_out)}.\n")
    found = plan(options.settings, options.workers_up_to)
    if options.json:
        names = ("workers", "backups", "quorum", "shards")
        best = found.best.to_json()
        recommended = {name: best[name] for name in names}
        plain = {"recommended": recommended, "reasons": found.reasons, "tried": [r.to_json() for r in found.tried]}
        print_json(plain)
    else:
        tried = table(found.tried, ["workers", "backups", "shards"], marked=found.best)
        page().print(tried, "", assumed(options.settings), *found.reasons, sep="\n")
    return 0
