"""When a process that died is started again, and when that has no use any more."""

from zmqrl.cluster.local import Exited
from zmqrl.errors import ClusterError

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 15.0
FAILURES_IN_A_ROW = 4  # on its own, without having worked in between
KILLS_IN_A_ROW = 30  # by somebody else


class Restarts:
    """Counts the deaths of each process since it last worked."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._kills: dict[str, int] = {}

    def worked(self, name: str) -> None:
        """The process did what it is for, so its past is forgotten."""
        self._failures.pop(name, None)
        self._kills.pop(name, None)

    def delay_s(self, exited: Exited) -> float:
        """Seconds to wait before the next start. Raises ClusterError when it died too often in a row."""
        tally = self._kills if exited.status == -9 else self._failures
        died = tally[exited.name] = tally.get(exited.name, 0) + 1
        if died >= (KILLS_IN_A_ROW if exited.status == -9 else FAILURES_IN_A_ROW):
            raise ClusterError(
                f"{exited.name} died {died} times in a row ({exited.how()}). Its last words:\n{exited.log_tail}"
            )
        return min(FIRST_DELAY_S * 2.0 ** (died - 1), LONGEST_DELAY_S)
