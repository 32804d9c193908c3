"""The login node of a Slurm cluster, over one ssh connection: submits a job, follows it, and fetches its files."""

import contextlib
import dataclasses
import io
import os
import re
import select
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

from zmqrl.errors import ClusterError, UsageError, require
from zmqrl.hosts.link import NEVER_ASKING, last_words
from zmqrl.hosts.ways.way import ssh_command
from zmqrl.json_lines import read_json, replacing
from zmqrl.rundir import RunDirectory, write_json

CONNECTED_WITHIN_S = 60.0
ANSWER_WITHIN_S = 120.0
ENDED_WITHIN_S = 5.0
CLEANED_UP_WITHIN_S = 1.0  # after SIGTERM
LOST = 255  # the exit status of ssh itself
GONE = "GONE"  # Slurm has forgotten the job
OVER: Final = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("TIMEOUT", GONE),
    }
)
# Files without a meaning elsewhere, and the keys of the run. The login node must not be able to write them here: zmqrl
# runs the commands in some of them.
KEPT_THERE: Final = frozenset(
    {
        *(".lock", "cluster.json", "keys", "left.json", "old-hosts.json", "page.json"),
        *("sockets", "state", "submitted.json"),
    }
)
SUMMARY: Final = "./summary.json"  # until the job is over, its next start can remove this file
LATE_S = 120  # on a network disk, files can appear this late on the login node
END_OF_FILE = 1 << 60  # more bytes than any log has
# The startup files of the shell may print something. The output of a command follows this line.
BEGIN = "zmqrl-begin"
BEGINNING = f'echo; echo {BEGIN}; exec "$@"'
MOST_PRINTED_LINES = 100_000
LONGEST_LINE_BYTES = 4096
MAKE_DIRECTORY = 'mkdir -p -- "$1" && cd -- "$1" && pwd && { stat -c %s -- "$2.log" 2>/dev/null || echo 0; }'
# Takes the name of a new run, or that name with a number, by making the log of its job. The run directory cannot serve
# for this: on a shared disk, it is also the one here.
TAKE_NAME = (
    'mkdir -p -- "$1" && cd -- "$1" && pwd || exit; name=$2; number=1; '
    'until [ ! -e "$name" ] && (set -C; : > "$name.log") 2>/dev/null; do '
    '[ -e "$name" ] || [ -e "$name.log" ] || : > "$name.log" || exit; '
    'number=$((number + 1)); name=$2-$number; done; printf "%s\\n" "$name"'
)
# Leaves a log in which something is written, and a run directory.
GIVE_BACK = 'cd -- "$1" && { [ -s "$2.log" ] || rm -f -- "$2.log"; }'
# Prints one line with the state and the reason, and then the log. squeue fails if the job is forgotten, but also while
# the controller of Slurm does not answer.
LOOK = (
    "first=$1; log=$2; shift 2; "
    'told=$(squeue --noheader --states=all --format="%T %r" "$@" 2>&1) || case $told in '
    '*"Invalid job id"*) told=GONE ;; *) told="UNKNOWN $(printf "%s" "$told" | tail -n 1)" ;; esac; '
    # With --clusters, squeue also prints the line "CLUSTER: NAME".
    '{ printf "%s\\n" "$told" | grep "^[A-Z][A-Z_]* " || echo; } | tail -n 1; '
    'tail -c "+$first" -- "$log" 2>/dev/null || true'
)
# Prints one line: the time there, if files follow. A directory with submitted.json is the one here, on a shared disk.
SEND = (
    'cd -- "$1" 2>/dev/null || { echo none; exit 0; }; [ -e submitted.json ] && { echo same; exit 0; }; '
    'date +%s && { since=$2; shift 2; exec tar -c "--newer-mtime=@$since" "$@"; }'
)
NOTHING_TO_SEND: Final = (b"none", b"same")
ARCHIVED: Final = (0, 1, 2)  # tar ends with 1 if a file changed, and with 2 if it could not read a file


