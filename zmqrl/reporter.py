"""Reports a worker's steps, games, losses and times to the supervisor."""

import math
import time
from collections import defaultdict, deque

from zmqrl.learner.games import Game
from zmqrl.ps.worker.connection import Connection, PulledWeights

REPORT_EVERY_S = 0.2
GAMES_IN_A_REPORT = 32


class Reporter:
    """Adds up the metrics of this worker and reports them. Sums are cumulative, so a lost report costs nothing."""

    def __init__(
        self, connection: Connection, steps_per_rollout: int, version: int, compute: str | None = None
    ) -> None:
        """``version`` is the first version that this worker pulled. ``compute`` is the number format of the network."""
        self.connection, self.compute = connection, compute
        self.steps_per_rollout = steps_per_rollout
        self.agent_steps = self.abandoned_steps = self.games_played = self.first_games = 0
        self.games: deque[tuple[int, float, int]] = deque(maxlen=GAMES_IN_A_REPORT)
        self.version = version
        self.gradients = self.lag_sum = 0
        self.losses: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))  # sum and count by name
        self.lags: list[int] = []  # since the last report
        self.sent_at = 0.0

    def played(self, games: list[Game], first_games: int) -> None:
        """Count a complete rollout, in which ``games`` ended.

        ``first_games`` is the number of games that began with the worker and have not ended yet.
        """
        self.first_games = first_games
        self.agent_steps += self.steps_per_rollout
        for game in games:
            self.games_played += 1
            self.games.append((self.games_played, game.score, game.agent_steps))
            if self.games_played % GAMES_IN_A_REPORT == 0:
                self.send()
        self.send()  # report the steps of a rollout before its gradients are pushed

    def abandoned(self) -> None:
        """Count the last rollout as abandoned: it was too late to learn from."""
        self.abandoned_steps += self.steps_per_rollout

    def learned(self, weights: PulledWeights, losses: dict[str, float], *, lag: int) -> None:
        """Count a pushed gradient, and report if it is the first one, or if the last report is old enough.

        Skip losses that are not finite: they would stay in the sum.
        """
        self.version = weights.version
        self.gradients += 1
        self.lag_sum += lag
        self.lags.append(lag)
        for name, value in losses.items():
            if math.isfinite(value):
                total, count = self.losses[name]
                self.losses[name] = total + value, count + 1
        if self.gradients == 1 or time.monotonic() - self.sent_at >= REPORT_EVERY_S:
            self.send()

    def send(self) -> None:
        self.sent_at = time.monotonic()
        self.connection.report(
            {
                "version": self.version,
                "agent_steps": self.agent_steps,
                "abandoned_steps": self.abandoned_steps,
                "skipped": self.connection.tally().skipped,
                "games": list(self.games),
                "first_games": self.first_games,
                "gradients": self.gradients,
                "loss_sums": dict(self.losses),
                "policy_lag_sum": self.lag_sum,
                "policy_lag_min": min(self.lags, default=None),
                "policy_lag_max": max(self.lags, default=None),
                "compute": self.compute,
                "span_sums": {name: seconds for name, (_, seconds) in self.connection.spans.totals().items()},
            }
        )
        self.lags.clear()
