"""The settings of a run: one frozen tree, stored and sent as JSON.

``Config.check`` decides whether a session can start with them. Reading a stored configuration checks only the settings
that shape the network and the learner. A run that an earlier version stored therefore stays readable when a rule
becomes stricter, and options can replace a setting that is no longer valid when the run is resumed.
"""

import dataclasses
import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from zmqrl.errors import UsageError, require
from zmqrl.json_lines import read_json
from zmqrl.learner.games import EnvConfig
from zmqrl.learner.settings import (
    ALGORITHMS,
    IMAGE_NETWORKS,
    VECTOR_NETWORK,
    Algorithm,
    AlgorithmName,
    BA3CConfig,
    NetworkConfig,
    PPOConfig,
)
from zmqrl.local.extras import missing
from zmqrl.observe.forms import decode
from zmqrl.ps.shard.optimizer import USED_BY, OptimizerConfig
from zmqrl.ps.wire.messages import Codec
from zmqrl.ps.wire.sockets import Transport
from zmqrl.simulate.compute import Pace
from zmqrl.simulate.laws import Law
from zmqrl.simulate.scenario import Failure, Straggler, check_numbers
from zmqrl.words import counted, whole_number

MOST_GAMES: Final = 100_000  # of an evaluation
MODEL_HELP = f"Network: {IMAGE_NETWORKS} for images, {VECTOR_NETWORK} for vectors, or your own MODULE:FUNCTION."


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig:
    """How processes reach each other."""

    codec: Codec = "f32"
    """Number format on the wire: float32, or bfloat16 with half the bytes. Shards keep float32."""
    transport: Transport = "shm"
    """How processes connect: over Unix sockets and shared memory (shm), Unix sockets alone (ipc), or TCP."""
    address: str = "127.0.0.1"
    """IPv4 address of this machine on which the shards listen. Needs TCP."""
    port_range: Annotated[str | None, tyro.conf.arg(aliases=["--port-range"])] = None
    """TCP ports for the shards, as FIRST-LAST, three per shard. Implies TCP. None: any free ports."""
    curve: bool = False
    """Encrypt and authenticate TCP on loopback addresses too. On other addresses this is the default."""
    insecure_plaintext: Annotated[bool, tyro.conf.arg(aliases=["--insecure-plaintext"])] = False
    """Do not encrypt TCP: anyone on the network can read weights and push gradients."""
    need_s: float = 1.0
    """Seconds without progress after which a shard asks workers to resend. Must exceed the time to send a slice."""

    @property
    def tcp(self) -> bool:
        return self.transport == "tcp" or self.port_range is not None

    @property
    def shares_memory(self) -> bool:
        """Whether payloads stay in memory that workers and shards share."""
        return self.transport == "shm" and not self.tcp

    def encrypts(self, addresses: Iterable[str]) -> bool:
        """Whether shards at ``addresses`` use CURVE: if ``curve`` is set, or an address is not loopback."""
        return self.tcp and (self.curve or not (self.insecure_plaintext or all(map(is_loopback, addresses))))

    def ports(self) -> range | None:
        """The ports of ``port_range``. Raises UsageError if the value is not a range of ports."""
        if self.port_range is None:
            return None
        first, last = (whole_number(text) or 0 for text in self.port_range.partition("-")[::2])
        is_range = 1024 <= first <= last < 65536
        require(is_range, f"--wire.port-range {self.port_range}: must be FIRST-LAST within 1024-65535.")
        return range(first, last + 1)

    def check(self) -> None:
        _require_positive("--wire.need-s", self.need_s)
        self.ports()
        try:
            address = ipaddress.IPv4Address(self.address)
        except ValueError:
            raise UsageError(f"--wire.address {self.address}: must be an IPv4 address.") from None
        require(
            not address.is_unspecified,
            f"--wire.address {address} would listen on every network: use one address of this machine.",
        )
        require(
            self.tcp or self.address == "127.0.0.1",
            f"--wire.address {address} needs TCP: add --wire.transport tcp.",
        )
        require(self.tcp or not self.curve, "--wire.curve needs TCP: add --wire.transport tcp.")
        require(
            not (self.curve and self.insecure_plaintext),
            "--wire.curve and --wire.insecure-plaintext cannot be combined: use only one of them.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """End of the schedules that follow the progress of the run: the earliest of these limits.

    If none is given, schedules of a new run end at the limits of the run. Resuming a run does not move this end.
    """

    updates: int | None = None
    """Version at which schedules end."""
    agent_steps: int | None = None
    """Agent steps, counted over all sessions, after which schedules end."""
    minutes: float | None = None
    """Minutes of training, counted over all sessions, after which schedules end."""
    default_minutes: tyro.conf.Suppress[float | None] = None
    """The recipe's value for ``minutes`` if the run has no limit."""

    def check(self) -> None:
        for name in ("updates", "agent_steps", "minutes", "default_minutes"):
            _require_positive(f"--schedule.{name.replace('_', '-')}", getattr(self, name))

    @property
    def has_end(self) -> bool:
        return any(end is not None for end in (self.updates, self.agent_steps, self.minutes))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every_minutes: float = 2.0
    """Minutes between checkpoints. A run also writes one at its end."""
    keep: int = 10
    """Number of checkpoints to keep. Older ones are removed."""

    def check(self) -> None:
        _require_positive("--checkpoint.every-minutes", self.every_minutes)
        require(self.keep >= 1, f"--checkpoint.keep {self.keep}: must be 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """The process that evaluates checkpoints, if --evaluator is set."""

    episodes: int = 50
    """Number of full games per evaluated checkpoint, always with the same seeds."""
    every_minutes: float = 5.0
    """Training minutes between evaluations. The first and last checkpoints are always evaluated."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""

    def check(self) -> None:
        require_games("--evaluation.episodes", self.episodes)
        _require_positive("--evaluation.every-minutes", self.every_minutes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """The process that records games, if --recorder is set."""

    minutes: tuple[float, ...] = (0.0, 15.0, 30.0)
    """Times of training, in minutes, at which to record a game."""

    def check(self) -> None:
        for minute in self.minutes:
            require(0 <= minute < math.inf, f"--recording.minutes {minute}: must be 0 or more and finite.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Train an agent with workers, backup workers and parameter-server shards."""

    recipe: tyro.conf.Suppress[str] = "breakout"
    env: str = "ALE/Breakout-v5"
    """Environment: an ALE game, any Gymnasium id, or your own as MODULE:ID."""
    workers: int = 2
    """N: number of workers, without backups. Also the quorum, unless --quorum is set."""
    backups: int = 0
    """b: number of extra workers, so that an update does not wait for the slowest ones."""
    quorum: int | None = None
    """K: number of contributions that an update needs. None: N, the number of workers."""
    shards: int = 2
    """Number of parameter-server shards."""
    algo: AlgorithmName = "ppo"
    """Learning algorithm."""
    model: Annotated[str, tyro.conf.arg(help=MODEL_HELP)] = "small"
    loss: str | None = None
    """Your own loss function, as MODULE:FUNCTION. None: the loss of --algo."""
    updates: int | None = None
    """Stop after this many updates, counted over all sessions of a resumed run. None: no limit."""
    agent_steps: int | None = None
    """Stop after this many agent steps, counted over all sessions of a resumed run. None: no limit."""
    minutes: float | None = None
    """Stop after this many minutes, counted from the first update of this session. None: no limit."""
    stop_score: float | None = None
    """Stop at this mean score of the last 50 games, once 50 new games confirm it. None: no such limit."""
    seed: int = 1
    """Seed of the initial parameters, games and actions."""
    mode: Literal["sync", "async"] = "sync"
    """sync: an update needs K contributions. async: each contribution is an update of its own, for comparison."""
    consistent: bool = False
    """Sum contributions in rank order: results are bit-identical for any number of shards. Needs b = 0."""
    on_loss: Literal["wait", "shrink"] = "wait"
    """When fewer than K workers are alive: wait for the others, or lower K until they are back (shrink)."""
    straggle: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Slow down a worker by RANK:SECONDS per update, such as 2:0.5, or by RANK:xFACTOR, such as 2:x3."""
    pace: str | None = None
    """Minimum seconds per gradient: a LAW such as constant:0.1, as in `zmqrl simulate`. None: no minimum."""
    scenario: Path | None = None
    """Scenario file, as for `zmqrl simulate`: train with its stragglers, pace and failures. None: no scenario."""
    failures: tyro.conf.Suppress[tuple[Failure, ...]] = ()
    evaluator: bool = False
    """Start an extra process that plays full games with the checkpoints and writes evaluations.jsonl."""
    recorder: bool = False
    """Start an extra process that records games into videos/."""
    external_workers: int = 0
    """M: leave the last M ranks open for workers started with `zmqrl worker`."""
    act_only: bool = False
    """Push zeros instead of gradients, to measure a run without learning."""
    profile: int | None = None
    """Write a trace of this many versions to trace.json. Without a number: 100 versions. None: no trace."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = () if missing("tensorboard") else ("tensorboard",)
    """Trackers that receive the metrics. Without a value: no tracker. TensorBoard is the default if it is installed."""
    metrics_port: Annotated[str | None, tyro.conf.arg(metavar="[ADDRESS:]PORT")] = None
    """Serve Prometheus metrics at ADDRESS (default 127.0.0.1) and PORT (0: any free port). None: no server."""
    page: bool = False
    """Show the run on a live page in the browser until it ends, as `zmqrl serve` does."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that workers compute on."""
    run_dir: Path | None = None
    """Run directory. None: runs/RECIPE-DATE-TIME, or runs/ENV-DATE-TIME for the recipe gymnasium."""
    resume: bool = False
    """Continue an ended or killed run in --run-dir, or in the RUN after --resume."""
    detach: bool = False
    """Start the run without a terminal, and return when it is up. See `zmqrl attach`."""
    envs: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    ba3c: BA3CConfig = field(default_factory=BA3CConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-4))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)

    @property
    def ranks(self) -> int:
        """All workers, N + b."""
        return self.workers + self.backups

    @property
    def algorithm(self) -> Algorithm:
        chosen: Algorithm = getattr(self, self.algo)
        return chosen

    @property
    def effective_quorum(self) -> int:
        """K: the number of contributions that an update needs."""
        if self.mode == "async":
            return 1
        return self.workers if self.quorum is None else self.quorum

    @property
    def follows_progress(self) -> bool:
        """Whether a schedule follows the progress of the run instead of a number of updates."""
        return self.optimizer.follows_progress or self.algorithm.follows_progress

    def with_schedule(self, trained_s: float = 0.0) -> "Config":
        """These settings, with an end for schedules: from ``schedule``, the limits of the run, or the default.

        ``trained_s`` is the training time of earlier sessions, which ``minutes`` does not count. Raises UsageError if a
        schedule has no end, or an end that a consistent run cannot follow.
        """
        if not self.follows_progress:
            return self
        schedule = self.schedule
        if not schedule.has_end:
            minutes = None if self.minutes is None else self.minutes + trained_s / 60
            if self.updates is None and self.agent_steps is None and minutes is None:
                minutes = schedule.default_minutes
            schedule = dataclasses.replace(
                schedule,
                updates=self.updates,
                agent_steps=self.agent_steps,
                minutes=None if self.consistent else minutes,
            )
        if self.consistent:
            require(
                schedule.has_end and schedule.minutes is None,
                "--consistent: schedules cannot follow minutes, which differ from run to run. "
                "Set --updates, --agent-steps or --schedule.updates.",
            )
        require(
            schedule.has_end,
            "the schedule of the learning rate, the entropy coefficient or the clip range needs an end: "
            "set --minutes, --agent-steps, --updates or --schedule.minutes.",
        )
        return dataclasses.replace(self, schedule=schedule)

    def horizon(self) -> float | None:
        """The version at which schedules end, if it is known beforehand.

        Only in a consistent run do all versions have the same number of agent steps.
        """
        schedule, horizons = self.schedule, list[float]()
        if schedule.updates is not None:
            horizons.append(schedule.updates)
        if schedule.agent_steps is not None and self.consistent:
            per_rollout = self.workers * self.algorithm.rollout_steps * self.envs.num_envs
            horizons.append(schedule.agent_steps * self.algorithm.updates_per_rollout / per_rollout)
        return min(horizons, default=None)

    def stragglers(self) -> dict[int, Straggler]:
        """The workers to slow down, by rank. Raises UsageError for anything but RANK:SECONDS and RANK:xFACTOR."""
        found: dict[int, Straggler] = {}
        for text in self.straggle:
            number, _, amount = text.partition(":")
            try:
                rank, slowness = int(number), float(amount.removeprefix("x"))
            except ValueError:
                raise UsageError(f"--straggle {text}: must be RANK:SECONDS or RANK:xFACTOR.") from None
            if not 0 <= rank < self.ranks:
                raise UsageError(f"--straggle {text}: rank {rank} does not exist; ranks are 0 to {self.ranks - 1}.")
            if not 0 <= slowness < 3600:
                raise UsageError(f"--straggle {text}: seconds and factors must be 0 or more and below 3600.")
            before = found.get(rank, Straggler(rank=rank))
            found[rank] = (
                dataclasses.replace(before, factor=slowness)
                if amount.startswith("x")
                else dataclasses.replace(before, seconds=slowness)
            )
        return found

    def pace_of(self, rank: int) -> Pace:
        """The pace that slows down worker ``rank``."""
        straggler = self.stragglers().get(rank, Straggler(rank=rank))
        return Pace(law=self.pace, seed=self.seed, rank=rank, factor=straggler.factor, seconds=straggler.seconds)

    def ports(self) -> range | None:
        """The ports of ``wire.port_range``. Raises UsageError when there are too few for the shards."""
        ports = self.wire.ports()
        if ports is not None and len(ports) < 3 * self.shards:
            raise UsageError(
                f"--wire.port-range {self.wire.port_range} has {counted(len(ports), 'port')}: "
                f"{counted(self.shards, 'shard needs', 'shards need')} {3 * self.shards}."
            )
        return ports

    @property
    def needs_evaluator(self) -> bool:
        """Whether the run has an evaluator: for regular evaluations, or to confirm ``stop_score``."""
        return self.evaluator or self.stop_score is not None

    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Address and port of ``metrics_port``. Raises UsageError for an invalid value."""
        if self.metrics_port is None:
            return None
        address, _, text = self.metrics_port.rpartition(":")
        port = whole_number(text)
        try:
            ip = ipaddress.IPv4Address(address or "127.0.0.1")
        except ValueError:
            raise UsageError(f"--metrics-port {self.metrics_port}: the address before the port must be IPv4.") from None
        require(
            not ip.is_unspecified,
            f"--metrics-port {self.metrics_port} would listen on every network: use one address of this machine.",
        )
        if port is None or port >= 65536:
            raise UsageError(f"--metrics-port {self.metrics_port}: the port must be from 0 to 65535.")
        return str(ip), port

    def without_effect(self) -> dict[str, str]:
        """The changed settings that nothing uses, such as ``ppo.clip`` with ``ba3c``, each with the reason."""
        found = {
            f"{name}.{setting}": f"with --algo {self.algo}: remove it, or use --algo {name}."
            for name in ALGORITHMS
            if name != self.algo
            for setting in _changed(getattr(self, name))
        }
        optimizer = self.optimizer.name
        for setting in _changed(self.optimizer):
            users = USED_BY.get(setting, (optimizer,))
            if optimizer not in users:
                remedy = " or ".join(f"--optimizer.name {name}" for name in users)
                found[f"optimizer.{setting}"] = f"with --optimizer.name {optimizer}: remove it, or use {remedy}."
        if not self.follows_progress:
            reason = (
                "without a schedule that follows the progress of the run: remove it, or set the value at the end of a "
                "schedule, such as --optimizer.final-learning-rate."
            )
            found |= {f"schedule.{setting}": reason for setting in _changed(self.schedule)}
        return found

    def check(self) -> None:
        """Raise UsageError for the first invalid setting."""
        parts = (self.wire, self.envs, self.optimizer, self.schedule, self.checkpoint, self.evaluation, self.recording)
        for part in parts:
            part.check()
        require(self.env != "", "--env: the id of an environment is missing.")
        k = self.effective_quorum
        check_numbers(self.workers, self.backups, self.shards, k)
        require(
            0 <= self.external_workers <= self.ranks,
            f"--external-workers {self.external_workers}: must be from 0 to {self.ranks} (N + b).",
        )
        for option, limit in (
            ("--updates", self.updates),
            ("--agent-steps", self.agent_steps),
            ("--minutes", self.minutes),
            ("--profile", self.profile),
        ):
            _require_positive(option, limit)
        score = self.stop_score
        require(score is None or math.isfinite(score), f"--stop-score {score}: must be finite.")
        require(0 <= self.seed < 2**32, f"--seed {self.seed}: must be at least 0 and below 2^32.")
        require(
            self.mode == "sync" or (self.backups == 0 and self.quorum is None and not self.consistent),
            "--mode async cannot be combined with --backups, --quorum or --consistent: remove them.",
        )
        require(
            self.mode == "sync" or not (self.envs.normalize_observations or self.envs.normalize_rewards),
            "--mode async cannot keep running statistics, because workers would change the same ones at once: "
            "use --envs.no-normalize-observations --envs.no-normalize-rewards.",
        )
        require(
            not self.consistent or (self.backups == 0 and k == self.workers),
            f"--consistent needs --backups 0 and K = N, but b = {self.backups} and K = {k}.",
        )
        require(
            self.wire.codec == "f32" or not self.envs.normalize_observations,
            "--wire.codec bf16 is too coarse for the running statistics of --envs.normalize-observations: "
            "use --wire.codec f32.",
        )
        require(
            not (self.act_only and self.optimizer.weight_decay),
            f"--optimizer.weight-decay {self.optimizer.weight_decay} changes the weights even with --act-only: "
            "use --optimizer.weight-decay 0.",
        )
        require(
            not self.consistent or (self.external_workers == 0 and self.on_loss == "wait"),
            "--consistent cannot be combined with --external-workers or --on-loss shrink.",
        )
        self.algorithm.minibatch_samples(self.envs.num_envs)
        self.stragglers()
        if self.pace is not None:
            Law.parse(self.pace, "--pace")
        self.ports()
        self.metrics_endpoint()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in ``config.json``."""
        plain = dataclasses.asdict(self)
        plain["run_dir"] = str(self.run_dir) if self.run_dir else None
        plain["scenario"] = str(self.scenario) if self.scenario else None
        for name in ("straggle", "trackers", "failures"):
            plain[name] = list(plain[name])
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Config":
        """Inverse of :meth:`to_json`. Raises a UsageError that names an unknown or invalid setting."""
        return decode(cls, data)

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read ``config.json``, or the settings in ``cluster.json``. Raises UsageError when that fails."""
        try:
            data = read_json(path)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"{path} is not valid JSON: {error}.") from error
        try:
            return cls.from_json(data.get("config", data) if isinstance(data, dict) else data)
        except UsageError as error:
            raise UsageError(f"{path} cannot be used: {error}") from error


def is_loopback(address: str) -> bool:
    """Whether ``address`` is an IP address that every machine uses for itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a host name may resolve to any address
        return False


def require_games(option: str, games: int) -> None:
    """Raise UsageError if an evaluation cannot have so many ``games``. Even games that have not begun take memory."""
    require(1 <= games <= MOST_GAMES, f"{option} {games}: must be from 1 to {MOST_GAMES}.")


def _changed(part: PPOConfig | BA3CConfig | OptimizerConfig | ScheduleConfig) -> list[str]:
    """The settings of ``part`` that do not have their default values."""
    return [each.name for each in dataclasses.fields(part) if getattr(part, each.name) != each.default]


def _require_positive(option: str, value: float | None) -> None:
    if value is not None:
        limit, words = (2**53, "below 2^53") if isinstance(value, int) else (math.inf, "finite")
        require(0 < value < limit, f"{option} {value}: must be above 0 and {words}.")
