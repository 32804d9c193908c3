"""Files between the run directory and the places that the run has on other hosts: histories come home, and so on."""

import base64
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from zmqrl.checkpoint import MANIFEST, MODEL, name_of
from zmqrl.cluster import agent_files
from zmqrl.cluster.launcher import RECORDER
from zmqrl.cluster.link import Link
from zmqrl.errors import ClusterError
from zmqrl.ps.history import History
from zmqrl.rundir import RunDirectory

COMES_HOME = ("history", "traces", "videos")
# What another host says its files are called is written here, so it had better be no path to somewhere else.
_HARMLESS = re.compile(
    r"history/(?P<shard>shard-\d+)\.[a-z0-9.-]*jsonl|traces/(?P<process>[a-z]+-\d+)\.json|videos/\w[\w.-]*", re.ASCII
)
LIST_EVERY_S = 5.0
TAIL_BYTES = 4096  # of a history: its last lines, whose checksums no other run has
OUTDATED = ""  # in place of a file on its way: a rollback came between


class Mirror:
    """Keeps ``home`` up to date with what was written on the hosts of ``links``.

    Those are the hosts that do not write into ``home`` themselves; of others there is nothing to be done. A file is
    taken only from the host of the process that writes it: ``host_of`` says which that is.
    """

    def __init__(self, links: Mapping[str, Link], home: RunDirectory, host_of: Mapping[str, str]) -> None:
        self.links, self.home, self.host_of = links, home, host_of
        self._listed_at = 0.0
        self._sizes: dict[str, dict[str, int]] = {}  # by host: the files there, as it said last
        self._fetching: dict[str, str] = {}  # by host: the file that is on its way
        self._begun = False  # the processes of this sitting write: what they have is right
        self._agrees: dict[tuple[str, str], bool] = {}  # before that: whether a host's history goes on from ours
        self._checkpoints: defaultdict[str, set[int]] = defaultdict(set)  # by process: those that it needs on its host

    # to the hosts

    def put_history(self, process: str) -> None:
        """Let a shard find its history when it starts. Whatever is asked of its host next finds it, too."""
        self._begun = True
        host, name = self.host_of[process], _history(process)
        if not self._agrees.get((host, name)):
            self._put(host, name)

    def put_checkpoint(self, process: str, version: int) -> None:
        """Let a follower find ``config.json`` and the checkpoint of ``version``, without the optimizer's state."""
        host, path = self.host_of[process], self.home.checkpoints / name_of(version)
        self._checkpoints[process].add(version)
        for file in (self.home.config, path / MODEL, path / MANIFEST):  # which makes it whole
            self._put(host, str(file.relative_to(self.home.path)))

    def drop_checkpoint(self, process: str, version: int) -> None:
        """Remove from the host of ``process`` a checkpoint that was copied there."""
        host = self.host_of[process]
        self._checkpoints[process].discard(version)
        if host in self.links:
            self.links[host].send({"do": "remove", "path": f"checkpoints/{name_of(version)}"})

    def reopened(self, host: str) -> None:
        """A host that was lost is back, perhaps without its files: its processes are to find there what they need."""
        for process in [process for process, at in self.host_of.items() if at == host]:
            if process.startswith("shard-"):  # its own is longer, unless it is gone
                self._put(host, _history(process), unless_longer=True)
            for version in sorted(self._checkpoints[process]):
                self.put_checkpoint(process, version)

    def clean(self, *, whole: bool, but: Collection[str] = ()) -> None:
        """Remove the run's files from the hosts, and its place there if ``whole``."""
        for host in self.links.keys() - set(but):
            self.links[host].send({"do": "clean", "whole": whole})

    def remove_state(self) -> None:
        """Remove the slots of the shards from the hosts: a checkpoint has what was in them."""
        for link in self.links.values():
            link.send({"do": "remove", "path": "state"})

    def _put(self, host: str, name: str, *, unless_longer: bool = False) -> None:
        """Copy a file of the run directory, if it is there, to ``host``."""
        if host not in self.links or not (self.home.path / name).is_file():
            return
        offset, size = 0, 1
        while offset < size:
            piece = agent_files.read(self.home.path, name, offset)
            request = {"do": "put", "path": name, "offset": offset, "data": piece["data"]}
            self.links[host].send(request | ({"unless": piece["size"]} if unless_longer else {}))
            offset, size = offset + agent_files.PIECE_BYTES, piece["size"]

    # and back

    def step(self, now: float) -> None:
        """Ask what there is, now and then."""
        if now - self._listed_at >= LIST_EVERY_S:
            self._listed_at = now
            for link in self.links.values():
                if link.up is not None:
                    link.send({"do": "list", "under": COMES_HOME})

    def rewind(self, version_of: Callable[[int], int], generation: int) -> None:
        """A rollback: each shard moves what is above its version out of its history, and so does the copy here."""
        for shard, host in ((name, host) for name, host in self.host_of.items() if name.startswith("shard-")):
            path = self.home.path / _history(shard)
            if host in self.links and path.exists():
                history = History(path)
                history.rewind(version_of(int(shard.removeprefix("shard-"))), generation)
                history.close()
                if self._fetching.get(host) == _history(shard):
                    self._fetching[host] = OUTDATED

    def bring_home(self, take_in: Callable[[], None], *, within_s: float) -> list[str]:
        """Wait until everything that is on the hosts now is here, at most ``within_s``; the hosts of which not all is.

        Those that are lost are not waited for.
        """
        self._sizes.clear()
        self._listed_at = 0.0
        self.step(LIST_EVERY_S)
        deadline = time.monotonic() + within_s
        while True:
            take_in()
            away = [host for host in self.links if host not in self._sizes or host in self._fetching]
            if all(self.links[host].up is None for host in away) or time.monotonic() >= deadline:
                return away
            time.sleep(0.02)

    def lost(self, host: str) -> None:
        """What was asked of the host is not to be answered any more."""
        self._fetching.pop(host, None)
        self._sizes.pop(host, None)

    def take(self, host: str, event: Mapping[str, Any]) -> None:
        """Take what an agent said about files. Raises ClusterError when a disk, here or there, does not take one."""
        match event:
            case {"is": "list", "files": dict(files)}:
                self._sizes[host] = {
                    name: size for name, size in files.items() if isinstance(size, int) and self._is_from(name, host)
                }
            case {"is": "file", "path": str(path), "offset": int(offset), "size": int(size), "data": str(data)}:
                if self._fetching.pop(host, None) != path:
                    return
                self._sizes.setdefault(host, {})[path] = size
                if not self._begun and (host, path) not in self._agrees and self._size(path):
                    tail, theirs = self._tail(path), base64.b64decode(data)
                    self._agrees[host, path] = theirs.startswith(tail)
                    if self._agrees[host, path]:
                        self._write(path, offset + len(tail), theirs[len(tail) :])
                elif offset in (0, self._size(path)):  # else a rollback came between
                    self._write(path, offset, base64.b64decode(data))
            case {"is": "put", "path": str(path), "error": str(error)} if path.startswith("history/"):
                raise ClusterError(f"host {host} cannot write {path}: {error}.")
        self._fetch_next(host)

    def _is_from(self, name: str, host: str) -> bool:
        """Whether the process that writes the file ``name`` is on ``host``; in sittings before it may have been."""
        found = _HARMLESS.fullmatch(name)
        if found is None:
            return False
        process = found["shard"] or found["process"] or RECORDER
        return self.host_of.get(process) == host or (found["shard"] is not None and not self._begun)

    def _fetch_next(self, host: str) -> None:
        if host in self._fetching:
            return
        for name, size in self._sizes.get(host, {}).items():
            offset = self._lacks_from(host, name, size)
            if offset is not None:
                self._fetching[host] = name
                self.links[host].send({"do": "fetch", "path": name, "offset": offset})
                return

    def _lacks_from(self, host: str, name: str, size: int) -> int | None:
        """From which byte on a file that has ``size`` bytes on ``host`` is to come home, if it is."""
        have = self._size(name)
        compare = not self._begun and have > 0
        if compare and size >= have and (host, name) not in self._agrees:
            return have - len(self._tail(name))
        if compare and not self._agrees.get((host, name)):  # of a sitting before the last one
            return None
        if have > size and not compare and not name.startswith("history/"):  # which a rollback shortens here and there
            return 0
        return have if have < size else None

    def _write(self, name: str, offset: int, data: bytes) -> None:
        error = agent_files.write(self.home.path, name, offset, data)
        if error is not None:
            raise ClusterError(f"cannot write {self.home.path / name}: {error}.")

    def _tail(self, name: str) -> bytes:
        """The last bytes of a file at home."""
        with (self.home.path / name).open("rb") as file:
            file.seek(max(0, self._size(name) - TAIL_BYTES))
            return file.read()

    def _size(self, name: str) -> int:
        try:
            return (self.home.path / name).stat().st_size
        except FileNotFoundError:
            return 0


def _history(shard: str) -> str:
    return f"history/{shard}.jsonl"
