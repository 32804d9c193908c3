"""Games without an emulator, whose ends are known or whose frames are random."""

import numpy as np

from zmqrl.learner.envs import EnvSpec, Game, Step
from zmqrl.learner.games import ActionSpace, DiscreteActions

TERMINATED_EVERY, TRUNCATED_EVERY = 3, 5


def described(shape: tuple[int, ...], actions: int | ActionSpace = 4) -> EnvSpec:
    """Games with observations of ``shape``, uint8 if they are images. ``actions``: a number means discrete actions."""
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=np.dtype(np.uint8 if len(shape) == 3 else np.float32),
        actions=DiscreteActions(actions) if isinstance(actions, int) else actions,
        flavour="",
    )


class CountingEnvs:
    """Observations are (game, step), final observations (game, -step).

    Games with even numbers terminate at every 3rd step. Games with odd numbers are truncated at every 5th step.
    """

    spec = described((2,))

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs = num_envs
        self.seed = -1
        self.actions: list[np.ndarray] = []

    def observe(self, last: float) -> np.ndarray:
        return np.array([(i, last) for i in range(self.num_envs)], np.float32)

    def reset(self, seed: int) -> np.ndarray:
        self.seed = seed
        return self.observe(0)

    def step(self, actions: np.ndarray) -> Step:
        self.actions.append(actions.copy())
        steps = len(self.actions)
        games = np.arange(self.num_envs)
        truncated = (games % 2 == 1) & (steps % TRUNCATED_EVERY == 0)
        terminated = (games % 2 == 0) & (steps % TERMINATED_EVERY == 0)
        return Step(
            observations=self.observe(steps),
            rewards=(actions * 10).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            final_observations={int(i): np.array((i, -steps), np.float32) for i in np.flatnonzero(truncated)},
            games=[
                Game(score=float(i), agent_steps=TRUNCATED_EVERY if i % 2 else TERMINATED_EVERY)
                for i in np.flatnonzero(terminated | truncated)
            ],
        )

    def close(self) -> None:
        pass


class FrameEnvs(CountingEnvs):
    """Endless games with random frames."""

    spec = described((4, 84, 84))

    def observe(self, last: float) -> np.ndarray:
        return np.random.default_rng(int(last)).integers(0, 256, (self.num_envs, 4, 84, 84), dtype=np.uint8)

    def step(self, actions: np.ndarray) -> Step:
        self.actions.append(actions.copy())
        nothing = np.zeros(self.num_envs, bool)
        return Step(
            observations=self.observe(len(self.actions)),
            rewards=np.zeros(self.num_envs, np.float32),
            terminated=nothing,
            truncated=nothing,
            final_observations={},
            games=[],
        )
