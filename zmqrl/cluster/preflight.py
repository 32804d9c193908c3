"""What would keep a run from its hosts, found out before it starts: games, files, disks, clocks, ports, networks."""

import dataclasses
import errno
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zmqrl.cluster.addresses import listed, only_itself
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.placement import Placement
from zmqrl.cluster.probe import ONLY_LITTLE_PASSES, SOMEBODY_ELSE
from zmqrl.cluster.probes import LAUNCHER, Probes, Route, probing, rounds
from zmqrl.config import Config, is_loopback
from zmqrl.errors import ClusterError

LEAST_DISK_BYTES, LOW_DISK_BYTES = 100e6, 1e9
LOW_SHM_BYTES = 16e6
PLAYER_BYTES, SHARD_BYTES = 400e6, 60e6  # with 32 games and a small network, most of it for torch
PROCESS_FILES = 64  # what each process has open besides its connections
PORTS_OF_SHARD = 3
PIPES_OF_PROCESS = 4  # of its agent: three streams and a pidfd
CLOCK_OFF_S = 1.0
TRANSFERS_WITHIN_S = 60.0
NAMED = 4  # of the hosts for which the same is true
PLAYERS = ("worker", "evaluator", "recorder")

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found: ``facts`` by host, ``routes`` with what was measured, and ``failed``, the hosts that do not tell.

    A host's facts are those of its agent and those of :mod:`zmqrl.cluster.probe`, with ``clock_ahead_s``. ``loopback``
    are the addresses of hosts that mean loopback there, so that nobody else reaches them.
    """

    facts: Mapping[str, Facts]
    failed: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[Route, Facts] = field(default_factory=dict)
    loopback: Mapping[str, str] = field(default_factory=dict)


def survey(
    launcher: Agents,
    config: Config,
    placement: Placement,
    up: Mapping[str, Facts],
    addresses: Mapping[str, str],
    *,
    whole: bool,
    say: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Look at the hosts whose agents have said ``up``.

    ``addresses`` are those of hosts that have shards. If ``whole``, all of them can have any role, and data is sent to
    find how much passes; if not, only what this run is to use is looked at.
    """
    tokens = {host: secrets.token_hex(16) for host in addresses}
    game = {"env": config.env, "settings": dataclasses.asdict(config.envs)}
    jobs = {
        host: {
            "work": about["work"],
            "listen": {"address": addresses[host], "ports": ports_on(host, config, placement), "token": tokens[host]}
            if host in addresses
            else None,
            "cuda": config.device == "cuda" and placement.has("worker", host),
            "game": game if whole or any(placement.has(role, host) for role in PLAYERS) else None,
        }
        for host, about in up.items()
    }
    with probing(launcher, jobs, tokens) as (probes, found):
        ahead = probes.clocks(found)
        facts = {host: {**up[host], **about, "clock_ahead_s": ahead.get(host)} for host, about in found.items()}
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
    return Survey(facts=facts, failed=probes.failed, routes=measured, loopback=loopback)


def loopbacks(facts: Mapping[str, Facts], addresses: Mapping[str, str]) -> dict[str, str]:
    """Addresses, by host, that are names of loopback on the host itself, as Debian has it, where there are others."""
    if len({about["host"] for about in facts.values()}) < 2:
        return {}
    bound = {host: about["bound"] for host, about in facts.items() if "bound" in about}
    return {host: f"{addresses[host]} ({where})" for host, where in bound.items() if is_loopback(where)}


def ports_on(host: str, config: Config, placement: Placement) -> list[int]:
    """Where shards on ``host`` are to be reached, 0 for any free port; if it has none, where the first one would be."""
    ports = config.ports()
    if ports is None:
        return [0]
    here = [int(name.removeprefix("shard-")) for name in placement.names_on(host) if name.startswith("shard-")]
    return [ports[PORTS_OF_SHARD * shard + role] for shard in here or [0] for role in range(PORTS_OF_SHARD)]


