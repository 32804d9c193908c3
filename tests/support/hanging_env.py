"""CartPole that hangs forever in each process whose id is in the file that the variable HANG_FILE names.

Its id for ``--env`` is ``support.hanging_env:Hanging-v0``.
"""

import os
import threading
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

HANG_FILE = "HANG_FILE"


class HangingEnv(CartPoleEnv):
    """CartPole that can hang."""

    def step(self, action: Any) -> Any:
        if str(os.getpid()) in Path(os.environ[HANG_FILE]).read_text(encoding="utf-8").split():
            wait_for_a_game_server()
        return super().step(action)  # type: ignore[no-untyped-call]


def wait_for_a_game_server() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


gymnasium.register("Hanging-v0", entry_point=f"{__name__}:HangingEnv", max_episode_steps=500)
