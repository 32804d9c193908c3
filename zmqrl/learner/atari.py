"""Atari games, emulated by ``ale_py``."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec as Registered
from gymnasium.vector import AutoresetMode

from zmqrl.errors import UsageError, did_you_mean
from zmqrl.learner.games import EnvConfig, EnvSpec, Scores, Step, game_seeds
from zmqrl.local.extras import missing

if not missing("atari"):  # without it, no Atari game is registered
    import ale_py
    from ale_py import roms
    from ale_py.env import AtariEnv
    from ale_py.vector_env import AtariVectorEnv

    gymnasium.register_envs(ale_py)

ENTRY_POINT = "ale_py.env:AtariEnv"
# The settings of each id of ale_py. The user's code can register such an id again, or change its settings.
OF_ALE_PY = {
    env_id: dict(registered.kwargs)
    for env_id, registered in gymnasium.registry.items()
    if registered.entry_point == ENTRY_POINT
}
# The zmqrl option for each setting that a registration can contain. From an id of ale_py, zmqrl takes only the game.
OPTIONS = {
    "obs_type": "--envs.grayscale",
    "repeat_action_probability": "--envs.sticky-actions",
    "frameskip": "--envs.frame-skip",
    "max_num_frames_per_episode": "--envs.max-frames",
    "max_episode_steps": "--envs.max-frames",
}


class AtariEnvs:
    """A batch of games of one ROM. The threads of ``ale_py`` emulate the games."""

    def __init__(self, game: str, spec: EnvSpec, config: EnvConfig, *, threads: int) -> None:
        self.num_envs, self.spec = config.num_envs, spec
        self._life_loss = config.life_loss
        self._clip_rewards = config.clip_rewards
        self._vector = emulators(
            game,
            config,
            num_envs=config.num_envs,
            num_threads=threads,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=config.screen_size,
            img_width=config.screen_size,
            grayscale=config.grayscale,
            stack_num=config.frame_stack,
            life_loss_info=config.life_loss,
        )

    def reset(self, seed: int) -> np.ndarray:
        observations, info = self._vector.reset(seed=game_seeds(seed, self.num_envs))
        self._scores = Scores(self.num_envs)
        self._lives = info["lives"]
        self._first_frames = info["frame_number"] - info["episode_frame_number"]
        return _channels_together(observations)

    def step(self, actions: np.ndarray) -> Step:
        # An unknown action makes an emulator thread fail, and then step never returns.
        assert actions.min() >= 0
        assert actions.max() < self.spec.actions.outputs
        observations, rewards, terminated, truncated, info = self._vector.step(actions)
        # The frame number at which a game began changes only at a reset. The number of lives does not show a reset: a
        # life lost at the time limit looks like any other, Pong has no lives, and Amidar shows 0 at the start and 8 at
        # the end.
        first_frames = info["frame_number"] - info["episode_frame_number"]
        over = first_frames != self._first_frames
        self._first_frames = first_frames
        if self._life_loss:
            # In some games, the count is 0 during the last life. ale_py does not signal the fall from 1 to 0.
            terminated = terminated | ((info["lives"] < self._lives) & ~over)
        self._lives = info["lives"]
        learned_from = rewards.clip(-1, 1) if self._clip_rewards else rewards
        return Step(
            observations=_channels_together(observations),
            rewards=learned_from.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            final_observations={
                int(i): _channels_together(info["final_obs"][i : i + 1])[0] for i in np.flatnonzero(truncated)
            },
            games=self._scores.add(rewards, over),
        )

    def close(self) -> None:
        self._vector.close()
        del self._vector.ale  # ends its threads


class RandomSkipEnvs:
    """Games of one ROM with a random frame skip, like Gym's ``-v0`` ids. The games are stepped one by one.

    An observation ends with the last frame of the step, without max-pooling. When a game starts, the older frames in
    its observation are zeros.
    """

    def __init__(self, game: str, spec: EnvSpec, config: EnvConfig) -> None:
        assert config.min_frame_skip is not None
        self.num_envs, self.spec = config.num_envs, spec
        self._config = config
        self._emulators = [
            bare_emulator(
                game,
                config,
                obs_type="grayscale" if config.grayscale else "rgb",
                frameskip=(config.min_frame_skip, config.frame_skip + 1),
            )
            for _ in range(config.num_envs)
        ]

    def reset(self, seed: int) -> np.ndarray:
        seeds = game_seeds(seed, self.num_envs).tolist()
        started = [emulator.reset(seed=s) for emulator, s in zip(self._emulators, seeds, strict=True)]
        self._scores = Scores(self.num_envs)
        self._lives = np.array([info["lives"] for _, info in started])
        self._stacks = np.zeros((self.num_envs, *self.spec.observation_shape), np.uint8)
        self._stacks[:, -self._config.frame_channels :] = self._frames([screen for screen, _ in started])
        return self._stacks

    def step(self, actions: np.ndarray) -> Step:
        played = [emulator.step(action) for emulator, action in zip(self._emulators, actions, strict=True)]
        screens, *figures, infos = zip(*played, strict=True)
        rewards, terminated, truncated = map(np.array, figures)
        lives = np.array([info["lives"] for info in infos])
        channels = self._config.frame_channels
        # A new array each time: the previous one may still be in use.
        stacks = np.concatenate((self._stacks[:, channels:], self._frames(screens)), axis=1)
        over = terminated | truncated
        if self._config.life_loss:
            terminated = terminated | (lives < self._lives)
        truncated = truncated & ~terminated
        final_observations = {int(i): stacks[i].copy() for i in np.flatnonzero(truncated)}
        for i in np.flatnonzero(over):
            screen, info = self._emulators[i].reset()
            stacks[i, :-channels] = 0
            stacks[i, -channels:] = self._frames([screen])[0]
            lives[i] = info["lives"]
        self._stacks, self._lives = stacks, lives
        learned_from = rewards.clip(-1, 1) if self._config.clip_rewards else rewards
        return Step(
            observations=stacks,
            rewards=learned_from.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            final_observations=final_observations,
            games=self._scores.add(rewards, over),
        )

    def close(self) -> None:
        self._emulators.clear()

    def _frames(self, screens: Sequence[np.ndarray]) -> np.ndarray:
        """Scale screens (height, width[, 3]) to frames (B, channels, H, W): bilinear like OpenCV, no antialiasing."""
        import torch  # the import takes seconds, and only these games need it
        import torch.nn.functional as F

        batch = torch.from_numpy(np.stack(screens))
        batch = batch[:, None] if self._config.grayscale else batch.permute(0, 3, 1, 2)
        size = (self._config.screen_size, self._config.screen_size)
        return F.interpolate(batch, size, mode="bilinear", align_corners=False).numpy()


def game_of(registered: Registered, config: EnvConfig) -> str:
    """The game that ``registered`` names. Raises UsageError if its settings differ from those of ``config``.

    zmqrl always plays the default mode and difficulty, with the game's own actions.
    """
    asked = dict(registered.kwargs)
    game: Any = asked.pop("game", None)
    where = f"{registered.id} is registered with"
    if not isinstance(game, str) or game not in _games():
        raise UsageError(f"{where} game={game!r}: no such Atari game{did_you_mean(str(game), _games())}.")
    usual = OF_ALE_PY.get(registered.id, {})
    asked = {name: value for name, value in asked.items() if not (name in OPTIONS and _equal(value, usual.get(name)))}
    asked |= {
        "max_episode_steps": registered.max_episode_steps,
        "wrappers": [wrapper.name for wrapper in registered.additional_wrappers],
    }
    names_a_game_mode = any(asked.get(name) is not None for name in ("mode", "difficulty"))
    mode, difficulty = _defaults(game) if names_a_game_mode else (None, None)  # loading a game takes 0.2 s
    least = config.min_frame_skip
    played: dict[str, Any] = {
        "mode": mode,
        "difficulty": difficulty,
        "full_action_space": False,
        "continuous": False,
        "continuous_action_threshold": asked.get("continuous_action_threshold"),  # no effect on discrete actions
        "sound_obs": False,
        "render_mode": asked.get("render_mode"),  # zmqrl record draws the game
        "obs_type": "grayscale" if config.grayscale else "rgb",
        "repeat_action_probability": config.sticky_actions,
        "frameskip": config.frame_skip if least is None else (least, config.frame_skip + 1),
        "max_num_frames_per_episode": config.max_frames,
        "max_episode_steps": None,
        "wrappers": [],
    }
    for name, value in asked.items():
        if name not in played:
            raise UsageError(f"{where} {name}={value!r}, which Atari games do not have: change the registration.")
        if not _equal(value, played[name]) and not (value is None and name in ("mode", "difficulty")):
            option = f", or {OPTIONS[name]}" if name in OPTIONS else ""
            how = f"zmqrl uses {name}={played[name]!r}"
            raise UsageError(f"{where} {name}={value!r}, but {how}: change the registration{option}.")
    return str(game)


def _equal(asked: Any, played: Any) -> bool:
    """Whether two settings are the same. False for arrays, because comparing them gives no bool."""
    same = asked == played
    return isinstance(same, (bool, np.bool_)) and bool(same)


@cache
def _defaults(game: str) -> tuple[int, int]:
    state = _loaded(game).cloneState()
    return state.getCurrentMode(), state.getDifficulty()


@cache
def _games() -> frozenset[str]:
    """The games for one player."""
    paths = {game: roms.get_rom_path(game) for game in roms.get_all_rom_ids()}
    return frozenset(game for game, path in paths.items() if path and ale_py.ALEInterface.isSupportedROM(path) == game)


def _channels_together(frames: np.ndarray) -> np.ndarray:
    """Return grey frames (B, stack, H, W) unchanged, and RGB frames (B, stack, H, W, 3) as (B, 3 * stack, H, W)."""
    if frames.ndim == 4:
        return frames
    batch, stack, height, width, channels = frames.shape
    return frames.transpose(0, 1, 4, 2, 3).reshape(batch, stack * channels, height, width)


def emulators(game: str, config: EnvConfig, **shown: Any) -> "AtariVectorEnv":
    """Make games with the rules of ``config``. ``shown`` has all other settings, such as the frame size."""
    return AtariVectorEnv(
        game,
        frameskip=config.frame_skip,
        repeat_action_probability=config.sticky_actions,
        max_num_frames_per_episode=config.max_frames,
        noop_max=config.noop_max,
        use_fire_reset=config.fire_reset,
        reward_clipping=False,
        **shown,
    )


def bare_emulator(game: str, config: EnvConfig, **shown: Any) -> "AtariEnv":
    """Make one game with the rules of ``config``. ``shown`` has all other settings, such as the frame skip."""
    return AtariEnv(
        game,
        repeat_action_probability=config.sticky_actions,
        max_num_frames_per_episode=config.max_frames,
        **shown,
    )


@cache  # loading a game takes 90 ms
def atari_actions(game: str) -> int:
    """The number of actions that have an effect in a game."""
    return len(_loaded(game).getMinimalActionSet())


def screen_size(game: str) -> tuple[int, int]:
    """Height and width in pixels. Most games have 210 x 160."""
    height, width = _loaded(game).getScreenDims()
    return height, width


def _loaded(game: str) -> "ale_py.ALEInterface":
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    rom = roms.get_rom_path(game)
    assert rom is not None
    ale.loadROM(rom)
    return ale
