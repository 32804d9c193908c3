"""What a worker must know to join a run: the contents of ``cluster.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqrl.errors import UsageError
from zmqrl.ps import messages as m
from zmqrl.ps.partition import Layout
from zmqrl.ps.security import ClientKeys
from zmqrl.ps.sockets import ROLES, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a worker must know to join: the contents of ``cluster.json``."""

    run: str
    layout: Layout
    codec: m.Codec
    endpoints: tuple[dict[Role, str], ...]
    open_ranks: tuple[int, ...] = ()
    asynchronous: bool = False
    key_files: Mapping[int, str] | None = None
    """Where CURVE is on: the file with the keys of each open rank, beside ``cluster.json``."""
    keys: ClientKeys | None = None
    """This worker's own, which it needs where CURVE is on."""

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Read ``cluster.json``. Raises UsageError when it is missing or no such file."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}; it exists only while the run lives.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no cluster file: {error!r}.") from error

    @classmethod
    def from_json(cls, data: dict[str, Any], keys: ClientKeys | None = None) -> "Cluster":
        """From the parsed file; what only people and tools read is ignored. ``keys`` do not stand there.

        Raises UsageError for another version of the protocol.
        """
        if data["protocol"] != m.PROTOCOL:
            raise UsageError(f"the run speaks {data['protocol']!r}, not {m.PROTOCOL!r}: join with the zmqrl it has.")
        files, open_ranks = data.get("keys"), tuple(data.get("open_ranks", ()))
        return cls(
            run=data["run"],
            layout=Layout.from_json(data["layout"]),
            codec=data["codec"],
            endpoints=tuple({role: shard[role] for role in ROLES} for shard in data["shards"]),
            open_ranks=open_ranks,
            asynchronous=data.get("mode") == "async",
            key_files=None if files is None else {rank: files[str(rank)] for rank in open_ranks},
            keys=keys,
        )
