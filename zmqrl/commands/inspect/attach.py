"""``zmqrl attach``: the live view of a run that was started elsewhere."""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmqrl.commands.inspect import follow
from zmqrl.commands.inspect.living import Living, exit_status_of
from zmqrl.commands.inspect.logs import LOOK_EVERY_S, Reader
from zmqrl.commands.options import RunPath
from zmqrl.config import Config
from zmqrl.errors import INTERRUPTED, ClusterError
from zmqrl.hosts.ways.login_node import Submitted
from zmqrl.observe.console import NOTICES_SHOWN, Console, console_for
from zmqrl.observe.forms import parsed_rows
from zmqrl.observe.screen import never_waiting
from zmqrl.process import interruptible
from zmqrl.supervisor.progress import live_figures
from zmqrl.words import as_word

SILENT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a run until it ends, and exit with its exit status. Ctrl-C leaves the view, and the run continues."""

    run: RunPath
    """The run directory."""


@interruptible()
def run(options: Options) -> int:
    """Show a run. Raises ClusterError if its supervisor was killed, and UsageError if there is no such run."""
    if job := Submitted.read(options.run):
        return follow.attach(job, options.run)
    living = Living.read(options.run)
    summary = living.directory.summary
    # Before a session is up, the summary is that of an earlier session.
    earlier = _stamp(summary) if living.cluster is None and living.is_alive() else None
    with never_waiting():
        console = console_for(sys.stdout, stamps=False)
        try:
            _show(living, console)
        except KeyboardInterrupt:
            console.close()
            sys.stdout.write(f"left the view; the run continues, and zmqrl stop {as_word(options.run)} ends it\n")
            return INTERRUPTED
        finally:
            console.close()
    if earlier is not None and _stamp(summary) == earlier:
        raise ClusterError(
            f"{options.run} did not begin to train again: see {living.directory.log('supervisor')}; {summary.name} "
            "describes an earlier session."
        )
    return exit_status_of(living.directory)


def _show(living: Living, console: Console) -> None:
    """Show the newest figures and the notices of a run until it ends."""
    directory, config = living.directory, _config(living)
    notices, rows = Reader(directory.log("supervisor"), NOTICES_SHOWN), Reader(directory.metrics, 1)
    last, was_old, alive_at = dict[str, Any](), False, time.monotonic()
    while True:
        now, is_alive = time.monotonic(), living.is_alive()
        alive_at = now if is_alive else alive_at
        # A supervisor elsewhere, whose lock is not visible here, does not write figures while it writes a checkpoint.
        is_elsewhere = living.cluster is not None and not living.is_here and directory.cluster.exists()
        is_over = not is_alive and not (is_elsewhere and now - alive_at < SILENT_S)
        if living.cluster is None:
            living = Living.read(directory.path)
            config = _config(living)
        for line in notices.lines(is_over=is_over):
            console.notice(line)
        last = [last, *parsed_rows(map(str.encode, rows.lines()))][-1]
        live = living.live()
        if row := live.over(last):
            # A run that starts or resumes has no cluster.json yet, so the time before its session is unknown.
            is_known = living.cluster is not None or is_over
            trained_s = row["wall_s"] - (living.cluster or {}).get("trained_before_s", 0.0) if is_known else None
            with contextlib.suppress(KeyError, TypeError):  # a row of another version of zmqrl
                console.update(live_figures(config, directory, row, trained_s, () if live.is_old else live.processes))
        if live.is_old and not was_old:
            console.notice("the supervisor writes no figures: it hangs, or ends the run, or writes a checkpoint")
        was_old = live.is_old
        if is_over:
            return
        time.sleep(LOOK_EVERY_S)


def _config(living: Living) -> Config:
    """The settings of this session. A resumed session has its own limits, which ``config.json`` lacks."""
    session = (living.cluster or {}).get("config")
    return Config.read(living.directory.config) if session is None else Config.from_json(session)


def _stamp(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file is replaced. None without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
