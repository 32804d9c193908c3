"""Writes counts, lists of numbers and exit statuses for sentences. Standard library only."""

import signal
from collections.abc import Iterable
from itertools import groupby


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: ``1 host``, ``1,200 hosts``. ``plural`` defaults to the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def numbered(noun: str, numbers: Iterable[int]) -> str:
    """Things by number: ``rank 3``, ``ranks 3, 5-9``."""
    ordered = sorted(set(numbers))
    runs = [[number for _, number in run] for _, run in groupby(enumerate(ordered), lambda each: each[1] - each[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{noun}{'' if len(ordered) == 1 else 's'} {', '.join(texts)}"


def ended_how(status: int) -> str:
    """An exit status, as ``Popen.wait`` returns it: ``exit status 3``, ``killed by SIGSEGV``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
