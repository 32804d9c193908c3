"""Decides which host runs which process, by the hosts file or else by load. Pure."""

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import Host
from zmqrl.process_id import ProcessId, ProcessRole
from zmqrl.words import counted

PROCESS_FILES = 64  # of a process, besides its connections
PORTS_OF_SHARD = 3
PIPES_OF_PROCESS = 4  # of the daemon for each process: three streams and a pidfd


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The host of each process. Within a role, the processes of one host have consecutive numbers."""

    hosts: tuple[str, ...]
    """All hosts, including those that run nothing."""
    host_of: Mapping[ProcessId, str]
    threads: Mapping[ProcessId, int]
    notices: tuple[str, ...] = ()
    """Sentences for the user."""

    def processes_on(self, host: str) -> list[ProcessId]:
        """The processes of ``host``: shards, workers, evaluator, recorder."""
        return [process for process, where in self.host_of.items() if where == host]

    def has(self, role: ProcessRole, host: str) -> bool:
        return any(process.role == role for process in self.processes_on(host))

    def table(self) -> str:
        """A line for each role on each host."""
        rows = [("host", "processes", "threads each")]
        for host in self.hosts:
            roles = [list(group) for _, group in itertools.groupby(self.processes_on(host), key=lambda each: each.role)]
            rows += [(host, _range(group), str(self.threads[group[0]])) for group in roles] or [(host, "none", "")]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def place_run(config: Config, hosts: Sequence[Host], cores: Mapping[str, int]) -> Placement:
    """Place the processes that the run starts, as :func:`place` does."""
    return place(
        hosts,
        cores,
        shards=config.shards,
        workers=config.ranks - config.external_workers,
        evaluator=config.needs_evaluator,
        recorder=config.recorder,
    )


def place(
    hosts: Sequence[Host], cores: Mapping[str, int], *, shards: int, workers: int, evaluator: bool, recorder: bool
) -> Placement:
    """Decide which of ``hosts`` runs which process. ``cores`` holds the cores of each host, by name.

    A role with hosts in the hosts file runs exactly there. Otherwise, shards go to the hosts in turn. Each worker then
    goes to the host whose load per slot stays lowest. A host with ``slots`` gets at most that many workers. Without
    them, each core counts as a slot. Evaluator and recorder go to the host with the lowest load per core. The load is
    the number of processes.

    More workers than cores on a host cause a notice. Raises UsageError if the hosts file does not match the run, or has
    too few slots.
    """
    assert hosts
    names = [host.name for host in hosts]
    wanted: dict[ProcessRole, int] = {
        "shard": shards,
        "worker": workers,
        "evaluator": int(evaluator),
        "recorder": int(recorder),
    }
    on: dict[ProcessRole, Counter[str]] = {
        "shard": Counter({host.name: host.shards for host in hosts if host.shards is not None}),
        "worker": Counter({host.name: host.workers for host in hosts if host.workers is not None}),
        # A hosts file may place an evaluator that this run does not have.
        "evaluator": Counter([host.name for host in hosts if host.evaluator and evaluator]),
        "recorder": Counter([host.name for host in hosts if host.recorder and recorder]),
    }
    for role, numbers in on.items():
        if numbers and numbers.total() != wanted[role]:
            raise UsageError(f"the hosts file places {counted(numbers.total(), role)}, but the run has {wanted[role]}.")
    # Processes that the hosts file places count as load from the start.
    load = sum(on.values(), Counter[str]())
    notices: tuple[str, ...] = ()
    if not on["shard"]:
        on["shard"] = Counter(itertools.islice(itertools.cycle(names), shards))
        load += on["shard"]
    if not on["worker"]:
        on["worker"] = _spread(workers, hosts, cores, load)
        load += on["worker"]
        notices = _crowding(on["worker"], hosts, cores)
    followers: tuple[ProcessRole, ...] = ("evaluator", "recorder")
    for role in followers:
        if wanted[role] and not on[role]:
            on[role] = Counter([min(names, key=lambda name: (load[name] + 1) / cores[name])])
            load += on[role]

    host_of, threads = dict[ProcessId, str](), dict[ProcessId, int]()
    for role, numbers in on.items():
        homes = [host for host in hosts for _ in range(numbers[host.name])]
        for number, host in enumerate(homes):
            share = host.threads or max(1, cores[host.name] // max(1, on["worker"][host.name]))
            host_of[ProcessId(role, number)] = host.name
            threads[ProcessId(role, number)] = 1 if role == "shard" else share
    return Placement(hosts=tuple(names), host_of=host_of, threads=threads, notices=notices)


def _spread(workers: int, hosts: Sequence[Host], cores: Mapping[str, int], load: Mapping[str, int]) -> Counter[str]:
    """The workers of each host, in addition to ``load``. Of equally loaded hosts, the first gets the next worker."""
    slots = [host.slots for host in hosts if host.slots is not None]
    if len(slots) == len(hosts) and sum(slots) < workers:
        raise UsageError(
            f"the run has {counted(workers, 'worker')}, but the hosts have {counted(sum(slots), 'slot')}: "
            "add slots, or use fewer workers."
        )
    # The load per slot or core of a host with one worker, with two, and so on.
    loads = (
        ((load[host.name] + nth) / (cores[host.name] if host.slots is None else host.slots), index)
        for index, host in enumerate(hosts)
        for nth in range(1, 1 + (workers if host.slots is None else min(host.slots, workers)))
    )
    return Counter(hosts[index].name for _, index in heapq.nsmallest(workers, loads))


def _crowding(on: Mapping[str, int], hosts: Sequence[Host], cores: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence if hosts without given slots run more workers than they have cores."""
    crowded = [host.name for host in hosts if host.slots is None and on[host.name] > cores[host.name]]
    if not crowded:
        return ()
    worst = max(crowded, key=lambda name: on[name] / cores[name])
    return (
        f"{counted(len(crowded), 'host')} of {len(hosts)} will run more workers than cores, {worst} the most: "
        f"{counted(on[worst], 'worker')} on {counted(cores[worst], 'core')}.",
    )


def _range(processes: Sequence[ProcessId]) -> str:
    """``worker-[4-7]`` for consecutive processes of one role."""
    first, last = processes[0], processes[-1]
    return str(first) if first == last else f"{first.role}-[{first.number}-{last.number}]"


def files_needed(config: Config, processes: Sequence[ProcessId]) -> int:
    """The most files that one of ``processes``, or their daemon, opens.

    Every shard has connections to every worker, and may share its memory. A daemon has pipes to each process.
    """
    peers = (config.ranks + 1 if process.role == "shard" else config.shards for process in processes)
    return PROCESS_FILES + max(
        (PORTS_OF_SHARD + config.wire.shares_memory) * max(peers, default=0), PIPES_OF_PROCESS * len(processes)
    )