class Unanswered(ClusterError):
    """The login node did not say how a command ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The job of a run, the host where it was submitted, and paths there. Stored in the run directory here."""

    host: str
    ssh_config: str | None
    job: str
    cluster: str | None = None
    """The cluster of the job, if ``--clusters`` chose it."""
    run_dir: str
    log: str
    earlier: str | None = None
    """The SHA-256 of the summary that the run had before this job."""
    ended: str = ""
    """The state of the job if it is known to have ended without a result."""

    @property
    def on_its_cluster(self) -> list[str]:
        """The option with which Slurm's commands ask the cluster of the job."""
        return [] if self.cluster is None else [f"--clusters={self.cluster}"]

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The job of the run directory ``path``, if any. Raises UsageError."""
        file = RunDirectory(path).submitted
        try:
            job = cls(**read_json(file))
            check_login_host(job.host, str(file))
            return job
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', error)}.") from error

    def write(self, path: Path) -> None:
        """Write to the run directory ``path``."""
        write_json(RunDirectory(path).submitted, dataclasses.asdict(self))


def check_login_host(host: str, where: str) -> None:
    """Raise UsageError for a destination that ssh takes for an option, or that has spaces or control characters."""
    is_good = re.fullmatch(r"[^\s-]\S*", host) and host.isprintable()
    require(bool(is_good), f"{where}: {host!r:.60} is not a host name for ssh.")


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
            command = ssh_command(self.host, ["sh", "-c", "echo; cat"], config=self.ssh_config, master=self._socket)
            master = self._stop.enter_context(_running(command, stdin=subprocess.PIPE, stderr=words))
            assert master.stdout is not None
            if not select.select([master.stdout], [], [], CONNECTED_WITHIN_S)[0]:
                raise ClusterError(f"{self.host} cannot be reached: no answer within {CONNECTED_WITHIN_S:g} s.")
            if not os.read(master.stdout.fileno(), 1):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    master.wait(ENDED_WITHIN_S)
                raise ClusterError(f"{self.host} cannot be reached: {_said(words) or 'ssh ended'}.")
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on the login node, over this connection. The output follows ``BEGIN``."""
        marked = ["sh", "-c", BEGINNING, "sh", *words]
        return ssh_command(self.host, marked, config=self.ssh_config, shared=self._socket)

    def run(self, words: Sequence[str], *, given: str = "") -> bytes:
        """Run a command with ``given`` as its input. Returns its output. Raises ClusterError if it fails."""
        with _running(self.command(words), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                printed, complaints = process.communicate(given.encode(), ANSWER_WITHIN_S)
            except subprocess.TimeoutExpired as error:
                raise Unanswered(f"{self.host} has not answered for {ANSWER_WITHIN_S:g} s.") from error
        told = last_words(complaints).rstrip(".")
        if process.returncode == LOST:
            raise Unanswered(f"the connection to {self.host} is lost: {told}.")
        if process.returncode:
            raise ClusterError(f"{words[0]} on {self.host} failed: {told or f'exit status {process.returncode}'}.")
        _, begin, output = printed.partition(f"\n{BEGIN}\n".encode())
        if not begin:
            raise ClusterError(f"{words[0]} did not run on {self.host}: its shell printed {printed[-60:]!r}.")
        return output

    def make_directory(self, directory: str, name: str) -> tuple[str, int]:
        """Make ``directory``. Returns its absolute path, and the size of the log ``name.log`` in it."""
        path, size = self.run(["sh", "-c", MAKE_DIRECTORY, "sh", directory, name]).decode().splitlines()[-2:]
        return path, int(size)

    def take_name(self, directory: str, name: str) -> tuple[str, str]:
        """Make ``directory``, and take a name for a new run in it: ``name``, or with a number if that name is taken.

        Returns the absolute path of ``directory``, and the name.
        """
        path, name = self.run(["sh", "-c", TAKE_NAME, "sh", directory, name]).decode().splitlines()[-2:]
        return path, name

    def give_back(self, directory: str, name: str) -> None:
        """Undo :meth:`take_name` for a run that was not submitted."""
        self.run(["sh", "-c", GIVE_BACK, "sh", directory, name])

    def submit(self, options: Sequence[str], script: str) -> tuple[str, str | None]:
        """Submit a job. Returns its id, and its cluster if Slurm names one. Raises Unanswered if the job may have been
        submitted.
        """
        told = self.run(["sbatch", "--parsable", *options], given=script).decode(errors="replace").strip()
        job, _, cluster = told.rpartition("\n")[2].partition(";")
        if re.fullmatch("[0-9]+", job) is None:
            raise Unanswered(f"sbatch on {self.host} printed no job id: {told!r:.60}.")
        return job, cluster or None

    def look(self, job: Submitted, read: int) -> tuple[str, str, bytes]:
        """The state of a job, such as PENDING, its reason, and the log after the first ``read`` bytes.

        The state is UNKNOWN, with Slurm's message as the reason, while Slurm does not answer.
        """
        words = ["sh", "-c", LOOK, "sh", str(read + 1), job.log, *job.on_its_cluster, "--jobs", job.job]
        first, _, news = self.run(words).partition(b"\n")
        state, _, reason = first.decode(errors="replace").strip().partition(" ")
        return state or GONE, reason, news

    def state(self, job: Submitted) -> str:
        """The state of a job, as in :meth:`look`."""
        return self.look(job, END_OF_FILE)[0]

    def ask_to_stop(self, job: Submitted, *, has_begun: bool) -> None:
        """End a job after a checkpoint, or at once if it has not begun."""
        how = ["--batch", "--signal=TERM"] if has_begun else []
        self.run(["scancel", *job.on_its_cluster, *how, job.job])

    def fetch(self, job: Submitted, to: Path, since: int) -> int | None:
        """Copy the files of a run that have changed after ``since``, a time on the login node's clock.

        Returns ``since`` for the next call. Leaves out the files in ``KEPT_THERE`` and the summary, and removes the
        summary of an earlier start from ``to``. Copies nothing, and returns None, if the directory there does not exist
        yet, or is ``to`` itself, on a shared disk. Raises ClusterError.
        """
        wanted = [*(f"--exclude=./{name}" for name in sorted(KEPT_THERE)), f"--exclude={SUMMARY}", "."]
        return self._fetch(job, to, since, wanted)

    def fetch_summary(self, job: Submitted, to: Path) -> None:
        """Copy the summary of a run whose job is over, if there is one. Raises ClusterError."""
        self._fetch(job, to, 0, [SUMMARY])

    def _fetch(self, job: Submitted, to: Path, since: int, wanted: Sequence[str]) -> int | None:
        words = ["sh", "-c", SEND, "sh", job.run_dir, str(max(0, since - LATE_S)), *wanted]
        with tempfile.TemporaryFile() as told, _running(self.command(words), stderr=told) as sending:
            try:
                assert sending.stdout is not None
                arriving = io.BufferedReader(_Arriving(self.host, sending.stdout.fileno()))
                now = _first_line(arriving)
                if now.isdigit():
                    (to / SUMMARY).unlink(missing_ok=True)
                    with tarfile.open(fileobj=arriving, mode="r|") as files:
                        _unpack(files, to)
                    while arriving.read(1 << 16):
                        pass
                status = sending.wait(ENDED_WITHIN_S)
            except tarfile.TarError as error:
                raise ClusterError(f"the files of {job.run_dir} on {self.host} did not arrive: {error}.") from error
            except subprocess.TimeoutExpired as error:
                raise ClusterError(f"tar on {self.host} does not end.") from error
            # An archive that ends between two files looks complete.
            if status not in ARCHIVED or not (now.isdigit() or now in NOTHING_TO_SEND):
                why = _said(told) or f"exit status {status}"
                raise ClusterError(f"the connection to {self.host} is lost: {why}.")
        return int(now) if now.isdigit() else None


class _Arriving(io.RawIOBase):
    """The output of a command on ``host``, through a pipe. Raises ClusterError if it pauses for too long."""

    def __init__(self, host: str, pipe: int) -> None:
        self._host, self._pipe = host, pipe

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        if not select.select([self._pipe], [], [], ANSWER_WITHIN_S)[0]:
            raise ClusterError(f"{self._host} has not answered for {ANSWER_WITHIN_S:g} s.")
        piece = os.read(self._pipe, len(room))
        room[: len(piece)] = piece
        return len(piece)


def _unpack(files: tarfile.TarFile, to: Path) -> None:
    """Replace files below ``to`` by those of an archive, each as a whole. Raises TarError for a path that leads
    elsewhere.
    """
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.11.4
    for member in _harmless(files):
        path = Path(member.name)
        with replacing(to / path) as unfinished:
            member.name = str(path.with_name(unfinished.name))
            files.extract(member, to, **safely)


def _harmless(files: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, as files of this user. Leaves out KEPT_THERE, links and devices."""
    for member in files:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise tarfile.TarError(f"{member.name!r:.60} is outside of the run directory")
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
        member.mode &= 0o755
        if member.isreg() and KEPT_THERE.isdisjoint(parts[:1]):
            yield member


def _said(words: IO[bytes]) -> str:
    """The last words in a file, to continue a sentence."""
    words.seek(0)
    return last_words(words.read()).rstrip(".")


def _first_line(arriving: IO[bytes]) -> bytes:
    """The first line of the output of a command, after ``BEGIN``. Empty if there is none."""
    for _ in range(MOST_PRINTED_LINES):
        line = arriving.readline(LONGEST_LINE_BYTES)
        if line == f"{BEGIN}\n".encode():
            return arriving.readline(LONGEST_LINE_BYTES).strip()
        if not line:
            break
    return b""


@contextlib.contextmanager
def _running(command: Sequence[str], **streams: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ssh during the block, then end it and what it has started, such as a ProxyCommand."""
    process = subprocess.Popen(
        command, env={**os.environ, **NEVER_ASKING}, stdout=subprocess.PIPE, start_new_session=True, **streams
    )
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # there may be unsent input
                    pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + CLEANED_UP_WITHIN_S
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def job_script(python: str, arguments: Sequence[str]) -> str:
    """The script of a job that trains on its nodes. It uses exec, because Slurm sends signals to the script."""
    return (
        f"#!/bin/bash\nexec {shlex.join([python, '-P', '-m', 'zmqrl', 'launch', '--slurm', '--requeue', *arguments])}\n"
    )
