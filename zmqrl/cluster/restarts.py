"""When a process that died is started again, and when there is no hope left in it. No processes, no clock."""

from zmqrl.cluster.launcher import Exited

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 30.0
FAILURES_IN_A_ROW = 4  # on its own, without having worked in between
KILLS_IN_A_ROW = 30  # by somebody else


class Restarts:
    """Counts the deaths of each process since it last worked. ``hopeless`` are those that died too often."""

    def __init__(self) -> None:
        self.hopeless: set[str] = set()
        self._failures: dict[str, int] = {}
        self._kills: dict[str, int] = {}

    def worked(self, name: str) -> None:
        """The process did what it is for, so its past is forgotten."""
        self.hopeless.discard(name)
        self._failures.pop(name, None)
        self._kills.pop(name, None)

    def delay_s(self, exited: Exited) -> float:
        """Seconds to wait before the next start."""
        killed = exited.status == -9
        tally = self._kills if killed else self._failures
        died = tally[exited.name] = tally.get(exited.name, 0) + 1
        if died >= (KILLS_IN_A_ROW if killed else FAILURES_IN_A_ROW):
            self.hopeless.add(exited.name)
        return min(FIRST_DELAY_S * 2.0 ** (died - 1), LONGEST_DELAY_S)

    def deaths(self, name: str) -> int:
        """How often the process died since it last worked."""
        return self._kills.get(name, 0) + self._failures.get(name, 0)
