"""The events of a run, and the actions of its supervisor."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from zmqrl.hosts.launcher import Exited, HostLost, HostUp, Inspected
from zmqrl.observe.stalls import Stall
from zmqrl.process_id import ProcessId
from zmqrl.ps.shard.events import View
from zmqrl.ps.wire import messages as m

Reason: TypeAlias = Literal["updates", "agent_steps", "minutes", "stop_score", "interrupted", "failed"]

# events


@dataclass(frozen=True, slots=True)
class ShardBound:
    """A shard process has come up and has bound its sockets."""

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
class ProcessDied:
    """A process ended by itself."""

    exited: Exited


@dataclass(frozen=True, slots=True)
class HostChanged:
    """A host was lost, is still unreachable, or is back."""

    change: HostLost | HostUp


@dataclass(frozen=True, slots=True)
class ProcessInspected:
    """The host of a process has reported what the process is doing."""

    seen: Inspected


@dataclass(frozen=True, slots=True)
class ProcessWorked:
    """A follower has done its work, so the earlier deaths of this follower no longer count."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class Loaded:
    """All shards have loaded the checkpoint."""


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """Not all shards could load the checkpoint."""

    why: str


@dataclass(frozen=True, slots=True)
class CheckpointWanted:
    """A follower needs a checkpoint now."""


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint was written. ``versions`` holds the version of each shard in the checkpoint."""

    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """The checkpoint could not be taken."""

    version: int
    why: str


@dataclass(frozen=True, slots=True)
class Figures:
    """The metrics for which a run can have limits.

    ``confirmed_score`` is the mean score of the last evaluation for ``Limits.stop_score``, or -inf if there was no such
    evaluation.
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
    | ProcessDied
    | HostChanged
    | ProcessInspected
    | ProcessWorked
    | Loaded
    | NotLoaded
    | CheckpointWanted
    | CheckpointWritten
    | CheckpointFailed
    | Figures
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
    """Kill a process that hangs, which leads to ProcessDied."""

    process: ProcessId
    silent_s: float


@dataclass(frozen=True, slots=True)
class TellSilence:
    """Notify the user of a process that does not answer."""

    process: ProcessId
    silent_s: float


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask the host of a process what the process is doing. This action leads to ProcessInspected."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class ShowStall:
    """A version has stalled. If ``tell``, notify the user now."""

    stall: Stall
    tell: bool


@dataclass(frozen=True, slots=True)
class EndStall:
    """The stall has ended, because its version was made or is no longer needed.

    ``tell`` is True if the user was notified of the stall.
    """

    stall: Stall
    tell: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Continue without a follower that dies repeatedly or whose host cannot be reached."""

    process: ProcessId
    why: str


@dataclass(frozen=True, slots=True)
class Connect:
    """All shards are bound: connect to the shards, and send the shards' endpoints to the workers."""


@dataclass(frozen=True, slots=True)
class AskShard:
    """Ask a shard for its STATS, or send HELLO to a shard that may not know this supervisor."""

    shard: int
    greet: bool


@dataclass(frozen=True, slots=True)
class TellView:
    """Send a shard the view."""

    shard: int
    view: View


@dataclass(frozen=True, slots=True)
class TellStop:
    """Send a shard the version at which it ends. None cancels an earlier TellStop."""

    shard: int
    version: int | None


@dataclass(frozen=True, slots=True)
class TellElapsed:
    """Send a shard the progress of the run in millionths. The progress is measured by training time and agent steps."""

    shard: int
    elapsed: int


@dataclass(frozen=True, slots=True)
class Load:
    """Make all shards load the newest checkpoint under a new generation. This action leads to Loaded or NotLoaded.

    ``elapsed`` is the progress of the run, as in TellElapsed.
    """

    generation: int
    view: View
    elapsed: int = 0


@dataclass(frozen=True, slots=True)
class SetAside:
    """Ask a shard to keep a copy of a version for a checkpoint."""

    shard: int
    version: int


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Fetch and write a checkpoint. This action leads to CheckpointWritten or CheckpointFailed."""

    version: int


@dataclass(frozen=True, slots=True)
class UndoRows:
    """The shards have loaded the checkpoint: move rows and history lines after the checkpoint to separate files."""

    generation: int


@dataclass(frozen=True, slots=True)
class BeginTime:
    """Workers begin to compute the first version: the training time starts now."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Show the user a notice."""

    text: str


@dataclass(frozen=True, slots=True)
class TellDeath:
    """Report a death to the user. Processes that die in the same way have equal lines, which are shown once."""

    process: ProcessId
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the run."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Fail:
    """The run cannot continue. If ``see_logs``, the logs may have details.

    ``misused``: the process that ended with a UsageError. Its words are the reason.
    """

    why: str
    see_logs: bool = False
    misused: ProcessId | None = None


Action: TypeAlias = (
    StartProcess
    | KillProcess
    | TellSilence
    | Inspect
    | ShowStall
    | EndStall
    | GiveUp
    | Connect
    | AskShard
    | TellView
    | TellStop
    | TellElapsed
    | Load
    | SetAside
    | TakeCheckpoint
    | UndoRows
    | BeginTime
    | Notice
    | TellDeath
    | Stop
    | Fail
)
