"""Train Breakout with two processes of plain PyTorch, which average their gradients with gloo."""

import os
import tempfile

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from ppo import STEPS, Network, Player, learn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

PROCESSES, GAMES = 2, 4  # games of each process


def main(rank: int, meeting_point: str) -> None:
    """Train until the process is killed."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // PROCESSES))
    torch.manual_seed(1)  # the same first network in all processes
    dist.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=PROCESSES)
    games = AtariVectorEnv(
        "breakout",
        num_envs=GAMES,
        num_threads=1,
        reward_clipping=True,
        life_loss_info=True,
        repeat_action_probability=0.0,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )

    def step(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen, rewards, terminated, truncated, _ = games.step(actions)
        return seen, rewards, terminated | truncated

    network = Network(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=2.5e-4, eps=1e-5, fused=True)

    def average() -> None:
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat / PROCESSES, gradients), strict=True):
            gradient.copy_(mean)

    torch.manual_seed(rank)
    player = Player(network, step, games.reset(seed=rank * GAMES)[0])
    steps = 0
    while True:
        learn(network, optimizer, *player.play(), average)
        steps += STEPS * GAMES * PROCESSES
        if rank == 0:
            print(f"agent steps: {steps}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(main, args=(f"{place}/gloo",), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
