"""``zmqrl status``: the state of a run, and what a killed run left on its hosts."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from zmqrl.commands.inspect.living import Living
from zmqrl.commands.options import RunPath
from zmqrl.commands.output import print_json
from zmqrl.hostd.inspection import state_of
from zmqrl.hostd.messages import Seen
from zmqrl.hosts.ways.slurm import is_over
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.folding import by_number, printable, ranges
from zmqrl.observe.live.figures import Live, age_words, newest_figures, state_of_run
from zmqrl.observe.live.presence import EXTERNAL, Presence
from zmqrl.observe.records import RunRecord, hosts_of
from zmqrl.observe.stalls import STATES_TOLD, Stall
from zmqrl.process import interruptible
from zmqrl.results.flavour import flavour_of
from zmqrl.words import counted

FIGURES: Final = (
    *("version", "wall_s", "agent_steps", "agent_steps_per_s", "updates_per_s", "score_mean_50", "episodes"),
    *("workers_present", "quorum"),
)
FILES_SHOWN: Final = 8
STATE_WORDS: Final = STATES_TOLD | {
    "gone": "gone",
    "restarting": "being restarted",
    "unreachable": "its host is unreachable",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show the state of a run, and what a killed run left on its hosts."""

    run: RunPath
    """The run directory."""
    json: bool = False
    """Print one JSON object."""


@interruptible()
def run(options: Options) -> int:
    """Print the state of a run."""
    found = status(options.run)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(_report(found) + "\n")
    return 0


def status(path: Path) -> dict[str, Any]:
    """The state of a run as plain data.

    ``state`` is submitted (on another cluster), starting, running, stopped (a signal has stopped the supervisor),
    ended, or killed (the supervisor died before the end). ``flavour`` is None if it is unknown. ``stalled`` has the
    stalled version and the processes that it waits for, as in ``stalled.json``. ``unreachable_s`` says for how long
    each lost host has been unreachable. ``placement`` has the software versions and processes of each host.
    ``locked`` says whether the lock of the supervisor is visible here. ``figures_age_s`` is the age of the newest
    figures of a running or starting run, or None if it is unknown. If they are old, the momentary ones are None.

    A process without an id is restarting, or its host is unreachable. If a process has an id but runs on another
    machine, its ``state`` is null. If the run is running, processes that the supervisor reports also have ``presence``,
    ``for_s`` and ``restarts`` of :class:`zmqrl.observe.live.presence.Presence`. If the run is starting, they have only
    these, and the host.
    """
    living = Living.read(path)
    cluster = living.cluster or {}
    supervisor = cluster.get("supervisor") or {"host": "", "pid": None}
    # In this order, a run that ends meanwhile does not seem to have been killed.
    spaces = {supervisor["host"]: supervisor.get("pid_space")}
    seen = state_of(supervisor["host"], supervisor["pid"], supervisor.get("pid_space"))
    locked = living.directory.in_use()
    is_alive = locked or living.is_alive_elsewhere()
    record = RunRecord.read_newest(path)
    if is_alive:
        state = "starting" if living.cluster is None else state_of_run(seen)
    elif living.directory.awaits_job():
        state = "submitted"
    else:
        state = "ended" if record.summary else "killed"
        # A run that starts on another machine, whose lock may not be visible here, has no cluster.json yet.
        if state == "killed" and living.cluster is None and living.live().is_new:
            state = "starting"
    live = living.live() if state in ("running", "starting") else Live()
    stall = living.stall() if state == "running" and not live.is_old else None
    since: dict[str, float] = cluster.get("unreachable_since", {}) if state == "running" else {}
    figures = newest_figures(state, record.rows[-1] if record.rows else {}, live, record.summary)
    known = {} if live.is_old else {str(each.process): each for each in live.processes}
    processes = {str(name): (host, pid) for name, host, pid in living.processes()}
    processes |= {name: (each.host, None) for name, each in known.items() if name not in processes}
    return {
        "state": state,
        "locked": locked,
        "exit_reason": (record.summary or {}).get("exit_reason") if state == "ended" else None,
        "flavour": flavour_of(record),
        **{key: figures.get(key) for key in FIGURES},
        "figures_age_s": live.age_s,
        "stalled": None if stall is None else stall.to_json(),
        "unreachable_s": {host: max(0.0, time.time() - lost_at) for host, lost_at in since.items()},
        "supervisor": supervisor | {"state": seen},
        "processes": [
            {"name": name, "host": host, "pid": pid}
            | {"state": None if state == "starting" else _state(host, pid, spaces.get(host), host in since)}
            | (known[name].to_json() if name in known else {})
            for name, (host, pid) in processes.items()
        ],
        "placement": hosts_of(living.directory),
        "hosts": {} if state == "running" else {host: _plain(answer) for host, answer in living.hosts().items()},
    }


def _state(host: str, pid: int | None, space: str | None, is_unreachable: bool) -> str | None:
    if pid is None and host != EXTERNAL:
        return "unreachable" if is_unreachable else "restarting"
    return state_of(host, pid, space)


def _plain(answer: Seen | str) -> dict[str, Any] | str:
    return answer if isinstance(answer, str) else asdict(answer)


