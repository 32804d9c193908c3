"""Stand-ins for ssh, sbatch, squeue and scancel: programs that run here what they would run on a cluster.

The job runs as a process of this machine. A script of the test replaces the program of the job.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from support.rig import is_alive

SSH = """#!/bin/sh
echo "$@" >> {calls}
[ -e {cut} ] && {{ echo "ssh: connect to host login port 22: No route to host" >&2; exit 255; }}
[ -e {state}/hang ] && exec sleep 600
cat {state}/greeting 2>/dev/null
for last; do :; done
cd {home} && exec sh -c "$last"
"""
SBATCH = """#!/bin/sh
echo "sbatch $@" >> {calls}
cat > {state}/script
for word; do case $word in --output=*) log=${{word#--output=}} ;; esac; done
run=$(sed -n 's/.*--run-dir \\([^ ]*\\).*/\\1/p' {state}/script)
rm -f {state}/pid
setsid sh -c 'echo $$ > {state}/pid; exec sh {state}/job "$@"' sh "$run" {state}/script >> "$log" 2>&1 < /dev/null &
until [ -s {state}/pid ]; do sleep 0.01; done
echo "7;cluster"
"""
SQUEUE = """#!/bin/sh
[ -e {state}/squeue_error ] && {{ cat {state}/squeue_error >&2; exit 1; }}
[ -e {state}/pending ] && {{ touch {state}/looked; echo "PENDING Priority"; exit; }}
case $(grep State: /proc/$(cat {state}/pid)/status 2>/dev/null) in
  ""|*Z*) echo "COMPLETED None" ;;
  *) echo "RUNNING None" ;;
esac
"""
SCANCEL = """#!/bin/sh
echo "scancel $@" >> {calls}
rm -f {state}/pending
kill -TERM $(cat {state}/pid)
"""


class StandInSlurm:
    """The stand-ins in a directory. ``calls`` has the command lines of ssh, sbatch and scancel.

    The files ``cut``, ``hang``, ``greeting`` (of the login shell) and ``squeue_error`` in ``state`` cause faults.
    """

    def __init__(self, directory: Path, *, real_slurm: bool = False) -> None:
        """With ``real_slurm``, only ssh is a stand-in."""
        self.bin, self.state, self.home = (directory / name for name in ("bin", "state", "home"))
        for each in (self.bin, self.state, self.home):
            each.mkdir()
        facts = {"calls": self.state / "calls", "cut": self.state / "cut", "state": self.state, "home": self.home}
        programs = {"ssh": SSH} | ({} if real_slurm else {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL})
        for name, text in programs.items():
            (self.bin / name).write_text(text.format(**facts), encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def calls(self) -> str:
        return (self.state / "calls").read_text(encoding="utf-8")

    def program(self, script: str) -> None:
        """Run ``script`` as the job. Its arguments are the run directory and the path of the job's own script."""
        (self.state / "job").write_text(script, encoding="utf-8")

    @contextlib.contextmanager
    def pending(self) -> Iterator[None]:
        """Make the job wait in the queue, or appear to wait."""
        (self.state / "pending").touch()
        yield

    def end(self) -> None:
        """Kill the job, if there is one."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int((self.state / "pid").read_text())
            os.killpg(pid, signal.SIGKILL)
            while is_alive(pid):
                time.sleep(0.01)
