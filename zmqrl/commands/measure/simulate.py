"""``zmqrl simulate``: a run in virtual time, or a sweep of runs."""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from zmqrl.commands.options import asks_for_help, check_picture, operands, parse, parse_known
from zmqrl.commands.output import print_json
from zmqrl.errors import UsageError, refusal
from zmqrl.observe.tables import page
from zmqrl.process import interruptible, quiet_children
from zmqrl.simulate.recorded import TooLittleRecorded
from zmqrl.simulate.report import report, table
from zmqrl.simulate.scenario import RECORDED, Scenario
from zmqrl.simulate.simulated_run import SimulatedRun
from zmqrl.simulate.sweep import Axis, variants
from zmqrl.simulate.times import recorded_run, scenario_of
from zmqrl.simulate.virtual.world import simulate

PROGRAM = "zmqrl simulate"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The options that choose the base settings. All other options override the base settings."""

    scenario: Path | None = None
    """Scenario file in TOML, or in JSON if its name ends with .json. FILE without --scenario means the same."""
    from_run: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Run directory. Simulate this run, with its settings and its measured times."""


@dataclass(frozen=True, kw_only=True)
class Known(Source):
    """Options that change the base settings.

    With ``--compute run:DIR``, some base settings come from the run in DIR. ``--shards`` changes the costs of a slice.
    """

    compute: str | None = None
    shards: int | None = None


@dataclass(frozen=True, kw_only=True)
class Options(Source):
    """Simulate a run in virtual time: the real state machines of shards and workers run on simulated hosts.

    zmqrl simulate [FILE] [options]. Options override the settings in FILE, which have the same names.
    """

    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Simulate each of several values of a setting, such as shards=1,2,4."""
    json: bool = False
    """Print one JSON object, or a list of them with --sweep."""
    live: bool = False
    """Use real processes and sockets on this machine, in real time. Workers sleep instead of computing."""
    plot: Path | None = None
    """Picture to write: step times, or the results of the sweep."""
    settings: tyro.conf.OmitArgPrefixes[Scenario] = field(default_factory=Scenario)


def command(arguments: list[str]) -> int:
    return run(options_from(arguments))


def options_from(arguments: list[str]) -> Options:
    """Read a command line. Raises UsageError."""
    settings, rest = settings_from(arguments, PROGRAM, Options)
    return parse(Options, rest, PROGRAM, Options(settings=settings))


def settings_from(arguments: list[str], program: str, options: type[Source]) -> tuple[Scenario, list[str]]:
    """The base settings of a command with these ``options``, from a scenario file or a run, and the other arguments.

    Raises UsageError.
    """
    named, rest = operands(arguments, [options])
    if asks_for_help(rest):
        return Scenario(), rest
    known, _ = parse_known(Known, rest, program)
    given = [*map(Path, named), *([known.scenario] if known.scenario else [])]
    if len(given) + (known.from_run is not None) > 1:
        raise UsageError(f"{program}: give only one of FILE, --scenario and --from.")
    return base(given[0] if given else None, known), rest


def base(file: Path | None, known: Known) -> Scenario:
    """The scenario that options override. Raises UsageError."""
    if known.from_run is not None:
        scenario = scenario_of(known.from_run)
    else:
        scenario = Scenario() if file is None else Scenario.read(file)
    if known.shards is not None:
        scenario = scenario.with_shards(known.shards)
    if known.from_run is not None or known.compute is None or not known.compute.startswith(RECORDED):
        return scenario
    recorded = scenario_of(Path(known.compute.removeprefix(RECORDED)))
    names = ("updates_per_rollout", "agent_steps_per_rollout", "parameters", "codec")
    return replace(scenario, **{name: getattr(recorded, name) for name in names})


@interruptible()
def run(options: Options) -> int:
    """Simulate, and print the result."""
    if options.plot is not None:
        check_picture("--plot", options.plot)
    axes = [Axis.parse(text) for text in options.sweep]
    scenarios = variants(options.settings, axes)
    tell_of_profile(options.settings, {each.shards for each in scenarios})
    if not options.live:
        tell_of_loss(scenarios)
    run_one = _live(options.settings) if options.live else simulate
    with quiet_children():  # keep the children's logs off this terminal
        results = [run_one(scenario) for scenario in scenarios]
    if options.plot is not None:
        draw(results, axes, options.plot)
    if options.json:
        found: Any = [result.to_json() for result in results] if axes else results[0].to_json()
        print_json(found)
    else:
        page().print(table(results, [axis.name for axis in axes]) if axes else report(results[0]))
    return 0


def _live(scenario: Scenario) -> Callable[[Scenario], SimulatedRun]:
    from zmqrl.simulate.live.run import ignored, live  # only live runs need sockets

    if names := ignored(scenario):
        sys.stderr.write(f"--live uses the cores and connections of this machine, and ignores {', '.join(names)}.\n")
    return live


def tell_of_profile(scenario: Scenario, shards: Collection[int]) -> None:
    """Warn if the recorded run has only mean times, or if its transfers do not show the effect of these ``shards``."""
    run = scenario.recorded_run
    if run is None:
        return
    recorded = recorded_run(run)
    if isinstance(recorded, TooLittleRecorded):
        sys.stderr.write(f"{run}: {recorded} All workers take the mean times of the run, which do not vary.\n")
        return
    if recorded.earlier:
        sys.stderr.write(f"{run}: {recorded.earlier}.\n")
    reason = recorded.no_answer_for_shards()
    if reason and not scenario.times_transfers and set(shards) != {recorded.scenario.shards}:
        sys.stderr.write(f"{run}: {reason}: set --bandwidth to simulate them.\n")


def tell_of_loss(scenarios: Iterable[Scenario]) -> None:
    """Warn if lost packets do not slow down transfers, for lack of latency."""
    if any(each.loss and not each.latency for each in scenarios):
        sys.stderr.write("--loss without --latency only adds timeouts: set --latency to also limit transfer rates.\n")


def draw(results: Sequence[SimulatedRun], axes: Sequence[Axis], path: Path) -> None:
    """Write the picture. Raises UsageError."""
    from zmqrl.commands.measure.simulated_picture import write_picture  # matplotlib takes a second to import

    try:
        write_picture(results, [axis.name for axis in axes], path)
    except OSError as error:
        raise UsageError(refusal(error, path, "choose another --plot")) from error
