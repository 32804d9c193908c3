"""``zmqrl doctor``: check all hosts of a run, and every route between them, before the run starts.

Without hosts, :mod:`zmqrl.commands.inspect.this_machine` checks this machine.
"""

import dataclasses
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from zmqrl.commands.inspect import this_machine
from zmqrl.commands.options import option_names, parse_known
from zmqrl.commands.output import print_json, prints_to_stderr
from zmqrl.commands.run.train import RECIPE, config_from, recipe_of
from zmqrl.config import Config
from zmqrl.hostd.messages import Up
from zmqrl.hosts.deployment import connect_and_place
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.judging.speed import Expectation, expect
from zmqrl.hosts.preflight import Facts, Judgement, Survey, judge, size, survey
from zmqrl.hosts.probing import Route
from zmqrl.hosts.reach import HostOptions, Reach, check, over_tcp
from zmqrl.local.extras import install_command, missing
from zmqrl.observe.folding import printable
from zmqrl.observe.tables import page, ruled_table
from zmqrl.process import interruptible
from zmqrl.ps.layout import Layout
from zmqrl.start.initial import Preparation
from zmqrl.words import counted

LEASE_S = 8.0
ROUTES_SHOWN = 24
KEYS = (
    *("zmqrl", "code", "python", "cores", "interfaces", "game_error", "memory_bytes", "open_files", "disk_bytes"),
    *("shm_bytes", "clock_ahead_s", "torch", "machine_cores", "busy_cores", "load_average", "steal_share"),
)


@dataclass(frozen=True, kw_only=True)
class Options(HostOptions):
    """Check that hosts can run this job and reach each other. Without hosts: check this machine.

    Accepts all options of `zmqrl train` except `--dry-run`. If Atari games are not installed here, the default recipe
    is `cartpole`.
    """

    json: bool = False
    """Print one JSON object."""


def command(arguments: list[str]) -> int:
    options, rest = parse_known(Options, arguments, f"zmqrl doctor {RECIPE}")
    settings = partial(config_from, _with_game(rest), program="zmqrl doctor", own=Options)
    if options == Options(json=options.json):
        return this_machine.run(settings(), json=options.json)
    return run(options, settings(over_tcp))


def _with_game(arguments: list[str]) -> list[str]:
    """Add the recipe cartpole if the user has chosen no game, and the default one is not installed."""
    is_chosen = recipe_of(arguments)[0] is not None or option_names(arguments) & {"--env", "--resume"}
    if is_chosen or not (lacking := missing("atari")):
        return arguments
    _say(
        f"{' and '.join(lacking)} is not installed, so these checks are for the recipe cartpole. For Atari games, run "
        f"{install_command('atari')}"
    )
    return ["cartpole", *arguments]


@interruptible()
def run(options: Options, config: Config) -> int:
    """Check the hosts. Returns 0 without problems, and 3 with problems."""
    reach = options.reach()
    hosts = reach.hosts
    with prints_to_stderr():
        check(config, hosts)
        config = config.with_schedule()
        with Preparation(config) as preparation:
            preparation.flavour()  # checks the game
            if preparation.notice is not None:
                _say(preparation.notice)
            reach = options.bring(reach, config, _say)
            up, found, judgement, expected = examine(reach, config, lambda: preparation.checkpoint().layout)
    if options.json:
        print_json(to_json(hosts, up, found, judgement, expected))
        return 3 if judgement.problems else 0
    console = page()
    console.print(host_table(hosts, up, found))
    if found.routes:
        console.print(route_table(found.routes))
    if expected is not None:
        console.print(Text(expected.sentence()))
    for line in judgement.lines():
        console.print(Text(printable(line)))
    if judgement.problems:
        return 3
    console.print(Text(judgement.verdict(f"this job can run on {', '.join(host.name for host in hosts)}")))
    return 0


