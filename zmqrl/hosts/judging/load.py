"""How busy the processors of a machine are.

Pure, with the standard library only, because probes import this module.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from zmqrl.words import counted

BUSY_SHARE = 0.25  # of the cores: system services and the probe cause less
STEAL_SHARE = 0.05


def cpu_use(before: str, after: str) -> dict[str, float]:
    """Compute ``machine_cores``, ``busy_cores`` and ``steal_share`` from two readings of ``/proc/stat``.

    Steal is the time in which a hypervisor ran other machines. Raises ValueError for a malformed reading.
    """
    passed = [now - then for then, now in zip(_ticks(before), _ticks(after), strict=True)]
    cores = sum(line.startswith("cpu") for line in after.splitlines()) - 1
    # user, nice, system, idle, iowait, irq, softirq, steal; guest times are part of user and nice
    total, idle, steal = sum(passed[:8]), sum(passed[3:5]), sum(passed[7:8])
    if total <= 0:
        return {"machine_cores": cores, "busy_cores": 0.0, "steal_share": 0.0}
    busy = max(0, total - idle - steal)
    return {"machine_cores": cores, "busy_cores": cores * busy / total, "steal_share": steal / total}


def load_warnings(facts: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about other work on a host. ``facts`` may lack the figures of :func:`cpu_use`."""
    busy, cores = facts.get("busy_cores"), facts.get("machine_cores")
    if busy is not None and cores and busy >= BUSY_SHARE * cores:
        average = facts.get("load_average")
        told = "" if average is None else f" (load average {average:.1f})"
        used = f"{busy:.1f} of its {counted(cores, 'core')}"
        yield f"other work keeps {used} busy{told}: the run is slower while this lasts"
    steal = facts.get("steal_share")
    if steal is not None and steal >= STEAL_SHARE:
        yield f"its hypervisor gives {100 * steal:.0f} % of its processor time to other machines (steal)"


def _ticks(stat: str) -> list[int]:
    name, *ticks = stat.partition("\n")[0].split()
    if name != "cpu" or len(ticks) < 5:
        raise ValueError("not the content of /proc/stat")
    return list(map(int, ticks))
