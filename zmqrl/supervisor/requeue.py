"""Lets a run outlast the time limit of a batch job: a session ends before the limit, and Slurm requeues the job."""

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from zmqrl.config import Config
from zmqrl.errors import INTERRUPTED, TIME_IS_UP, ClusterError, UsageError
from zmqrl.hosts.ways.slurm import scontrol
from zmqrl.rundir import RunDirectory

RETRY_EVERY_S = 5.0
RETRY_FOR_S = 150.0  # Slurm sends USR1 at most a few minutes before it ends the job


def is_begun(config: Config) -> bool:
    """Whether the run directory already holds a run, which means that the job was requeued."""
    return config.run_dir is not None and RunDirectory(config.run_dir).config.exists()


def check(job: str, config: Config) -> str:
    """The name of ``job`` for :func:`requeued`.

    The last task of a job array has the id of the whole array, so the name of a task also has its number in the array.
    Raises UsageError if the job cannot be requeued, or if its next start would not find the run.
    """
    if config.run_dir is None:
        raise UsageError("--requeue requires --run-dir: the next start of the job resumes the run there.")
    told = scontrol("show", "job", job)
    facts = dict(re.findall(r"\b(BatchFlag|Requeue)=(\d)", told))
    if facts.get("BatchFlag") == "0":
        raise UsageError(f"--requeue: job {job} was not submitted with sbatch.")
    if facts.get("Requeue") == "0":
        raise UsageError(f"--requeue: Slurm will not requeue job {job}: submit it with sbatch --requeue.")
    task = re.search(rf"^JobId={job} ArrayJobId=(\d+) ArrayTaskId=(\d+)\b", told, re.MULTILINE)
    return job if task is None else f"{task[1]}_{task[2]}"


def requeued(job: str | None, train: Callable[[], int]) -> int:
    """Run ``train`` and return its exit status. If USR1 alone ended the run, requeue ``job``, unless it is None."""
    with _warned() as came:
        try:
            status = train()
        except KeyboardInterrupt:
            if not came.is_set():
                raise
            status = INTERRUPTED
    time_is_up = status == TIME_IS_UP or (status == INTERRUPTED and came.is_set())
    if time_is_up and job is not None:
        sys.stdout.write(f"job {job} has reached its time limit: requeueing it\n")
        sys.stdout.flush()
        _requeue(job)
    return INTERRUPTED if time_is_up else status


def _requeue(job: str) -> None:
    """Requeue ``job``, which also ends this process. Tries again while Slurm fails. Raises ClusterError."""
    give_up_at = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            scontrol("requeue", job)
            return
        except ClusterError as error:
            if time.monotonic() + RETRY_EVERY_S > give_up_at:
                raise
            sys.stdout.write(f"{error} Trying again in {RETRY_EVERY_S:g} s.\n")
            sys.stdout.flush()
        time.sleep(RETRY_EVERY_S)


@contextlib.contextmanager
def _warned() -> Iterator[threading.Event]:
    """Make USR1 act like a first Ctrl-C in the block. Slurm can send USR1 before the time limit of a job.

    The yielded event is set if USR1 arrived before the run had its own signal handlers.
    """
    came = threading.Event()

    def warn(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not came.is_set() and callable(interrupt):
            try:
                interrupt(number, frame)
            except KeyboardInterrupt:
                came.set()
                raise

    old = signal.signal(signal.SIGUSR1, warn)
    try:
        yield came
    finally:
        signal.signal(signal.SIGUSR1, old)
