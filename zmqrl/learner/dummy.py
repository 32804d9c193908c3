"""Makes frames at no cost, so that everything except the games can be measured."""

import numpy as np

from zmqrl.learner.games import DiscreteActions, EnvConfig, EnvSpec, Scores, Step

DUMMY_ID = "zmqrl/Dummy-v0"
REWARD_PROBABILITY = 0.1
END_PROBABILITY = 0.005


def describe_dummy(config: EnvConfig) -> EnvSpec:
    """The observations and actions of Breakout. Raises UsageError like ``describe_env``."""
    flavour = "no game: always the same random frames; rewards and ends are random and ignore the actions"
    return config.emulated(DUMMY_ID, DiscreteActions(4), flavour)


class DummyEnvs:
    """Repeats the frames made at the reset. Rewards and ends are random."""

    def __init__(self, spec: EnvSpec, config: EnvConfig) -> None:
        self.num_envs, self.spec = config.num_envs, spec

    def reset(self, seed: int) -> np.ndarray:
        self._rng = np.random.default_rng(seed)
        self._scores = Scores(self.num_envs)
        self._frames = self._rng.integers(256, size=(self.num_envs, *self.spec.observation_shape), dtype=np.uint8)
        return self._frames

    def step(self, actions: np.ndarray) -> Step:
        rewards, ends = self._rng.random((2, self.num_envs)) < [[REWARD_PROBABILITY], [END_PROBABILITY]]
        return Step(
            observations=self._frames,
            rewards=rewards.astype(np.float32),
            terminated=ends,
            truncated=np.zeros(self.num_envs, bool),
            final_observations={},
            games=self._scores.add(rewards, ends),
        )

    def close(self) -> None:
        pass