def _process(process: Mapping[str, Any]) -> str:
    """A line about a process. Leaves out a normal state."""
    words = [] if process["pid"] is None else [f"process {process['pid']}"]
    told, presence = STATE_WORDS.get(process["state"] or ""), process.get("presence", "present")
    if presence != "present" and process["state"] not in STATES_TOLD:  # the words of a presence also say for how long
        told = Presence.from_json(process).words()
    words += filter(None, [told])
    return f"{process['host']} {process['name']}" + (f" ({', '.join(words)})" if words else "")


def _speed(found: Mapping[str, Any]) -> Iterator[str]:
    """The speed of a run, and its present workers."""
    if found["agent_steps_per_s"] is not None and found["updates_per_s"] is not None:
        yield f"{found['agent_steps_per_s']:,.0f} agent steps/s, {found['updates_per_s']:,.1f} updates/s"
    if found["workers_present"] is not None and found["quorum"] is not None:
        yield f"{counted(found['workers_present'], 'worker')} present, {found['quorum']} required"


def _placed(host: Mapping[str, Any]) -> str:
    """A line about a host of a run that has ended."""
    names = (("zmqrl", "zmqrl"), ("python", "Python"), ("torch", "torch"))
    versions = ", ".join(f"{name} {host[key]}" for key, name in names if host.get(key))
    return f"{host['host']}: {ranges(host['processes'], short=True) or 'no processes'}" + (
        f"; {versions}" if versions else ""
    )


def _files(names: Sequence[str], more: int) -> str:
    """The names of the files. If there are many, the number of files in each directory. ``more`` files have no name."""
    if len(names) + more <= FILES_SHOWN:
        return ", ".join(sorted(names, key=by_number))
    counts = Counter(name.partition("/")[0] for name in names if "/" in name)
    parts = [f"{counted(number, 'file')} in {name}" for name, number in sorted(counts.items())]
    others = len(names) - counts.total() + more
    return ", ".join([*parts, *([counted(others, "other file")] if others else [])])


def _resume(answers: Mapping[str, Any], processes: Sequence[Mapping[str, Any]]) -> str:
    """What ``--resume`` does, as far as the ``answers`` of the hosts tell."""
    if any(isinstance(answer, str) and is_over(answer) for answer in answers.values()):
        return "--resume continues from the newest checkpoint"
    shards = [each for each in processes if each["name"].startswith("shard-")]
    # The link to this machine does not have the name of the machine.
    held = {each["name"]: answers.get(each["host"], answers.get(LOCALHOST, "")) for each in shards}
    if silent := [name for name, answer in held.items() if isinstance(answer, str)]:
        return f"--resume needs the state of {ranges(silent, short=True)}, but the host gave no answer"
    if lost := [name for name, answer in held.items() if not _has_state(name, answer)]:
        return f"--resume continues from the newest checkpoint: the state of {ranges(lost, short=True)} is missing"
    return "--resume continues from the last version of the shards"


def _has_state(shard: str, answer: Mapping[str, Any]) -> bool:
    """Whether a host has, or may have, the state of a shard: it does not name all of very many files."""
    return f"state/{shard}.slots" in answer["files"] or answer.get("more", 0) > 0


def _report(found: dict[str, Any]) -> str:
    state = found["state"]
    lines = [state + (f" ({found['exit_reason']})" if found["exit_reason"] else "")]
    if found["version"] is not None:
        score = "" if found["score_mean_50"] is None else f", score {found['score_mean_50']:.1f}"
        lines.append(f"version {found['version']} after {found['wall_s'] / 60:.1f} min{score}")
        lines += [f"games: {found['flavour']}"] if score and found["flavour"] else []
    lines += filter(None, [age_words(found.get("figures_age_s"))])
    if state == "running":
        if not found["locked"]:
            lines[0] += " (its lock is not visible from here)"
        lines += _speed(found)
        if found["stalled"]:
            lines.append(Stall.from_json(found["stalled"]).sentence())
        lines += [
            f"{host} has been unreachable for {waited_s:.0f} s" for host, waited_s in found["unreachable_s"].items()
        ]
        lines += map(_process, [found["supervisor"] | {"name": "supervisor"}, *found["processes"]])
    if state == "starting":
        lines += map(_process, found["processes"])
    if state == "stopped":
        lines.append(
            f"{_process(found['supervisor'] | {'name': 'supervisor'})}: kill -CONT {found['supervisor']['pid']}"
        )
    if state == "killed" and not found["hosts"]:
        why = "the run was killed while it started or could not write it, or this directory is an incomplete copy"
        lines.append(f"there is no summary.json: {why}")
    if state == "ended":
        lines += map(_placed, found["placement"])
    for host, answer in found["hosts"].items():
        if isinstance(answer, str):
            lines.append(f"{host}: no answer: {answer}")
        else:
            names = _files(answer["files"], answer.get("more", 0))
            left = f"in {answer['directory']}: {names}" if names else "no files"
            alive = "processes are alive" if state == "stopped" else "processes are still ending"
            lines.append(f"{host}: {alive if answer['alive'] else 'no processes'}; {left}")
    if found["hosts"] and state != "stopped":
        lines.append(_resume(found["hosts"], found["processes"]))
    return "\n".join(map(printable, lines))
