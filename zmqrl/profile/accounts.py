"""What the contributions of a run cost and brought: who is counted, what is wasted, what the backups bring."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from zmqrl.process_id import worker_id
from zmqrl.profile.critical_path import Step, Timeline, Version
from zmqrl.profile.recording import Recording
from zmqrl.profile.tables import OUTCOMES

LEFT_OUT_BELOW = 0.5  # of the median inclusion: such a rank hardly takes part in what is learned
QUEUED_ABOVE = 0.1  # of all time: such a worker lacks a core
USED, LATE = OUTCOMES.index("used"), OUTCOMES.index("late")


@dataclass(slots=True)
class RankAccount:
    """One rank: its share of versions in which it was counted and was the K-th, and its seconds.

    ``worked_s`` is without waiting for weights, ``wasted_s`` the part of it whose contribution no shard used.
    ``core_share`` is CPU time per working time. ``queued_share`` is the share of all time in which its thread
    waited for a core.
    """

    host: str
    inclusion: float = 0.0
    kth: float = 0.0
    contributions: int = 0
    late: int = 0
    skipped: int = 0
    worked_s: float = 0.0
    wasted_s: float = 0.0
    core_share: float | None = None
    queued_share: float | None = None


@dataclass(slots=True)
class Accounts:
    """The accounts of a run by rank, and the sentences that they deserve.

    ``backup_gain_s``: by how much the mean update would be longer with one worker fewer; None if no update shows it.
    """

    ranks: dict[int, RankAccount]
    backup_gain_s: float | None
    warnings: list[str] = field(default_factory=list)


def accounts(recording: Recording, timeline: Timeline, steps: Sequence[Step]) -> Accounts:
    """Add up the contributions of every rank over the versions of ``steps``."""
    versions = {(step.generation, step.version) for step in steps}
    ranks: defaultdict[int, RankAccount] = defaultdict(lambda: RankAccount(""))
    kth = Counter(step.kth.number for step in steps)
    for (version, rank), cycle in timeline.cycles.items():
        arrivals = timeline.arrivals.get((version, rank), {})
        account = ranks[rank]
        account.host = timeline.hosts[worker_id(rank)]
        account.contributions += 1
        account.worked_s += cycle.worked_s
        account.skipped += timeline.shards - len(arrivals)
        account.late += sum(arrival.outcome == LATE for arrival in arrivals.values())
        if not any(arrival.outcome == USED for arrival in arrivals.values()):
            account.wasted_s += cycle.worked_s
    for (version, rank), arrivals in timeline.arrivals.items():
        if version in versions:  # also those of external workers, which record nothing
            used = sum(arrival.outcome == USED for arrival in arrivals.values())
            ranks[rank].inclusion += used / (timeline.shards * len(versions))
    for rank, account in ranks.items():
        account.kth = kth[rank] / len(steps) if steps else 0.0
    _cores(recording, ranks)
    found = Accounts(dict(sorted(ranks.items())), _backup_gain_s(timeline, versions))
    found.warnings += _warnings(found.ranks)
    return found


def _cores(recording: Recording, ranks: dict[int, RankAccount]) -> None:
    """How much of a core each worker had while it worked, over all its processes."""
    for rank, account in ranks.items():
        cpu_us = worked_us = queued_us = measured_us = 0
        for each in recording.of_role("worker"):
            if each.process.number == rank:
                cycles, machine = each.table("cycles"), each.table("machine")
                cpu_us += int(cycles["cpu_us"].sum())
                worked_us += int((cycles["pushed_at_us"] - cycles["began_at_us"] - cycles["wait"]).sum())
                if len(machine["at_us"]) > 1:
                    queued_us += int(machine["queued_us"][-1] - machine["queued_us"][0])
                    measured_us += int(machine["at_us"][-1] - machine["at_us"][0])
        if worked_us > 0:
            account.core_share = cpu_us / worked_us
        if measured_us > 0:
            account.queued_share = queued_us / measured_us


def _backup_gain_s(timeline: Timeline, versions: set[Version]) -> float | None:
    """The mean time between the K-th contribution and the next one, times the chance that a lost worker was in time.

    A worker whose contribution came too late to be sent is known by its own end of work.
    """
    pushed_by_version: defaultdict[Version, list[float]] = defaultdict(list)
    for (version, _), cycle in timeline.cycles.items():
        pushed_by_version[version].append(cycle.pushed)
    gains = []
    for each in versions:
        quorum = max(made.quorum for made in timeline.publications[each[0], each[1] + 1].values())
        pushed = sorted(pushed_by_version[each])
        if quorum < len(pushed):
            gains.append((pushed[quorum] - pushed[quorum - 1]) * quorum / len(pushed))
    return fmean(gains) if gains else None


def _warnings(ranks: dict[int, RankAccount]) -> list[str]:
    warnings = []
    usual = median(account.inclusion for account in ranks.values()) if ranks else 0.0
    left_out = [rank for rank, account in ranks.items() if account.inclusion < LEFT_OUT_BELOW * usual]
    if left_out:
        names = ", ".join(f"{rank} ({ranks[rank].inclusion:.0%})" for rank in left_out)
        warnings.append(
            f"contributions of rank {names} are seldom counted, where {usual:.0%} is usual: what these workers play is "
            "missing in what is learned"
        )
    for rank, account in ranks.items():
        if account.core_share is not None and (account.queued_share or 0.0) > QUEUED_ABOVE:
            warnings.append(
                f"worker {rank} on {account.host} had {account.core_share:.0%} of a core while it worked: its thread "
                f"waited for a core in {account.queued_share:.0%} of all time"
            )
    return warnings
