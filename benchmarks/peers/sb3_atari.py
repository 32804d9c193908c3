"""Train Breakout with Stable-Baselines3 and the settings of its RL Zoo.

    python sb3_atari.py {a2c,ppo} [--subprocesses] [--scores FILE [--minutes M]]

One process plays all games, one after the other, as in the zoo. With ``--subprocesses``, each game has a process of its
own, so all cores play.

In the zoo, the learning rate and the clip range of PPO fall to 0 over 10 M agent steps. An hour on two cores has about
a tenth of these steps. Here they fall to 0 over ``--minutes``, and are constant without it. In the zoo, the learning
rate of A2C is constant.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import ale_py
import gymnasium
from scores import SB3_FLAVOUR, Scores
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

FOREVER = 10**9


class Told(BaseCallback):  # type: ignore[misc]
    """Prints the agent steps after each rollout, and writes the scores of full games. Ends the training in time."""

    def __init__(self, minutes: float, scores: Scores | None) -> None:
        super().__init__()
        self.minutes, self.scores = minutes, scores

    def _on_step(self) -> bool:
        if self.scores is None:
            return True
        for game, info in enumerate(self.locals["infos"]):
            if "episode" in info:  # by the monitor, which sees full games and unclipped rewards
                self.scores.ended(game, float(info["episode"]["r"]))
        return self.scores.wall_s < 60 * self.minutes

    def _on_rollout_end(self) -> None:
        print(f"agent steps: {self.num_timesteps}", flush=True)
        if self.scores is not None:
            self.scores.write(self.num_timesteps)

    def _on_training_end(self) -> None:
        if self.scores is not None:
            self.scores.write(self.num_timesteps, last=True)


def games(number: int, place: type[DummyVecEnv] | type[SubprocVecEnv]) -> VecFrameStack:
    """Games that are played at the same time."""
    return VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=number, seed=1, vec_env_cls=place), n_stack=4)


def main() -> None:
    """Train until the time is over, or until the process is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=["a2c", "ppo"])
    parser.add_argument("--subprocesses", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf, help="needs --scores")
    parser.add_argument("--scores", type=Path, help="file to append scores to, as JSON lines")
    arguments = parser.parse_args()
    if arguments.scores is None and math.isfinite(arguments.minutes):
        parser.error("--minutes needs --scores")
    gymnasium.register_envs(ale_py)
    print(f"flavour: {SB3_FLAVOUR}", flush=True)
    number = 16 if arguments.algorithm == "a2c" else 8
    played = games(number, SubprocVecEnv if arguments.subprocesses else DummyVecEnv)
    scores = Scores(arguments.scores, number) if arguments.scores else None

    def falling(first: float) -> Callable[[float], float]:
        return lambda _: first * (1 - min(1.0, scores.wall_s / (60 * arguments.minutes)) if scores else 1)

    if arguments.algorithm == "a2c":
        optimizer = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
        model = A2C("CnnPolicy", played, ent_coef=0.01, vf_coef=0.25, policy_kwargs=optimizer, device="cpu", seed=1)
    else:
        model = PPO(
            "CnnPolicy",
            played,
            n_steps=128,
            n_epochs=4,
            batch_size=256,
            learning_rate=falling(2.5e-4),
            clip_range=falling(0.1),
            vf_coef=0.5,
            ent_coef=0.01,
            device="cpu",
            seed=1,
        )
    model.learn(FOREVER, callback=Told(arguments.minutes, scores))


if __name__ == "__main__":
    main()
