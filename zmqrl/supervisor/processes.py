"""The processes of a run: their deaths, restarts and silences. Pure: no clock."""

from collections import Counter
from collections.abc import Iterable

from zmqrl.hosts.launcher import Exited
from zmqrl.observe.stalls import Awaited
from zmqrl.process_id import ProcessId, worker_id
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 30.0
FAILURES_IN_A_ROW = 4  # number of deaths without any work between them
KILLS_IN_A_ROW = 30  # number of kills from outside zmqrl, by the user or the kernel, for example
SILENCE_S = 5.0
HUNG_S = 30.0
LINES_TOLD = 3  # number of log lines that the report of a death quotes
VERSION_TOLD_WITHIN_S = 2.0  # the longest delay until the supervisor learns of a version


class Processes:
    """The processes of one run.

    ``starts`` counts the starts of each process. ``hopeless`` holds the processes that died too often in a row.
    ``first_death`` is the earliest death that the run has not recovered from: this death may have caused later deaths.
    If the reason for that death is unknown, the next death with a known reason replaces it.
    """

    def __init__(self) -> None:
        self.running: set[ProcessId] = set()
        self.starts: Counter[ProcessId] = Counter()
        self.hopeless: set[ProcessId] = set()
        self.first_death: Exited | None = None
        self._first_death_at = 0.0
        self._version = 0
        self._failures: dict[ProcessId, int] = {}
        self._kills: dict[ProcessId, int] = {}
        self._start_at: dict[ProcessId, float] = {}
        self._heard_at: dict[ProcessId, float] = {}
        self._silence_told_at = 0.0
        self._used: dict[int, int] = {}  # by rank: most contributions that a shard has used

    # deaths and restarts

    def died(self, exited: Exited, now: float, *, counts: bool) -> list[e.Action]:
        """A process died. Restart it after a delay, which doubles with each death in a row.

        If ``counts``, this death can become the ``first_death``.
        """
        process = exited.process
        self.running.discard(process)
        self._heard_at.pop(process, None)
        first = self.first_death
        if counts and (first is None or (_is_unexplained(first) and not _is_unexplained(exited))):
            self.first_death, self._first_death_at = exited, now
        tally, most = (self._kills, KILLS_IN_A_ROW) if exited.status == -9 else (self._failures, FAILURES_IN_A_ROW)
        died = tally[process] = tally.get(process, 0) + 1
        if died >= most:
            self.hopeless.add(process)
        self._start_at[process] = now + min(FIRST_DELAY_S * 2.0 ** (died - 1), LONGEST_DELAY_S)
        words = exited.log_tail.splitlines()[-1 if exited.status in (-9, -15, 0) else -LINES_TOLD :]
        death = f"died ({exited.how()}) and is restarted{'; its log ends:' if words else ''}"
        return [e.TellDeath(process, (death, *(f"  | {line}" for line in words)))]

    def deaths(self, process: ProcessId) -> int:
        """The number of deaths of the process since it last did some work."""
        return self._kills.get(process, 0) + self._failures.get(process, 0)

    def start(self, process: ProcessId) -> e.Action:
        """Start a process now."""
        self._start_at.pop(process, None)
        self.running.add(process)
        self.starts[process] += 1
        return e.StartProcess(process)

    def due(self, now: float) -> list[e.Action]:
        """Restart the processes whose delay is over."""
        return [self.start(process) for process in [process for process, at in self._start_at.items() if now >= at]]

    def give_up(self, process: ProcessId) -> None:
        """Cancel the pending restart of a process."""
        self._start_at.pop(process, None)

    def worked(self, process: ProcessId) -> None:
        """Forget the earlier deaths of a process, because the process has done its work."""
        self.hopeless.discard(process)
        self._failures.pop(process, None)
        self._kills.pop(process, None)

    def contributed(self, tallies: Iterable[tuple[int, ...]]) -> None:
        """Read the tallies of a shard: a worker has worked if the shard has used more of its contributions than
        before.
        """
        for rank, used, *_ in tallies:
            if used > self._used.get(rank, 0):
                self._used[rank] = used
                self.worked(worker_id(rank))

    def reset_tallies(self) -> None:
        """The shards have loaded a checkpoint, and count used contributions from zero again."""
        self._used.clear()

    def made(self, version: int, now: float) -> None:
        """All shards have made ``version``. A run that makes versions after the first death has recovered from that
        death.
        """
        if self.first_death is not None and now - self._first_death_at > VERSION_TOLD_WITHIN_S:
            self.first_death = None if version > self._version else self.first_death
        self._version = max(version, self._version)

    # silence

    def heard(self, process: ProcessId, at: float) -> None:
        """The process gave a sign of life."""
        self._heard_at[process] = at

    def hear_workers(self, stats: Iterable[m.Stats], now: float) -> None:
        """A worker is alive while at least one shard hears from it. A worker that no shard sees counts as missing, not
        as silent.
        """
        for each in stats:
            for rank, silent_ms in zip(each.present, each.silent_ms, strict=False):
                if silent_ms < 1000 * SILENCE_S and worker_id(rank) in self.running:
                    self.heard(worker_id(rank), now)

    def silent_s(self, process: ProcessId, now: float) -> float:
        """Seconds since the last sign of life of the process. 0 before the first sign of life."""
        return now - self._heard_at.get(process, now)

    def awaited(self, process: ProcessId, now: float) -> Awaited:
        """The known state of a process that a version waits for."""
        return Awaited(
            process=process,
            is_running=process in self.running,
            is_there=process in self._heard_at,
            silent_s=self.silent_s(process, now),
        )

    def pardon(self, seconds: float) -> None:
        """Do not count ``seconds`` as silence: the supervisor itself did not run during this time, so it could not hear
        anything.
        """
        self._heard_at = {process: at + seconds for process, at in self._heard_at.items()}

    def watch_silence(self, now: float) -> tuple[set[ProcessId], list[e.Action]]:
        """Report processes that give no sign of life, and kill processes that have hung for ``HUNG_S``."""
        silent = {process for process in self._heard_at if self.silent_s(process, now) >= SILENCE_S}
        tell = now - self._silence_told_at >= SILENCE_S
        actions: list[e.Action] = []
        for process in sorted(silent):
            seconds = self.silent_s(process, now)
            if seconds >= HUNG_S:
                actions += [e.KillProcess(process, seconds)]
                self._heard_at[process] = now
            elif tell:
                self._silence_told_at = now
                actions += [e.TellSilence(process, seconds)]
        return silent, actions


def _is_unexplained(exited: Exited) -> bool:
    return exited.status == -9 and exited.why is None
