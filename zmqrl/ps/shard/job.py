"""The job that a shard process reads when it starts."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import ShardKeys
from zmqrl.ps.wire.sockets import SocketRole


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """Everything that a shard process needs to start, sent as JSON."""

    run: str
    layout: Layout
    shard: int
    codec: m.Codec
    optimizer: OptimizerConfig
    bind: dict[SocketRole, str]  # endpoint of each role. A frozen shard has only the role control
    secret: str = field(repr=False)
    state_path: Path
    history_path: Path
    consistent: bool = False
    asynchronous: bool = False
    timing: ShardTiming = field(default_factory=ShardTiming)
    keys: ShardKeys | None = None
    """If given, every connection is encrypted and authenticated."""
    profiler: ProfilerJob | None = None
    """If given, the shard records how it spends its time."""
    code: str = ""
    """The zmqrl source code that workers must run: see ``Identity``."""
    horizon: float | None = None
    """The version at which schedules end, if known in advance."""
    frozen: bool = False
    """Make no versions and serve no workers: the supervisor only reads the state in ``state_path``."""
    incarnation: int | None = None
    """Must be greater than the incarnation of the previous process. None: use the current time."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, including the secrets."""
        names = ("run", "shard", "codec", "bind", "secret", "code", "consistent", "asynchronous", "horizon", "frozen")
        return {name: getattr(self, name) for name in names} | {
            "layout": self.layout.to_json(),
            "optimizer": asdict(self.optimizer),
            "timing": asdict(self.timing),
            "keys": self.keys.to_json() if self.keys else None,
            "state_path": str(self.state_path),
            "history_path": str(self.history_path),
            "profiler": self.profiler.to_json() if self.profiler else None,
            "incarnation": self.incarnation,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShardJob":
        return cls(
            **data
            | {
                "layout": Layout.from_json(data["layout"]),
                "optimizer": OptimizerConfig(**data["optimizer"]),
                "timing": ShardTiming(**data["timing"]),
                "keys": ShardKeys.from_json(data["keys"]) if data["keys"] else None,
                "state_path": Path(data["state_path"]),
                "history_path": Path(data["history_path"]),
                "profiler": ProfilerJob.from_json(data["profiler"]) if data["profiler"] else None,
            }
        )
