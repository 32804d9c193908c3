"""Keeps the processes of a run alive: starts them, says who died or does not answer, and starts them again."""

import signal
import time
from collections.abc import Callable, Iterable

from zmqrl.cluster.launcher import Exited, Launcher, Said, Task
from zmqrl.cluster.restarts import Restarts
from zmqrl.observe.folding import Folded, Folding
from zmqrl.ps import messages as m

SILENCE_S = 5.0
HUNG_S = 30.0
LINES_TOLD = 3  # of the log of a process that died


class Keeper:
    """The processes of one run, by name, such as ``shard-0`` and ``worker-3``.

    ``task`` says how a process is started, each time anew, ``host`` where; ``notice`` tells the user.
    """

    def __init__(
        self,
        launcher: Launcher,
        task: Callable[[str], Task],
        notice: Callable[[str], None],
        host: Callable[[str], str],
    ) -> None:
        self.launcher, self.task, self.notice, self.host = launcher, task, notice, host
        self.restarts = Restarts()
        self._lines = Folding()
        self._start_at: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self._told_at = 0.0
        self._used: dict[int, int] = {}  # by rank: the most that any shard has used

    def start(self, name: str) -> None:
        """Start a process now."""
        self._start_at.pop(name, None)
        self.launcher.start(self.task(name))

    def poll(self) -> list[Said | Exited]:
        """What happened since the last call; who died before and is due is started again. Never waits."""
        events = self.launcher.poll()
        for event in events:
            if isinstance(event, Exited):
                self._heard_at.pop(event.name, None)
        now = time.monotonic()
        self._tell(self._lines.take(now))
        for name in [name for name, at in self._start_at.items() if now >= at]:
            self.start(name)
        return events

    def start_again(self, exited: Exited) -> None:
        """Start a process that died, after a while that grows with each of its deaths."""
        now = time.monotonic()
        self._start_at[exited.name] = now + self.restarts.delay_s(exited)
        words = exited.log_tail.splitlines()[-1 if exited.status in (-9, -15, 0) else -LINES_TOLD :]
        death = f"died ({exited.how()}) and is started again{'; its log ends:' if words else ''}"
        for line in (death, *(f"  | {line}" for line in words)):
            self._lines.add((self.host(exited.name), exited.name), line, now)

    def tell_all(self) -> None:
        """Tell now what was held back because others might die alike."""
        self._tell(self._lines.take_all())

    def _tell(self, lines: Iterable[Folded]) -> None:
        for line in lines:
            self.notice(str(line))

    def contributed(self, tallies: Iterable[tuple[int, ...]]) -> None:
        """A shard's totals by rank: a worker of which it has used more than before has worked."""
        for rank, used, *_ in tallies:
            if used > self._used.get(rank, 0):
                self._used[rank] = used
                self.restarts.worked(f"worker-{rank}")

    def count_anew(self) -> None:
        """The shards have taken over a checkpoint, and count from zero again what they use."""
        self._used.clear()

    def give_up(self, name: str) -> None:
        """Do not start a process again that waits for it."""
        self._start_at.pop(name, None)

    def heard(self, name: str, at: float) -> None:
        """The process gave a sign of life."""
        self._heard_at[name] = at

    def hear_workers(self, stats: Iterable[m.Stats], now: float) -> None:
        """A worker of ours lives as long as any shard hears of it; one that none sees is missing, not silent."""
        for each in stats:
            for rank, silent_ms in zip(each.present, each.silent_ms, strict=False):
                name = f"worker-{rank}"
                if silent_ms < 1000 * SILENCE_S and name in self.launcher.names():
                    self.heard(name, now)

    def silent_s(self, name: str, now: float) -> float:
        """Seconds since its last sign of life; 0 before the first one."""
        return now - self._heard_at.get(name, now)

    def pardon(self, seconds: float) -> None:
        """Nobody could be heard for so long, because it was us who did not listen."""
        self._heard_at = {name: at + seconds for name, at in self._heard_at.items()}

    def watch_silence(self, now: float) -> set[str]:
        """Name those that live but give no sign of it, and start them again when that lasts. Returns their names."""
        silent = {name for name in self._heard_at if self.silent_s(name, now) >= SILENCE_S}
        tell = now - self._told_at >= SILENCE_S
        for name in sorted(silent):
            seconds = self.silent_s(name, now)
            if seconds >= HUNG_S:
                self.notice(f"{name} has not answered for {seconds:.0f} s and is started again")
                self.launcher.signal(name, signal.SIGKILL)
                self._heard_at[name] = now
            elif tell:
                self._told_at = now
                self.notice(f"{name} (process {self.launcher.pids().get(name)}) has not answered for {seconds:.0f} s")
        return silent
