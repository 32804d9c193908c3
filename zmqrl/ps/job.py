"""What a shard process is told at its start."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zmqrl.ps import messages as m
from zmqrl.ps.optimizer import OptimizerConfig
from zmqrl.ps.partition import Layout
from zmqrl.ps.security import ShardKeys
from zmqrl.ps.shard import Timing
from zmqrl.ps.sockets import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """Everything a shard process is told at its start; plain data, so that it travels as JSON.

    ``trace_versions`` versions from the first are written to ``trace_path`` as a trace when the process ends.
    """

    run: str
    layout: Layout
    shard: int
    codec: m.Codec
    optimizer: OptimizerConfig
    bind: dict[Role, str]  # all, or only control if frozen
    secret: str = field(repr=False)
    state_path: Path
    history_path: Path
    consistent: bool = False
    asynchronous: bool = False
    timing: Timing = field(default_factory=Timing)
    keys: ShardKeys | None = None
    """With these every connection is encrypted and authenticated."""
    trace_path: Path | None = None
    trace_versions: int = 0
    code: str = ""
    """The zmqrl that workers must run if they say which they run; empty: any."""
    frozen: bool = False
    """Only for what is in ``state_path`` to be read: no version is made from it, and no worker is served."""
    incarnation: int | None = None
    """Greater than that of the process before it; by the clock if not given."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("run", "shard", "codec", "bind", "secret", "code", "consistent", "asynchronous", "frozen")
        return {name: getattr(self, name) for name in names} | {
            "layout": self.layout.to_json(),
            "optimizer": asdict(self.optimizer),
            "timing": asdict(self.timing),
            "keys": self.keys.to_json() if self.keys else None,
            "state_path": str(self.state_path),
            "history_path": str(self.history_path),
            "trace_path": str(self.trace_path) if self.trace_path else None,
            "trace_versions": self.trace_versions,
            "incarnation": self.incarnation,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShardJob":
        """Inverse of :meth:`to_json`."""
        return cls(
            **data
            | {
                "layout": Layout.from_json(data["layout"]),
                "optimizer": OptimizerConfig(**data["optimizer"]),
                "timing": Timing(**data["timing"]),
                "keys": ShardKeys.from_json(data["keys"]) if data["keys"] else None,
                "state_path": Path(data["state_path"]),
                "history_path": Path(data["history_path"]),
                "trace_path": Path(data["trace_path"]) if data["trace_path"] else None,
            }
        )
