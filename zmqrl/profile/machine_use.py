"""How much CPU time each process got, and how long it waited for a core."""

from dataclasses import dataclass

from zmqrl.process_id import ProcessId
from zmqrl.profile.recording import Columns, ProcessRecording, Recording

QUEUED_ABOVE = 0.1  # share of the time: above this, a process lacks a core
STOLEN_ABOVE = 0.02
THROTTLED_ABOVE = 0.02
PAGED_ABOVE = 10  # major page faults per second: the machine lacks memory


@dataclass(slots=True)
class MachineUse:
    """The machine use of one process. Shares are of all recorded time, except ``core_share``.

    ``core_share``: CPU time of a worker per working time. ``queued_share``: its thread waited for a core.
    ``stolen_share``: the hypervisor ran something else, on all cores of the machine together. ``throttled_share``: its
    control group had used up its quota. ``preempted_per_s`` and ``major_faults_per_s`` are those of the computing
    thread of a worker.
    """

    host: str
    core_share: float | None = None
    queued_share: float | None = None
    stolen_share: float | None = None
    throttled_share: float | None = None
    preempted_per_s: float | None = None
    major_faults_per_s: float | None = None

    def warnings(self, process: ProcessId) -> list[str]:
        """The warnings for the user, one sentence each."""
        who, found = f"{process.role} {process.number} on {self.host}", []
        if (self.queued_share or 0.0) > QUEUED_ABOVE:
            had = "" if self.core_share is None else f" had {self.core_share:.0%} of a core while it worked: its thread"
            found.append(f"{who}{had} waited for a core for {self.queued_share:.0%} of the time")
        if (self.stolen_share or 0.0) > STOLEN_ABOVE:
            found.append(f"{who}: the hypervisor took {self.stolen_share:.0%} of the machine's processor time")
        if (self.throttled_share or 0.0) > THROTTLED_ABOVE:
            found.append(f"{who} was throttled for {self.throttled_share:.0%} of the time: its quota is too small")
        if (self.major_faults_per_s or 0.0) > PAGED_ABOVE:
            found.append(f"{who} had {self.major_faults_per_s:.0f} major page faults per second: memory is short")
        return found


def machine_use(recording: Recording) -> dict[ProcessId, MachineUse]:
    """The machine use of each process. For a restarted process, its longest recording counts."""
    longest: dict[ProcessId, ProcessRecording] = {}
    for each in recording.processes:
        known = longest.get(each.process)
        if known is None or _seconds(each.table("machine")) > _seconds(known.table("machine")):
            longest[each.process] = each
    return {process: _use(each) for process, each in sorted(longest.items())}


def _use(each: ProcessRecording) -> MachineUse:
    use = MachineUse(each.host)
    machine, cycles = each.table("machine"), each.table("cycles")
    measured_s = _seconds(machine)
    if measured_s > 0:
        use.queued_share = grown_s(machine, "queued_us") / measured_s
        use.stolen_share = grown_s(machine, "stolen_us") / measured_s / each.cores
        use.throttled_share = grown_s(machine, "throttled_us") / measured_s
    awake_us = (cycles["pushed_at_us"] - cycles["began_at_us"] - cycles["wait"] - cycles["straggle"]).sum()
    if awake_us > 0:
        use.core_share = float(cycles["cpu_us"].sum() / awake_us)
        lived_s = (cycles["pushed_at_us"][-1] - cycles["began_at_us"][0]) / 1e6
        use.preempted_per_s = float(cycles["preempted"].sum() / lived_s)
        use.major_faults_per_s = float(cycles["major_faults"].sum() / lived_s)
    return use


def grown_s(machine: Columns, column: str) -> float:
    """The growth of a total in seconds."""
    values = machine[column]
    return float(values[-1] - values[0]) / 1e6 if len(values) > 1 else 0.0


def _seconds(machine: Columns) -> float:
    return grown_s(machine, "at_us")
