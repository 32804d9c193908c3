"""The errors that users see: one sentence with the problem, its place and the remedy.

This module uses only the standard library.
"""

import difflib
import errno
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

log = logging.getLogger(__name__)


class ZmqrlError(Exception):
    """Base class of errors for the user. The command line exits with ``exit_status``."""

    exit_status = 3


class UsageError(ZmqrlError):
    """The user asked for something impossible, such as an unknown game, or K above the number of workers."""

    exit_status = 2


class UserCodeError(UsageError):
    """The user's code raised an exception. A retry may help, for example when a simulator can be reached again."""


class ClusterError(ZmqrlError):
    """The cluster failed. For example, a process keeps dying, a deadline has passed, or a shard refuses a worker."""


class UnwritableError(ClusterError):
    """A file of the run cannot be written. A retry does not help."""


class FullDiskError(ClusterError):
    """A disk or a quota is full. A retry helps once there is space."""


class Terminated(SystemExit):
    """SIGTERM ended this process."""


INTERRUPTED = 128 + signal.SIGINT  # the exit status of an interrupted command
TIME_IS_UP = 128 + signal.SIGUSR1  # the exit status of a run that only USR1 interrupted
DISK_IS_FULL = errno.ENOSPC  # the exit status of a shard that ended because its disk is full
USER_CODE_FAILED = os.EX_TEMPFAIL  # the exit status of a worker that ended with a UserCodeError
# Exceptions about the code itself: a retry does not help.
SETTLED = (ImportError, NameError, NotImplementedError, SyntaxError)
NOT_OF_THE_USER: Final = sys.stdlib_module_names | {"zmqrl", "gymnasium", "numpy", "torch"}
INSTALLED: Final = frozenset({"site-packages", "dist-packages"})  # directories of packages


def cannot_listen(error: OSError, address: str, port: int) -> str:
    """Why the port cannot be used, as a clause."""
    if unfit_part(error) == "address":
        return f"{address} is not an address of this machine"
    what = f"port {port} is in use" if error.errno == errno.EADDRINUSE else f"cannot bind {address}:{port}"
    return f"{what} ({error.strerror})"


def unfit_part(error: OSError) -> Literal["address", "port"]:
    """What to replace after an error of :func:`cannot_listen`."""
    return "address" if error.errno == errno.EADDRNOTAVAIL else "port"


LIMIT_OF_PROCESSES = "the limit of processes (ulimit -u, or pids.max of the control group)"


def require(holds: bool, sentence: str) -> None:
    """Raise UsageError with ``sentence`` unless the condition ``holds``."""
    if not holds:
        raise UsageError(sentence)


_REMEDIES_OF_LIMITS = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space within your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_REMEDIES = {
    **_REMEDIES_OF_LIMITS,
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.EISDIR: "move the directory of that name out of the way",
    errno.EEXIST: "move the file of that name out of the way",
    errno.ENOTDIR: "move the file of that name out of the way",
}


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError, path: object, otherwise: str | None = None) -> str:
    """The sentence for a file that cannot be written: its name, the reason and the remedy.

    ``path`` is used if the error names no file. ``otherwise`` is a second remedy.
    """
    name = path if error.filename is None else error.filename
    remedies = ", or ".join(filter(None, [_REMEDIES.get(error.errno or 0), otherwise]))
    return f"cannot write {name}: {error.strerror or error}{': ' if remedies else ''}{remedies}."


def request_refused(error: OSError) -> str:
    """The sentence for an error of the system that names no file: the reason and the remedy."""
    remedy = _REMEDIES_OF_LIMITS.get(error.errno or 0)
    if error.errno == errno.EAGAIN:  # from fork, or from a lock or socket
        remedy = f"if no process could be started, raise {LIMIT_OF_PROCESSES}"
    return f"the system refused a request: {error.strerror or error}{f': {remedy}' if remedy else ''}."


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Make every OSError in the block name ``path``. Otherwise, it may name a temporary file, or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the closest word in ``known``. Empty if no word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn exceptions and SystemExit of user code into a UsageError of one sentence, with the line of that code.

    If the cause may be temporary, this is a UserCodeError.
    """
    try:
        yield
    except (UsageError, Terminated):
        raise
    except (Exception, SystemExit) as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]]).rstrip(".")
        kind = UsageError if isinstance(error, SETTLED) else UserCodeError
        raise kind(f"{what}: {reason}{_place(error)}.") from error


def _place(error: BaseException) -> str:
    """The innermost line of the user's code that led to ``error``, such as `` (maze.py, line 11)``. Otherwise empty."""
    if isinstance(error, SyntaxError):  # names its line itself
        return ""
    found: list[tuple[Path, int]] = []
    for each in filter(None, (error, error.__cause__)):  # Gymnasium replaces some errors
        for frame, line in reversed(list(traceback.walk_tb(each.__traceback__))):
            spec = frame.f_globals.get("__spec__")  # has the name of a module that python -m runs as __main__
            module = getattr(spec, "name", None) or frame.f_globals.get("__name__")
            if str(module).partition(".")[0] not in NOT_OF_THE_USER:
                found.append((Path(frame.f_code.co_filename), line))
    # The user's code may call installed packages, or be one.
    found.sort(key=lambda place: not INSTALLED.isdisjoint(place[0].parts))
    if not found:
        return ""
    path, line = found[0]
    return f" ({f'{path.parent.name}/' if path.name == '__init__.py' else ''}{path.name}, line {line})"


class Closable(Protocol):
    def close(self) -> object: ...


AClosable = TypeVar("AClosable", bound=Closable)


@contextmanager
def closing(thing: AClosable) -> Iterator[AClosable]:
    """Close ``thing``, which may run the user's code, after the block.

    If the block raises an exception, it stays the error that users see: an exception of ``close`` is only logged.
    """
    try:
        yield thing
    except GeneratorExit:  # a generator was closed early: nothing has failed
        thing.close()
        raise
    except BaseException:
        try:
            thing.close()
        except (Exception, SystemExit) as error:
            log.info("close() failed after another error: %s", error)
        raise
    thing.close()


def load_function(blame: str, reference: str) -> Callable[..., Any]:
    """Load the user's function ``reference``, as ``module:function``. A UsageError begins with ``blame``."""
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise UsageError(f"{blame}: must be module:function.")
    with blaming(f"{blame}: cannot import {module_name}"):
        module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise UsageError(f"{blame}: {module_name} has no {name!r}{did_you_mean(name, vars(module))}.")
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(f"{blame}: {name} is a value of type {type(function).__name__}, not a function.")
    return function  # type: ignore[no-any-return]
