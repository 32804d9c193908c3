"""The errors a user sees: one sentence that says what, where and what to do. Standard library only."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ZmqrlError(Exception):
    """Base of every error meant for the user. ``exit_status`` is what the command line returns for it."""

    exit_status = 3


class UsageError(ZmqrlError):
    """The user asked for something that cannot be: an unknown game, K above the workers, a port in use."""

    exit_status = 2


class ClusterError(ZmqrlError):
    """The cluster failed: a process that keeps dying, a deadline that passed, a shard that refused us."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that comes closest, in parentheses behind a space; nothing if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Whatever a user's own code raises is told in one sentence; a script that ends the process does so, too."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]]).rstrip(".")
        raise UsageError(f"{what}: {reason}.") from error
