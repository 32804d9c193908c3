"""The interface of a batch of games: settings, observations, actions and results."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import tyro

from zmqrl.errors import UsageError, require

WIDEST = 1e10  # environments write large numbers for bounds that they do not have
# Settings of Atari games. Besides the default, this value means the same as no such setting. None: no other value does.
UNCHANGED = {
    "frame_skip": 1,
    "min_frame_skip": None,
    "frame_stack": 1,
    "screen_size": None,
    "sticky_actions": 0.0,
    "noop_max": 0,
    "max_frames": None,
}
FLAGS = ("grayscale", "life_loss", "fire_reset")  # of Atari games: a value other than the default would be ignored
TEXT = re.compile(r"[\w./:@+-]+")  # a value of --env-arg that can be text without quotes
OLD_ATARI_ID = re.compile(r"(\w+)-v[04]")
INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


def is_atari_id(env_id: str) -> bool:
    """Whether ``env_id`` is an id of ``ale_py``. An id that the user's code registers is known only after imports."""
    module, _, name = env_id.rpartition(":")
    old = OLD_ATARI_ID.fullmatch(name) if module in ("", "ale_py") else None
    return is_ale_id(env_id) or "NoFrameskip-" in name or (old is not None and old[1] in _atari_games())


def is_ale_id(env_id: str) -> bool:
    """Whether ``env_id`` is an id like ``ALE/Pong-v5`` or ``ale_py:ALE/Pong-v5``."""
    return env_id.removeprefix("ale_py:").startswith("ALE/")


