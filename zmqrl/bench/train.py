"""Measures training and its parts alone, in turn. While one is measured, the processes of the other are idle."""

import contextlib
import dataclasses
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from zmqrl.bench.crew import Crew, Part, PartFacts, Role
from zmqrl.bench.efficiency import PARTS, Efficiency, StepTimes, per_step_s, split_of
from zmqrl.bench.reference import Reference, references
from zmqrl.config import Config
from zmqrl.errors import require
from zmqrl.hosts.daemons import PATIENCE, environment_of
from zmqrl.hosts.deployment import placed_here
from zmqrl.process_id import worker_id
from zmqrl.profile.run_tables import RunTables
from zmqrl.rundir import RunDirectory
from zmqrl.start.initial import Preparation
from zmqrl.supervisor.run import check_extras, check_here, train
from zmqrl.supervisor.tasks import core_of

WARM_UP_S: Final = 2.0  # training before the measurement: libraries choose their code, and memory is touched
# Options that a benchmark refuses: its run has its own end, starts from version 0, starts all its workers, and learns.
NOT_MEASURED: Final = (
    "updates",
    "agent_steps",
    "minutes",
    "stop_score",
    "external_workers",
    "act_only",
    "resume",
)


class Measured(NamedTuple):
    """The result of a benchmark, and what was measured.

    ``passes`` is the number of gradient passes over each sample. ``facts`` describes the network, as in ``bare.py``.
    """

    efficiency: Efficiency
    threads: int
    passes: float
    facts: PartFacts
    references: Mapping[str, Reference]


def check(config: Config, *, seconds: float, rounds: int) -> None:
    """Raise UsageError if ``config`` cannot be trained or measured."""
    require(0 < seconds < math.inf, f"--seconds {seconds:g}: must be above 0 and finite.")
    require(1 <= rounds <= 1000, f"--rounds {rounds}: must be from 1 to 1000.")
    default = Config()
    for name in NOT_MEASURED:
        changed = getattr(config, name) != getattr(default, name)
        require(not changed, f"--{name.replace('_', '-')} cannot be used in a benchmark: remove it.")
    check_here(config)
    check_extras(config)
    if config.run_dir is not None:
        for directory in (_round_directory(config.run_dir, number) for number in range(rounds)):
            require(not directory.exists(), f"{directory} already exists: choose another --run-dir.")
    with Preparation(config, needs_cuda=config.device == "cuda") as preparation:
        preparation.flavour()
        preparation.checkpoint()


def measure(config: Config, *, seconds: float, rounds: int, begin: Callable[[str], object]) -> Measured:
    """Measure training for at least ``seconds`` in total, in ``rounds`` rounds. Call ``check`` first.

    Each round measures the parts, then training. ``begin`` gets a description of each measurement before it starts.
    Raises ClusterError.
    """
    from zmqrl.bench.bare import BareForward, BareGames, BareGradient  # takes seconds, because it imports torch

    bare_parts: Mapping[str, type[Part]] = {"env_step": BareGames, "act": BareForward, "gradient": BareGradient}
    placement = placed_here(config)
    threads = placement.threads[worker_id(0)]
    cores = [core_of(worker_id(rank), placement.host_of, placement.threads, config) for rank in range(config.ranks)]
    patience = {name: os.environ.get(name, value) for name, value in PATIENCE.items()}
    job = {"config": config.to_json(), "threads": threads}
    jobs = {rank: job | {"rank": rank} for rank in range(config.ranks)}
    passes = _passes(config)
    found = []
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="zmqrl-bench-"))
        crew = stack.enter_context(Crew(config.ranks, environment_of(threads) | patience, cores))
        parts = {name: stack.enter_context(crew.playing(name, part, jobs)) for name, part in bare_parts.items()}
        for number in range(rounds):
            begin(f"round {number + 1} of {rounds}: the parts alone")
            bare_s = _measure_parts(crew, parts, seconds / rounds, passes)
            begin(f"round {number + 1} of {rounds}: training")
            directory = _round_directory(config.run_dir or Path(scratch), number)
            split_s = _measure_training(config, directory, seconds / rounds, sum(bare_s.values()))
            found.append(StepTimes(bare_s=bare_s, split_s=split_s))
        facts = parts["gradient"][0].facts
    known = references(
        config, threads=threads, compute=facts["compute"], passes=passes, backward_only=facts["backward_only"]
    )
    return Measured(Efficiency(workers=config.ranks, rounds=found), threads, passes, facts, known)


def _passes(config: Config) -> float:
    """Gradient passes over each sample of a rollout."""
    samples = config.envs.num_envs * config.algorithm.rollout_steps
    return config.algorithm.updates_per_rollout * config.algorithm.minibatch_samples(config.envs.num_envs) / samples


def _measure_parts(crew: Crew, parts: Mapping[str, list[Role]], seconds: float, passes: float) -> dict[str, float]:
    """Measure each part alone, on all workers at once, in seconds per agent step and worker."""
    took_s = {name: per_step_s(crew.run_for(roles, seconds / len(parts))) for name, roles in parts.items()}
    return took_s | {"gradient": passes * took_s["gradient"]}


def _measure_training(config: Config, directory: Path, seconds: float, bare_s: float) -> dict[str, float]:
    """Train for at least ``seconds`` after the warm-up. ``bare_s`` is the least possible time of an agent step.

    Returns seconds per agent step and worker. Raises KeyboardInterrupt if the run was interrupted.
    """
    steps = config.envs.num_envs * config.algorithm.rollout_steps
    warm_up, measured = (math.ceil(each / (steps * bare_s)) for each in (min(WARM_UP_S, seconds), seconds))
    updates = config.algorithm.updates_per_rollout * (config.ranks if config.mode == "async" else 1)
    run = dataclasses.replace(config, run_dir=directory, updates=updates * (warm_up + measured))
    with contextlib.redirect_stdout(io.StringIO()):
        if train(run) != 0:
            raise KeyboardInterrupt
    tables = RunTables.read(RunDirectory(directory).profile)
    return split_of(
        (each.table("cycles") for each in tables.of_role("worker")),
        first_version=updates * warm_up,
        updates_per_rollout=config.algorithm.updates_per_rollout,
        steps_per_rollout=steps,
    )


def _round_directory(directory: Path, number: int) -> Path:
    return directory / f"round-{number + 1}"


def to_json(config: Config, measured: Measured) -> dict[str, Any]:
    """The result and the measured configuration, as plain data."""
    known = measured.references
    return {
        **measured.efficiency.to_json(),
        "reference_s": {name: known[name].seconds if name in known else None for name in PARTS},
        "reference_machine": {name: known[name].machine if name in known else None for name in PARTS},
        "recipe": config.recipe,
        "env": config.env,
        "algo": config.algo,
        "model": config.model,
        "workers": config.ranks,
        "threads": measured.threads,
        "shards": config.shards,
        "num_envs": config.envs.num_envs,
        "rollout_steps": config.algorithm.rollout_steps,
        "passes": measured.passes,
        **measured.facts,
    }
