"""Functions for every zmqrl process: Ctrl-C, limits, cores, the user's modules, logs, the job, and messages.

This module uses only the standard library.
"""

import contextlib
import ctypes
import json
import logging
import math
import os
import queue
import re
import resource
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from zmqrl.errors import Terminated, UsageError
from zmqrl.words import log_time

PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGTERM, signal.SIGHUP)  # signals that act like a single Ctrl-C, however often they come
LOOK_UP_EVERY_S = 1.0  # waits are this short, because a signal that arrives just before a wait does not end it
FEWEST_OPEN_FILES = 256  # a process of a small run opens about 40
LOG_LEVEL = "ZMQRL_LOG_LEVEL"
LOG_LEVELS = ("debug", "info", "warning", "error")
MOST_OPEN_FILES = 1 << 16  # a higher limit is useless, and some programs loop over all descriptors
STARTED_IN = "ZMQRL_HERE"  # the directory where the user started zmqrl
# Variables that make OpenMP bind the threads of all workers on a host to the same cores, or use fewer threads than a
# run gives to a worker.
BINDING = (
    *("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET", "KMP_PLACE_THREADS"),
    *("OMP_THREAD_LIMIT", "OMP_DYNAMIC", "KMP_ALL_THREADS", "KMP_DEVICE_THREAD_LIMIT"),
    *("OMP_MAX_ACTIVE_LEVELS", "KMP_LIBRARY"),  # 0 and "serial" make every parallel region run in one thread
)
PERIOD_US = 100_000  # the default of the kernel
GROUPS = ("cgroup", "mountinfo")  # files in /proc: the control groups of a process, and where they are mounted
ESCAPED = re.compile(r"\\([0-7]{3})")  # a blank or a backslash in mountinfo

unset: dict[str, str] = {}  # the variables that ``use_all_cores`` has unset
_to_parent = 1  # file descriptor for ``say``


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in the block, which can then clean up.

    Outside, these signals end the process at once. A signal that was ignored when zmqrl started stays ignored.
    """
    outside = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    for number, before in outside.items():
        if callable(before):  # false if the signal is ignored
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _interrupt_once)
    try:
        yield
    finally:
        for number, before in outside.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, before)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    for each in ENDING:  # both a shell and the kernel send SIGHUP, and systemd sends both signals
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM raise Terminated in the block, but only once. After the block, SIGTERM changes nothing.

    A second signal would interrupt the cleanup, and Python prints what a handler raises while Python exits.
    """
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated(0)


def use_all_cores() -> None:
    """Stop OpenMP from using fewer cores or threads, here and in children. Call this before importing torch."""
    unset.update({name: os.environ.pop(name) for name in BINDING if name in os.environ})


def usable_cores(proc: Path = Path("/proc/self")) -> int:
    """The number of cores that this process may use: those it is bound to, up to the quota of its control groups."""
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), quota(proc))))


def bind_to_core(index: int, count: int) -> int | None:
    """Bind this thread, and those that it will start, to one of ``count`` cores. Returns the core, or None.

    Otherwise, the kernel often runs a thread of one process on the core of another process, while a core is free. Does
    nothing unless this process may use exactly ``count`` cores, all of the same speed.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count != len(cores) or count != usable_cores() or len(set(map(_speed, cores))) > 1:
        return None
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setaffinity(0, {cores[index]})
        return cores[index]
    return None


def _speed(core: int) -> tuple[str, ...]:
    """What the kernel says of the speed of a core."""
    about, found = Path(f"/sys/devices/system/cpu/cpu{core}"), list[str]()
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        with contextlib.suppress(OSError):
            found.append((about / name).read_text())
    return tuple(found)


def quota(proc: Path) -> float:
    """The smallest quota, in cores, of a process's control groups (version 1 or 2) and their parents."""
    return min((quota_of(group)[0] for group in control_groups(proc, "cpu")), default=math.inf)


