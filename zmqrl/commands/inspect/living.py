"""The state of a run, seen from another terminal: whether it is alive, and what a dead run left on its hosts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from zmqrl.errors import ClusterError, UsageError
from zmqrl.hostd.inspection import is_here
from zmqrl.hostd.messages import Seen
from zmqrl.hosts.link import Link, LinkLost
from zmqrl.json_lines import read_json
from zmqrl.observe.forms import SUMMARY, read_object
from zmqrl.observe.live.figures import Live, read_live
from zmqrl.observe.stalls import Stall
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.rundir import RunDirectory, not_a_run
from zmqrl.words import as_word

ANSWER_WITHIN_S = 15.0
MOST_AT_A_TIME = 16  # hosts


@dataclass(frozen=True, slots=True)
class Living:
    """The state of a run, from its run directory.

    ``cluster`` is the content of ``cluster.json``, or of ``left.json`` if the run was killed. It is None before the
    session is up, and after the run has ended.
    """

    directory: RunDirectory
    cluster: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the run directory ``path``. Raises UsageError if it is not a run directory, or has a damaged file."""
        directory = RunDirectory(path)
        if not directory.config.is_file():
            raise not_a_run(path)
        # left.json is out of date while a run is being resumed.
        for file in (directory.cluster, *([] if directory.in_use() else [directory.left])):
            try:
                found = cls(directory, read_json(file))
                found.processes()
                bool(found.is_here)
                return found
            except FileNotFoundError:
                continue
            except PermissionError:
                raise UsageError(
                    f"only the user of the run can read {file}: `zmqrl serve {path}` shows what others can read."
                ) from None
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', error)}.") from error
            except (KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{file} is damaged: {error!r}.") from error
        return cls(directory, None)

    def is_alive(self) -> bool:
        """Whether the supervisor of the run is alive."""
        return self.directory.in_use() or self.is_alive_elsewhere()

    def is_alive_elsewhere(self) -> bool:
        """Whether a supervisor on another machine, whose lock may not be visible here, has just written the figures."""
        return self.directory.cluster.exists() and not self.is_here and self.live().is_new

    @property
    def is_here(self) -> bool:
        """Whether the process id of the supervisor is, or was, valid here."""
        if self.cluster is None:
            return False
        supervisor = self.cluster["supervisor"]
        return is_here(supervisor["host"], supervisor.get("pid_space"))

    def processes(self) -> list[tuple[ProcessId, str, int | None]]:
        """Process, host and process id of each process in ``cluster.json``."""
        cluster = self.cluster or {"shards": [], "workers": [], "followers": []}
        return [
            *((shard_id(each["shard"]), each["host"], each["pid"]) for each in cluster["shards"]),
            *((worker_id(each["rank"]), each["host"], each["pid"]) for each in cluster["workers"]),
            *((ProcessId.parse(each["name"]), each["host"], each["pid"]) for each in cluster["followers"]),
        ]

    def stall(self) -> Stall | None:
        """The stalled version, if any, as the supervisor last wrote it."""
        try:
            stall = Stall.from_json(read_json(self.directory.stalled))
            stall.sentence()
            return stall
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            return None

    def live(self) -> Live:
        """The newest figures and the processes, as the supervisor last wrote them."""
        return read_live(self.directory.live)

    def links(self) -> list[Link]:
        """The hosts of the run."""
        links = [Link.from_dict(data) for data in (self.cluster or {}).get("hosts", [])]
        for link in links:
            if link.lease_s is None:  # all files are in the run directory, whose name may have changed
                link.work = str(self.directory.path)
        return links

    def elsewhere(self) -> str | None:
        """The machine that launched the run, if only commands there can reach all hosts."""
        launched_on = None if self.cluster is None else str(self.cluster["supervisor"]["host"])
        return launched_on if any(link.is_elsewhere(launched_on) for link in self.links()) else None

    def hosts(self) -> dict[str, Seen | str]:
        """The answer of each host, or why it gave none."""
        links, elsewhere = self.links(), self.elsewhere()

        def look(link: Link) -> Seen | str:
            return f"it was the machine {elsewhere}: ask there" if link.is_elsewhere(elsewhere) else _look(link)

        with ThreadPoolExecutor(max(1, min(len(links), MOST_AT_A_TIME))) as pool:
            return dict(zip([link.host for link in links], pool.map(look, links), strict=True))


def exit_status_of(directory: RunDirectory) -> int:
    """The exit status of a run that has ended. Raises ClusterError if its supervisor left no summary."""
    path, summary = directory.path, read_object(directory.summary, SUMMARY, "remove the file")
    if summary is None:
        raise ClusterError(
            f"the supervisor of {path} died before the end of the run, or could not write {directory.summary.name}: "
            f"see zmqrl status {as_word(path)}."
        )
    if "exit_status" not in summary:  # an older zmqrl wrote it
        from zmqrl.supervisor.ending import exit_status  # rarely needed, and slow

        reason = summary["exit_reason"]
        return exit_status(reason, ClusterError() if reason == "failed" else None)
    return int(summary["exit_status"])


def _look(link: Link) -> Seen | str:
    try:
        return link.look(ANSWER_WITHIN_S)
    except LinkLost as lost:
        return lost.why
