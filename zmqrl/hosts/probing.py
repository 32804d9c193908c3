"""Runs probes on hosts: starts them like processes of a run, asks all at once, and ends them."""

import contextlib
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.events import Exited, Said, Task
from zmqrl.hosts.probe import measure
from zmqrl.process_id import ProcessId

LAUNCHER = "launcher"  # this machine as the source of a route
FIRST_ANSWER_WITHIN_S = 60.0  # the probe imports the games, perhaps from a slow network disk
ANSWER_WITHIN_S = 15.0  # a silent port costs 3 s at most, and the transfers over a route 14 s
TURN_S = 0.005
CLOCK_ROUNDS = 3


class Route(NamedTuple):
    """A TCP route from the host ``source`` to ``ports`` of the host ``target`` at ``address``."""

    source: str
    target: str
    address: str
    ports: tuple[int, ...]


class Probes:
    """The running probes. ``failed`` says, by host, why a probe has not answered or has ended."""

    def __init__(self, launcher: DaemonLauncher, tokens: Mapping[str, str], probes: Mapping[str, ProcessId]) -> None:
        self.launcher, self.tokens, self.probes = launcher, tokens, probes
        self.failed: dict[str, str] = {}

    def answers(self, hosts: Collection[str], *, within_s: float = ANSWER_WITHIN_S) -> dict[str, dict[str, Any]]:
        """Wait for the answer of each of ``hosts`` that does not fail. ``heard_s`` is the time of arrival."""
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + within_s
        while missing := [host for host in hosts if host not in found and host not in self.failed]:
            if time.monotonic() >= deadline:
                self.failed |= dict.fromkeys(missing, f"its probe did not answer within {within_s:g} s")
                break
            for event in self.launcher.poll():
                if isinstance(event, Exited):
                    why = f"its probe ended ({event.how()}): {event.log_tail or 'it printed nothing'}"
                    self.failed[self.launcher.host_of(event.process)] = why
                elif isinstance(event, Said):
                    found[self.launcher.host_of(event.process)] = {**event.facts, "heard_s": time.time()}
            time.sleep(TURN_S)
        return {host: found[host] for host in hosts if host in found}

    def clocks(self, hosts: Collection[str]) -> dict[str, float]:
        """Seconds by which each host's clock is ahead of ours, from the shortest of several round trips."""
        shortest: dict[str, tuple[float, float]] = {}
        for _ in range(CLOCK_ROUNDS):
            for host in hosts:
                self._ask(host, {})
            asked_s = time.time()
            for host, answer in self.answers(hosts).items():
                took_s = answer["heard_s"] - asked_s
                ahead_s = answer["time_s"] - (asked_s + took_s / 2)
                shortest[host] = min(shortest.get(host, (took_s, ahead_s)), (took_s, ahead_s))
        return {host: ahead_s for host, (_, ahead_s) in shortest.items()}

    def measure(self, routes: Sequence[Route], *, transfer: bool) -> dict[Route, dict[str, Any]]:
        """Measure all ``routes`` at once, as in :func:`zmqrl.hosts.probe.measure`. Skip those whose source fails.

        A ``transfer`` uses only the first port of a route.
        """
        by_source: dict[str, list[Route]] = {}
        for route in routes:
            by_source.setdefault(route.source, []).append(route)
        ours = by_source.pop(LAUNCHER, [])
        with ThreadPoolExecutor(max(1, len(ours))) as pool:
            from_here = pool.map(measure, [self._order(route, transfer) for route in ours])
            for host, from_there in by_source.items():
                self._ask(host, {"routes": [self._order(route, transfer) for route in from_there]})
            answers = self.answers(by_source)
            found = dict(zip(ours, from_here, strict=True))
        for host, answer in answers.items():
            found |= zip(by_source[host], answer["routes"], strict=True)
        return found

    def _ask(self, host: str, request: Mapping[str, Any]) -> None:
        if host not in self.failed:
            self.launcher.tell(self.probes[host], request)

    def _order(self, route: Route, transfer: bool) -> dict[str, Any]:
        return {
            "address": route.address,
            "ports": route.ports[:1] if transfer else route.ports,
            "token": self.tokens[route.target],
            "transfer": transfer,
        }


def probe_ids(hosts: Iterable[str]) -> dict[str, ProcessId]:
    """The id of the probe on each of ``hosts``."""
    return {host: ProcessId("probe", number) for number, host in enumerate(hosts)}


@contextlib.contextmanager
def probing(
    launcher: DaemonLauncher, jobs: Mapping[ProcessId, Mapping[str, Any]], tokens: Mapping[str, str]
) -> Iterator[tuple[Probes, dict[str, dict[str, Any]]]]:
    """Run probes with these ``jobs`` during the block. Yields the probes, and their first findings by host."""
    on = {launcher.host_of(process): process for process in jobs}
    with tempfile.TemporaryDirectory() as logs:
        for process, job in jobs.items():
            log_path = Path(logs) / f"{process}.log"
            launcher.start(Task(process=process, module="zmqrl.hosts.probe", job=job, log_path=log_path, threads=1))
        try:
            probes = Probes(launcher, tokens, on)
            yield probes, probes.answers(on, within_s=FIRST_ANSWER_WITHIN_S)
        finally:
            launcher.stop(list(jobs), grace_s=2.0)
            launcher.poll()  # drop the output of the probes


def rounds(routes: Sequence[Route]) -> list[list[Route]]:
    """Split ``routes`` into rounds in which no host has two routes.

    All routes between N hosts need 2 N to 4 N rounds.
    """
    positions = {name: position for position, name in enumerate(dict.fromkeys(end for r in routes for end in r[:2]))}
    apart = sorted(routes, key=lambda route: (positions[route.target] - positions[route.source]) % len(positions))
    busy: list[set[str]] = []
    found: list[list[Route]] = []
    for route in apart:
        ends = {route.source, route.target}
        number = next((number for number, hosts in enumerate(busy) if not hosts & ends), len(found))
        if number == len(found):
            busy.append(set())
            found.append([])
        busy[number] |= ends
        found[number].append(route)
    return found
