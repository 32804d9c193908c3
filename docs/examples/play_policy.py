"""Play one game with a trained policy in a Gymnasium environment of your own: play_policy.py RUN [SEED]"""

import sys

import ale_py
import gymnasium
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

import zmqrl

gymnasium.register_envs(ale_py)
policy = zmqrl.load_policy(sys.argv[1])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

if policy.env_id.startswith("ALE/"):  # needs opencv-python-headless
    env = gymnasium.make(policy.env_id, frameskip=1, repeat_action_probability=0.0)
    env = FrameStackObservation(AtariPreprocessing(env), 4)
else:
    env = gymnasium.make(policy.env_id)

rng = np.random.default_rng(seed)
observation, _ = env.reset(seed=seed)
score, over = 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step(policy.act(observation, rng))
    score += float(reward)
    over = terminated or truncated
print(f"{policy.env_id}, version {policy.version}: score {score:g}")
