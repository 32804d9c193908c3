"""How much CPU time each process got, and how long each process waited for a core."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from zmqrl.observe.folding import ranges
from zmqrl.process_id import ProcessId
from zmqrl.profile.run_tables import Columns, ProcessTables, RunTables, named

QUEUED_ABOVE = 0.1  # share of time in the run queue: above this, a process lacks a core
STOLEN_ABOVE = 0.02
THROTTLED_ABOVE = 0.02
PAGED_ABOVE = 10  # major page faults per second: above this, the machine lacks memory


@dataclass(slots=True)
class MachineUse:
    """The machine use of one process. All shares except ``core_share`` are fractions of the recorded time.

    ``core_share`` is the CPU time of all threads of a worker as a fraction of its working time: other threads than the
    profiled one emulate Atari games. During ``queued_share``, the profiled thread waited for a core. During
    ``stolen_share``, the hypervisor ran something else (mean of all cores of the machine). ``throttled_share`` is in
    periods in which the control group of the process used up its CPU quota. ``preempted_per_s`` and
    ``major_faults_per_s`` are of a worker's computing thread.
    """

    host: str
    core_share: float | None = None
    queued_share: float | None = None
    stolen_share: float | None = None
    throttled_share: float | None = None
    preempted_per_s: float | None = None
    major_faults_per_s: float | None = None


def machine_use(tables: RunTables) -> dict[ProcessId, MachineUse]:
    """The machine use of each process. For a restarted process, the longest profile counts."""
    longest: dict[ProcessId, ProcessTables] = {}
    for each in tables.processes:
        known = longest.get(each.process)
        if known is None or _seconds(each.table("machine")) > _seconds(known.table("machine")):
            longest[each.process] = each
    return {process: _use(each) for process, each in sorted(longest.items())}


def warnings(uses: Mapping[ProcessId, MachineUse]) -> list[str]:
    """The findings for the user. Each sentence names one problem, and all processes of a role that have it."""
    found = []

    def affected(name: str, above: float, role: str) -> dict[ProcessId, float]:
        values = {process: getattr(use, name) or 0.0 for process, use in uses.items() if process.role == role}
        return {process: value for process, value in values.items() if value > above}

    def who(processes: Iterable[ProcessId]) -> str:
        return named({process: uses[process].host for process in processes})

    for role in dict.fromkeys(process.role for process in uses):
        if queued := affected("queued_share", QUEUED_ABOVE, role):
            cores = [core for process in queued if (core := uses[process].core_share) is not None]
            had = f" had {_percent(cores)} of a core while working, and" if cores else ""
            found.append(f"{who(queued)}{had} waited for a core for {_percent(queued.values())} of the time")
        if throttled := affected("throttled_share", THROTTLED_ABOVE, role):
            share = _percent(throttled.values())
            found.append(f"{who(throttled)} used up the CPU quota in {share} of its periods: the quota is too small")
        if paged := affected("major_faults_per_s", PAGED_ABOVE, role):
            found.append(
                f"{who(paged)} had {_span(paged.values())} major page faults per second: the host is low on memory"
            )
    stolen = {use.host: use.stolen_share for use in uses.values() if (use.stolen_share or 0.0) > STOLEN_ABOVE}
    if stolen:
        share = _percent(each for each in stolen.values() if each is not None)
        found.append(f"the hypervisor took {share} of the processor time of {ranges(stolen)}")
    return found


def _percent(shares: Iterable[float]) -> str:
    return f"{_span(100 * share for share in shares)}%"


def _span(values: Iterable[float]) -> str:
    """One value such as ``34``, or a range such as ``33-36`` if the values differ."""
    ordered = sorted(round(value) for value in values)
    return str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}"


def _use(each: ProcessTables) -> MachineUse:
    use = MachineUse(each.host)
    machine, cycles = each.table("machine"), each.table("cycles")
    measured_s = _seconds(machine)
    if measured_s > 0:
        use.queued_share = grown_s(machine, "queued_us") / measured_s
        use.stolen_share = grown_s(machine, "stolen_us") / measured_s / each.machine_cores
        throttled = grown_s(machine, "throttled_us") / measured_s
        use.throttled_share = min(1.0, throttled)  # older profiles have a sum over CPUs
    awake_us = (cycles["pushed_at_us"] - cycles["began_at_us"] - cycles["wait"] - cycles["straggle"]).sum()
    if awake_us > 0:
        lived_s = (cycles["pushed_at_us"][-1] - cycles["began_at_us"][0]) / 1e6
        others_s, (began_us, ended_us) = other_threads(each)
        others = 1e6 * others_s / (ended_us - began_us) if ended_us > began_us else 0.0  # the cores that they used
        use.core_share = float((cycles["cpu_us"].sum() + 1e6 * others * lived_s) / awake_us)
        use.preempted_per_s = float(cycles["preempted"].sum() / lived_s)
        use.major_faults_per_s = float(cycles["major_faults"].sum() / lived_s)
    return use


def other_threads(each: ProcessTables) -> tuple[float, tuple[float, float]]:
    """CPU seconds of a worker's threads other than the profiled one, and from when to when, in microseconds.

    The start of the process and time without recorded contributions do not count.
    """
    machine, cycles = each.table("machine"), each.table("cycles")
    at_us, pushed_us = machine["at_us"], cycles["pushed_at_us"]
    if not (len(at_us) and len(pushed_us)):
        return 0.0, (0.0, 0.0)
    span_us = max(at_us[0], cycles["began_at_us"][0]), min(at_us[-1], pushed_us[-1])
    totals_us = np.interp(span_us, at_us, machine["process_cpu_us"] - machine["cpu_us"])
    return max(0.0, float(totals_us[1] - totals_us[0]) / 1e6), span_us


def grown_s(machine: Columns, column: str) -> float:
    """The growth of the total in ``column``, in seconds."""
    values = machine[column]
    return float(values[-1] - values[0]) / 1e6 if len(values) > 1 else 0.0


def _seconds(machine: Columns) -> float:
    return grown_s(machine, "at_us")