@cache
def _atari_games() -> frozenset[str]:
    """The names in ids of Atari games, such as ``SpaceInvaders``, from the files of ``ale_py``: its import is slow."""
    package = find_spec("ale_py")
    if package is None or package.origin is None:
        return frozenset()
    roms = (Path(package.origin).parent / "roms").glob("*.bin")
    return frozenset(rom.stem.title().replace("_", "") for rom in roms)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvConfig:
    """The games of one worker. The options from frame-skip to max-frames apply only to Atari games."""

    num_envs: int = 32
    """Number of games per worker."""
    frame_skip: int = 4
    """Emulator frames per agent step. The last two are max-pooled."""
    min_frame_skip: int | None = None
    """Draw each frame skip at random from this number to --envs.frame-skip. No max-pooling. None: no random skip."""
    frame_stack: int = 4
    """Number of frames in one observation."""
    screen_size: int = 84
    """Height and width of a frame in pixels."""
    grayscale: bool = True
    """Use grey frames instead of RGB frames."""
    sticky_actions: float = 0.0
    """Probability per frame that the emulator repeats the last action."""
    noop_max: int = 30
    """Start each game with a random number of no-op frames below this value. A FIRE at the start counts as one."""
    life_loss: bool = True
    """End the return when a life is lost. The game continues."""
    fire_reset: bool = True
    """Press FIRE at the start of a game that has this action, but not after a lost life."""
    clip_rewards: bool = True
    """Clip rewards to [-1, 1] for learning. Scores are never clipped."""
    max_frames: int = 108_000
    """Cut off a game after this many emulator frames."""
    args: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--env-arg"], metavar="NAME=VALUE")
    ] = ()
    """Argument for gymnasium.make, such as hardcore=True. Not for Atari."""
    wrappers: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--wrapper"], metavar="MODULE:FUNCTION")
    ] = ()
    """Function that takes an environment and returns the environment to play. Not for Atari."""
    images: bool = False
    """Keep uint8 images as images, for a network with convolutions. Otherwise they become vectors. Not for Atari."""
    normalize_observations: bool = False
    """Scale vectors to mean 0 and variance 1 by running statistics, and clip them to [-10, 10]."""
    normalize_rewards: bool = False
    """For learning, divide rewards by the running standard deviation of returns, and clip them to [-10, 10]."""

    @property
    def frame_channels(self) -> int:
        return 1 if self.grayscale else 3

    @property
    def atari_shape(self) -> tuple[int, int, int]:
        return self.frame_stack * self.frame_channels, self.screen_size, self.screen_size

    @property
    def mean_frame_skip(self) -> float:
        """Emulator frames per agent step of an Atari game, on average."""
        return self.frame_skip if self.min_frame_skip is None else (self.min_frame_skip + self.frame_skip) / 2

    def emulated(self, env_id: str, actions: "ActionSpace", flavour: str) -> "EnvSpec":
        """The description of an Atari game, or of one with the same frames.

        Raises UsageError for settings that apply only to environments that Gymnasium makes.
        """
        require(
            not (self.args or self.wrappers or self.images),
            f"{env_id} is not made by Gymnasium: remove --env-arg, --wrapper and --envs.images.",
        )
        return EnvSpec(
            observation_shape=self.atari_shape,
            observation_dtype=np.dtype(np.uint8),
            actions=actions,
            flavour=flavour,
            normalizes_observations=self.normalize_observations,
            normalizes_rewards=self.normalize_rewards,
        )

    def check_made(self, env_id: str, stored: "EnvConfig | None" = None) -> None:
        """Raise UsageError for changed settings of Atari games, which have no effect on environments of Gymnasium.

        Older versions accepted FLAGS. Ignore them if they are as in ``stored``, the settings of an earlier session.
        """
        usual = EnvConfig()
        changed = [
            f"{name.replace('_', '-')} {value}"
            for name, unchanged in UNCHANGED.items()
            if (value := getattr(self, name)) not in (unchanged, getattr(usual, name))
        ]
        changed += [
            f"no-{name.replace('_', '-')}"
            for name in FLAGS
            if getattr(self, name) not in (getattr(usual, name), getattr(stored or usual, name))
        ]
        if changed:
            raise UsageError(
                f"--envs.{changed[0]} has no effect on {env_id}, which Gymnasium makes: "
                "remove this option. To change the environment, use --env-arg or --wrapper."
            )

    def make_arguments(self) -> dict[str, Any]:
        """``args`` as keyword arguments: Python literals or plain text. Raises UsageError for anything else."""
        found: dict[str, Any] = {}
        for text in self.args:
            name, equals, value = text.partition("=")
            require(
                equals == "=" and name.isidentifier(), f"--env-arg {text}: must be NAME=VALUE, such as hardcore=True."
            )
            require(name not in found, f"--env-arg {text}: {name} already has a value. Give it once.")
            try:
                found[name] = ast.literal_eval(value)
            except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
                if not TEXT.fullmatch(value):
                    raise UsageError(
                        f"--env-arg {text}: the value must be a Python literal, such as 3, 0.5, True or 'text'."
                    ) from None
                found[name] = value
        return found

    def flavour(self) -> str:
        """A line to print with each score of an Atari game: the settings that affect the score."""
        return ", ".join(
            [
                f"sticky {self.sticky_actions:g}",
                "life loss ends returns" if self.life_loss else "lives ignored",
                f"no-ops {self.noop_max}",
                "fire at the start" if self.fire_reset else "no fire at the start",
                f"skip {self.frame_skip}"
                if self.min_frame_skip is None
                else f"random skip {self.min_frame_skip}-{self.frame_skip} without max-pooling",
                f"stack {self.frame_stack}",
                f"{'grey' if self.grayscale else 'RGB'} {self.screen_size}x{self.screen_size}",
                f"at most {self.max_frames} frames",
                f"{'rewards clipped for learning' if self.clip_rewards else 'rewards unclipped'}",
                "scores unclipped",
            ]
        )

    def gymnasium_flavour(self) -> str:
        """A line to print with the scores of a Gymnasium environment."""
        changes = [f"with {', '.join(self.args)}"] if self.args else ["as registered"]
        changes += [f"wrapped by {', '.join(self.wrappers)}"] if self.wrappers else []
        return f"played {', '.join(changes)}, scores are sums of {'' if self.wrappers else 'true '}rewards"

    def check(self) -> None:
        require(self.num_envs >= 1, f"--envs.num-envs {self.num_envs}: must be 1 or more.")
        require(self.frame_skip >= 1, f"--envs.frame-skip {self.frame_skip}: must be 1 or more.")
        least = self.min_frame_skip
        require(
            least is None or 1 <= least <= self.frame_skip,
            f"--envs.min-frame-skip {least}: must be from 1 to {self.frame_skip} (--envs.frame-skip).",
        )
        require(
            least is None or (self.noop_max == 0 and not self.fire_reset),
            f"--envs.min-frame-skip {least} needs --envs.noop-max 0 --envs.no-fire-reset: "
            "games with random frame skip start without no-ops and FIRE.",
        )
        require(self.frame_stack >= 1, f"--envs.frame-stack {self.frame_stack}: must be 1 or more.")
        require(self.screen_size >= 1, f"--envs.screen-size {self.screen_size}: must be 1 or more.")
        require(
            0 <= self.sticky_actions < 1,
            f"--envs.sticky-actions {self.sticky_actions}: must be at least 0 and below 1, such as 0.25.",
        )
        require(self.noop_max >= 0, f"--envs.noop-max {self.noop_max}: must be 0 or more.")
        require(self.max_frames >= 1, f"--envs.max-frames {self.max_frames}: must be 1 or more.")
        self.make_arguments()


