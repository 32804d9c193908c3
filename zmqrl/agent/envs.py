"""TEMPORARY placeholder so that the run can be tried; replaced by the real module."""
from dataclasses import dataclass
from typing import Any, NamedTuple
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    num_envs: int = 32
    frame_skip: int = 4
    def flavour(self) -> str:
        return "placeholder"

class Game(NamedTuple):
    score: float
    agent_steps: int

@dataclass(slots=True)
class Step:
    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observations: dict
    games: list

class EnvSpec(NamedTuple):
    observation_shape: tuple
    observation_dtype: Any
    num_actions: int

class Envs:
    def __init__(self, env_id, config):
        self.e = gym.make_vec(env_id, config.num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
        self.num_envs = config.num_envs
        self.num_actions = int(self.e.single_action_space.n)
        self.observation_shape = self.e.single_observation_space.shape
        self.observation_dtype = np.float32
        self.scores = np.zeros(self.num_envs); self.steps = np.zeros(self.num_envs, int)
    def reset(self, seed):
        return self.e.reset(seed=seed)[0].astype(np.float32)
    def step(self, a):
        o, r, te, tr, info = self.e.step(a)
        self.scores += r; self.steps += 1
        games, final = [], {}
        for i in np.flatnonzero(te | tr):
            games.append(Game(float(self.scores[i]), int(self.steps[i]))); self.scores[i] = 0; self.steps[i] = 0
            if tr[i] and not te[i]: final[int(i)] = info["final_obs"][i].astype(np.float32)
        return Step(o.astype(np.float32), r.astype(np.float32), te, tr, final, games)
    def close(self): self.e.close()

def make_envs(env_id, config, *, threads=1): return Envs(env_id, config)
def describe_env(env_id, config):
    e = Envs(env_id, EnvConfig(num_envs=1)); return EnvSpec(e.observation_shape, e.observation_dtype, e.num_actions)
