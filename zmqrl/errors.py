"""The errors a user sees: one sentence that says what, where and what to do. Standard library only."""

import difflib
from collections.abc import Iterable


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
