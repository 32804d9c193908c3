"""``zmqrl status``: the state of a run, and what a killed run left on its hosts."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zmqrl.commands.inspect.living import Living, state_of
from zmqrl.commands.options import RunPath, parse
from zmqrl.commands.output import print_json
from zmqrl.hostd.messages import Seen
from zmqrl.hosts.slurm import is_over
from zmqrl.observe.folding import by_number
from zmqrl.observe.records import RunRecord
from zmqrl.observe.stalls import STATES_TOLD, Stall
from zmqrl.process import interruptible


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show the state of a run, and what a killed run left on its hosts."""

    run: RunPath
    """The run directory."""
    json: bool = False
    """Print one JSON object."""


def command(arguments: list[str]) -> int:
    """Run ``zmqrl status``. Raises ZmqrlError."""
    return run(parse(Options, arguments, "zmqrl status"))


@interruptible()
def run(options: Options) -> int:
    """Print the state of a run. Raises UsageError."""
    found = status(options.run)
    if options.json:
        print_json(found)
    else:
        sys.stdout.write(_report(found) + "\n")
    return 0


def status(path: Path) -> dict[str, Any]:
    """The state of a run as plain data. ``state``: running, ended, or killed (the supervisor died before the end).

    ``stalled``: the version that has stalled, and the processes that it waits for, as in ``stalled.json``. The
    ``state`` of a process on another machine is null.
    """
    living, record = Living.read(path), RunRecord.read(path)
    last = record.rows[-1] if record.rows else {}
    state = "running" if living.is_alive() else "ended" if record.summary or living.cluster is None else "killed"
    stall = living.stall() if state == "running" else None
    supervisor = (living.cluster or {}).get("supervisor") or {"host": "", "pid": None}
    return {
        "state": state,
        "exit_reason": (record.summary or {}).get("exit_reason"),
        **{key: last.get(key) for key in ("version", "wall_s", "agent_steps", "agent_steps_per_s", "score_mean_50")},
        "stalled": None if stall is None else stall.to_json(),
        "supervisor": supervisor | {"state": state_of(supervisor["host"], supervisor["pid"])},
        "processes": [
            {"name": str(name), "host": host, "pid": pid, "state": state_of(host, pid)}
            for name, host, pid in living.processes()
        ],
        "hosts": {} if state == "running" else {host: _plain(answer) for host, answer in living.hosts().items()},
    }


def _plain(answer: Seen | str) -> dict[str, Any] | str:
    return answer if isinstance(answer, str) else asdict(answer)


def _told(state: str | None) -> str:
    """The state of a process in words, after a comma. Empty for a state that is normal."""
    words = "gone" if state == "gone" else STATES_TOLD.get(state or "")
    return f", {words}" if words else ""


def _report(found: dict[str, Any]) -> str:
    lines = [f"{found['state']}" + (f" ({found['exit_reason']})" if found["exit_reason"] else "")]
    if found["version"] is not None:
        score = "" if found["score_mean_50"] is None else f", score {found['score_mean_50']:.1f}"
        lines.append(f"version {found['version']} after {found['wall_s'] / 60:.1f} min{score}")
    if found["state"] == "running":
        if found["stalled"]:
            lines.append(Stall.from_json(found["stalled"]).sentence())
        processes = [found["supervisor"] | {"name": "supervisor"}, *found["processes"]]
        lines += [f"{each['host']} {each['name']} (process {each['pid']}{_told(each['state'])})" for each in processes]
    for host, answer in found["hosts"].items():
        if isinstance(answer, str):
            lines.append(f"{host}: no answer: {answer}")
        else:
            files = ", ".join(sorted(answer["files"], key=by_number))
            left = f"in {answer['directory']}: {files}" if files else "no files"
            lines.append(f"{host}: {'processes are still ending' if answer['alive'] else 'no processes'}; {left}")
    if found["hosts"]:
        over = any(isinstance(answer, str) and is_over(answer) for answer in found["hosts"].values())
        lines.append(f"--resume continues from {'the newest checkpoint' if over else 'the last version of its shards'}")
    return "\n".join(lines)
