"""The scores of a peer's training: rows like those of zmqrl's ``metrics.jsonl``. Needs no RL library."""

import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROW_EVERY_S = 10.0
SB3_FLAVOUR = (
    "sticky 0, life loss ends returns, no-ops 30 and then FIRE, FIRE after each lost life, skip 4, stack 4, "
    "grey 84x84, at most 108000 frames, rewards clipped for learning, scores unclipped"
)


class Scores:
    """Writes time, agent steps and the mean score of the last 50 full games to ``path``, one row every 10 s.

    As in zmqrl, the score is None until each of the first games of all ``games`` environments has ended: short games
    end first, and they have low scores.
    """

    def __init__(self, path: Path, games: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.begun_at = self.written_at = clock()
        self.in_first_game = set(range(games))
        self.newest: deque[float] = deque(maxlen=50)
        self.episodes = 0

    @property
    def wall_s(self) -> float:
        return self.clock() - self.begun_at

    def ended(self, game: int, score: float) -> None:
        """Count a full game of environment ``game``, with its sum of unclipped rewards."""
        self.in_first_game.discard(game)
        self.newest.append(score)
        self.episodes += 1

    def row(self, agent_steps: int) -> dict[str, Any]:
        mean = None if self.in_first_game or not self.newest else sum(self.newest) / len(self.newest)
        return {
            "wall_s": self.wall_s,
            "agent_steps": agent_steps,
            "episodes": self.episodes,
            "score_mean_50": mean,
        }

    def write(self, agent_steps: int, *, last: bool = False) -> None:
        """Append a row if the previous one is 10 s old, or if it is the ``last`` one."""
        if last or self.clock() - self.written_at >= ROW_EVERY_S:
            self.written_at = self.clock()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.row(agent_steps)) + "\n")
