"""Helpers for tests of games: games that start without waiting, and random play."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from zmqrl.learner.envs import EnvConfig, Envs, Step

# Gymnasium's preprocessing has no FIRE and counts no-ops differently, so its games equal those of zmqrl only if games
# start without waiting.
PLAIN = EnvConfig(num_envs=1, noop_max=0, fire_reset=False, clip_rewards=False)
RANDOM_SKIP = dataclasses.replace(PLAIN, frame_skip=4, min_frame_skip=2, sticky_actions=0.25)


def random_actions(envs: Envs, steps: int, seed: int = 0) -> Iterator[np.ndarray]:
    return iter(envs.spec.actions.drawn(np.random.default_rng(seed), steps, envs.num_envs))


def play(envs: Envs, steps: int, seed: int = 0) -> list[Step]:
    return [envs.step(actions) for actions in random_actions(envs, steps, seed)]
