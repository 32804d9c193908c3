"""Synthetic profiles as runs to replay."""

from collections.abc import Sequence
from typing import Any

from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import ProcessTables, RunTables
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.scenario import Scenario


def recorded(processes: Sequence[ProcessTables], **scenario: Any) -> RecordedRun:
    """A run with these profiles. ``scenario`` has settings of the run, such as ``backups``."""
    tables = RunTables(tuple(processes))
    shards = sum(each.process.role == "shard" for each in processes)
    settings: dict[str, Any] = {"workers": len(processes) - shards, "shards": shards, "parameters": 10_000}
    settings |= scenario
    return RecordedRun(Analysis.of(tables, shards=settings["shards"]), Scenario(**settings))