def examine(
    reach: Reach, config: Config, layout: Callable[[], Layout]
) -> tuple[Mapping[str, Up], Survey, Judgement, Expectation | None]:
    """Connect to the hosts and probe them.

    Returns the daemons' reports, the survey, the judgement, and the speed to expect with this ``layout``, or None.
    """
    _say(f"connecting to {counted(len(reach.hosts), 'host')}")
    work = f"doctor-{secrets.token_hex(6)}"
    ending = partial(_say, "ending the daemons")
    with connect_and_place(reach, config, work=work, lease_s=LEASE_S, whole=True, clean=True, ending=ending) as hosts:
        found = survey(hosts, _say)
    found = dataclasses.replace(found, failed={**hosts.failed, **found.failed})
    judgement = judge(found, config, hosts.placement)
    expected = expect(
        hosts.placement,
        layout(),
        config.wire.codec,
        found.measured("bytes_per_s"),
        found.measured("round_trip_s"),
        together=config.mode == "sync",
    )
    warnings = [*judgement.warnings, *(expected.warnings() if expected is not None else ())]
    return hosts.up, found, Judgement([*judgement.problems, *hosts.unknown], warnings), expected


def known(host: Host, up: Mapping[str, Up], found: Survey) -> dict[str, Any]:
    """All known facts about ``host``."""
    about = dataclasses.asdict(up[host.name]) if host.name in up else {}
    return {**about, **found.facts.get(host.name, {})}


def host_table(hosts: Sequence[Host], up: Mapping[str, Up], found: Survey) -> Table:
    """A line for each host. A dash: unknown."""
    measured = ("cores", "memory", "open files", "disk", "/dev/shm", "clock", "busy")
    shown = ruled_table(None, "host", "zmqrl", "python", "game", *measured, left=4)
    for host in hosts:
        about = known(host, up, found)
        cells = [about.get("zmqrl"), about.get("python")]
        if "disk_bytes" in about:
            cells += ["yes" if about["game_error"] is None else "no", str(about["cores"])]
            cells += [None if about["memory_bytes"] is None else size(about["memory_bytes"])]
            cells += ["no limit" if about["open_files"] is None else str(about["open_files"])]
            cells += [size(about["disk_bytes"]), size(about["shm_bytes"])]
            cells += [None if about["clock_ahead_s"] is None else f"{1000 * about['clock_ahead_s']:+.0f} ms"]
            busy, cores = about.get("busy_cores"), about.get("machine_cores")
            cells += [None if busy is None else f"{busy:.1f} of {cores} cores"]
        cells += [None] * (len(shown.columns) - 1 - len(cells))
        shown.add_row(*(Text(printable(cell or "-")) for cell in (host.name, *cells)))
    return shown


def route_table(routes: Mapping[Route, Facts]) -> Table:
    """A line for each route, in the order of ``routes``. Of many routes, only the failed and slowest ones."""
    shown = ruled_table(None, "from", "to", "address", "round trip", "bandwidth", left=3)
    worst = set(sorted(routes, key=lambda route: _speed(routes[route]))[:ROUTES_SHOWN])
    for route, measured in routes.items():
        if route not in worst:
            continue
        if "error" in measured:
            cells = [measured["error"], "-"]
        else:
            passes = measured.get("bytes_per_s")
            cells = [f"{1000 * measured['round_trip_s']:.2f} ms", "-" if passes is None else f"{passes / 1e6:.1f} MB/s"]
        shown.add_row(*(Text(printable(cell)) for cell in (route.source, route.target, route.address, *cells)))
    if len(routes) > ROUTES_SHOWN:
        shown.caption = f"and {counted(len(routes) - ROUTES_SHOWN, 'faster one')}; --json shows all"
    return shown


def _speed(measured: Facts) -> tuple[float, ...]:
    """The sort key of a route: lower if slower, and lowest if failed."""
    if "error" in measured:
        return (0.0,)
    return measured.get("bytes_per_s", math.inf), -measured["round_trip_s"]


def to_json(
    hosts: Sequence[Host],
    up: Mapping[str, Up],
    found: Survey,
    judgement: Judgement,
    expected: Expectation | None = None,
) -> dict[str, Any]:
    """The findings as plain data. Unknown values are null."""
    return {
        "hosts": [
            {"host": host.name, **{key: about.get(key) for key in KEYS}}
            for host, about in ((host, known(host, up, found)) for host in hosts)
        ],
        "routes": [
            {
                "from": route.source,
                "to": route.target,
                "address": route.address,
                "ports": list(route.ports),
                **{key: measured.get(key) for key in ("round_trip_s", "bytes_per_s", "port", "error")},
            }
            for route, measured in found.routes.items()
        ],
        "expected": None if expected is None else expected.to_json(),
        "problems": judgement.problems,
        "warnings": judgement.warnings,
    }


def _say(text: str) -> None:
    sys.stderr.write(f"zmqrl doctor: {text}\n")
