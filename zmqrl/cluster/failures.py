"""Which death began what a run has not recovered from. No processes, no clock."""

from collections.abc import Sequence
from pathlib import Path

from zmqrl.cluster.launcher import Exited
from zmqrl.errors import ClusterError, UsageError, ZmqrlError
from zmqrl.observe.folding import printable

TOLD_WITHIN_S = 2.0  # how late it may be told that a version was made


class Failures:
    """Keeps the first death since the run last made versions; others may have followed from it.

    One that was killed for no reason we know counts only as long as no other is dead: it says less.
    """

    def __init__(self) -> None:
        self.first: Exited | None = None
        self._at = 0.0
        self._version = 0

    def died(self, exited: Exited, now: float) -> None:
        """A process died."""
        if self.first is None or (_killed(self.first) and not _killed(exited)):
            self.first, self._at = exited, now

    def made(self, version: int, now: float) -> None:
        """All shards have made ``version``. If some were made since the first death, the run has survived it."""
        if self.first is not None and now - self._at > TOLD_WITHIN_S and version > self._version:
            self.first = None
        self._version = max(version, self._version)


def _killed(exited: Exited) -> bool:
    return exited.status == -9 and exited.why is None


def quoted(lines: Sequence[str]) -> str:
    """Lines of a log, each on a line of its own."""
    return "".join(f"\n  | {printable(line)}" for line in lines)


def explained(error: ClusterError, first: Exited, host: str, log: Path, *, begun: bool) -> ZmqrlError:
    """The error of a run that ends with the death it began with: where, how, and what stood in the ``log`` then.

    It is a UsageError if that process ended with one, or refused to work before the run had ``begun``.
    """
    refused = {UsageError.exit_status} if begun else {UsageError.exit_status, ClusterError.exit_status}
    kind = UsageError if first.status in refused else ClusterError
    tail = quoted(first.log_tail.splitlines())
    end = f"ended with{tail}" if tail else "was empty."
    return kind(f"{error}\nThe first to fail was {first.name} on {host} ({first.how()}); its log {log} {end}")
