"""Helpers for tests of the page: ``zmqrl serve`` in a process of its own, requests to it, and profiles in files."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from support.rig import ending

from zmqrl.profile.run_tables import ProcessTables
from zmqrl.profile.tables import FORMAT, pack

WITHIN_S = 60.0
BLOCKS_WRITTEN = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. The names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class ServedPage:
    """A page that is being served at ``url``, the printed address."""

    url: str
    process: "subprocess.Popen[str] | None" = None
    cookie: str = ""

    @property
    def base(self) -> str:
        """The random path with which all paths of requests begin, without its last slash."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def open(self) -> None:
        """Open the printed address, as a browser does, and keep the cookie."""
        answer = self.ask(f"/?{urlsplit(self.url).query}")
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    def ask(
        self, path: str, *, method: str = "GET", host: str | None = None, base: str | None = None, **headers: str
    ) -> Answer:
        """Send a request for a path below ``base``. Underscores in the names of ``headers`` stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        try:
            address = (self.base if base is None else base) + path
            connection.putrequest(method, address, skip_host=True, skip_accept_encoding=True)
            sent = {"host": host or f"127.0.0.1:{self.port}", "cookie": self.cookie, **headers}
            for name, value in sent.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            found = connection.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def json(self, path: str, **parameters: Any) -> Any:
        answer = self.ask(f"/api/{path}?{urlencode(parameters, doseq=True)}")
        assert answer.status == 200, answer
        return answer.json()


@contextmanager
def served_page(root: Path, *options: str) -> Iterator[ServedPage]:
    """``zmqrl serve`` on a free port."""
    command = [sys.executable, "-m", "zmqrl", "serve", str(root), "--port", "0", *options]
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)) as process:
        assert process.stdout is not None
        yield ServedPage(process.stdout.readline().strip(), process)


def write_profile(directory: Path, processes: Sequence[ProcessTables]) -> Path:
    """Write the profiles of processes to the files of a profile, in several blocks."""
    directory.mkdir(exist_ok=True)
    for each in processes:
        about = {
            "format": FORMAT,
            "process": str(each.process),
            "incarnation": each.incarnation,
            "run": each.run,
            "host": each.host,
            "clock": each.clock,
            "cores": 2,
            "machine_cores": 4,
            "machine_memory_kb": 8_000_000,
            "spans": [],
        }
        parts = {name: np.array_split(rows[0], BLOCKS_WRITTEN) for name, rows in each.tables.items()}
        blocks: list[bytes] = []
        for number in range(BLOCKS_WRITTEN):
            tables = {name: part[number].tolist() for name, part in parts.items()}
            at_us = 5_000_000 * number
            tables["machine"] = [[at_us, 0, 0, at_us // 2, 0, 0, 100_000]]
            blocks.append(pack({"spans": [], **({} if blocks else {"about": about, "earlier": {}})}, tables))
        (directory / f"{each.process}.{each.incarnation}.0.blocks").write_bytes(b"".join(blocks))
    return directory
