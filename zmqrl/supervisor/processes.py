"""The processes of a run: their deaths, restarts and silences. This module uses no clock."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from zmqrl.hosts.events import Exited, HostLost, HostUp
from zmqrl.observe.folding import ranges
from zmqrl.observe.live.presence import State
from zmqrl.observe.stalls import Awaited
from zmqrl.process_id import ProcessId, ProcessRole, worker_id
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.wire import messages as m
from zmqrl.supervisor import events as e

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 30.0
FAILURES_IN_A_ROW = 4  # number of deaths without any work between them
SPACE_WITHIN_S = 300.0  # how long the supervisor keeps restarting a process whose disk is full
SPACE_LOOK_S = 5.0  # the first delay until such a restart: the later ones are longer
KILLS_IN_A_ROW = 30  # number of kills from outside zmqrl, by the user or the kernel, for example
SILENCE_S = 5.0
HUNG_S = 30.0
LINES_TOLD = 3  # number of log lines that the report of a death quotes
VERSION_TOLD_WITHIN_S = 2.0  # the longest delay until the supervisor learns of a version
UNREACHABLE_TOLD_S = 10.0  # time between two notices about a host that cannot be reached


@dataclass(slots=True)
class LostHost:
    """A lost host, the time of its loss (``since``), and the processes that ran there."""

    since: float
    told_at: float
    processes: set[ProcessId]


class Processes:
    """The processes of one run.

    ``hopeless`` has the processes that died too often in a row, or ended with a UsageError, until they work again.
    ``first_death`` is the earliest death from which the run has not recovered: it may have caused the later ones. If it
    is unexplained, the next explained death replaces it. ``lost_hosts`` has the hosts that cannot be reached, by name.
    """

    def __init__(self) -> None:
        self.running: set[ProcessId] = set()
        self.starts: Counter[ProcessId] = Counter()
        self.hopeless: set[ProcessId] = set()
        self.lost_hosts: dict[str, LostHost] = {}
        self.first_death: Exited | None = None
        self._first_death_at = 0.0
        self._version = 0
        self._failures: dict[ProcessId, int] = {}
        self._kills: dict[ProcessId, int] = {}
        self._full_since: dict[ProcessId, float] = {}  # when the process first found its disk full
        self._start_at: dict[ProcessId, float] = {}
        self._heard_at: dict[ProcessId, float] = {}
        self._awaited_since: dict[ProcessId, float] = {}  # by shard: its start, until it gives a sign of life
        self._changed_at: dict[ProcessId, float] = {}  # when the process last started, died, came or left
        self._outside: dict[ProcessId, bool] = {}  # for each external worker seen so far: whether it is here now
        self._silence_told_at = 0.0
        self._done: dict[int, tuple[int, int]] = {}  # by rank: the incarnation and the work in its newest report

    # deaths and restarts

    def died(self, exited: Exited, now: float, *, excused: bool = False, is_full: bool = False) -> list[e.Action]:
        """Restart a process that died, after a delay that doubles with each death in a row.

        The death of a shard or a worker can become the ``first_death``, unless it is ``excused``: the process had a
        good reason to end. An excused process may die as often as one that is killed from outside. If ``is_full``, the
        disk of the process is full, and the run waits for space.
        """
        process = exited.process
        counts = process.role in ("shard", "worker") and not excused
        self.running.discard(process)
        self._heard_at.pop(process, None)
        self._awaited_since.pop(process, None)
        self._changed_at[process] = now
        first = self.first_death
        if counts and (first is None or (_is_unexplained(first) and not _is_unexplained(exited))):
            self.first_death, self._first_death_at = exited, now
        if is_full:
            return [self._wait_for_space(exited, now)]
        self._full_since.pop(process, None)  # it got past its full disk and died for another reason
        excused = excused or exited.status == -9
        tally, most = (self._kills, KILLS_IN_A_ROW) if excused else (self._failures, FAILURES_IN_A_ROW)
        died = tally[process] = tally.get(process, 0) + 1
        if died >= most or exited.is_misuse:
            self.hopeless.add(process)
        self._start_at[process] = now + min(FIRST_DELAY_S * 2.0 ** (died - 1), LONGEST_DELAY_S)
        if exited.with_host:  # host_changed reports it
            return []
        ends = "; its log ends:" if exited.log_tail else ""
        most = 1 if exited.status in (-9, -15, 0) else LINES_TOLD
        return [_told(exited, f"died ({exited.how()}) and is being restarted{ends}", most)]

    def host_changed(self, change: HostLost | HostUp, now: float) -> list[e.Action]:
        """Report a host when it is lost, from time to time while it cannot be reached, and when it is back."""
        host = self.lost_hosts.get(change.host)
        if isinstance(change, HostUp):
            self.lost_hosts.pop(change.host, None)
            return [] if host is None else [e.Notice(f"host {change.host} is back after {now - host.since:.0f} s")]
        if host is None:
            self.lost_hosts[change.host] = LostHost(now, now, set(change.processes))
            names = ranges(map(str, change.processes), short=True)
            return [e.Notice(f"host {change.host} is lost{f', with {names}' if names else ''}: {change.why}")]
        host.processes.update(change.processes)
        if now - host.told_at < UNREACHABLE_TOLD_S:
            return []
        host.told_at = now
        tries_at = [at for process, at in self._start_at.items() if process in host.processes]
        again = f", next try in {max(0.0, min(tries_at) - now):.0f} s" if tries_at else ""
        waited_s = now - host.since
        return [e.Notice(f"host {change.host} has been unreachable for {waited_s:.0f} s{again}: {change.why}")]

    def unreachable_s(self, process: ProcessId, now: float) -> float | None:
        """Seconds since the host of a process was lost, or None if the host is not lost."""
        return next((now - host.since for host in self.lost_hosts.values() if process in host.processes), None)

    def _wait_for_space(self, exited: Exited, now: float) -> e.Action:
        """Restart the process repeatedly until its disk has space, but for at most ``SPACE_WITHIN_S``."""
        process = exited.process
        waited_s = now - self._full_since.setdefault(process, now)
        left_s = max(0.0, SPACE_WITHIN_S - waited_s)
        if not left_s:
            self.hopeless.add(process)
        self._start_at[process] = now + min(max(waited_s, SPACE_LOOK_S), LONGEST_DELAY_S, max(left_s, SPACE_LOOK_S))
        return _told(exited, f"has a full disk; the run waits {left_s:.0f} s for space", 1)

    def was_full(self, process: ProcessId) -> bool:
        """Whether a full disk caused the last death of the process, and the process has done no work since."""
        return process in self._full_since

    def deaths(self, process: ProcessId) -> int:
        """How often the process has died since it last did some work."""
        return self._kills.get(process, 0) + self._failures.get(process, 0)

    def start(self, process: ProcessId, now: float) -> e.Action:
        self._start_at.pop(process, None)
        self._changed_at[process] = now
        self.running.add(process)
        if process.role == "shard":
            self._awaited_since[process] = now
        self.starts[process] += 1
        return e.StartProcess(process)

    def due(self, now: float) -> list[e.Action]:
        due = [process for process, at in self._start_at.items() if now >= at]
        return [self.start(process, now) for process in due]

    def give_up(self, process: ProcessId) -> None:
        self._start_at.pop(process, None)

    def worked(self, process: ProcessId) -> None:
        """Forget the earlier deaths of a process, which has done its work."""
        self.hopeless.discard(process)
        self._failures.pop(process, None)
        self._kills.pop(process, None)
        self._full_since.pop(process, None)

    def reported(self, rank: int, incarnation: int, done: int) -> None:
        """A worker reports how much it has ``done``. It has worked if that has grown, even if no shard used it."""
        if (incarnation, done) > self._done.get(rank, (0, 0)):
            self._done[rank] = incarnation, done
            if done:
                self.worked(worker_id(rank))

    def made(self, version: int, now: float) -> None:
        """All shards have made ``version``. A run that makes versions after its first death has recovered from it."""
        if self.first_death is not None and now - self._first_death_at > VERSION_TOLD_WITHIN_S:
            self.first_death = None if version > self._version else self.first_death
        self._version = max(version, self._version)

    # silence

    def heard(self, process: ProcessId, at: float) -> None:
        self._heard_at[process] = at
        self._awaited_since.pop(process, None)

    def hear_workers(self, stats: m.Stats, now: float) -> None:
        """Note when a shard last heard each worker. A process that no shard has heard yet is missing, not silent."""
        for rank, silent_ms in zip(stats.present, stats.silent_ms, strict=False):
            worker, at = worker_id(rank), now - silent_ms / 1000
            # A message before the start came from the previous process of this rank.
            if worker in self.running and at > self._heard_at.get(worker, self._changed_at[worker]):
                self.heard(worker, at)

    def silent_s(self, process: ProcessId, now: float) -> float:
        """Seconds since the last sign of life of the process, or 0 before the first one."""
        return now - self._heard_at.get(process, now)

    def see_outside(self, workers: Iterable[ProcessId], now: float) -> None:
        here = set(workers)
        for worker in here | self._outside.keys():
            if self._outside.get(worker) != (worker in here):
                self._outside[worker], self._changed_at[worker] = worker in here, now

    def presence(self, process: ProcessId, now: float, *, outside: bool = False) -> tuple[State, float]:
        """The state of a process, and the seconds that it has been in that state.

        ``outside``: whether the process is an external worker.
        """
        unreachable_s = self.unreachable_s(process, now)
        if unreachable_s is not None:
            return "unreachable", unreachable_s
        for_s = now - self._changed_at.get(process, now)
        if outside:
            here = self._outside.get(process)
            return ("open" if here is None else "present" if here else "lost"), for_s
        if process not in self.running:
            return "lost", for_s
        if process.role in ("shard", "worker") and process not in self._heard_at:
            return "starting", for_s
        silent_s = self.silent_s(process, now)
        return ("silent", silent_s) if silent_s >= SILENCE_S else ("present", for_s)

    def awaited(self, process: ProcessId, now: float) -> Awaited:
        return Awaited(
            process=process,
            is_running=process in self.running,
            is_there=process in self._heard_at,
            silent_s=self.silent_s(process, now),
            unreachable_s=self.unreachable_s(process, now),
        )

    def pardon(self, seconds: float, now: float, *roles: ProcessRole) -> None:
        """Do not count the last ``seconds`` as silence of the processes of ``roles`` (default: all).

        No message could arrive then. A process that was heard nevertheless is silent from ``now`` on.
        """
        for since in (self._heard_at, self._awaited_since):
            for process in since:
                if not roles or process.role in roles:
                    since[process] = min(now, since[process] + seconds)

    def watch_silence(self, now: float) -> tuple[set[ProcessId], list[e.Action]]:
        """Report processes that give no sign of life, and kill processes that have hung for ``HUNG_S``.

        A shard may take longer until its first sign of life: ``START_WITHIN_S``. For a worker, the start has no limit.
        """
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
        for process, since in self._awaited_since.items():
            if now - since >= START_WITHIN_S:
                actions += [e.KillProcess(process, now - since)]
                self._awaited_since[process] = now
        return silent, actions


def _told(exited: Exited, death: str, most: int) -> e.Action:
    return e.TellDeath(exited.process, (death, *(f"  | {line}" for line in exited.log_tail.splitlines()[-most:])))


def _is_unexplained(exited: Exited) -> bool:
    return exited.status == -9 and exited.why is None