def control_groups(proc: Path, controller: str) -> list[Path]:
    """The directories of a process's control groups for ``controller`` (version 1 or 2) and of their parents.

    A directory need not exist.
    """
    try:
        groups, mounts = ((proc / name).read_text("utf-8", "surrogateescape").splitlines() for name in GROUPS)
    except OSError:
        return []
    found: dict[Path, None] = {}
    for _, controllers, group in (line.split(":", 2) for line in groups):
        for _, _, _, *paths, kind, _, options in (line.split(" ") for line in mounts):
            if kind == ("cgroup" if controllers else "cgroup2") and (
                not controllers or controller in {*controllers.split(",")} & {*options.split(",")}
            ):
                root, mounted = (ESCAPED.sub(lambda code: chr(int(code[1], 8)), text) for text in paths[:2])
                # In a container, ``group`` may be a path on the host. The container's own group is then at ``mounted``.
                own = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path()
                found |= dict.fromkeys(Path(mounted) / within for within in (own, *own.parents))
    return list(found)


def quota_of(group: Path) -> tuple[float, int]:
    """The quota of a control group (version 1 or 2) in cores, and its period in microseconds."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((group / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period), int(period)
    return math.inf, PERIOD_US


CORES = usable_cores()  # before torch is imported: the import may bind this thread to one core


def look_for_modules(*directories: str) -> None:
    """Make the user's modules in ``directories`` importable. They are searched last, so as not to hide others."""
    sys.path += [directory for directory in dict.fromkeys(directories) if directory not in sys.path]


def look_for_modules_here() -> None:
    """Make the modules in the current directory importable, here and in the processes of a run. Raises UsageError."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise UsageError("the current directory was removed: change to another directory.") from None
    look_for_modules(here)
    os.environ[STARTED_IN] = here
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here == str(Path(__file__).parents[1]) and here not in searched:  # a checkout, which may not be installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*searched, here]))


def look_for_modules_there() -> None:
    """Like :func:`look_for_modules_here`, but in a process of a run, which may be on another host.

    There, the directory with the same path may be that of another user, whose modules must not run as this user.
    """
    with contextlib.suppress(FileNotFoundError):  # the directory was removed
        here = Path.cwd()
        there = Path(os.environ.get(STARTED_IN, here)).resolve()
        # Unlike Path.is_dir, this is False for a directory below one that this user may not enter.
        found = [directory for directory in (there, here) if os.path.isdir(directory)]  # noqa: PTH112
        if there in found and there != here and not is_ours(there):
            found.remove(there)
            why = "other users can write to this directory, or it is not yours. If you trust it, name it in PYTHONPATH"
            sys.stderr.write(f"modules in {there} cannot be imported: {why}\n")
        look_for_modules(*map(str, found))


def is_ours(directory: Path) -> bool:
    """Whether a directory is this user's or root's, and other users cannot write to it. Their group may."""
    about = directory.stat()
    return about.st_uid in (0, os.getuid()) and not about.st_mode & stat.S_IWOTH


@contextlib.contextmanager
def staying_here() -> Iterator[None]:
    """Return to the current directory after the block, in which the user's code may change it."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard limit, up to ``MOST_OPEN_FILES``. Children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(needed: int = FEWEST_OPEN_FILES) -> None:
    """Raise UsageError when this process cannot open ``needed`` files."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise UsageError(f"only {allowed} open files are allowed: raise the limit (ulimit -n) to at least {needed}.")


def check_pidfd() -> None:
    """Raise UsageError if this process cannot wait for another one with pidfd_open, as all guards do."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except AttributeError:
        why = "and a Python that was built for it: this one lacks os.pidfd_open"
    except OSError as error:
        why = f"and a sandbox that allows pidfd_open: {error.strerror}"
    else:
        return
    raise UsageError(f"zmqrl needs Linux 5.3 or newer, {why}.")