@dataclass(frozen=True, slots=True)
class DiscreteActions:
    """An action is one of ``count``, numbered from 0: int64 (). A network returns a logit for each.

    Games number the actions from ``start``, and take them as ``played_dtype``.
    """

    count: int
    start: int = 0
    played_dtype: np.dtype[Any] = INT64
    shape = ()
    dtype = INT64

    @property
    def outputs(self) -> int:
        """The length of a network's output."""
        return self.count

    def played(self, actions: np.ndarray) -> np.ndarray:
        """The policy's ``actions`` (B, *shape), in the form that games accept."""
        return (actions + self.start).astype(self.played_dtype, copy=False)

    def drawn(self, rng: np.random.Generator, *batch: int) -> np.ndarray:
        """Random actions (*batch, *shape), in the form that games accept."""
        return self.played(rng.integers(self.count, size=batch))


@dataclass(frozen=True, slots=True)
class FactoredActions:
    """An action is k choices at once, each numbered from 0: int64 (k,). Choice i has ``counts[i]`` alternatives.

    A network returns a logit for each alternative: first those of choice 0, then those of choice 1, and so on, in the
    order of ``numpy.ravel``. Games number the alternatives of choice i from ``starts[i]``, and take actions of
    ``played_shape`` and ``played_dtype``.
    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    played_shape: tuple[int, ...]
    played_dtype: np.dtype[Any] = INT64
    dtype = INT64

    @property
    def shape(self) -> tuple[int]:
        return (len(self.counts),)

    @property
    def outputs(self) -> int:
        return sum(self.counts)

    def played(self, actions: np.ndarray) -> np.ndarray:
        played: np.ndarray = (actions + np.array(self.starts)).reshape(*actions.shape[:-1], *self.played_shape)
        return played.astype(self.played_dtype, copy=False)

    def drawn(self, rng: np.random.Generator, *batch: int) -> np.ndarray:
        return self.played(rng.integers(self.counts, size=(*batch, len(self.counts))))


def with_bounds(bounds: np.ndarray) -> np.ndarray:
    """``bounds``, float64 (2, n), the lows and the highs of n numbers, with a bound for each number that lacks one.

    It is 2 from the number's other bound. Without any bounds, they are -1 and 1.
    """
    exists = np.abs(bounds) < WIDEST
    opposite = np.where(exists[::-1], np.add(bounds[::-1], [[-2.0], [2.0]]), [[-1.0], [1.0]])
    return np.where(exists, bounds, opposite)


@dataclass(frozen=True, slots=True)
class BoxActions:
    """An action is D numbers, each from its ``low`` to its ``high``: float32 (D,).

    A network returns D means, then D log standard deviations, in units in which the bounds are -1 and 1. A number that
    lacks a bound keeps the units of the environment. If it has one bound, 0 is one unit inside this bound. Games take
    actions of ``played_shape`` and ``played_dtype``.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    played_shape: tuple[int, ...]
    played_dtype: np.dtype[Any] = FLOAT32
    dtype = FLOAT32

    @property
    def shape(self) -> tuple[int]:
        return (len(self.low),)

    @property
    def outputs(self) -> int:
        return 2 * len(self.low)

    def played(self, actions: np.ndarray) -> np.ndarray:
        """The policy's ``actions`` (B, D) as (B, *played_shape), in the units and bounds of the environment."""
        bounds = np.array([self.low, self.high])
        low, high = with_bounds(bounds)
        played: np.ndarray = np.clip(actions * (high - low) / 2 + (low + high) / 2, *bounds)
        played = played.astype(np.float32).reshape(*actions.shape[:-1], *self.played_shape)
        return played.astype(self.played_dtype, copy=False)

    def drawn(self, rng: np.random.Generator, *batch: int) -> np.ndarray:
        return self.played(rng.uniform(-1, 1, size=(*batch, len(self.low))))


