"""Costs and benefits of contributions: inclusion per rank, wasted work, and time saved by backups."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.profile.critical_path import CriticalPath, Timeline, recorded_updates
from zmqrl.profile.run_tables import Version
from zmqrl.words import counted, numbered

AGAIN_ABOVE = 0.05  # share of a rank's slices that arrived again: above this, resends load the network
LEFT_OUT_BELOW = 0.5  # share of the median inclusion: below this, a rank hardly affects what is learned
USED, LATE = SHARD_OUTCOMES.index("used"), SHARD_OUTCOMES.index("late")


@dataclass(slots=True)
class RankAccount:
    """The account of one rank, over all updates that all shards recorded.

    ``inclusion`` is the share of versions that used the rank's contribution, and ``kth`` the share in which the rank
    was the K-th. ``again`` counts repeated arrivals of a slice. ``worked_s`` excludes the wait for weights.
    ``wasted_s`` is the part of ``worked_s`` for contributions that no shard used. ``staleness`` is the mean age, in
    versions, of contributions to an asynchronous run.
    """

    host: str
    inclusion: float = 0.0
    kth: float = 0.0
    contributions: int = 0
    late: int = 0
    skipped: int = 0
    again: int = 0
    worked_s: float = 0.0
    wasted_s: float = 0.0
    staleness: float | None = None
    most_stale: int | None = None


@dataclass(slots=True)
class Accounts:
    """The account of each rank of a run, and the findings for the user.

    ``backup_gain_s`` is the mean number of seconds that the last backup saves per update, if it takes no core away from
    the other workers. None without backups.
    """

    ranks: dict[int, RankAccount]
    backup_gain_s: float | None
    warnings: list[str] = field(default_factory=list)


def accounts(timeline: Timeline, paths: Sequence[CriticalPath]) -> Accounts:
    """Add up the contributions of every rank to the recorded updates.

    ``paths`` are those of the updates whose K-th worker recorded its work. The gain of backups is their mean.
    """
    kth = {update.version: update.made.closing_rank for update in recorded_updates(timeline)}
    ranks: defaultdict[int, RankAccount] = defaultdict(lambda: RankAccount(""))
    for (version, rank), cycle in timeline.cycles.items():
        if version not in kth:
            continue
        arrivals = timeline.arrivals.get((version, rank), {})
        account = ranks[rank]
        account.host = cycle.host
        account.contributions += 1
        account.worked_s += cycle.worked_s
        account.skipped += timeline.shards - len(arrivals)
        account.late += sum(arrival.outcome == LATE for arrival in arrivals.values())
        if not any(arrival.outcome == USED for arrival in arrivals.values()):
            account.wasted_s += cycle.worked_s
    for (version, rank), arrivals in timeline.arrivals.items():
        if version in kth:  # includes external workers, which record nothing
            used = sum(arrival.outcome == USED for arrival in arrivals.values())
            ranks[rank].inclusion += used / (timeline.shards * len(kth))
    for rank, updates in Counter(kth.values()).items():
        if rank >= 0:
            ranks[rank].kth = updates / len(kth)
    return _found(timeline, ranks, _backup_gain_s(timeline, {(path.generation, path.version) for path in paths}))


def asynchronous_accounts(timeline: Timeline) -> Accounts:
    """Add up the contributions of every rank to an asynchronous run. None of them is late or skipped.

    Each contribution makes a version, so the inclusion of a rank is the share of versions that it made.
    """
    ranks: defaultdict[int, RankAccount] = defaultdict(lambda: RankAccount(""))
    for (_, rank), cycle in timeline.cycles.items():
        account = ranks[rank]
        account.host = cycle.host
        account.contributions += 1
        account.worked_s += cycle.worked_s
    made_at = {
        (shard, made.closed): version
        for (_, version), shards in timeline.publications.items()
        for shard, made in shards.items()
        if made.closing_rank >= 0
    }
    ages: defaultdict[int, list[int]] = defaultdict(list)
    for ((_, computed_on), rank), arrivals in timeline.arrivals.items():
        made = [made_at.get((shard, arrival.at)) for shard, arrival in arrivals.items()]
        ages[rank] += [version - 1 - computed_on for version in made if version is not None]
    for rank, each in ages.items():
        if each:
            ranks[rank].inclusion = len(each) / len(made_at)
            ranks[rank].staleness, ranks[rank].most_stale = fmean(each), max(each)
    return _found(timeline, ranks, None)


def _found(timeline: Timeline, ranks: dict[int, RankAccount], backup_gain_s: float | None) -> Accounts:
    for (rank, _), slices in timeline.again.items():
        ranks[rank].again += slices
    found = Accounts(dict(sorted(ranks.items())), backup_gain_s)
    found.warnings += [*_warnings(found.ranks), *_resends(timeline)]
    return found


def _backup_gain_s(timeline: Timeline, versions: set[Version]) -> float | None:
    """Mean seconds by which each update would take longer without one worker, if the other workers became no faster.

    This is the time between contributions K and K + 1, times the probability that the removed worker was among the
    first K. A contribution counts from the end of its work, even if it was skipped.
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
        most = max(ranks[rank].inclusion for rank in left_out)
        warnings.append(
            f"the run learns little from {numbered('rank', left_out)}, whose contributions count in at most {most:.0%} "
            f"of the versions ({usual:.0%} is usual)"
        )
    return warnings


def _resends(timeline: Timeline) -> list[str]:
    """A warning if ranks send many slices more than once."""
    first, again = Counter[int](), Counter[int]()
    for (_, rank), arrivals in timeline.arrivals.items():
        first[rank] += len(arrivals)
    for (rank, _), slices in timeline.again.items():
        again[rank] += slices
    many = sorted(rank for rank in again if again[rank] > AGAIN_ABOVE * first[rank])
    if not many:
        return []
    slices, useful = sum(again[rank] for rank in many), sum(first[rank] for rank in many)
    return [
        f"shards asked {numbered('rank', many)} to resend {slices:,} of {counted(useful, 'slice')}, although these "
        "were already on the way: set --wire.need-s to more than the time that a slice takes"
    ]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes of a shard, received from workers and sent to them."""

    received: int
    sent: int


def traffic(timeline: Timeline, slice_bytes: int) -> dict[int, Traffic]:
    """The traffic of each shard, if a worker gets each version to which it contributes once, and no other versions.

    Slices that arrive again count, too.
    """
    received, sent = Counter[int](), Counter[int]()
    for arrivals in timeline.arrivals.values():
        received.update(arrivals.keys())
        sent.update(range(timeline.shards))
    for (_, shard), slices in timeline.again.items():
        received[shard] += slices
    return {
        shard: Traffic(slice_bytes * received[shard], slice_bytes * sent[shard])
        for shard in range(timeline.shards)
        if shard not in timeline.missing_shards()
    }
