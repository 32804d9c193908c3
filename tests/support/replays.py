"""Synthetic recordings as runs to replay."""

from collections.abc import Sequence
from typing import Any

from zmqrl.profile.clocks import Clocks
from zmqrl.profile.critical_path import Timeline, critical_paths
from zmqrl.profile.recording import ProcessRecording, Recording
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.scenario import Scenario


def recorded(processes: Sequence[ProcessRecording], **scenario: Any) -> RecordedRun:
    """A run with these recordings. ``scenario`` has settings of the run, such as ``backups``."""
    recording = Recording(tuple(processes))
    timeline = Timeline.of(recording, Clocks.of(recording))
    shards = sum(each.process.role == "shard" for each in processes)
    settings = {"workers": len(processes) - shards, "shards": shards, "parameters": 10_000}
    return RecordedRun(recording, timeline, critical_paths(timeline), Scenario(**settings | scenario))
