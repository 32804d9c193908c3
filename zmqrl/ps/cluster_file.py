"""Reads ``cluster.json``, which holds everything that a worker needs to join a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqrl.errors import UsageError
from zmqrl.json_lines import read_json
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import codec_named
from zmqrl.ps.wire.keys import ClientKeys
from zmqrl.ps.wire.sockets import SOCKET_ROLES, SocketRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The contents of ``cluster.json``, and the keys of one worker."""

    run: str
    layout: Layout
    codec: m.Codec
    endpoints: tuple[dict[SocketRole, str], ...]
    open_ranks: tuple[int, ...] = ()
    asynchronous: bool = False
    shares_memory: bool = False
    """Whether workers and shards are on one host, so that payloads can stay in memory."""
    key_files: Mapping[int, str] | None = None
    """With CURVE: the key file of each open rank, in the directory of ``cluster.json``."""
    keys: ClientKeys | None = None
    """With CURVE: the keys of the worker that connects. They are never in ``cluster.json``."""

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Read ``cluster.json``. Raises UsageError if the file is missing or is not a cluster file."""
        try:
            return cls.from_json(read_json(path), where=path)
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}. This file exists only while the run is alive."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a cluster file: {error!r}.") from error

    @classmethod
    def from_json(
        cls, data: dict[str, Any], keys: ClientKeys | None = None, where: Path = Path("cluster.json")
    ) -> "Cluster":
        """Build a cluster from the parsed file ``where``, whose unknown fields are ignored.

        Raises UsageError when the run uses another version of the protocol, or an unknown codec.
        """
        if data["protocol"] != m.PROTOCOL:
            raise UsageError(
                f"the run uses protocol {data['protocol']!r}, but this zmqrl uses {m.PROTOCOL!r}: "
                "join with the version of zmqrl that started the run."
            )
        files, open_ranks = data.get("keys"), tuple(data.get("open_ranks", ()))
        return cls(
            run=data["run"],
            layout=Layout.from_json(data["layout"]),
            codec=codec_named(data["codec"], where),
            endpoints=tuple({role: shard[role] for role in SOCKET_ROLES} for shard in data["shards"]),
            open_ranks=open_ranks,
            asynchronous=data.get("mode") == "async",
            shares_memory=bool(data.get("shares_memory", False)),
            key_files=None if files is None else {rank: files[str(rank)] for rank in open_ranks},
            keys=keys,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``from_json``, without keys and open ranks."""
        return {
            "protocol": m.PROTOCOL,
            "run": self.run,
            "codec": self.codec,
            "layout": self.layout.to_json(),
            "shards": list(self.endpoints),
            "mode": "async" if self.asynchronous else "sync",
            "shares_memory": self.shares_memory,
        }