def die_with_parent(number: int) -> None:
    """Make the kernel send this process the signal ``number`` when the thread that has started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def read_job(die_with: signal.Signals) -> dict[str, Any]:
    """Read the job, one line of JSON, from standard input. Make the kernel send ``die_with`` when the parent dies.

    Standard input stays open: its end shows that the parent is gone, even if the signal was lost. Only ``say`` writes
    to standard output. Other prints go to standard error.
    """
    die_with_parent(die_with)
    parent = select.poll()
    parent.register(0, 0)
    if parent.poll(0):  # the parent died before prctl, perhaps during our imports: no signal will come
        sys.exit(0)
    # Ctrl-C reaches every process of the terminal's group. Ignore it: the supervisor ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = bytearray()
    while not line.endswith(b"\n"):
        # Read one byte at a time: a buffer would swallow messages after the line.
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    job: dict[str, Any] = json.loads(line)
    _divert_prints()
    return job


def _divert_prints() -> None:
    global _to_parent
    _to_parent = os.dup(1)
    os.dup2(2, 1)


def lived_s() -> float:
    """Seconds since this process started."""
    # Field 22, in ticks since boot. Split after the process name, which may contain spaces.
    started_at = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_at


def boot_id() -> str:
    """The id of the current boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def log_level() -> int:
    """The log level in ``ZMQRL_LOG_LEVEL``. Default: info. Raises UsageError for an unknown level."""
    level = os.environ.get(LOG_LEVEL) or "info"
    if level.lower() not in LOG_LEVELS:
        raise UsageError(f"{LOG_LEVEL}={level}: use one of {', '.join(LOG_LEVELS)}.")
    return logging.getLevelNamesMapping()[level.upper()]


@contextlib.contextmanager
def quiet_children() -> Iterator[None]:
    """Make processes started in the block log only warnings and errors, unless the user has set ``ZMQRL_LOG_LEVEL``."""
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "warning"
    try:
        yield
    finally:
        del os.environ[LOG_LEVEL]


class _Lines(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - of logging
        return log_time(record.created)


def log_to_stderr(name: str) -> logging.Logger:
    """Set up a log of plain lines with time and level on standard error, which the parent stores in a file.

    The level is that of :func:`log_level`, or info if this fails. Other packages log no debug lines.
    """
    level = logging.INFO
    with contextlib.suppress(UsageError):  # checked by the command line, but a remote host can have another value
        level = log_level()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)
    logging.getLogger("zmqrl").setLevel(level)
    return logging.getLogger(name)


class Messages:
    """The parent's messages after the job, one line of JSON each. When the parent hangs up, this process ends.

    A thread reads the messages. At their end, the thread sends SIGTERM to the process, so that the main thread cleans
    up and ends. The thread also puts None into the queue: a signal that arrives just before ``get`` waits does not end
    the wait.
    """

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        signal.signal(signal.SIGTERM, _leave)
        threading.Thread(target=self._listen, name="messages", daemon=True).start()

    def get(self) -> dict[str, Any]:
        """Wait for the next message. Raises SystemExit when the parent has hung up."""
        while True:
            with contextlib.suppress(queue.Empty):
                message = self._arrived.get(timeout=LOOK_UP_EVERY_S)
                if message is None:
                    _leave()  # the signal can arrive after this line
                return message

    def empty(self) -> bool:
        """Whether ``get`` would wait."""
        return self._arrived.empty()

    def _listen(self) -> None:
        try:
            with os.fdopen(0, "rb", buffering=0, closefd=False) as lines:
                for line in lines:
                    self._arrived.put(json.loads(line))
        finally:
            self._arrived.put(None)
            os.kill(os.getpid(), signal.SIGTERM)


def say(facts: dict[str, Any]) -> None:
    """Send ``facts`` to the parent as one line of JSON. The first line also says that this process is ready."""
    line = json.dumps(facts).encode() + b"\n"
    while line:
        line = line[os.write(_to_parent, line) :]
