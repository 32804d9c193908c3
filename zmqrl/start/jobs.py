"""The jobs of workers and followers, and the messages to and from followers.

Shards have :mod:`zmqrl.ps.shard.job`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from zmqrl.config import Config
from zmqrl.errors import ClusterError
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire.keys import ClientKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """Everything that a worker process needs to start, sent as JSON.

    ``version`` is roughly the run's version, and ``generation`` the newest one of earlier sessions, or 0. They seed the
    games: no two starts of a worker in a session have the same version.
    """

    cluster: Cluster
    config: Config
    rank: int
    version: int
    generation: int
    incarnation: int
    threads: int
    core: tuple[int, int] | None
    """An index and a count. A worker is bound to the core with this index if it may use exactly this many cores."""
    profiler: ProfilerJob | None
    """If given, the worker records how it spends its time."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, including the secret key."""
        names = ("rank", "version", "generation", "incarnation", "threads")
        return {name: getattr(self, name) for name in names} | {
            "core": self.core,
            "cluster": self.cluster.to_json(),
            "keys": self.cluster.keys.to_json() if self.cluster.keys else None,
            "config": self.config.to_json(),
            "profiler": self.profiler.to_json() if self.profiler else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        keys = ClientKeys.from_json(data["keys"]) if data["keys"] else None
        return cls(
            cluster=Cluster.from_json(data["cluster"], keys),
            config=Config.from_json(data["config"]),
            rank=data["rank"],
            version=data["version"],
            generation=data["generation"],
            incarnation=data["incarnation"],
            threads=data["threads"],
            core=tuple(data["core"]) if data["core"] else None,
            profiler=ProfilerJob.from_json(data["profiler"]) if data["profiler"] else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerJob:
    """What the evaluator or the recorder needs to start, sent as JSON. The recorder ignores ``episodes``."""

    run_dir: Path
    episodes: int
    greedy: bool
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"run_dir": str(self.run_dir)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "run_dir": Path(data["run_dir"])})


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Asks the evaluator to play ``episodes`` games with checkpoint ``version``, with seeds from ``seed`` on.

    None: as many games as its job says. ``samples``: sample the actions, even if the job says that they are greedy.
    """

    version: int
    episodes: int | None = None
    seed: int = 0
    samples: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


@dataclass(frozen=True, slots=True)
class RecordingRequest:
    """Asks the recorder to record a game with checkpoint ``version``. ``name`` begins the name of the video."""

    version: int
    name: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


FollowerRequest: TypeAlias = EvaluationRequest | RecordingRequest


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The evaluation of a checkpoint: a line of ``evaluations.jsonl``."""

    row: dict[str, Any]

    @property
    def version(self) -> int:
        return int(self.row["version"])

    def to_json(self) -> dict[str, Any]:
        return {"evaluation": self.row}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A video of a game with a checkpoint. ``about`` is what ``zmqrl record --json`` prints."""

    about: dict[str, Any]

    @property
    def version(self) -> int:
        return int(self.about["version"])

    def to_json(self) -> dict[str, Any]:
        return {"recording": self.about}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that a follower could not use, and the reason."""

    version: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"skipped": self.version, "reason": self.reason}


FollowerAnswer: TypeAlias = Evaluated | Recorded | Skipped


def answer_from(facts: Mapping[str, Any]) -> FollowerAnswer:
    """The answer of a follower, from its JSON form. Raises ClusterError."""
    match facts:
        case {
            "evaluation": {
                "version": int(),
                "wall_s": int() | float(),
                "mean": int() | float(),
                "ci95": [int() | float(), int() | float()],
                "episodes": int(),
            } as row
        }:
            return Evaluated(row)
        case {"recording": {"version": int(), "path": str(), "score": int() | float()} as about}:
            return Recorded(about)
        case {"skipped": int(version), "reason": str(reason)}:
            return Skipped(version, reason)
    raise ClusterError(f"a follower gave the unknown answer {dict(facts)!r:.200}.")
