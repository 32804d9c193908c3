"""Train Breakout with Stable-Baselines3 and the settings of its RL Zoo: ``sb3_atari.py {a2c,ppo}``."""

import sys

import ale_py
import gymnasium
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecFrameStack

FOREVER = 10**9


class Told(BaseCallback):  # type: ignore[misc]
    """Prints the agent steps after each rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        print(f"agent steps: {self.num_timesteps}", flush=True)


def games(number: int) -> VecFrameStack:
    """Games that one process plays in turn, which is the zoo's default."""
    return VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=number, seed=1), n_stack=4)


def main() -> None:
    """Train until the process is killed."""
    gymnasium.register_envs(ale_py)
    if sys.argv[1] == "a2c":
        optimizer = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
        model = A2C("CnnPolicy", games(16), ent_coef=0.01, vf_coef=0.25, policy_kwargs=optimizer, device="cpu")
    else:
        model = PPO(
            "CnnPolicy",
            games(8),
            n_steps=128,
            n_epochs=4,
            batch_size=256,
            learning_rate=2.5e-4,
            clip_range=0.1,
            vf_coef=0.5,
            ent_coef=0.01,
            device="cpu",
        )
    model.learn(FOREVER, callback=Told())


if __name__ == "__main__":
    main()
