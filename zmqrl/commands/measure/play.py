"""One full game of a policy. Only the seed and the policy affect it."""

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zmqrl.errors import closing
from zmqrl.learner.games import EnvConfig

if TYPE_CHECKING:
    from zmqrl.policy import Policy

LONGEST = 100_000  # in agent steps. Some environments have no time limit
ACTIONS = 1  # second part of the seed for actions, so that this seed differs from the game's


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One agent step of a game: the ``action`` that the policy took on ``observation`` (*shape), and its result.

    ``score`` is the sum of the true rewards so far. ``over``: the game has ended. ``cut_off``: a time limit of the
    environment or of zmqrl ended it.
    """

    observation: np.ndarray = field(compare=False)
    action: np.ndarray | int = field(compare=False)
    reward: float
    score: float
    agent_steps: int
    over: bool
    cut_off: bool


def whole_game(policy: "Policy", seed: int, *, greedy: bool) -> Generator[Turn, None, None]:
    """Play the game of ``seed`` over all lives, turn by turn.

    Each game gets a new environment, because some keep memory across a reset. Close the generator to leave a game
    early. Sets torch to one thread. Raises UsageError if a custom environment fails.
    """
    import torch  # torch and the games take seconds to import

    from zmqrl.learner.envs import make_envs

    torch.set_num_threads(1)  # for a batch of one, more threads would only wait
    rng = np.random.default_rng((seed, ACTIONS))
    with closing(make_envs(policy.env_id, whole_game_config(policy.config.envs), threads=1)) as envs:
        observation = envs.reset(seed)[0]
        score = 0.0
        for agent_steps in range(1, LONGEST + 1):
            action = policy.act(observation, rng, greedy)
            step = envs.step(np.asarray(action)[np.newaxis])
            reward = float(step.rewards[0])
            score = step.games[0].score if step.games else score + reward
            yield Turn(
                observation=observation,
                action=action,
                reward=reward,
                score=score,
                agent_steps=agent_steps,
                over=bool(step.games),
                cut_off=bool(step.truncated[0]) or agent_steps == LONGEST,
            )
            if step.games:
                return
            observation = step.observations[0]


def whole_game_config(config: EnvConfig) -> EnvConfig:
    """The settings of training, changed to one game at a time, over all lives and with true rewards."""
    return dataclasses.replace(config, num_envs=1, life_loss=False, clip_rewards=False)
