"""What a resume reads before the run continues."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from zmqrl.checkpoint import Checkpoint
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.events import Record, View
from zmqrl.ps.shard.history import History
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.resume import mend_histories


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.history(0).parent.mkdir()
    return directory


@pytest.fixture
def checkpoint() -> Checkpoint:
    layout = Layout.of((("w", (32,)),), shards=2)
    return Checkpoint.initial(layout, np.zeros(32, np.float32), "sgd", ())


def test_a_resumed_run_continues_from_the_newest_generation_of_any_history(
    directory: RunDirectory, checkpoint: Checkpoint
) -> None:
    assert mend_histories(directory, checkpoint) == (0, [])
    directory.history(1).write_text(
        "".join(f"{json.dumps({'version': version, 'generation': version})}\n" for version in (1, 2, 3))
    )
    assert mend_histories(directory, checkpoint) == (3, [])
    directory.history(1).write_text('{"version": 1}\n')  # from an older zmqrl
    assert mend_histories(directory, checkpoint) == (0, [])


def test_a_resumed_run_continues_above_the_newest_rollback_even_if_no_version_was_made_after_it(
    directory: RunDirectory, checkpoint: Checkpoint
) -> None:
    made = dataclasses.replace(Record.handed_over(1, 1, View(1, 1, (0,))), quorum=1, ranks=(0,))
    history = History(directory.history(0))
    history.append(made, crc32=7)
    history.rewind(0, generation=2)  # the run was killed before it made a version in generation 2
    generation, _ = mend_histories(directory, checkpoint)
    assert generation == 2
    history.recover(dataclasses.replace(made, generation=generation + 1), crc32=7)
    assert history.last_version == 1


def test_missing_and_unreadable_lines_are_named(directory: RunDirectory, checkpoint: Checkpoint) -> None:
    path = directory.history(0)
    path.write_text('{"version": 1, "generation": 1}\n{"version": 2, "ra\0"\n')
    directory.history(1).write_text('{"version": 3, "generation": 1}\n')
    generation, (unreadable, missing) = mend_histories(directory, dataclasses.replace(checkpoint, version=3))
    assert generation == 1
    assert unreadable.startswith(f"{path}: line 2 could not be read; the original file is kept as shard-0.damaged-")
    assert missing == f"{path}: the lines of versions 2 to 3 are missing"