ActionSpace: TypeAlias = DiscreteActions | FactoredActions | BoxActions


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """The observations and actions of a game. ``flavour`` is a line to print with the scores of the game.

    ``normalizes_observations`` and ``normalizes_rewards``: whether a policy learns from scaled observations and
    rewards. ``notice`` tells the user what a policy does not see. ``drawn`` returns a random observation (*shape) that
    the environment allows, or is None: then images can have any bytes.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[np.generic]
    actions: ActionSpace
    flavour: str
    normalizes_observations: bool = False
    normalizes_rewards: bool = False
    notice: str | None = None
    drawn: Callable[[np.random.Generator], np.ndarray] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        require(
            not self.normalizes_observations or len(self.observation_shape) == 1,
            f"--envs.normalize-observations does not apply to images of shape {self.observation_shape}: "
            "networks scale images themselves. Use --envs.no-normalize-observations.",
        )


@dataclass(frozen=True, slots=True)
class Game:
    """A full game. ``score`` is the sum of its unclipped rewards over all lives, and ``agent_steps`` is its length."""

    score: float
    agent_steps: int


@dataclass(slots=True)
class Step:
    """The result of one agent step of B games.

    - ``observations`` (B, *shape), after the step. Where a game ended, the first observation of the next game.
    - ``rewards``, float32 (B,), for learning: clipped if ``EnvConfig.clip_rewards`` is set.
    - ``terminated``, bool (B,): where a return ends. Do not bootstrap there.
    - ``truncated``, bool (B,): where a time limit cut off a game that is not terminated. Bootstrap there from
      ``final_observations``.
    - ``final_observations``: the last observation (*shape) of each truncated game, by index.
    - ``games``: the full games that ended in this step.
    """

    observations: np.ndarray
    rewards: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_observations: dict[int, np.ndarray]
    games: list[Game]


class Envs(Protocol):
    """B games that are stepped together."""

    num_envs: int
    spec: EnvSpec

    def reset(self, seed: int) -> np.ndarray:
        """Start B new games and return their observations (B, *shape).

        ``seed`` >= 0 and the index of a game determine all randomness in that game and its successors.
        """

    def step(self, actions: np.ndarray) -> Step:
        """Play ``actions`` (B, ...), in the form of ``spec.actions.played``.

        The result stays valid after the next step.
        """

    def close(self) -> None:
        """End the games and their threads."""


class Scores:
    """Scores and lengths of B unfinished games."""

    def __init__(self, num_envs: int) -> None:
        self._scores = np.zeros(num_envs)
        self._agent_steps = np.zeros(num_envs, np.int64)

    def add(self, rewards: np.ndarray, over: npt.NDArray[np.bool_]) -> list[Game]:
        """Add the ``rewards`` (B,) of one step. Return the games that are ``over``, bool (B,), and forget them."""
        self._scores += rewards
        self._agent_steps += 1
        games = [Game(float(self._scores[i]), int(self._agent_steps[i])) for i in np.flatnonzero(over)]
        self._scores[over] = 0
        self._agent_steps[over] = 0
        return games


def game_seeds(seed: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Seeds (num_envs,) from 0 to 2^31 - 1. Different values of ``seed`` give unrelated seeds."""
    return (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).astype(np.int64)
