"""Play one game with a trained policy, in the environment of its run: play_policy.py RUN [SEED]

`zmqrl eval` plays the same game for this seed, but cuts it off after 100,000 agent steps.
"""

import sys

import numpy as np

import zmqrl
from zmqrl.commands.measure.play import ACTIONS, whole_game_config
from zmqrl.learner.envs import Game, make_envs

policy = zmqrl.load_policy(sys.argv[1])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

# Use the settings of the run, such as frame skip and colours, but play a full game with unclipped rewards.
envs = make_envs(policy.env_id, whole_game_config(policy.config.envs), threads=1)
rng = np.random.default_rng((seed, ACTIONS))
observations = envs.reset(seed)
games: list[Game] = []
while not games:
    step = envs.step(np.atleast_1d(policy.act(observations, rng)))
    observations, games = step.observations, step.games
envs.close()
print(f"{policy.env_id}, version {policy.version}: score {games[0].score:g} in {games[0].agent_steps} steps")
