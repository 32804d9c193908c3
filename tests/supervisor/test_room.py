"""A run starts only if the disk of its directory has room for what the run will write."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from zmqrl.checkpoint import Checkpoint
from zmqrl.errors import UsageError
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.store import SlotStore
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.run import LOGS_BYTES, check_room, needed_bytes

COUNT = 1_000_000
STATES = ("first", "second")
LAYOUT = Layout.of([("w", (COUNT,))], 2)
INITIAL = Checkpoint.initial(LAYOUT, np.ones(COUNT, np.float32), "adam", STATES)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def written(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_the_room_is_that_of_the_checkpoints_and_the_state_that_the_run_writes(directory: RunDirectory) -> None:
    needed = needed_bytes(directory, INITIAL, keep=3, holds_state=True) - LOGS_BYTES
    (directory.path / "state").mkdir()
    for cut in LAYOUT.slices:
        SlotStore.create(directory.state(cut.shard), identity=b"", count=cut.count, state_names=STATES).close()
    one = written(INITIAL.write(directory.checkpoints))
    assert needed == pytest.approx(written(directory.path / "state") + 4 * one, rel=1e-3)
    assert needed_bytes(directory, INITIAL, keep=3, holds_state=False) - LOGS_BYTES == pytest.approx(3 * one, rel=1e-3)
    assert needed_bytes(directory, INITIAL, keep=1, holds_state=False) - LOGS_BYTES == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize(
    ("free", "warnings"), [(58_000_000, ["the disk of {} has only 58.0 MB left"]), (2_000_000_000, [])]
)
def test_little_room_is_a_warning_and_too_little_prevents_the_run(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, free: int, warnings: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    assert check_room(directory, INITIAL, 3, holds_state=False) == [each.format(directory.path) for each in warnings]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=57_000_000))
    with pytest.raises(UsageError) as refused:
        check_room(directory, INITIAL, 3, holds_state=False)
    assert str(refused.value) == (
        f"the disk of {directory.path} has 57.0 MB left, but this run needs 58.0 MB: free some space, or choose "
        "another --run-dir."
    )
