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


def gradient_header(**changes: Any) -> m.Gradient:
    """The header of the first contribution of rank 0 to version 0 of shard 0, with other fields if given."""
    return replace(HEADER, **changes)
