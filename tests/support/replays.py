"""Synthetic profiles as runs to replay."""

from collections.abc import Sequence
from typing import Any

from zmqrl.profile.clocks import Clocks
from zmqrl.profile.critical_path import Timeline, critical_paths
from zmqrl.profile.run_tables import ProcessTables, RunTables
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.scenario import Scenario


def recorded(processes: Sequence[ProcessTables], **scenario: Any) -> RecordedRun:
    """A run with these profiles. ``scenario`` has settings of the run, such as ``backups``."""
    tables = RunTables(tuple(processes))
    timeline = Timeline.of(tables, Clocks.of(tables))
    shards = sum(each.process.role == "shard" for each in processes)
    settings = {"workers": len(processes) - shards, "shards": shards, "parameters": 10_000}
    return RecordedRun(tables, timeline, critical_paths(timeline), Scenario(**settings | scenario))
