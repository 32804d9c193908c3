"""Which host runs which process: as the hosts say by hand, the rest evenly. No sockets, no processes."""

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zmqrl.cluster.hosts import Host
from zmqrl.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the processes of a run are. Within a role, those of one host have consecutive numbers."""

    hosts: tuple[str, ...]
    """Every host, also one that runs nothing."""
    host_of: Mapping[str, str]
    """The host of each process, such as ``worker-3``."""
    threads: Mapping[str, int]
    """The threads of each process."""
    notices: tuple[str, ...] = ()
    """Sentences that the user should read."""

    def names_on(self, host: str) -> list[str]:
        """The processes of ``host``: shards, workers, evaluator, recorder."""
        return [name for name, where in self.host_of.items() if where == host]

    def has(self, role: str, host: str) -> bool:
        """Whether ``host`` runs any process of ``role``."""
        return any(_role(name) == role for name in self.names_on(host))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "hosts": list(self.hosts),
            "host_of": dict(self.host_of),
            "threads": dict(self.threads),
            "notices": list(self.notices),
        }

    def table(self) -> str:
        """A line for each role on each host, for people."""
        rows = [("host", "processes", "threads each")]
        for host in self.hosts:
            roles = [list(names) for _, names in itertools.groupby(self.names_on(host), key=_role)]
            rows += [(host, _range(names), str(self.threads[names[0]])) for names in roles] or [(host, "none", "")]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def place(
    hosts: Sequence[Host], cores: Mapping[str, int], *, shards: int, workers: int, evaluator: bool, recorder: bool
) -> Placement:
    """Decide which of ``hosts`` runs which process; ``cores`` are theirs, by name.

    A role that some host names by hand runs exactly where it is named. Of the others, shards go one to each host in
    turn, then each worker goes where the load per slot (per core, if no slots were given) is least with it, then
    evaluator and recorder where the load per core is least. The load of a host is the number of its processes.
    Workers never exceed the slots that were given; more workers than cores are a notice. Raises UsageError when the
    numbers by hand, or the slots, do not fit what is asked for.
    """
    assert hosts
    names = [host.name for host in hosts]
    wanted = {"shard": shards, "worker": workers, "evaluator": int(evaluator), "recorder": int(recorder)}
    on = {
        "shard": Counter({host.name: host.shards for host in hosts if host.shards is not None}),
        "worker": Counter({host.name: host.workers for host in hosts if host.workers is not None}),
        # A file may say where the evaluator is to be in runs that have one.
        "evaluator": Counter([host.name for host in hosts if host.evaluator and evaluator]),
        "recorder": Counter([host.name for host in hosts if host.recorder and recorder]),
    }
    for role, numbers in on.items():
        if numbers and numbers.total() != wanted[role]:
            raise UsageError(
                f"the hosts name {_count(numbers.total(), role)} by hand, but the run is to have {wanted[role]}."
            )
    # What is placed by hand is load from the start for whatever goes where there is room.
    load = sum(on.values(), Counter[str]())
    notices: tuple[str, ...] = ()
    if not on["shard"]:
        on["shard"] = Counter(itertools.islice(itertools.cycle(names), shards))
        load += on["shard"]
    if not on["worker"]:
        on["worker"] = _spread(workers, hosts, cores, load)
        load += on["worker"]
        notices = _crowding(on["worker"], hosts, cores)
    for role in ("evaluator", "recorder"):
        if wanted[role] and not on[role]:
            on[role] = Counter([min(names, key=lambda name: (load[name] + 1) / cores[name])])
            load += on[role]

    host_of, threads = {}, {}
    for role, numbers in on.items():
        homes = [host for host in hosts for _ in range(numbers[host.name])]
        for number, host in enumerate(homes):
            share = host.threads or max(1, cores[host.name] // max(1, on["worker"][host.name]))
            host_of[f"{role}-{number}"] = host.name
            threads[f"{role}-{number}"] = 1 if role == "shard" else share
    return Placement(hosts=tuple(names), host_of=host_of, threads=threads, notices=notices)


def _spread(workers: int, hosts: Sequence[Host], cores: Mapping[str, int], load: Mapping[str, int]) -> Counter[str]:
    """How many workers each host takes on top of ``load``; of hosts that are as good, the first comes first."""
    slots = [host.slots for host in hosts if host.slots is not None]
    if len(slots) == len(hosts) and sum(slots) < workers:
        raise UsageError(
            f"the run is to have {_count(workers, 'worker')}, but the hosts have {_count(sum(slots), 'slot')}: "
            "give them more, or ask for fewer workers."
        )
    # What a host's load per slot or core becomes with its first worker, its second, and so on.
    places = (
        ((load[host.name] + nth) / (cores[host.name] if host.slots is None else host.slots), index)
        for index, host in enumerate(hosts)
        for nth in range(1, 1 + (workers if host.slots is None else min(host.slots, workers)))
    )
    return Counter(hosts[index].name for _, index in heapq.nsmallest(workers, places))


def _crowding(on: Mapping[str, int], hosts: Sequence[Host], cores: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence when hosts whose slots nobody gave take more workers than they have cores."""
    crowded = [host.name for host in hosts if host.slots is None and on[host.name] > cores[host.name]]
    if not crowded:
        return ()
    worst = max(crowded, key=lambda name: on[name] / cores[name])
    return (
        f"{_count(len(crowded), 'host')} of {len(hosts)} will run more workers than cores, {worst} the most: "
        f"{_count(on[worst], 'worker')} on {_count(cores[worst], 'core')}.",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _role(process: str) -> str:
    return process.rpartition("-")[0]


def _range(processes: Sequence[str]) -> str:
    """``worker-[4-7]`` for consecutive processes of one role."""
    first, last = (process.rpartition("-")[2] for process in (processes[0], processes[-1]))
    return processes[0] if first == last else f"{_role(processes[0])}-[{first}-{last}]"
