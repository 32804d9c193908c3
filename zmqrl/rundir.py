"""The run directory: the paths of everything that a run writes, and its lock."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from zmqrl.errors import UsageError, naming, refusal
from zmqrl.json_lines import open_file, open_regular, read_file, read_json, unfinished_path
from zmqrl.process_id import ProcessId, shard_id, worker_id

LOCK = ".lock"
DAEMON_LOCK = ".agent"  # do not rename: host daemons of earlier versions lock this file
OF_SHARDS = ("history", "state")
UNFINISHED = ".*.json*.unfinished"  # temporary files that a process left because it was killed while writing
LOOKERS_LEAVE_WITHIN_S = 1.0
ANOTHER = "choose another --run-dir"
LONGEST_SOCKET_PATH = 90  # a Unix socket address has at most 107 bytes, and a file name follows this path


class RunDirectory:
    """The paths of a run, and the lock that keeps a second run out of its directory."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        """If ``new``, :meth:`claim` adds a number to the name if that name is already taken."""
        self.path = path.absolute()
        self._new = new
        self._lock: int | None = None
        self._made: list[Path] = []
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    config = property(lambda self: self.path / "config.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    checkpoints = property(lambda self: self.path / "checkpoints")
    cluster = property(lambda self: self.path / "cluster.json")
    live = property(lambda self: self.path / "live.json")
    page = property(lambda self: self.path / "page.json")
    stalled = property(lambda self: self.path / "stalled.json")
    submitted = property(lambda self: self.path / "submitted.json")
    left = property(lambda self: self.path / "left.json")
    old_hosts = property(lambda self: self.path / "old-hosts.json")
    keys = property(lambda self: self.path / "keys")
    profile = property(lambda self: self.path / "profile")
    trace = property(lambda self: self.path / "trace.json")
    evaluation = property(lambda self: self.path / "evaluation.json")
    evaluations = property(lambda self: self.path / "evaluations.jsonl")
    hosts = property(lambda self: self.path / "hosts.json")
    summary = property(lambda self: self.path / "summary.json")

    def log(self, process: ProcessId | Literal["supervisor"]) -> Path:
        return self.path / "logs" / f"{process}.log"

    def history(self, shard: int) -> Path:
        return self.path / "history" / f"{shard_id(shard)}.jsonl"

    def state(self, shard: int) -> Path:
        """The memory-mapped slots of a shard."""
        return self.path / "state" / f"{shard_id(shard)}.slots"

    def key_file(self, rank: int) -> Path:
        """The key file of ``rank``, if external workers may take it."""
        return Path(self.keys / f"{worker_id(rank)}.json")

    def summary_digest(self) -> str | None:
        """The SHA-256 of the summary, or None without a summary."""
        with contextlib.suppress(OSError):
            return hashlib.sha256(read_file(self.summary)).hexdigest()
        return None

    def has_result(self, earlier: str | None) -> bool:
        """Whether there is a summary, and ``earlier`` is not its SHA-256."""
        return self.summary.exists() and (earlier is None or self.summary_digest() != earlier)

    def awaits_job(self) -> bool:
        """Whether the run was submitted to another cluster, and the job there has not ended, as far as known here. A
        summary that an earlier job wrote does not count.
        """
        try:
            job = read_json(self.submitted)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            job = None
        known: dict[str, Any] = job if isinstance(job, dict) else {}
        return not known.get("ended") and not self.has_result(known.get("earlier"))

    def sockets(self) -> Path:
        """Make a directory with mode 0700 and a path that is short enough for Unix sockets."""
        sockets = self.path / "sockets"
        if holds_sockets(sockets):
            sockets.mkdir(mode=0o700, exist_ok=True)
            sockets.chmod(0o700)
            return sockets
        if self._sockets is None:
            self._sockets = directory_for_sockets()
        return Path(self._sockets.name)

    def claim(self) -> None:
        """Create the directory and lock it until :meth:`release`. Raises UsageError when that fails."""
        try:
            self._make()
            self._lock = open_regular(self.path / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UsageError(refusal(error, self.path, ANOTHER)) from error
        try:
            self._take_lock()
        except OSError as error:
            self._unlock()
            if isinstance(error, BlockingIOError):
                raise UsageError(
                    f"{self.path} is in use by a run that is still alive: end it with zmqrl stop, or {ANOTHER}."
                ) from None
            raise UsageError(  # some network file systems have no locks
                f"{self.path} cannot be locked ({error.strerror}): choose a --run-dir on a file system with locks."
            ) from error
        try:
            os.utime(self._lock)  # the page looks again
            self._check_writable()
            self.keep_cluster_as_left()
        except OSError as error:
            self._unlock()
            raise UsageError(refusal(error, self.path, ANOTHER)) from error

    def _take_lock(self) -> None:
        """Raises BlockingIOError if another process has the lock. :func:`is_locked` has it only for a moment."""
        assert self._lock is not None
        deadline = time.monotonic() + LOOKERS_LEAVE_WITHIN_S
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.02)

    def _make(self) -> None:
        missing = [path for path in self.path.parents if not path.exists()]
        if self._new:
            first, self.path = self.path, make_new(self.path)
            if self.path != first:  # the run that has this name also needs the parents
                missing = []
        else:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:
                return self.path.mkdir(exist_ok=True)  # raises if the path is a file
        self._made = [self.path, *missing]
        return None

    def _check_writable(self) -> None:
        """Raise OSError for the first unwritable file or directory of shards or checkpoints."""
        of_shards = [self.path / name for name in OF_SHARDS if (self.path / name).exists()]
        for directory in [*of_shards, *([self.checkpoints] if self.checkpoints.exists() else [])]:
            with naming(directory):
                tempfile.TemporaryFile(dir=directory).close()
        for file in itertools.chain.from_iterable(sorted(directory.iterdir()) for directory in of_shards):
            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def keep_cluster_as_left(self) -> None:
        """Rename the cluster.json of a killed run to left.json, so that its shards can still be found."""
        with contextlib.suppress(FileNotFoundError):
            self.cluster.replace(self.left)
        self._remove_what_needs_a_living_run()

    def in_use(self) -> bool:
        return is_locked(self.path / LOCK)

    def release(self) -> None:
        """Release the lock, and remove files that only a live run needs.

        If no run began, also remove the directories that :meth:`claim` made.
        """
        with contextlib.suppress(OSError):  # the lock must be released even if this fails
            self._remove_what_needs_a_living_run()
        if self._sockets is not None:
            self._sockets.cleanup()
        shutil.rmtree(self.path / "sockets", ignore_errors=True)  # killed shards leave their sockets
        with contextlib.suppress(OSError):  # not empty if the run did not end cleanly
            (self.path / "state").rmdir()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                if self._made and not self.config.exists():
                    shutil.rmtree(self.checkpoints, ignore_errors=True)
                    if {path.name for path in self.path.iterdir()} <= {LOCK, DAEMON_LOCK}:
                        for name in (LOCK, DAEMON_LOCK):
                            (self.path / name).unlink(missing_ok=True)
                        for path in self._made:
                            path.rmdir()
            self._unlock()

    def _unlock(self) -> None:
        assert self._lock is not None
        os.close(self._lock)
        self._lock = None

    def _remove_what_needs_a_living_run(self) -> None:
        for file in (self.cluster, self.live, self.page, self.stalled, *self.path.glob(UNFINISHED)):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.keys, ignore_errors=True)


def holds_sockets(path: Path) -> bool:
    """Whether ZeroMQ can make Unix sockets in the directory ``path``: the path must be short, and valid text."""
    try:
        return len(str(path).encode()) <= LONGEST_SOCKET_PATH
    except UnicodeEncodeError:
        return False


def directory_for_sockets() -> "tempfile.TemporaryDirectory[str]":
    """Make a directory with mode 0700 for sockets, in /tmp if the path of the temporary directory is unsuitable."""
    fits = holds_sockets(Path(tempfile.gettempdir(), "zmqrl-01234567"))
    return tempfile.TemporaryDirectory(prefix="zmqrl-", dir=None if fits else "/tmp")


def new_path(name: str) -> Path:
    """The default directory of a new run: ``runs/NAME-DATE-TIME``."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def make_new(path: Path) -> Path:
    """Make the directory of a new run, and return its path: ``path``, or with a number if that name is taken."""
    for number in itertools.count(1):
        numbered = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            numbered.mkdir(parents=True)
            return numbered
        except FileExistsError:
            if not path.parent.is_dir():  # a link to nothing, for example
                raise
    raise AssertionError


def holds_a_run(path: Path) -> UsageError:
    """The error for a new run in a directory that another run has used."""
    return UsageError(f"{path} already holds a run: choose another --run-dir, or add --resume to continue it.")


def not_a_run(path: Path | str) -> UsageError:
    """The error for a ``path`` that is not a run directory, or not yet."""
    if RunDirectory(Path(path)).awaits_job():
        return UsageError(f"{path} has no files yet of its run, which was submitted: zmqrl attach shows it.")
    return UsageError(f"{path} is not a run directory: there is no config.json in it.")


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of the file ``path``. False if there is no such regular file."""
    try:
        with open_file(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_json(path: Path, data: dict[str, Any], *, mode: int = 0o644, lasting: bool = True) -> None:
    """Write ``data`` so that readers see either the old or the new file, never a part. An OSError names ``path``.

    ``lasting``: whether this must also be true after a power failure, which makes the call slower.
    """
    unfinished = unfinished_path(path)
    with naming(path):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.write("\n")
                file.truncate()  # space that was reserved
                if lasting:
                    file.flush()
                    os.fsync(descriptor)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Reserve ``size`` bytes, so that this process can call :func:`write_json` once, even on a full disk.

    Does nothing if that is not possible.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(unfinished_path(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
