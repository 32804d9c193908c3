"""Checks that hosts can run a job before it starts: games, open files, disks, clocks, ports, networks."""

import dataclasses
import errno
import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zmqrl.config import Config, is_loopback
from zmqrl.errors import ClusterError
from zmqrl.hosts.deployment import Placed
from zmqrl.hosts.judging.load import load_warnings
from zmqrl.hosts.judging.outliers import distant, outliers
from zmqrl.hosts.placement import PORTS_OF_SHARD, Placement, files_needed
from zmqrl.hosts.probe import ONLY_LITTLE_PASSES, SOMEBODY_ELSE
from zmqrl.hosts.probing import LAUNCHER, Probes, Route, probing, rounds
from zmqrl.hosts.reach import listed, only_itself
from zmqrl.process_id import ProcessId, ProcessRole
from zmqrl.words import counted

LEAST_DISK_BYTES, LOW_DISK_BYTES = 100e6, 1e9
LOW_SHM_BYTES = 16e6
PLAYER_BYTES, SHARD_BYTES = 400e6, 60e6  # memory, mostly of torch, with 32 games and a small network
CLOCK_OFF_S = 1.0
TRANSFERS_WITHIN_S = 60.0
NAMED = 4  # hosts that a sentence names before it counts the others
PLAYERS: tuple[ProcessRole, ...] = ("worker", "evaluator", "recorder")

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The findings about hosts and routes. ``failed`` says why the probe of a host failed.

    The facts about a host come from its daemon and :mod:`zmqrl.hosts.probe`, with ``clock_ahead_s`` added. ``loopback``
    has, by host, each address that the host itself resolves to loopback: other hosts cannot reach that host.
    """

    facts: Mapping[str, Facts]
    failed: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[Route, Facts] = field(default_factory=dict)
    loopback: Mapping[str, str] = field(default_factory=dict)

    def measured(self, key: str) -> dict[tuple[str, str], float]:
        """The measurement ``key`` of each route that has it, by source and target."""
        return {route[:2]: found[key] for route, found in self.routes.items() if key in found}


def survey(hosts: Placed, say: Callable[[str], None] = lambda text: None) -> Survey:
    """Examine the hosts that can be used. ``say`` gets the progress."""
    config, placement, addresses, whole = hosts.config, hosts.placement, hosts.addresses, hosts.whole
    up = {host: about for host, about in hosts.up.items() if host not in hosts.failed}
    tokens = {host: secrets.token_hex(16) for host in addresses}
    game = {"env": config.env, "settings": dataclasses.asdict(config.envs)}
    jobs = {
        hosts.probes[host]: {
            "work": about.work,
            "listen": {"address": addresses[host], "ports": ports_on(host, config, placement), "token": tokens[host]}
            if host in addresses
            else None,
            "cuda": config.device == "cuda" and placement.has("worker", host),
            "extras": {"video": "--recorder needs"}
            if config.recorder and (whole or placement.has("recorder", host))
            else {},
            "game": game if whole or any(placement.has(role, host) for role in PLAYERS) else None,
        }
        for host, about in up.items()
    }
    with probing(hosts.launcher, jobs, tokens) as (probes, found):
        ahead = probes.clocks(found)
        facts = {
            host: {**dataclasses.asdict(up[host]), **about, "clock_ahead_s": ahead.get(host)}
            for host, about in found.items()
        }
        loopback = loopbacks(facts, addresses)
        sources = [LAUNCHER, *(host for host in facts if whole or placement.has("worker", host))]
        routes = [
            Route(source, target, addresses[target], tuple(facts[target]["ports"]))
            for source, target in itertools.product(sources, addresses)
            if source != target and target not in loopback and "ports" in facts.get(target, {})
        ]
        measured = probes.measure(routes, transfer=False)
        if whole and measured:
            measured |= _transfers(probes, [route for route, about in measured.items() if "error" not in about], say)
    return Survey(
        facts=facts,
        failed={host: probes.failed[host] for host in up if host in probes.failed},
        routes=measured,
        loopback=loopback,
    )


def loopbacks(facts: Mapping[str, Facts], addresses: Mapping[str, str]) -> dict[str, str]:
    """By host, each address that the host itself resolves to loopback, as Debian does with a host's own name.

    Empty if there is only one machine.
    """
    if len({about["host"] for about in facts.values()}) < 2:
        return {}
    bound = {host: about["bound"] for host, about in facts.items() if "bound" in about}
    return {host: f"{addresses[host]} ({where})" for host, where in bound.items() if is_loopback(where)}


def ports_on(host: str, config: Config, placement: Placement) -> list[int]:
    """The ports of the shards on ``host``, or those of shard 0 if it has none. Port 0 means any free port."""
    ports = config.ports()
    if ports is None:
        return [0]
    here = [process.number for process in placement.processes_on(host) if process.role == "shard"]
    return [ports[PORTS_OF_SHARD * shard + role] for shard in here or [0] for role in range(PORTS_OF_SHARD)]


def _transfers(probes: Probes, routes: Sequence[Route], say: Callable[[str], None]) -> dict[Route, dict[str, Any]]:
    """Measure the bandwidth of ``routes`` until time is up. No host takes part in two transfers at once."""
    found: dict[Route, dict[str, Any]] = {}
    apart = rounds(routes)
    over = f"{counted(len(routes), 'route')}, in {counted(len(apart), 'round')}"
    say(f"sending data over {over}, for at most {TRANSFERS_WITHIN_S:g} s")
    deadline = time.monotonic() + TRANSFERS_WITHIN_S
    for together in apart:
        if time.monotonic() >= deadline:
            say(f"no time left to measure the bandwidth of {counted(len(routes) - len(found), 'route')}")
            break
        found |= probes.measure(together, transfer=True)
    return found


@dataclass(frozen=True, slots=True)
class Judgement:
    """Sentences for the user. ``problems`` prevent the start of the run, but ``warnings`` do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ClusterError if there are problems."""
        if self.problems:
            raise ClusterError("the run cannot start:" + "".join(f"\n  {text}" for text in self.problems))

    def lines(self) -> list[str]:
        """The warnings, then the problems. Each line begins with its kind."""
        return [*(f"warning: {text}" for text in self.warnings), *(f"problem: {text}" for text in self.problems)]

    def verdict(self, fit: str) -> str:
        """The line after :meth:`lines` if there are no problems. ``fit`` says what can run where."""
        if not self.warnings:
            return f"no problems found: {fit}"
        return f"{fit}, with {counted(len(self.warnings), 'warning')} (see above)"


def judge(found: Survey, config: Config, placement: Placement) -> Judgement:
    """The problems and warnings about the hosts, each with a remedy."""
    problems = [f"{host}: {why}." for host, why in found.failed.items()]
    warnings: list[str] = []
    for host, facts in found.facts.items():
        problems += [f"{host}: {text}." for text in _host_problems(facts, config, placement.processes_on(host))]
        warnings += [f"{host}: {text}." for text in _host_warnings(facts, placement.processes_on(host))]
    warnings += _version_warnings(found.facts)
    problems += [only_itself(host, address) for host, address in found.loopback.items()]
    warnings += outliers(found.measured("bytes_per_s"), frozenset(found.facts))
    warnings += distant(found.measured("round_trip_s"), frozenset(found.facts))
    blocked: dict[tuple[str, str, str], list[str]] = {}
    for route, measured in found.routes.items():
        if "error" in measured:
            where = (route.target, f"{route.address}:{measured['port']}", measured["error"])
            blocked.setdefault(where, []).append(route.source)
    problems += [
        f"{_some(sources)} -> {target} ({where}): {error}: {_way_out(_some(sources), target, error, config)}."
        for (target, where, error), sources in blocked.items()
    ]
    return Judgement(problems, warnings)


def _host_problems(facts: Facts, config: Config, processes: Sequence[ProcessId]) -> Iterator[str]:
    if facts.get("game_error") is not None:
        yield f"{config.env} cannot be played there: {facts['game_error']}"
    yield from facts.get("lacks", ())
    if facts.get("cuda") is False:
        yield "--device cuda: torch sees no CUDA device there"
    if "listen_error" in facts:
        yield _cannot_listen(facts)
    if facts["disk_bytes"] < LEAST_DISK_BYTES:
        yield (
            f"the disk of {facts['work']} is full ({size(facts['disk_bytes'])} left): "
            f"free at least {size(LEAST_DISK_BYTES)}"
        )
    needed = files_needed(config, processes)
    if facts["open_files"] is not None and facts["open_files"] < needed:
        yield (
            f"a process may open {facts['open_files']} files there, but this run needs {needed}: raise the limit "
            "(`ulimit -n`, /etc/security/limits.conf)"
        )


def _host_warnings(facts: Facts, processes: Sequence[ProcessId]) -> Iterator[str]:
    if LEAST_DISK_BYTES <= facts["disk_bytes"] < LOW_DISK_BYTES:
        yield (
            f"the disk of {facts['work']} has only {size(facts['disk_bytes'])} left: "
            f"free at least {size(LOW_DISK_BYTES)}"
        )
    if facts["shm_bytes"] < LOW_SHM_BYTES:
        yield (
            f"/dev/shm has only {size(facts['shm_bytes'])} left: remove files from it, or enlarge it "
            "(`mount -o remount,size=1G /dev/shm`, or `--shm-size 1g` of docker)"
        )
    memory = facts["memory_bytes"]
    takes = sum(SHARD_BYTES if process.role == "shard" else PLAYER_BYTES for process in processes)
    if memory is not None and memory < takes:
        need = counted(len(processes), "process needs", "processes need")
        yield (
            f"only {size(memory)} of memory is free, but its {need} about {size(takes)}: "
            "end other programs, or use fewer workers or more hosts"
        )
    ahead_s = facts["clock_ahead_s"]
    if ahead_s is not None and abs(ahead_s) > CLOCK_OFF_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        yield f"its clock is {abs(ahead_s):.1f} s {direction} this machine's: times in logs will not match"
    yield from load_warnings(facts)


def _version_warnings(facts: Mapping[str, Facts]) -> Iterator[str]:
    """Warnings about different versions of torch and Python. Builds of torch and patches of Python do not count."""
    for package, key, form in (("torch", "torch", r"[^+]+"), ("Python", "python", r"\d+\.\d+")):
        hosts: dict[str, list[str]] = {}
        for host, about in facts.items():
            if version := re.match(form, about.get(key) or ""):
                hosts.setdefault(version[0], []).append(host)
        if len(hosts) > 1:
            which = "; ".join(f"{version} on {_some(names)}" for version, names in hosts.items())
            yield (
                f"hosts have different versions of {package} ({which}): results can differ, so install the same "
                "version everywhere."
            )


def _cannot_listen(facts: Facts) -> str:
    error = facts["listen_error"]
    if error["errno"] == errno.EADDRINUSE:
        return f"{error['where']} is in use there: choose another --port-range"
    return (
        f"cannot listen at {error['where']} ({error['why']}); it has {listed(facts['interfaces'])}: "
        "choose one of them with --iface or --address"
    )


def _way_out(sources: str, target: str, error: str, config: Config) -> str:
    ports = config.wire.port_range
    if error == SOMEBODY_ELSE:
        return f"that is not {target}: choose another address with --iface or --address"
    if error == ONLY_LITTLE_PASSES:
        return "set the same MTU on all interfaces along the path"
    if ports is None:
        return f"allow TCP connections from {sources} to {target}; --port-range chooses the ports"
    return f"allow TCP connections from {sources} to ports {ports} of {target}, or choose another --port-range"


def _some(names: Sequence[str]) -> str:
    """Names in words. A long list ends with the number of the rest."""
    more = [counted(len(names) - NAMED, "other")] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def size(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
