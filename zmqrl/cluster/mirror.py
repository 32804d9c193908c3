"""Files between the run directory and the places that the run has on other hosts: histories come home, and so on."""

import base64
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zmqrl.cluster.agent import CHUNK_BYTES
from zmqrl.cluster.link import Link
from zmqrl.errors import ClusterError
from zmqrl.rundir import RunDirectory

COMES_HOME = ("history", "traces", "videos")
# What another host says its files are called is written here, so it had better be no path to somewhere else.
_HARMLESS = re.compile(rf"({'|'.join(COMES_HOME)})/[A-Za-z0-9][A-Za-z0-9._-]*")
LIST_EVERY_S = 5.0


class Mirror:
    """Keeps ``home`` up to date with what was written on the hosts of ``links``.

    Those are the hosts that do not write into ``home`` themselves; of others there is nothing to be done.
    """

    def __init__(self, links: Mapping[str, Link], home: RunDirectory) -> None:
        self.links, self.home = links, home
        self._listed_at = 0.0
        self._sizes: dict[str, dict[str, int]] = {}  # by host: the files there, as it said last
        self._fetching: dict[str, str] = {}  # by host: the file that is on its way

    def put(self, host: str, name: str) -> None:
        """Copy a file of the run directory, if it is there, to ``host``. Whatever is asked of it next finds it."""
        path = self.home.path / name
        if host not in self.links or not path.is_file():
            return
        data, offset = path.read_bytes(), 0
        while offset == 0 or offset < len(data):
            piece = data[offset : offset + CHUNK_BYTES]
            self.links[host].send(
                {"do": "put", "path": name, "offset": offset, "data": base64.b64encode(piece).decode()}
            )
            offset += CHUNK_BYTES

    def put_checkpoint(self, host: str, name: str) -> None:
        """Copy ``config.json`` and the checkpoint ``name``, such as ``v00001000``, to ``host``."""
        if host not in self.links:
            return
        path = self.home.checkpoints / name
        files = sorted(path.iterdir(), key=lambda file: file.name == "manifest.json")  # it makes a checkpoint whole
        for file in (self.home.config, *files):
            self.put(host, str(file.relative_to(self.home.path)))

    def step(self, now: float) -> None:
        """Ask what there is, now and then."""
        if now - self._listed_at >= LIST_EVERY_S:
            self._listed_at = now
            for link in self.links.values():
                if link.up is not None:
                    link.send({"do": "list", "under": COMES_HOME})

    def forget_histories(self) -> None:
        """A rollback writes histories anew: what is here may not be the beginning of what is there."""
        for sizes in self._sizes.values():
            for name in sizes:
                if name.startswith("history/"):
                    (self.home.path / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the run's files from the hosts: all that counts is at home."""
        for link in self.links.values():
            link.send({"do": "clean"})

    def take(self, host: str, event: Mapping[str, Any]) -> None:
        """Take what an agent said about files."""
        match event["is"]:
            case "list":
                self._sizes[host] = {name: size for name, size in event["files"].items() if _HARMLESS.fullmatch(name)}
            case "file" if event["path"] == self._fetching.pop(host, None):
                self._write(self.home.path / event["path"], event["offset"], base64.b64decode(event["data"]))
                self._sizes[host][event["path"]] = event["size"]
            case "put" if event["error"]:
                raise ClusterError(f"host {host} cannot write {event['path']}: {event['error']}.")
        self._fetch_next(host)

    def bring_home(self, take_in: Callable[[], None], *, within_s: float) -> bool:
        """Wait until everything is here that is on the hosts now, at most ``within_s``; whether it came in time."""
        hosts = {host for host, link in self.links.items() if link.up is not None}
        self._sizes.clear()
        self._listed_at = 0.0
        self.step(LIST_EVERY_S)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            take_in()
            if self._sizes.keys() >= hosts and not self._fetching:
                return True
            time.sleep(0.02)
        return False

    def _fetch_next(self, host: str) -> None:
        if host in self._fetching:
            return
        for name, size in self._sizes.get(host, {}).items():
            have = self._size(name)
            if have != size:
                self._fetching[host] = name
                self.links[host].send({"do": "fetch", "path": name, "offset": have if have < size else 0})
                return

    def _size(self, name: str) -> int:
        try:
            return (self.home.path / name).stat().st_size
        except FileNotFoundError:
            return 0

    def _write(self, path: Path, offset: int, data: bytes) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError as error:
            raise ClusterError(f"cannot write {path}: {error.strerror}.") from error