def _transfers(probes: Probes, routes: Sequence[Route], say: Callable[[str], None]) -> dict[Route, dict[str, Any]]:
    """How much passes, two hosts at a time by themselves, for as long as there is time."""
    found: dict[Route, dict[str, Any]] = {}
    apart = rounds(routes)
    say(f"sending data over {len(routes)} routes, in {len(apart)} rounds and at most {TRANSFERS_WITHIN_S:g} s")
    deadline = time.monotonic() + TRANSFERS_WITHIN_S
    for together in apart:
        if time.monotonic() >= deadline:
            say(f"no time left for {len(routes) - len(found)} of the routes: how much passes there is not known")
            break
        found |= probes.measure(together, transfer=True)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sentences: ``problems`` keep a run from its hosts, ``warnings`` do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise ClusterError if there are problems."""
        if self.problems:
            raise ClusterError("the run cannot start:" + "".join(f"\n  {text}" for text in self.problems))


def judge(found: Survey, config: Config, placement: Placement) -> Verdict:
    """What is wrong with what was found, and what to do about it."""
    problems = [f"{host}: {why}." for host, why in found.failed.items()]
    warnings: list[str] = []
    for host, facts in found.facts.items():
        problems += [f"{host}: {text}." for text in _host_problems(facts, config, placement.names_on(host))]
        warnings += [f"{host}: {text}." for text in _host_warnings(facts, placement.names_on(host))]
    problems += [only_itself(host, address) for host, address in found.loopback.items()]
    blocked: dict[tuple[str, str, str], list[str]] = {}
    for route, measured in found.routes.items():
        if "error" in measured:
            where = (route.target, f"{route.address}:{measured['port']}", measured["error"])
            blocked.setdefault(where, []).append(route.source)
    problems += [
        f"{_some(sources)} -> {target} ({where}): {error}: {_way_out(_some(sources), target, error, config)}."
        for (target, where, error), sources in blocked.items()
    ]
    return Verdict(problems, warnings)


def _host_problems(facts: Facts, config: Config, names: Sequence[str]) -> Iterator[str]:
    if facts.get("game_error") is not None:
        yield f"{config.env} cannot be played there: {facts['game_error']}"
    if facts.get("cuda") is False:
        yield "--device cuda: torch sees no CUDA device there"
    if "listen_error" in facts:
        yield _cannot_listen(facts)
    if facts["disk_bytes"] < LEAST_DISK_BYTES:
        yield (
            f"the disk of {facts['work']} is full ({size(facts['disk_bytes'])} left): "
            f"make room for at least {size(LEAST_DISK_BYTES)}"
        )
    needed = files_needed(config, names)
    if facts["open_files"] is not None and facts["open_files"] < needed:
        yield (
            f"a process may open {facts['open_files']} files there, but this run needs {needed}: raise the limit "
            "(`ulimit -n`, /etc/security/limits.conf)"
        )


def _host_warnings(facts: Facts, names: Sequence[str]) -> Iterator[str]:
    if LEAST_DISK_BYTES <= facts["disk_bytes"] < LOW_DISK_BYTES:
        yield f"only {size(facts['disk_bytes'])} are left on the disk of {facts['work']}"
    if facts["shm_bytes"] < LOW_SHM_BYTES:
        yield f"only {size(facts['shm_bytes'])} are left in /dev/shm"
    memory = facts["memory_bytes"]
    takes = sum(SHARD_BYTES if name.startswith("shard-") else PLAYER_BYTES for name in names)
    if memory is not None and memory < takes:
        yield f"{size(memory)} of memory are free, but its {len(names)} processes of this run take about {size(takes)}"
    ahead_s = facts["clock_ahead_s"]
    if ahead_s is not None and abs(ahead_s) > CLOCK_OFF_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        yield f"its clock is {abs(ahead_s):.1f} s {direction} the one here: times in logs will not match"


def files_needed(config: Config, names: Sequence[str]) -> int:
    """The most files that one of the processes ``names``, or their agent, opens.

    Shards and workers have a connection of each kind to each other side, an agent has pipes to each process.
    """
    sides = max((config.ranks + 1 if name.startswith("shard-") else config.shards for name in names), default=0)
    return PROCESS_FILES + max(PORTS_OF_SHARD * sides, PIPES_OF_PROCESS * len(names))


def _cannot_listen(facts: Facts) -> str:
    error = facts["listen_error"]
    if error["errno"] == errno.EADDRINUSE:
        return f"{error['where']} is in use there: choose another --port-range"
    return (
        f"cannot listen at {error['where']} ({error['why']}); it has {listed(facts['interfaces'])}: "
        "choose one of them by --iface or --address"
    )


def _way_out(sources: str, target: str, error: str, config: Config) -> str:
    ports = config.wire.port_range
    if error == SOMEBODY_ELSE:
        return f"that is not {target}: choose another address by --iface or --address"
    if error == ONLY_LITTLE_PASSES:
        return "give all interfaces on the way the same MTU"
    if ports is None:
        return f"let {sources} reach TCP ports of {target}, some of which --port-range can choose"
    return f"open TCP ports {ports} of {target} to {sources}, or choose another --port-range"


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = [f"{len(names) - NAMED} others"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
