"""Writes counts, lists of numbers, exit statuses, paths and times for sentences and logs, and reads whole numbers.

This module uses only the standard library.
"""

import codecs
import os
import re
import shlex
import signal
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

ESCAPING: Final = "zmqrl-escaping"  # like the error handler backslashreplace of Python, but see ``escaped``


def whole_number(text: str) -> int | None:
    """The number that ``text`` writes with 1 to 18 ASCII digits, or None. ``int`` refuses very long numbers."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: ``1 host``, ``1,200 hosts``. ``plural`` defaults to the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def figure(value: float) -> str:
    """A number with six significant digits, and with all digits of its whole part: ``0.5``, ``1,234,567``."""
    return f"{value:,.6g}" if abs(value) < 1e5 else f"{value:,.0f}"


def told_apart(*values: float) -> list[str]:
    """Numbers with one decimal, or with up to nine, so that different numbers look different."""
    texts = ([f"{value:,.{decimals}f}" for value in values] for decimals in range(1, 10))
    different = len({f"{value:.9f}" for value in values})
    return next(each for each in texts if len(set(each)) == different)


def mean_words(mean: float, interval: Sequence[float] | None) -> str:
    """A mean with its 95 % interval, if it has one: ``5.5 (95 % interval 4.9 to 6.1)``."""
    if interval is None:
        return f"{mean:,.1f}"
    mean_text, low, high = told_apart(mean, *interval)
    return f"{mean_text} (95 % interval {low} to {high})"


def duration(seconds: float) -> str:
    """A time in the largest unit that fits twice: ``59 s``, ``12 min``, ``6 h``, ``3 days``."""
    for unit, unit_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.0f} {unit}"
    return f"{seconds:.0f} s"


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


def log_time(at_s: float) -> str:
    """A Unix time at the start of a log line: ``2026-01-05 10:12:03,512+0100``.

    The offset from UTC makes logs of hosts in different time zones comparable.
    """
    seconds, milliseconds = divmod(int(at_s * 1000), 1000)
    return time.strftime(f"%Y-%m-%d %H:%M:%S,{milliseconds:03}%z", time.localtime(seconds))


def as_word(path: object) -> str:
    """A path as a word of a shell command, even if the path contains bytes that are not text: ``$'run-\\xff'``."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_in_quotes(byte) for byte in os.fsencode(text)) + "'"


def _in_quotes(byte: int) -> str:
    return f"\\x{byte:02x}" if byte in b"\\'" or not 0x20 <= byte < 0x7F else chr(byte)


def as_text(path: object) -> str:
    """A path in a sentence: as it is, or :func:`as_word` if it cannot be printed."""
    return str(path) if str(path).isprintable() else as_word(path)


def is_utf8(text: str) -> bool:
    """Whether ``text`` is valid text, unlike some names of files."""
    return escaped(text) == text


def escaped(text: str) -> str:
    """``text`` with ``\\xff`` for each byte that is not text, as in the names of some files."""
    return "".join(f"\\x{ord(each) - 0xDC00:02x}" if "\udc80" <= each <= "\udcff" else each for each in text)


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = escaped(error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(ESCAPING, _escape)
