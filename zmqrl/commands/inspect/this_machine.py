"""``zmqrl doctor`` without hosts: check that this machine can run a job, and say what limits its speed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from zmqrl.commands.output import print_json, prints_to_stderr
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.hosts import probe
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.placement import place_run
from zmqrl.hosts.preflight import Judgement, Survey, judge, size
from zmqrl.local.advice import advice
from zmqrl.local.extras import EXTRAS, missing
from zmqrl.local.resources import INSTRUCTIONS, Resources, TorchBuild, resources, to_json, torch_build
from zmqrl.observe.tables import page
from zmqrl.process import CORES
from zmqrl.rundir import ANOTHER
from zmqrl.start.initial import Preparation
from zmqrl.supervisor.run import check_extras, check_here

THIS_MACHINE: Final = "this machine"


def run(config: Config, *, json: bool) -> int:
    """Check this machine. Returns 0 if the run can start, and 3 if not."""
    config.check()
    config = config.with_schedule()
    with prints_to_stderr():
        facts = facts_of(config)
        found, torch = resources(facts["busy_cores"]), torch_build()
        judgement = judgement_of(config, facts, found, torch)
    if json:
        about = {key: facts[key] for key in ("game_error", "memory_bytes", "open_files", "disk_bytes", "shm_bytes")}
        extras = {name: not missing(name) for name in EXTRAS}
        machine = to_json(found, torch) | about | {"run_directory": facts["work"], "extras": extras}
        print_json({"machine": machine, "problems": judgement.problems, "warnings": judgement.warnings})
        return 3 if judgement.problems else 0
    console = page()
    table = Table.grid(padding=(0, 2))
    for name, value in rows(config, facts, found, torch):
        table.add_row(name, Text(value))
    console.print(table)
    for line in judgement.lines():
        console.print(Text(line))
    if judgement.problems:
        return 3
    console.print(Text(judgement.verdict("this machine can run this job")))
    return 0


def facts_of(config: Config) -> dict[str, Any]:
    """The facts that this machine would report as a host."""
    directory = (config.run_dir or Path("runs")).absolute()
    work = next(path for path in (directory, *directory.parents) if path.exists())
    return {
        "work": str(work),
        **probe.facts(str(work)),
        **_tried(config),
        "clock_ahead_s": None,
        "cuda": probe.sees_cuda() if config.device == "cuda" else None,
    }


def _tried(config: Config) -> dict[str, str | None]:
    """Why the game cannot be played here, why the network or the loss cannot be used, and a notice about the game.

    None: no reason, no notice.
    """
    found: dict[str, str | None] = {"game_error": None, "network_error": None, "game_notice": None}
    name = "game_error"
    try:
        with Preparation(config, draws=config.recorder) as preparation:
            preparation.flavour()
            found["game_notice"] = preparation.notice
            name = "network_error"
            preparation.checkpoint()
    except UsageError as error:
        found[name] = str(error).rstrip(".")
    return found


def judgement_of(config: Config, facts: Mapping[str, Any], found: Resources, torch: TorchBuild) -> Judgement:
    """What prevents the run here, and what to change."""
    placement = place_run(config, [Host(name=THIS_MACHINE)], {THIS_MACHINE: CORES})
    # advice() reports busy cores.
    judged = judge(Survey(facts={THIS_MACHINE: {**facts, "busy_cores": None}}), config, placement)
    problems = list(judged.problems)
    if facts["network_error"] is not None:
        problems.append(f"{THIS_MACHINE}: {facts['network_error']}.")
    for check in (check_here, check_extras):
        try:
            check(config)
        except UsageError as error:
            problems.append(f"{THIS_MACHINE}: {error}")
    if not os.access(facts["work"], os.W_OK | os.X_OK):
        problems.append(f"{THIS_MACHINE}: {facts['work']} is not writable: make it writable, or {ANOTHER}.")
    told = [f"{THIS_MACHINE}: {text}." for text in advice(found, torch, cuda=config.device == "cuda")]
    about_game = [] if facts["game_notice"] is None else [f"{facts['game_notice']}."]
    return Judgement(problems, [*judged.warnings, *placement.notices, *about_game, *told])


def rows(config: Config, facts: Mapping[str, Any], found: Resources, torch: TorchBuild) -> list[tuple[str, str]]:
    """The name and value of each fact. A dash: unknown."""
    limit = "no quota" if found.quota_cores is None else f"quota {found.quota_cores:g}"
    vectors = ", ".join(INSTRUCTIONS[name] for name in found.instructions) or "none"
    kind = "CPU build" if torch.cuda is None else f"CUDA {torch.cuda}"
    memory, files = facts["memory_bytes"], facts["open_files"]
    variables = ", ".join(f"{name}={value}" for name, value in found.variables.items())
    return [
        ("processor", found.processor),
        ("vector instructions", vectors),
        ("bfloat16", "yes" if found.has_bfloat16 else "no: networks for images compute in float32, at half the speed"),
        ("cores", f"{found.usable_cores} of {found.cores} ({limit}, bound to {found.bound_cores})"),
        ("busy cores", "-" if found.busy_cores is None else f"{found.busy_cores:.1f}"),
        ("memory", "-" if memory is None else f"{size(memory)} free"),
        ("torch", f"{torch.version} ({kind}, {torch.threading} threads, {torch.capability} kernels)"),
        ("variables", f"{variables} (a run sets its own numbers of threads)" if variables else "none that matter"),
        ("extras", ", ".join(name for name in EXTRAS if not missing(name)) or "none"),
        ("open files", "no limit" if files is None else f"{files:,} for each process"),
        ("/dev/shm", f"{size(facts['shm_bytes'])} free"),
        ("run directory", f"below {facts['work']}, {size(facts['disk_bytes'])} free"),
        ("clock source", found.clock_source or "-"),
        ("game", f"{config.env}: {facts['game_error'] or 'can be played'}"),
    ]
