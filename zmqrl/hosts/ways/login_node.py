"""The login node of a Slurm cluster, over one ssh connection: submits a job, follows it, and fetches its files."""

import contextlib
import dataclasses
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.ways.ssh import ssh_command
from zmqrl.json_lines import read_json
from zmqrl.rundir import RunDirectory, write_json

CONNECTED_WITHIN_S = 60.0
ANSWER_WITHIN_S = 120.0
LOST = 255  # the exit status of ssh itself
GONE = "GONE"  # Slurm has forgotten the job
OVER: Final = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", GONE}
)
# Files without a meaning elsewhere, and the keys of the run.
KEPT_THERE: Final = ("./.lock", "./cluster.json", "./keys", "./left.json", "./sockets", "./state")
LATE_S = 120  # on a network disk, files can appear this late on the login node
MAKE_DIRECTORY = 'mkdir -p -- "$1" && cd -- "$1" && pwd && { stat -c %s -- "$2.log" 2>/dev/null || echo 0; }'
LOOK = (
    '{ squeue --noheader --states=all --format="%T %r" --jobs "$1" 2>/dev/null || echo GONE; } | tail -n 1; '
    'tail -c "+$2" -- "$3" 2>/dev/null || true'
)
SEND = 'cd -- "$1" && date +%s && { since=$2; shift 2; tar -c "--newer-mtime=@$since" "$@" .; }'


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The job of a run, the host where it was submitted, and paths there. Stored in the run directory here."""

    host: str
    ssh_config: str | None
    job: str
    run_dir: str
    log: str

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The job of the run directory ``path``, if any. Raises UsageError."""
        file = RunDirectory(path).submitted
        try:
            return cls(**read_json(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', error)}.") from error

    def write(self, path: Path) -> None:
        """Write to the run directory ``path``."""
        write_json(RunDirectory(path).submitted, dataclasses.asdict(self))


class LoginNode:
    """One ssh connection to a login node, for all commands. A context manager.

    Raises ClusterError when the connection fails or is lost.
    """

    def __init__(self, host: str, ssh_config: Path | None) -> None:
        self.host, self.ssh_config = host, ssh_config
        self._directory = tempfile.TemporaryDirectory(prefix="zmqrl-", dir="/tmp")  # a short path, for a socket
        self._socket = Path(self._directory.name, "ssh")
        self._stop = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stop.callback(self._directory.cleanup)
        with contextlib.ExitStack() as failed:
            failed.callback(self._stop.close)
            words = tempfile.TemporaryFile()
            self._stop.callback(words.close)
            # The master prints a line when it is connected, and waits for the end of its input.
            master = subprocess.Popen(
                ssh_command(self.host, ["sh", "-c", "echo; cat"], config=self.ssh_config, master=self._socket),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                start_new_session=True,
            )
            self._stop.callback(_end, master)
            assert master.stdout is not None
            if not master.stdout.read(1):
                master.wait(ANSWER_WITHIN_S)
                words.seek(0)
                told = words.read().decode(errors="replace").strip().rpartition("\n")[2] or "ssh ended"
                raise ClusterError(f"{self.host} cannot be reached: {told}.")
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on the login node, over this connection."""
        return ssh_command(self.host, words, config=self.ssh_config, shared=self._socket)

    def run(self, words: Sequence[str], *, given: str = "") -> bytes:
        """Run a command with ``given`` as its input. Returns its output. Raises ClusterError if it fails."""
        try:
            done = subprocess.run(
                self.command(words),
                input=given.encode(),
                capture_output=True,
                timeout=ANSWER_WITHIN_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{self.host} has not answered for {ANSWER_WITHIN_S:g} s.") from error
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if done.returncode == LOST:
            raise ClusterError(f"the connection to {self.host} is lost: {told}.")
        if done.returncode:
            raise ClusterError(f"{words[0]} on {self.host} failed: {told or f'exit status {done.returncode}'}.")
        return done.stdout

    def place(self, directory: str, name: str) -> tuple[str, int]:
        """Make ``directory``. Returns its absolute path, and the size of the log ``name.log`` in it."""
        path, size = self.run(["sh", "-c", MAKE_DIRECTORY, "sh", directory, name]).decode().splitlines()[-2:]
        return path, int(size)

    def submit(self, options: Sequence[str], script: str) -> str:
        """Submit a job. Returns its id."""
        return self.run(["sbatch", "--parsable", *options], given=script).decode().strip().partition(";")[0]

    def look(self, job: Submitted, read: int) -> tuple[str, str, bytes]:
        """The state of a job, such as PENDING, its reason, and the log after the first ``read`` bytes."""
        first, _, news = self.run(["sh", "-c", LOOK, "sh", job.job, str(read + 1), job.log]).partition(b"\n")
        state, _, reason = first.decode().strip().partition(" ")
        return state or GONE, reason, news

    def ask_to_stop(self, job: Submitted, *, has_begun: bool) -> None:
        """End a job after a checkpoint, or at once if it has not begun."""
        how = ["--batch", "--signal=TERM"] if has_begun else []
        self.run(["scancel", *how, job.job])

    def fetch(self, job: Submitted, to: Path, since: int) -> int:
        """Copy the files of a run that have changed after ``since``, a time on the login node's clock.

        Returns ``since`` for the next call. Leaves out the files in ``KEPT_THERE``. Raises ClusterError.
        """
        left_out = [f"--exclude={path}" for path in KEPT_THERE]
        words = ["sh", "-c", SEND, "sh", job.run_dir, str(max(0, since - LATE_S)), *left_out]
        with subprocess.Popen(
            self.command(words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as sending:
            try:
                assert sending.stdout is not None
                now = sending.stdout.readline()
                if not now.strip().isdigit():  # there is no run directory yet
                    return since
                with tarfile.open(fileobj=sending.stdout, mode="r|") as files:
                    files.extractall(to, filter="data")
            except tarfile.TarError as error:
                raise ClusterError(f"the files of {job.run_dir} on {self.host} did not arrive: {error}.") from error
            finally:
                sending.kill()
        return int(now)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def job_script(python: str, arguments: Sequence[str]) -> str:
    """The script of a job that trains on its nodes. It uses exec, because Slurm sends signals to the script."""
    return (
        f"#!/bin/bash\nexec {shlex.join([python, '-P', '-m', 'zmqrl', 'launch', '--slurm', '--requeue', *arguments])}\n"
    )
