"""Files between the run directory and the places that the run has on other hosts: histories come home, and so on."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

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
        self._begun = False  # the processes of this sitting write: what they have is right, also where it is less

    # to the hosts

    def put(self, host: str, name: str) -> None:
        """Copy a file of the run directory, if it is there, to ``host``. Whatever is asked of it next finds it."""
        self._begun = True
        if host not in self.links or not (self.home.path / name).is_file():
            return
        offset, size = 0, 1
        while offset < size:
            piece = agent_files.read(self.home.path, name, offset)
            self.links[host].send({"do": "put", "path": name, "offset": offset, "data": piece["data"]})
            offset, size = offset + agent_files.PIECE_BYTES, piece["size"]

    def put_checkpoint(self, process: str, version: int) -> None:
        """Copy ``config.json`` and the checkpoint of ``version`` to the host of ``process``."""
        host = self.host_of[process]
        if host not in self.links:
            return
        path = self.home.checkpoints / f"v{version:08d}"
        files = sorted(path.iterdir(), key=lambda file: file.name == "manifest.json")  # it makes a checkpoint whole
        for file in (self.home.config, *files):
            self.put(host, str(file.relative_to(self.home.path)))

    def drop_checkpoint(self, process: str, version: int) -> None:
        """Remove from the host of ``process`` a checkpoint that was copied there."""
        host = self.host_of[process]
        if host in self.links:
            self.links[host].send({"do": "remove", "path": f"checkpoints/v{version:08d}"})

    def clean(self, *, whole: bool) -> None:
        """Remove the run's files from the hosts, and its place there if ``whole``."""
        for link in self.links.values():
            link.send({"do": "clean", "whole": whole})

    # and back

    def step(self, now: float) -> None:
        """Ask what there is, now and then."""
        if now - self._listed_at >= LIST_EVERY_S:
            self._listed_at = now
            for link in self.links.values():
                if link.up is not None:
                    link.send({"do": "list", "under": COMES_HOME})

    def rewind(self, version: int, generation: int) -> None:
        """A rollback: the shards move what is above ``version`` out of their histories, and so do the copies here."""
        for shard, host in ((name, host) for name, host in self.host_of.items() if name.startswith("shard-")):
            path = self.home.path / "history" / f"{shard}.jsonl"
            if host in self.links and path.exists():
                history = History(path)
                history.rewind(version, generation)
                history.close()

    def bring_home(self, take_in: Callable[[], None], *, within_s: float) -> bool:
        """Wait until everything is here that is on the hosts now, at most ``within_s``; whether it all came."""
        self._sizes.clear()
        self._listed_at = 0.0
        self.step(LIST_EVERY_S)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            take_in()
            if self._sizes.keys() >= self.links.keys() and not self._fetching:
                return True
            time.sleep(0.02)
        return False

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
                if offset in (0, self._size(path)):  # else a rollback came between
                    error = agent_files.write(self.home.path, path, offset, data)
                    if error is not None:
                        raise ClusterError(f"cannot write {self.home.path / path}: {error}.")
                self._sizes.setdefault(host, {})[path] = size
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
            have = self._size(name)
            if have < size or (have > size and self._begun):  # a shorter one is of a sitting before the last one
                self._fetching[host] = name
                self.links[host].send({"do": "fetch", "path": name, "offset": have if have < size else 0})
                return

    def _size(self, name: str) -> int:
        try:
            return (self.home.path / name).stat().st_size
        except FileNotFoundError:
            return 0
