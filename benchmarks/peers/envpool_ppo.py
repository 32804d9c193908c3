"""Train Breakout with the games of EnvPool and PPO in one process."""

import envpool
import numpy as np
import torch
from ppo import STEPS, Network, Player, learn

GAMES = 8


def main() -> None:
    """Train until the process is killed."""
    games = envpool.make(
        "Breakout-v5",
        env_type="gymnasium",
        num_envs=GAMES,
        episodic_life=True,
        reward_clip=True,
        seed=1,
        repeat_action_probability=0.0,
    )

    def step(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen, rewards, terminated, truncated, _ = games.step(actions.astype(np.int32))
        return seen, rewards, terminated | truncated

    network = Network(int(games.action_space.n))
    optimizer = torch.optim.Adam(network.parameters(), lr=2.5e-4, eps=1e-5, fused=True)
    player = Player(network, step, games.reset()[0])
    steps = 0
    while True:
        learn(network, optimizer, *player.play())
        steps += STEPS * GAMES
        print(f"agent steps: {steps}", flush=True)


if __name__ == "__main__":
    main()
