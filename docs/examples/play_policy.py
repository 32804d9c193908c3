"""Play one game with a trained policy, in the environment of its run: play_policy.py RUN [SEED]

It is the game that `zmqrl eval` plays for this seed.
"""

import sys

import numpy as np

import zmqrl
from zmqrl.agent.envs import make_envs
from zmqrl.game import ACTIONS, whole_game_config

policy = zmqrl.load_policy(sys.argv[1])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

# One game with the frame skip, the colours and all other settings of the run, but whole and with its true rewards.
envs = make_envs(policy.env_id, whole_game_config(policy.config.envs), threads=1)
rng = np.random.default_rng((seed, ACTIONS))
observations, games = envs.reset(seed), []
while not games:
    step = envs.step(policy.act(observations, rng))
    observations, games = step.observations, step.games
envs.close()
print(f"{policy.env_id}, version {policy.version}: score {games[0].score:g} in {games[0].agent_steps} steps")
