"""Messages of a toy run. A test names only the fields that matter to it."""

from dataclasses import replace
from typing import Any

from zmqrl.ps.wire import messages as m

HEADER = m.Gradient(
    run="run",
    layout="layout",
    generation=1,
    view=1,
    shard=0,
    version=0,
    rank=0,
    incarnation=1,
    attempt=0,
    codec="f32",
)


STATS = m.Stats(
    run="run",
    shard=0,
    incarnation=1,
    generation=1,
    version=0,
    view=1,
    quorum=1,
    state="open",
    held=(),
    present=(),
    silent_ms=(),
    tallies=(),
    unattributed=0,
    captured=None,
    totals=(),
    captured_totals=(),
    stop=None,
    failure="",
)


def gradient_header(**changes: Any) -> m.Gradient:
    """The header of the first contribution of rank 0 to version 0 of shard 0, with other fields if given."""
    return replace(HEADER, **changes)


def stats_with(**changes: Any) -> m.Stats:
    """The statistics of shard 0 at version 0, which sees no worker, with other fields if given."""
    return replace(STATS, **changes)
