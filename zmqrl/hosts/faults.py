"""Kills processes of a run on purpose, at the times in its scenario."""

import signal
from collections.abc import Callable, Mapping, Sequence

from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.deployment import Site
from zmqrl.process_id import ProcessId
from zmqrl.simulate.scenario import Failure


class Faults:
    """The failures of the scenario that have not happened yet. The supervisor restarts the killed processes."""

    def __init__(
        self,
        failures: Sequence[Failure],
        launcher: DaemonLauncher,
        sites: Mapping[ProcessId, Site],
        notice: Callable[[str], None],
    ) -> None:
        self._failures = sorted(failures, key=lambda failure: failure.at)
        self._launcher, self._sites, self._notice = launcher, sites, notice
        self._begun_at: float | None = None

    def begin(self, now: float) -> None:
        """Start the clock of the failures, unless an earlier call has started it."""
        self._begun_at = now if self._begun_at is None else self._begun_at

    def step(self, now: float) -> None:
        """Kill the processes whose failures are due."""
        while self._begun_at is not None and self._failures and now - self._begun_at >= self._failures[0].at:
            failure = self._failures.pop(0)
            running = set(self._launcher.running())
            killed = sorted(process for process in self._processes(failure) if process in running)
            why = "" if killed else f": {failure.process} has no running process"
            names = ", ".join(map(str, killed)) or "no process"
            self._notice(f"the scenario kills {names} after {failure.at:g} s{why}")
            for process in killed:
                self._launcher.signal(process, signal.SIGKILL)

    def _processes(self, failure: Failure) -> list[ProcessId]:
        hosts = list(dict.fromkeys(site.host for site in self._sites.values()))
        on_host = dict(enumerate(hosts))
        target = failure.target
        if isinstance(target, ProcessId):
            return [target]
        return [process for process, site in self._sites.items() if site.host == on_host.get(target.number)]
