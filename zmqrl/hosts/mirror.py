"""Copies files between the run directory and the hosts of a run, such as histories and checkpoints."""

import base64
import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from zmqrl.checkpoint import MANIFEST, MODEL, name_of
from zmqrl.errors import ClusterError, refusal
from zmqrl.hostd import files
from zmqrl.hostd import messages as h
from zmqrl.hosts.link import Link
from zmqrl.json_lines import open_file
from zmqrl.observe.folding import printable
from zmqrl.process_id import RECORDER, ProcessId, shard_id
from zmqrl.profile.profiler import prune
from zmqrl.ps.shard.history import History
from zmqrl.rundir import RunDirectory

COMES_HOME = ("history", "profile", "videos")
# Hosts choose the names of the files that this machine writes. Names that match stay within the run directory.
_HARMLESS = re.compile(
    r"history/(?P<shard>shard-\d+)\.[a-z0-9.-]*jsonl|profile/(?P<process>[a-z]+-\d+)\.\d+\.\d+(?:\.trace)?\.blocks"
    r"|videos/\w[\w.-]*",
    re.ASCII,
)
LIST_EVERY_S = 5.0
COPY_WITHIN_S = 30.0
TAIL_BYTES = 4096  # enough of a history to identify its run, because lines contain checksums
OUTDATED = ""  # stands in ``_fetching`` for a file that a rollback made out of date


