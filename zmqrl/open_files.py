"""The limit of open files: raised as far as the system allows, and checked. Standard library only."""

import contextlib
import resource

from zmqrl.errors import UsageError

LEAST = 256  # a process of a small run has about 40 open
MOST = 1 << 16  # more is of no use, and some programs try every number up to the limit


def raise_limit() -> None:
    """Raise the soft limit to the hard one. Child processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check(needed: int = LEAST) -> None:
    """Raise UsageError when this process cannot have ``needed`` files open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise UsageError(f"{allowed} open files are allowed (ulimit -n): raise that limit to at least {needed}.")
