"""A Slurm cluster for tests: munge, a controller, and three nodes, all on this machine. It needs root and slurm-wlm.

All of it runs in a PID namespace. The kernel ends the namespace when the test process ends, for whatever reason. Inside
the namespace, process ids and the host name differ from those outside.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from support.network import free_ports
from support.rig import ending, eventually

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "salloc", "unshare", "setpriv", "nsenter")
HOST = "zmqrl-slurm"
NODES = ("n1", "n2", "n3")
CORES = 2
WITHIN_S = 150.0
# By default, Slurm delays a requeued job for the lifetime of a credential and schedules jobs only once a minute.
CONFIG = """\
ClusterName=zmqrl-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={directory}/munge.socket,cred_expire=5
SchedulerParameters=sched_interval=1,bf_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=30
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]},{ports[3]}] CPUs={cores}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# The first process of the namespace starts the others. Its shell reaps orphaned processes.
INIT = """\
set -e
hostname {host}
munged --force --origin=127.0.0.1 --socket={directory}/munge.socket --key-file={directory}/munge.key \
  --pid-file={directory}/munged.pid --log-file={directory}/munged.log --seed-file={directory}/munged.seed
slurmctld -f {directory}/slurm.conf
for node in {nodes}; do slurmd -f {directory}/slurm.conf -N $node; done
while sleep 1; do :; done
"""


class Slurm:
    """A Slurm cluster that is up. With ``environment``, Slurm's commands and `zmqrl` find this cluster."""

    def __init__(self, directory: Path, init: int) -> None:
        self.directory, self.init = directory, init
        self.environment = {
            "SLURM_CONF": str(directory / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __call__(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run a command that needs this Slurm. Returns its output."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WITHIN_S, cwd=cwd, env=os.environ | self.environment
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def inside(self, *command: str, check: bool = True) -> str:
        """Run a command inside the PID namespace of the nodes. Returns its output."""
        enter = ["nsenter", "--target", str(self.init), "--pid", "--mount", "--uts"]
        return self(*enter, *command, check=check)

    def alive(self, pid: int) -> bool:
        """Whether a process of a node is alive. ``pid`` is its id in the namespace."""
        state = self.inside("ps", "-o", "stat=", "-p", str(pid), check=False).strip()
        return state != "" and not state.startswith("Z")

    def allocate(self) -> str:
        """Allocate all nodes until they are released. Returns the job id."""
        words = self("salloc", "--no-shell", "--nodes", str(len(NODES)), check=False)
        assert "Granted job allocation" in words, words
        return words.split("Granted job allocation ")[1].split()[0]

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING. Waits a moment, so that a test does not ask Slurm too often."""
        time.sleep(0.2)
        return self("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job, check=False).strip()

    def logs(self) -> str:
        """The last log lines of the daemons."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.directory.glob("*.log"))


@contextlib.contextmanager
def running_slurm(directory: Path) -> Iterator[Slurm]:
    (directory / "state").mkdir()
    (directory / "munge.key").write_bytes(secrets.token_bytes(128))
    (directory / "munge.key").chmod(0o400)
    facts = {"directory": directory, "host": HOST, "nodes": " ".join(NODES), "cores": CORES}
    (directory / "slurm.conf").write_text(CONFIG.format(ports=free_ports(1 + len(NODES)), **facts))
    unshare = ["unshare", "--pid", "--mount", "--uts", "--mount-proc", "--fork", "--kill-child=KILL"]
    command = ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", INIT.format(**facts)]
    with ending(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: bool(children.read_text()) or process.poll() is not None, "the first process", WITHIN_S)
        slurm = Slurm(directory, int(children.read_text()))
        up = ["idle"] * len(NODES)
        eventually(lambda: _node_states(slurm) == up or process.poll() is not None, "the nodes", WITHIN_S)
        assert process.poll() is None, f"Slurm did not start: {slurm.logs()}"
        yield slurm


def _node_states(slurm: Slurm) -> list[str]:
    time.sleep(0.1)
    return slurm("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()
