"""The settings of a run: one tree, frozen, that travels as JSON. Each component owns its own part."""

import dataclasses
import ipaddress
import json
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from zmqrl.agent.envs import EnvConfig
from zmqrl.agent.losses import BA3CConfig, PPOConfig
from zmqrl.agent.model import NetworkConfig
from zmqrl.errors import UsageError
from zmqrl.ps.messages import MAX_WORKERS, Codec
from zmqrl.ps.optimizer import OptimizerConfig
from zmqrl.ps.partition import MAX_SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig:
    """How processes reach each other."""

    codec: Codec = "f32"
    """Numbers on the wire: float32, or bfloat16 at half the bytes (the shards keep float32)."""
    transport: Literal["ipc", "tcp"] = "ipc"
    """Unix sockets in a private directory, or TCP."""
    address: str = "127.0.0.1"
    """IPv4 address of this machine that shards bind with TCP."""
    port_range: Annotated[str | None, tyro.conf.arg(aliases=["--port-range"])] = None
    """FIRST-LAST: TCP ports for the shards, three each; free ones if not given. Implies TCP."""
    curve: bool = False
    """Encrypt and authenticate TCP on a loopback address, too, with keys of this run. Elsewhere this is always done."""
    insecure_plaintext: Annotated[bool, tyro.conf.arg(aliases=["--insecure-plaintext"])] = False
    """Never encrypt TCP: anybody on the network can then read the weights, and contribute gradients of their own."""
    need_s: float = 1.0
    """A shard asks for resends after this time without progress; longer than a slice takes to cross the network."""

    @property
    def tcp(self) -> bool:
        """Whether processes reach each other over TCP."""
        return self.transport == "tcp" or self.port_range is not None

    def encrypts(self, addresses: Iterable[str]) -> bool:
        """Whether shards at ``addresses`` use CURVE: where any of them leaves its machine, unless that is given up."""
        return self.tcp and (self.curve or not (self.insecure_plaintext or all(map(is_loopback, addresses))))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and how many stay."""

    every_minutes: float = 2.0
    """Minutes between checkpoints; one is always written at the end."""
    keep: int = 10
    """Newest checkpoints that stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What the evaluator does."""

    episodes: int = 50
    """Whole games for each evaluated checkpoint, from a fixed list of seeds."""
    every_minutes: float = 5.0
    """Training minutes between two evaluated checkpoints; the first and the last one are always evaluated."""
    greedy: bool = False
    """Take the most probable action instead of drawing one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """What the recorder does."""

    minutes: tuple[float, ...] = (0.0, 15.0, 30.0)
    """Training minutes at which a game is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Train one agent with workers, backup workers and parameter-server shards."""

    recipe: tyro.conf.Suppress[str] = "breakout"
    env: str = "ALE/Breakout-v5"
    """Environment: an ALE game, or any Gymnasium environment with discrete actions."""
    workers: int = 2
    """N: contributions that make an update, unless a quorum is given."""
    backups: int = 0
    """b: workers on top of N, so that nobody waits for the slowest."""
    quorum: int | None = None
    """K: contributions that make an update; N if not given."""
    shards: int = 2
    """Parameter-server shards."""
    algo: Literal["ppo", "ba3c"] = "ppo"
    """Algorithm."""
    model: str = "small"
    """Network: small, nature, narrow or dba3c for images, mlp for vectors, or your own function as module:function."""
    loss: str | None = None
    """A function of your own, module:function, instead of the algorithm's loss."""
    updates: int | None = None
    """Stop at this version."""
    agent_steps: int | None = None
    """Stop after this many agent steps, all sittings together."""
    minutes: float | None = None
    """Stop after this many minutes, counted from when the first version of this sitting is in the making."""
    stop_score: float | None = None
    """Stop when the mean score of the last 50 games reaches this."""
    seed: int = 1
    """Seed of the initial parameters, the games and the actions."""
    mode: Literal["sync", "async"] = "sync"
    """async: every contribution is an update of its own, applied when it arrives, however old. To compare with."""
    consistent: bool = False
    """Sum contributions in rank order: bit-identical runs for any number of shards. Needs b = 0."""
    on_loss: Literal["wait", "shrink"] = "wait"
    """With fewer than K workers alive: wait for them, or lower K until they are back."""
    straggle: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """RANK:SECONDS: slow one worker down by so much per update. May be repeated."""
    evaluator: bool = False
    """Start one process more that plays whole games with the checkpoints, into evaluations.jsonl."""
    recorder: bool = False
    """Start one process more that records a game at chosen minutes, into videos/."""
    external_workers: int = 0
    """M: the last M ranks are left for workers that others start with `zmqrl worker DIR/cluster.json`."""
    act_only: bool = False
    """To measure the rest: workers play, and push gradients of zeros without computing any."""
    profile: int | None = None
    """Trace the first VERSIONS versions (100 if no number is given) to DIR/trace.json."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where to follow the run, besides its own files; none if the option stands alone."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the workers compute."""
    run_dir: Path | None = None
    """Run directory; runs/RECIPE-DATE-TIME if not given."""
    resume: bool = False
    """Go on with the run in the run directory: from where it ended, or was killed."""
    envs: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    ba3c: BA3CConfig = field(default_factory=BA3CConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=5e-4))
    wire: WireConfig = field(default_factory=WireConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)

    @property
    def ranks(self) -> int:
        """Workers in all, N + b."""
        return self.workers + self.backups

    @property
    def algorithm(self) -> PPOConfig | BA3CConfig:
        """The settings of the chosen algorithm."""
        return self.ppo if self.algo == "ppo" else self.ba3c

    def effective_quorum(self) -> int:
        """K."""
        if self.mode == "async":
            return 1
        return self.workers if self.quorum is None else self.quorum

    def straggle_s(self) -> dict[int, float]:
        """Seconds of delay per update, by rank. Raises UsageError on anything but RANK:SECONDS."""
        delays = {}
        for text in self.straggle:
            rank, _, seconds = text.partition(":")
            try:
                delays[int(rank)] = float(seconds)
            except ValueError:
                raise UsageError(f"--straggle {text} is not RANK:SECONDS, such as 2:0.5.") from None
            if not 0 <= int(rank) < self.ranks:
                raise UsageError(f"--straggle {text}: there is no rank {rank}, only 0 to {self.ranks - 1}.")
            if not 0 <= float(seconds) < 3600:
                raise UsageError(f"--straggle {text}: the delay must be between 0 and 3600 seconds.")
        return delays

    def ports(self) -> range | None:
        """The ports of ``wire.port_range``. Raises UsageError when it is none, or too small for the shards."""
        text = self.wire.port_range
        if text is None:
            return None
        first, _, last = text.partition("-")
        if not (first.isdigit() and last.isdigit() and 1024 <= int(first) <= int(last) < 65536):
            raise UsageError(f"--wire.port-range {text} is not FIRST-LAST within 1024-65535.")
        ports = range(int(first), int(last) + 1)
        if len(ports) < 3 * self.shards:
            raise UsageError(
                f"--wire.port-range {text} has {len(ports)} ports, but {self.shards} shards need {3 * self.shards}."
            )
        return ports

    def check(self) -> None:
        """Raise UsageError for the first setting that cannot be."""
        k = self.effective_quorum()
        rules = [
            (self.workers >= 1, f"--workers {self.workers}: at least 1 worker is needed."),
            (self.backups >= 0, f"--backups {self.backups} cannot be negative."),
            (self.ranks <= MAX_WORKERS, f"--workers and --backups: {self.ranks} is above the limit of {MAX_WORKERS}."),
            (1 <= self.shards <= MAX_SHARDS, f"--shards {self.shards}: must be between 1 and {MAX_SHARDS}."),
            (k >= 1, f"--quorum {k}: at least 1 contribution makes an update."),
            (k <= self.ranks, f"--quorum {k} is above the {self.ranks} workers that there are (N + b)."),
            (
                0 <= self.external_workers <= self.ranks,
                f"--external-workers {self.external_workers}: must be between 0 and the {self.ranks} workers (N + b).",
            ),
            (_positive(self.updates), f"--updates {self.updates}: must be above 0 and below 2^53."),
            (_positive(self.agent_steps), f"--agent-steps {self.agent_steps}: must be above 0 and below 2^53."),
            (_positive(self.minutes), f"--minutes {self.minutes}: must be above 0 and finite."),
            (_positive(self.profile), f"--profile {self.profile}: must be above 0 and below 2^53."),
            (_finite(self.stop_score), f"--stop-score {self.stop_score}: must be a finite number."),
            (_positive(self.wire.need_s), f"--wire.need-s {self.wire.need_s}: must be above 0 and finite."),
            (
                _positive(self.checkpoint.every_minutes),
                f"--checkpoint.every-minutes {self.checkpoint.every_minutes}: must be above 0 and finite.",
            ),
            (self.checkpoint.keep >= 1, f"--checkpoint.keep {self.checkpoint.keep}: at least 1 must stay."),
            (
                self.evaluation.episodes >= 1,
                f"--evaluation.episodes {self.evaluation.episodes}: at least 1 game is needed.",
            ),
            (
                _positive(self.evaluation.every_minutes),
                f"--evaluation.every-minutes {self.evaluation.every_minutes}: must be above 0 and finite.",
            ),
            (
                all(minute >= 0 and math.isfinite(minute) for minute in self.recording.minutes),
                f"--recording.minutes {self.recording.minutes}: must be 0 or above, and finite.",
            ),
            (0 <= self.seed < 2**32, f"--seed {self.seed}: must be from 0 to below 2^32."),
            (
                self.mode == "sync" or (self.backups == 0 and self.quorum is None and not self.consistent),
                "--mode async uses every contribution by itself: it goes with no --backups, --quorum or --consistent.",
            ),
            (
                not self.consistent or (self.backups == 0 and k == self.workers),
                f"--consistent needs every contribution: --backups 0 and K = N, not b = {self.backups} and K = {k}.",
            ),
            (
                not self.consistent or (self.external_workers == 0 and self.on_loss == "wait"),
                "--consistent cannot be promised with --external-workers or --on-loss shrink.",
            ),
            (
                self.wire.address == "127.0.0.1" or self.wire.tcp,
                f"--wire.address {self.wire.address} is for TCP: add --wire.transport tcp.",
            ),
            (not self.wire.curve or self.wire.tcp, "--wire.curve is for TCP: add --wire.transport tcp."),
            (
                not (self.wire.curve and self.wire.insecure_plaintext),
                "--wire.curve and --wire.insecure-plaintext contradict each other: choose one.",
            ),
        ]
        for holds, sentence in rules:
            if not holds:
                raise UsageError(sentence)
        self._check_address()
        self.straggle_s()
        self.ports()

    def _check_address(self) -> None:
        address = self.wire.address
        try:
            wildcard = ipaddress.IPv4Address(address).is_unspecified
        except ValueError:
            raise UsageError(f"--wire.address {address} is no IPv4 address.") from None
        if wildcard:
            raise UsageError(f"--wire.address {address} would listen on every network: name one of this machine's own.")

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in ``config.json``."""
        plain = dataclasses.asdict(self)
        plain["run_dir"] = str(self.run_dir) if self.run_dir else None
        plain["straggle"], plain["trackers"] = list(self.straggle), list(self.trackers)
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Config":
        """Inverse of :meth:`to_json`. Raises UsageError that names a setting it does not know or cannot read."""
        config: Config = _build(cls, data, "")
        return config

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a ``config.json``, or the settings that stand in a ``cluster.json``. Raises UsageError."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"{path} is no JSON: {error}.") from error
        try:
            return cls.from_json(data.get("config", data) if isinstance(data, dict) else data)
        except UsageError as error:
            raise UsageError(f"{path} cannot be used: {error}") from error


def is_loopback(address: str) -> bool:
    """Whether ``address`` stands for the machine itself wherever it is used."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name may mean anything
        return False


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _positive(value: float | None) -> bool:
    return value is None or 0 < value < (2**53 if isinstance(value, int) else math.inf)


def _build(cls: type[Any], data: object, path: str) -> Any:
    """A dataclass from plain data, nested ones too; settings that are missing keep their defaults."""
    if not isinstance(data, dict):
        raise UsageError(f"the setting {path or 'of the run'} is {data!r:.60}, not a group of settings.")
    hints = get_type_hints(cls)
    values = {}
    for name, value in data.items():
        where = f"{path}.{name}" if path else name
        if name not in hints:
            raise UsageError(f"unknown setting {where}.")
        values[name] = _value(hints[name], value, where)
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"the settings {path or 'of the run'} are not complete: {error}.") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _value(hint, value, where)
    if origin is Literal:
        fits = value in arguments
    elif origin is tuple:
        fits = isinstance(value, list)
        value = tuple(_value(arguments[0], item, where) for item in value) if fits else value
    elif hint is Path:
        fits = isinstance(value, str)
        value = Path(value) if fits else value
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = type(value) is hint
    if not fits:
        raise UsageError(f"the setting {where} cannot be {value!r:.60}.")
    return value
