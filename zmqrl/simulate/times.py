"""The durations of the workers' work, drawn from laws or read from the directory of a real run."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, get_type_hints

from zmqrl.errors import UsageError, require
from zmqrl.json_lines import read_json
from zmqrl.learner.settings import ALGORITHMS
from zmqrl.observe.forms import decode
from zmqrl.observe.records import RunRecord
from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import RunTables
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.codec import codec_named
from zmqrl.rundir import RunDirectory
from zmqrl.simulate.compute import ComputeTimes, Work
from zmqrl.simulate.laws import Law
from zmqrl.simulate.recorded import GRADIENT_SPANS, ROLLOUT_SPANS, RecordedRun, TooLittleRecorded
from zmqrl.simulate.scenario import RECORDED, Scenario

STORED: Final = {name: name for name in ("workers", "backups", "quorum", "shards")} | {"need_s": "wire.need_s"}
"""Settings of a scenario, and the settings of a run that have their values."""


def scenario_of(run: Path) -> Scenario:
    """The scenario of a run: its workers, shards, parameters and work. Raises UsageError if ``run`` is not a run.

    Hosts, cores and the costs of the shards come from the run's profile, if it has one.
    """
    recorded = recorded_run(run)
    if isinstance(recorded, TooLittleRecorded):
        return settings_of(run, RunRecord.read(run))
    updates = _whole_iterations(recorded.scenario.updates_per_rollout)
    cores = recorded.scenario.host_cores
    return replace(
        recorded.scenario,
        updates=updates,
        cores=max(1, sum(cores) // len(cores)),
        worker_hosts=(),
        shard_hosts=(),
        host_cores=(),
    )


def settings_of(run: Path, record: RunRecord) -> Scenario:
    """A scenario from the settings in ``record``, without a profile. Raises UsageError if the run is asynchronous."""
    settings = record.settings
    require(
        not record.is_asynchronous,
        f"{run} has mode = async: the simulator does not model asynchronous updates. Use a synchronous run.",
    )
    per_rollout, agent_steps = _rollout_of(settings, run)
    return replace(
        processes_of(settings, run),
        updates=_whole_iterations(per_rollout),
        compute=f"{RECORDED}{run}",
        updates_per_rollout=per_rollout,
        agent_steps_per_rollout=agent_steps,
        parameters=_parameters_of(run),
        codec=codec_named(settings.get("wire.codec", "f32"), RunDirectory(run).config),
    )


def processes_of(settings: Mapping[str, Any], run: Path) -> Scenario:
    """A scenario with the workers and shards of a run. Raises UsageError for a missing or invalid setting."""
    stored = {name: settings[setting] for name, setting in STORED.items() if setting in settings}
    with _usable(run):
        scenario = decode(Scenario, {"workers": settings["workers"], "shards": 1} | stored)
        scenario.check()
    return scenario


@lru_cache(maxsize=1)  # a sweep simulates the same run many times
def recorded_run(run: Path) -> RecordedRun | TooLittleRecorded:
    """The profile of a run, or the reason why it cannot be simulated. Raises UsageError."""
    scenario = settings_of(run, RunRecord.read(run))
    whole = Analysis.of(RunTables.newest(RunDirectory(run).profile), shards=scenario.shards)
    try:
        return RecordedRun(whole, scenario)
    except TooLittleRecorded as reason:
        return reason


def recorded_times(run: Path, updates: int, *, transfers: bool) -> ComputeTimes:
    """The recorded times of a run's workers, for ``updates`` updates. ``transfers``: whether to include transfer times.

    Without a profile, the times are means over the second half of the run's ``metrics.jsonl``, and count as CPU time.
    Raises UsageError if ``run`` is not a run, or has no times yet.
    """
    recorded = recorded_run(run)
    if isinstance(recorded, RecordedRun):
        return recorded.times(range(recorded.scenario.ranks), updates, transfers=float(transfers))
    record = RunRecord.read(run)
    per_rollout, _ = _rollout_of(record.settings, run)
    splits = [row["split_s"] for row in record.rows if row.get("split_s")]
    splits = splits[len(splits) // 2 :]
    if not splits:
        raise UsageError(f"{run} has no times in metrics.jsonl: use a run that has made updates.")
    rollout_s, gradient_s = (
        sum(split.get(span, 0.0) for split in splits for span in spans) / len(splits)
        for spans in (ROLLOUT_SPANS, GRADIENT_SPANS)
    )
    return ComputeTimes((Work([gradient_s]),), (Work([rollout_s * per_rollout]),))


def times_of(scenario: Scenario) -> ComputeTimes:
    """The times of the work in ``scenario``, drawn or recorded. Raises UsageError.

    If the scenario describes a network, that network replaces the recorded transfers.
    """
    if scenario.recorded_run is not None:
        return recorded_times(scenario.recorded_run, scenario.updates, transfers=not scenario.times_transfers)
    return ComputeTimes.drawn(
        gradient=Law.parse(scenario.compute, "--compute"),
        rollout=None if scenario.rollout is None else Law.parse(scenario.rollout, "--rollout"),
        ranks=scenario.ranks,
        versions=scenario.updates,
        per_rollout=scenario.updates_per_rollout,
        busy=scenario.busy,
        seed=scenario.seed,
    )


def _whole_iterations(per_rollout: int) -> int:
    """The number of updates to simulate: at least 100, and at least 4 whole iterations."""
    return max(4, -(-100 // per_rollout)) * per_rollout


def _rollout_of(settings: Mapping[str, Any], run: Path) -> tuple[int, int]:
    """The versions learned from one rollout, and the agent steps in it."""
    with _usable(run):
        name = settings["algo"]
        kind = ALGORITHMS[name]
        stored = {each: settings[f"{name}.{each}"] for each in get_type_hints(kind) if f"{name}.{each}" in settings}
        algorithm = decode(kind, stored, name)
        for each in algorithm.rollout_settings:  # their defaults would give another prediction
            if each not in stored:
                raise KeyError(f"{name}.{each}")
        games = settings["envs.num_envs"]
        require(type(games) is int and games >= 1, f"envs.num_envs cannot be {games!r:.60}")
        return algorithm.updates_per_rollout, algorithm.rollout_steps * games


@contextlib.contextmanager
def _usable(run: Path) -> Iterator[None]:
    """Raise a UsageError that names the configuration of ``run`` if a setting is missing or invalid."""
    try:
        yield
    except (KeyError, TypeError, UsageError) as error:
        reason = str(error).removesuffix(".")
        raise UsageError(f"{run / 'config.json'} cannot be used: a setting is missing or invalid: {reason}.") from error


def _parameters_of(run: Path) -> int:
    """The length of the parameter vector in the newest checkpoint."""
    for manifest in sorted(RunDirectory(run).checkpoints.glob("*/manifest.json"), reverse=True):
        try:
            return Layout.from_json(read_json(manifest)["layout"]).count
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{manifest} cannot be used: {getattr(error, 'strerror', error)}.") from error
    raise UsageError(f"{run} has no checkpoint to take the number of parameters from: use another run.")