class Mirror:
    """Keeps ``home`` up to date with what processes on the hosts of ``links`` write.

    ``links`` lacks hosts that write into ``home`` directly. The mirror copies the files of a process only from its host
    in ``host_of``.
    """

    def __init__(self, links: Mapping[str, Link], home: RunDirectory, host_of: Mapping[ProcessId, str]) -> None:
        self.links, self.home, self.host_of = links, home, host_of
        self._listed_at = 0.0
        self._sizes: dict[str, dict[str, int]] = {}  # by host: file sizes in its last listing
        self._fetching: dict[str, str] = {}  # by host: the file that is being fetched
        self._begun = False  # whether processes of this session write files, which then replace ours
        self._agrees: dict[tuple[str, str], bool] = {}  # until then, whether the file on a host continues ours
        self._stuck: set[str] = set()  # hosts whose files could not be written here since their last listing
        self._told: set[str] = set()  # unwritable folders that the user has been told about
        self._news: list[str] = []
        self._checkpoints: defaultdict[ProcessId, set[int]] = defaultdict(set)  # versions that a process needs
        self._unwritten: dict[tuple[str, str], str] = {}  # by host and file of a checkpoint: why it is not there
        self._full: set[str] = set()  # hosts without a whole checkpoint since the user was told about such a file

    # to the hosts

    def put_history(self, shard: int) -> None:
        """Copy the history of a shard to its host, ahead of later requests."""
        self._begun = True
        host, name = self.host_of[shard_id(shard)], _history(shard)
        if not self._agrees.get((host, name)):
            self._put(host, name)

    def put_checkpoint(self, process: ProcessId, version: int) -> None:
        """Copy ``config.json`` and the checkpoint of ``version``, without optimizer state, to a follower's host."""
        host = self.host_of[process]
        self._checkpoints[process].add(version)
        for name in self._files_of(version):
            self._unwritten.pop((host, name), None)
            self._put(host, name)

    def drop_checkpoint(self, process: ProcessId, version: int) -> None:
        """Remove a checkpoint from the host of ``process``."""
        host = self.host_of[process]
        self._checkpoints[process].discard(version)
        for name in self._files_of(version)[1:]:
            self._unwritten.pop((host, name), None)
        if host in self.links:
            self.links[host].send(h.Remove(f"checkpoints/{name_of(version)}"))

    def why_missing(self, process: ProcessId, version: int) -> str | None:
        """Why the host of ``process`` lacks a file of the checkpoint of ``version``. None if all could be written."""
        host = self.host_of[process]
        for name in self._files_of(version):
            if why := self._unwritten.get((host, name)):
                return f"host {host} cannot write {name}: {why}"
        return None

    def _files_of(self, version: int) -> list[str]:
        """The files that a follower needs for a checkpoint, by path. The manifest completes a checkpoint."""
        path = self.home.checkpoints / name_of(version)
        return [str(file.relative_to(self.home.path)) for file in (self.home.config, path / MODEL, path / MANIFEST)]

    def reopened(self, host: str) -> None:
        """Copy the files that the processes of a host need: it was lost, and is back, perhaps without them."""
        for process in [process for process, at in self.host_of.items() if at == host]:
            if process.role == "shard":  # the host's own copy, if it still exists, is longer
                self._put(host, _history(process.number), unless_longer=True)
            for version in sorted(self._checkpoints[process]):
                self.put_checkpoint(process, version)

    def clean(self, *, whole: bool, but: Collection[str] = ()) -> None:
        """Remove the run's files, or if ``whole`` its directory, from all hosts except ``but``."""
        for host in self.links.keys() - set(but):
            self.links[host].send(h.Clean(whole))

    def remove_state(self) -> None:
        """Remove the shards' slots from the hosts. Call this only when a checkpoint has their content."""
        for link in self.links.values():
            link.send(h.Remove("state"))

    def _put(self, host: str, name: str, *, unless_longer: bool = False) -> None:
        """Copy a file of the run directory to ``host``, if it exists."""
        if host not in self.links or not (self.home.path / name).is_file():
            return
        offset, size = 0, 1
        while offset < size:
            piece = files.read(self.home.path, name, offset)
            self.links[host].send(h.Put(name, offset, piece.data, piece.size if unless_longer else None))
            offset, size = offset + files.PIECE_BYTES, piece.size

    # from the hosts

    def step(self, now: float) -> None:
        """Ask the hosts for their files every ``LIST_EVERY_S``."""
        if now - self._listed_at >= LIST_EVERY_S:
            self._listed_at = now
            for link in self.links.values():
                if link.up is not None:
                    link.send(h.List(COMES_HOME))

    def rewind(self, version_of: Callable[[int], int], generation: int) -> None:
        """Roll back the copies of the histories, as shards do with the originals.

        If that fails, as on a full disk, remove the copy, to fetch it again.
        """
        for process, host in self.host_of.items():
            if process.role != "shard" or host not in self.links:
                continue
            path = self.home.path / _history(process.number)
            if not path.exists():
                continue
            if self._fetching.get(host) == _history(process.number):
                self._fetching[host] = OUTDATED
            try:
                with contextlib.closing(History(path)) as history:
                    history.rewind(version_of(process.number), generation)
            except (ClusterError, OSError) as error:
                path.unlink()
                why = refusal(error, path) if isinstance(error, OSError) else str(error)
                self._news.append(f"{why.rstrip('.')}; the file will be copied again from {host}")

    def copy_back(self, receive: Callable[[], None], *, within_s: float = COPY_WITHIN_S) -> list[str]:
        """Wait at most ``within_s`` for all files of the hosts. Returns the hosts whose files are still missing here.

        ``receive`` is the launcher's method. The call waits neither for lost hosts nor for space on this machine.
        """
        self._sizes.clear()
        self._stuck.clear()
        self._listed_at = 0.0
        self.step(LIST_EVERY_S)
        deadline = time.monotonic() + within_s
        while True:
            receive()
            away = [h for h in self.links if h not in self._sizes or h in self._fetching or h in self._stuck]
            given_up = all(self.links[host].up is None or host in self._stuck for host in away)
            if given_up or time.monotonic() >= deadline:
                return away
            time.sleep(0.02)

    def lost(self, host: str) -> None:
        """Forget the open requests to a lost host."""
        self._fetching.pop(host, None)
        self._sizes.pop(host, None)

    def take_news(self) -> list[str]:
        """Sentences, returned once, about files not written here or on a host, and histories not rolled back."""
        news, self._news = self._news, []
        return news

    def take(self, host: str, event: h.Listing | h.Piece | h.Written) -> None:
        """Handle a daemon's message about files. Raises ClusterError if the host cannot write a history."""
        match event:
            case h.Listing():
                self._stuck.discard(host)
                self._sizes[host] = {name: size for name, size in event.files.items() if self._is_from(name, host)}
                for process in [process for process, at in self.host_of.items() if at == host]:
                    prune(self.home.profile, process)  # the process also prunes on its host
            case h.Piece(path=path):
                if self._fetching.pop(host, None) != path:
                    return
                self._sizes.setdefault(host, {})[path] = event.size
                data = base64.b64decode(event.data)
                if not self._begun and (host, path) not in self._agrees and self._size(path):
                    tail = self._tail(path)
                    self._agrees[host, path] = data.startswith(tail)
                    if self._agrees[host, path]:
                        self._write(host, path, event.offset + len(tail), data[len(tail) :])
                elif event.offset in (0, self._size(path)):  # otherwise, a rollback came after the request
                    self._write(host, path, event.offset, data)
            case h.Written(path=path, error=str(error)) if path.startswith("history/"):
                raise ClusterError(f"host {host} cannot write {path}: {error}.")
            case h.Written():
                self._written(host, event.path, event.error)
        self._fetch_next(host)

    def _written(self, host: str, path: str, error: str | None) -> None:
        """Note whether a piece of a file of a checkpoint could be written on ``host``."""
        for process, version in self._waiting(host):
            if path not in self._files_of(version):
                continue
            if error is not None:
                self._unwritten[host, path] = printable(error)
                if host not in self._full:  # one notice, however many files and checkpoints
                    self._full.add(host)
                    why = self.why_missing(process, version)
                    self._news.append(f"{why}; {process} skips the checkpoints that this host cannot write")
                return
            if self._size(path) <= files.PIECE_BYTES:  # the whole file is there
                self._unwritten.pop((host, path), None)
            if path.endswith(MANIFEST) and self.why_missing(process, version) is None:
                self._full.discard(host)

    def _waiting(self, host: str) -> list[tuple[ProcessId, int]]:
        """The followers on ``host``, with each version that they need."""
        needs = [(each, versions) for each, versions in self._checkpoints.items() if self.host_of[each] == host]
        return [(each, version) for each, versions in needs for version in sorted(versions)]

    def _is_from(self, name: str, host: str) -> bool:
        """Whether ``host`` runs the process that writes the file ``name``.

        Before this session's processes write, any host may have the history, because shards may have run there.
        """
        found = _HARMLESS.fullmatch(name)
        if found is None:
            return False
        try:
            process = ProcessId.parse(found["shard"] or found["process"] or str(RECORDER))
        except ValueError:  # the file name does not name a process
            return False
        return self.host_of.get(process) == host or (found["shard"] is not None and not self._begun)

    def _fetch_next(self, host: str) -> None:
        if host in self._fetching or host in self._stuck:
            return
        for name, size in self._sizes.get(host, {}).items():
            offset = self._lacks_from(host, name, size)
            if offset is not None:
                self._fetching[host] = name
                self.links[host].send(h.FetchPiece(name, offset))
                return

    def _lacks_from(self, host: str, name: str, size: int) -> int | None:
        """The offset from which to fetch a file of ``size`` bytes on ``host``. None if nothing is missing."""
        have = self._size(name)
        compare = not self._begun and have > 0
        if compare and size >= have and (host, name) not in self._agrees:
            return have - len(self._tail(name))
        if compare and not self._agrees.get((host, name)):  # the file on the host is out of date
            return None
        # A rollback shortens a history on both sides. Any other file that is shorter on the host has been replaced.
        if have > size and not compare and not name.startswith("history/"):
            return 0
        return have if have < size else None

    def _write(self, host: str, name: str, offset: int, data: bytes) -> None:
        """Write a piece of a file. If that fails, try again after the next listing."""
        folder, error = name.partition("/")[0], files.write(self.home.path, name, offset, data)
        if error is None:
            self._told.discard(folder)
            return
        self._stuck.add(host)
        if folder not in self._told:  # one notice for all files of a kind
            self._told.add(folder)
            self._news.append(f"cannot write {self.home.path / name}: {error}; {host} keeps it until it can be written")

    def _tail(self, name: str) -> bytes:
        with open_file(self.home.path / name) as file:
            file.seek(max(0, self._size(name) - TAIL_BYTES))
            return file.read()

    def _size(self, name: str) -> int:
        try:
            return (self.home.path / name).stat().st_size
        except FileNotFoundError:
            return 0


def _history(shard: int) -> str:
    return f"history/{shard_id(shard)}.jsonl"
