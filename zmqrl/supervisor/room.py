"""Checks that the disk of the run directory has room for what the run will write."""

import shutil
from pathlib import Path

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.errors import UsageError
from zmqrl.hosts.preflight import LOW_DISK_BYTES, size
from zmqrl.ps.shard.store import store_bytes
from zmqrl.rundir import ANOTHER, RunDirectory

LOGS_BYTES = 10_000_000  # logs, metrics, histories and recordings of a short run


def check_room(directory: RunDirectory, checkpoint: Checkpoint, keep: int, *, holds_state: bool) -> list[str]:
    """Compare the free space on the disk of a run directory with the space that the run needs there.

    The run keeps ``keep`` checkpoints of the size of ``checkpoint``. ``holds_state``: the shards store their state in
    this directory. Returns warnings. Raises UsageError if there is too little space.
    """
    free, needed = free_bytes(directory.path), needed_bytes(directory, checkpoint, keep, holds_state=holds_state)
    if free < needed:
        raise UsageError(
            f"the disk of {directory.path} has {size(free)} left, but this run needs {size(needed)}: free some space, "
            f"or {ANOTHER}."
        )
    return [f"the disk of {directory.path} has only {size(free)} left"] if free < needed + LOW_DISK_BYTES else []


def needed_bytes(directory: RunDirectory, checkpoint: Checkpoint, keep: int, *, holds_state: bool) -> int:
    """The bytes that a run will write into its directory: checkpoints, the state of shards, and logs."""
    # A new checkpoint is written before the oldest one is removed.
    new = max(1, keep + 1 - len(checkpoints(directory.checkpoints)))
    needed = new * sum(map(len, checkpoint.states)) + LOGS_BYTES
    if holds_state:
        needed += sum(store_bytes(cut.count, checkpoint.state_names) for cut in checkpoint.layout.slices)
    return needed


def free_bytes(place: Path) -> int:
    """The free space on the disk of a directory."""
    return shutil.disk_usage(place).free
