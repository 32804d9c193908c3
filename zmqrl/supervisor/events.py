"""The events of a run, and the actions of its supervisor."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from zmqrl.hosts.events import Exited, HostLost, HostUp, Inspected
from zmqrl.observe.stalls import Stall
from zmqrl.process_id import ProcessId
from zmqrl.ps.shard.events import View
from zmqrl.ps.wire import messages as m

Reason: TypeAlias = Literal["updates", "agent_steps", "minutes", "stop_score", "interrupted", "failed"]

# events


@dataclass(frozen=True, slots=True)
class ShardBound:
    """A shard process has bound its sockets."""

    shard: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The supervisor has connected to all shards."""


@dataclass(frozen=True, slots=True)
class ShardSaid:
    """A shard has sent a message to the supervisor."""

    shard: int
    message: m.Welcome | m.Stats | m.Lost


@dataclass(frozen=True, slots=True)
class WorkerReported:
    """A worker has reported how much its process has ``done``, as in :class:`zmqrl.observe.reports.WorkerReport`."""

    rank: int
    incarnation: int
    done: int


@dataclass(frozen=True, slots=True)
class CheckpointLoaded:
    """All shards have loaded the checkpoint."""


@dataclass(frozen=True, slots=True)
class CheckpointNotLoaded:
    """A shard could not load the checkpoint."""

    why: str


@dataclass(frozen=True, slots=True)
class CheckpointWanted:
    """A follower needs a checkpoint now."""


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint with these ``versions`` of the shards was written."""

    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """The checkpoint could not be taken."""

    version: int
    why: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The metrics that decisions depend on.

    ``confirmed_score`` is the mean score of the last evaluation for ``Limits.stop_score``, or -inf without one.
    """

    agent_steps: int
    confirmed_score: float
    updates_per_s: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user has requested the end of the run."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The supervisor has begun to stop the shards."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    ShardBound
    | Connected
    | ShardSaid
    | Exited
    | HostLost
    | HostUp
    | Inspected
    | WorkerReported
    | CheckpointLoaded
    | CheckpointNotLoaded
    | CheckpointWanted
    | CheckpointWritten
    | CheckpointFailed
    | RunFigures
    | Interrupted
    | Ending
    | Tick
)

# actions


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start a process, for the first time or again."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class KillProcess:
    """Kill a process that hangs. Leads to Exited."""

    process: ProcessId
    silent_s: float


@dataclass(frozen=True, slots=True)
class TellSilence:
    """Notify the user of a process that does not answer."""

    process: ProcessId
    silent_s: float


@dataclass(frozen=True, slots=True)
class InspectProcess:
    """Ask the host of a process what the process is doing. Leads to Inspected."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class ShowStall:
    """A version has stalled. If ``tell``, notify the user now."""

    stall: Stall
    tell: bool


@dataclass(frozen=True, slots=True)
class EndStall:
    """A stall has ended: its version was made, or is no longer needed. ``tell``: whether the user knows of it."""

    stall: Stall
    tell: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Continue without a follower that dies repeatedly or whose host cannot be reached."""

    process: ProcessId
    why: str


@dataclass(frozen=True, slots=True)
class Connect:
    """All shards are bound: connect to them, and send their endpoints to the workers."""


@dataclass(frozen=True, slots=True)
class AskShard:
    """Ask a shard for its STATS, or ``greet`` it with HELLO if it may not know this supervisor."""

    shard: int
    greet: bool


@dataclass(frozen=True, slots=True)
class TellShard:
    """Send a command to a shard."""

    shard: int
    message: m.ShardCommand


@dataclass(frozen=True, slots=True)
class LoadCheckpoint:
    """Make all shards load the newest checkpoint under a new generation.

    Leads to CheckpointLoaded or CheckpointNotLoaded. ``elapsed`` is the progress of the run, as in ELAPSED.
    """

    generation: int
    view: View
    elapsed: int = 0


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Fetch and write a checkpoint. Leads to CheckpointWritten or CheckpointFailed."""

    version: int


@dataclass(frozen=True, slots=True)
class UndoRows:
    """The shards have loaded the checkpoint: move rows and history lines after the checkpoint to separate files."""

    generation: int


@dataclass(frozen=True, slots=True)
class BeginTime:
    """Workers begin to compute the first version: training time starts."""


@dataclass(frozen=True, slots=True)
class Notice:
    text: str


@dataclass(frozen=True, slots=True)
class TellDeath:
    """Report a death to the user. Processes that die in the same way have equal lines, which are shown once."""

    process: ProcessId
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndRun:
    reason: Reason


@dataclass(frozen=True, slots=True)
class Fail:
    """The run cannot continue. If ``see_logs``, the logs may have details.

    ``misused``: the process whose UsageError is the reason.
    """

    why: str
    see_logs: bool = False
    misused: ProcessId | None = None


Action: TypeAlias = (
    StartProcess
    | KillProcess
    | TellSilence
    | InspectProcess
    | ShowStall
    | EndStall
    | GiveUp
    | Connect
    | AskShard
    | TellShard
    | LoadCheckpoint
    | TakeCheckpoint
    | UndoRows
    | BeginTime
    | Notice
    | TellDeath
    | EndRun
    | Fail
)
